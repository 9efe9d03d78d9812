"""From 0..255 pixels to what a backbone takes."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from handjax.errors import UserError

CHANNEL_ORDERS = ("rgb", "bgr")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of pixels in 0..1, RGB: what public backbone weights are made for."""


def normalised(
    image: Any,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    channel_order: str,
    dtype: Any,
) -> Float[Array, "batch height width 3"]:
    """Scale to 0..1, order the channels, subtract the mean, divide by the deviation.

    Args:
        image: RGB, 0..255, (batch, height, width, 3).
        mean: Of each channel after ordering, for pixels in 0..1.
        std: The same.
        channel_order: One of `CHANNEL_ORDERS`: what the weights were trained on.
        dtype: Of the result.

    Raises:
        UserError: For another channel order.
    """
    if channel_order not in CHANNEL_ORDERS:
        raise UserError(
            f"config.model.channel_order={channel_order!r} is not one of "
            f"{', '.join(CHANNEL_ORDERS)}."
        )
    image = jnp.asarray(image, jnp.float32) / 255
    if channel_order == "bgr":
        image = image[..., ::-1]
    image = (image - jnp.array(mean)[None, None, None]) / jnp.array(std)[
        None, None, None
    ]
    return image.astype(dtype)


def middle_columns(image: Any, *, multiple: int = 8) -> Any:
    """Return the middle three quarters of a crop's columns, as HaMeR's kin use.

    Args:
        image: (batch, height, width, 3).
        multiple: What the side has to divide by.

    Raises:
        UserError: The crop is not square, or its side does not divide.
    """
    height, width = image.shape[1:3]
    if height != width or width % multiple:
        raise UserError(
            f"The network was given images of {height} x {width} (height x width); it "
            f"takes square crops whose side divides by {multiple}, and looks at the "
            "middle 3/4 of the columns. Released weights are for "
            "config.data.crop_size=256."
        )
    return image[:, :, width // 8 : width - width // 8]


def check_sides(name: str, height: int, width: int) -> None:
    """Refuse images whose sides a backbone cannot halve five times.

    Raises:
        UserError: Says which crops are allowed.
    """
    if height % 32 or width % 32:
        raise UserError(
            f"{name} was given images of {height} x {width} (height x width); both "
            "sides must be multiples of 32. Choose config.data.crop_size so: a "
            "multiple of 32, or of 128 for families that look at the middle 3/4 of a "
            "crop's columns (hamer, hamba, mmhmr)."
        )
