"""Random boxes, turns and colours of training examples; numpy with explicit generators.

The released augmentation of SimpleHand, which TokenHand inherits, as config values.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8


class AugmentConfig(NamedTuple):
    """Strengths; the defaults are those of the released SimpleHand training code."""

    center_jitter: float = 0.1
    """The box centre moves by up to this share of the box width, along both axes."""
    scale: tuple[float, float] = (1.0, 1.5)
    """The box grows by a factor from this range."""
    rotation: str = "uniform"
    """"uniform" over +-`max_rotation`; "released": a normal angle of sigma 90, clipped
    to +-180 and then used as *radians*, which is nearly uniform over the circle."""
    max_rotation: float = np.pi
    """Radians."""
    flip: float = 0.0
    """Probability of mirroring a crop with its labels. Off, because a mirrored hand is
    in no codebook of right hands; SimpleHand's released value is 0.5."""
    channel_noise: float = 0.4
    """Each colour channel is multiplied by a factor from 1 +- this, saturating."""
    brightness: tuple[float, float] = (-0.4, 0.1)
    """Added brightness, as a share of 255."""
    contrast: float = 0.2
    """Contrast factor from 1 +- this."""


NONE = AugmentConfig(
    center_jitter=0.0,
    scale=(1.0, 1.0),
    max_rotation=0.0,
    channel_noise=0.0,
    brightness=(0.0, 0.0),
    contrast=0.0,
)
"""No augmentation at all."""


def config_from(values: dict) -> AugmentConfig:
    """Defaults changed by `config.data.augment`.

    Raises:
        ValueError: for an unknown key or value.
    """
    unknown = sorted(set(values) - set(AugmentConfig._fields))
    if unknown:
        raise ValueError(
            f"config.data.augment has no key {unknown[0]!r}; allowed: "
            f"{', '.join(AugmentConfig._fields)}."
        )
    config = AugmentConfig(**values)
    if config.rotation not in ("uniform", "released"):
        raise ValueError(
            f"config.data.augment.rotation={config.rotation!r} is not one of "
            "'uniform', 'released'."
        )
    return config


def jitter_box(
    rng: np.random.Generator,
    config: AugmentConfig,
    center: Float[np.ndarray, "2"],
    extent: Float[np.ndarray, "2"],
    image_size: tuple[int, int],
) -> tuple[Float[np.ndarray, "2"], Float[np.ndarray, "2"]]:
    """Moved and grown box; its centre stays in the image (height, width)."""
    height, width = image_size
    shift = rng.uniform(-1, 1, 2) * config.center_jitter * extent[0]
    low, high = np.zeros(2), np.array([width - 1.0, height - 1.0])
    return np.clip(center + shift, low, high), extent * rng.uniform(*config.scale)


def angle(rng: np.random.Generator, config: AugmentConfig) -> float:
    """In-plane turn, radians."""
    if config.rotation == "released":
        return float(np.clip(rng.normal() * 90.0, -180.0, 180.0))
    return float(rng.uniform(-1, 1) * config.max_rotation)


def colours(
    rng: np.random.Generator,
    config: AugmentConfig,
    image: UInt8[np.ndarray, "height width 3"],
) -> UInt8[np.ndarray, "height width 3"]:
    """Channel noise, then brightness and contrast, each step saturating."""
    channel = 1 + rng.uniform(-1, 1, 3) * config.channel_noise
    contrast = 1 + rng.uniform(-1, 1) * config.contrast
    brightness = 255 * rng.uniform(*config.brightness)
    # Both steps act on each value of each channel alone: one table of 3 x 256 entries.
    levels = np.arange(256.0)[:, None]
    levels = np.trunc(np.clip(levels * channel, 0, 255))
    levels = np.trunc(np.clip(levels * contrast + brightness, 0, 255)).astype(np.uint8)
    return np.take_along_axis(levels, image.reshape(-1, 3), axis=0).reshape(image.shape)
