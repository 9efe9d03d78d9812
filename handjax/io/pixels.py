"""Pictures of any bit depth to RGB of 8 bits, which all models read.

Nothing is clipped: values are scaled by the range that their format states, and
refused where no range is stated.
"""

from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from handjax.errors import UserError

_WHITE_OF_16_BITS = 65535
_TIFF_BITS, _TIFF_PHOTOMETRIC = 258, 262
_TIFF_WHITE_IS_ZERO = 0


def from_picture(picture: Image.Image) -> UInt8[np.ndarray, "height width 3"]:
    """Return the RGB pixels of a loaded Pillow picture of any mode, without alpha.

    Raises:
        UserError: Its values have no stated range (floats outside 0..1, 32-bit
            integers above 255), or its colours cannot be converted.
    """
    mode = picture.mode
    if mode.startswith("I;16") or (mode == "I" and picture.format in ("PNG", "PPM")):
        white = _white(picture)
        grey = np.rint(np.asarray(picture, np.float64) * (255 / white))
        return _grey(_positive(picture, np.minimum(grey, 255).astype(np.uint8)))
    if mode in ("I", "F"):
        return _positive(picture, from_array(np.asarray(picture)))
    if mode in ("RGBa", "La"):
        # Pillow converts premultiplied colours only to the same colours with alpha.
        picture = picture.convert(mode.upper())
    try:
        return np.array(picture.convert("RGB"))
    except ValueError:
        raise UserError(
            f"pictures of mode {mode!r} cannot be converted to RGB; save it as RGB."
        ) from None


def _white(picture: Image.Image) -> int:
    """Return the value of white in a picture of more than 8 bits."""
    bits = getattr(picture, "tag_v2", {}).get(_TIFF_BITS, (16,))
    bits = bits[0] if isinstance(bits, tuple) else bits
    return 2 ** int(bits) - 1


def _positive(picture: Image.Image, pixels: np.ndarray) -> np.ndarray:
    """Invert TIFFs whose zero is white; Pillow does that for 8 bits alone."""
    tags = getattr(picture, "tag_v2", {})
    return (
        255 - pixels if tags.get(_TIFF_PHOTOMETRIC) == _TIFF_WHITE_IS_ZERO else pixels
    )


def from_array(values: Any) -> UInt8[np.ndarray, "height width 3"]:
    """Return RGB pixels 0..255 for an array, a Pillow picture, or nested lists.

    Args:
        values: (height, width) or (height, width, 1) grey, (height, width, 3) RGB or
            (height, width, 4) RGBA, whose alpha is left out. Integers are 0..255,
            whatever their type; floats are 0..1; of booleans True is white.

    Raises:
        UserError: Another shape, or values outside of that range.
    """
    if isinstance(values, Image.Image):
        values.load()
        return from_picture(values)
    if isinstance(values, bytes | str) or values is None:
        raise UserError(
            f"a picture was expected, and {type(values).__name__} was given; give a "
            "path, or an array (height, width, 3) of RGB pixels 0..255."
        )
    try:
        array = np.asarray(values)
    except Exception as error:  # whatever a foreign array type raises
        raise UserError(
            f"{type(values).__name__} cannot be read as an array ({error}); give "
            "(height, width, 3) RGB pixels 0..255."
        ) from None
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 3, 4) or not array.size:
        raise UserError(
            f"a picture of shape {array.shape} is not one of (height, width), "
            "(height, width, 3) RGB or (height, width, 4) RGBA; give one picture, "
            "channels last."
        )
    array = _eight_bits(array)
    return _grey(array) if channels == 1 else np.ascontiguousarray(array[..., :3])


def _grey(array: np.ndarray) -> np.ndarray:
    return np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2)


def _eight_bits(array: np.ndarray) -> UInt8[np.ndarray, "..."]:
    kind = array.dtype.kind
    if array.dtype == np.uint8:
        return array
    if kind == "b":
        return array.astype(np.uint8) * np.uint8(255)
    # bfloat16 and its kin are of numpy's kind "V", and convert like floats.
    if kind not in "iufV" or array.dtype.names:
        raise UserError(f"pixels of type {array.dtype} are not numbers; give uint8.")
    if kind == "V":
        array = array.astype(np.float32)
    low, high = float(array.min()), float(array.max())
    shown = f"{array.dtype} pixels of {low:g}..{high:g}"
    if kind in "iu":
        if low < 0 or high > 255:
            raise UserError(
                f"{shown}: integers have to be 0..255; scale them so (16-bit pixels: "
                "divide by 257) and give uint8."
            )
        return array.astype(np.uint8)
    if not (low >= 0 and high <= 1):
        raise UserError(
            f"{shown}: floats have to be 0..1; divide by their white, or give uint8 "
            "0..255."
        )
    return np.rint(array * 255).astype(np.uint8)
