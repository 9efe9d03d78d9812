"""Random boxes, turns and colours of training examples; numpy, a batch at a time.

The released augmentation of SimpleHand, which TokenHand inherits, as config values.
Every example has its own row of uniform numbers (`draws`), which depends on the seed
and on the example's position in training alone, not on batches, threads or processes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy.special import ndtri

NUM_DRAWS = 10
_SHIFT, _SCALE, _ANGLE = slice(0, 2), 2, 3
_CHANNEL, _CONTRAST, _BRIGHTNESS, _FLIP = slice(4, 7), 7, 8, 9


class AugmentConfig(NamedTuple):
    """Strengths; the defaults are those of the released SimpleHand training code."""

    center_jitter: float = 0.1
    """The box centre moves by up to this share of the box width, along both axes."""
    scale: tuple[float, float] = (1.0, 1.5)
    """The box grows by a factor from this range."""
    rotation: str = "uniform"
    """In-plane turn: "uniform" over +-`max_rotation`, or "released": a normal angle of
    sigma 90, clipped to +-180, used as *radians*: nearly uniform on the circle."""
    max_rotation: float = float(np.pi)
    """Radians."""
    flip: float = 0.0
    """Probability of mirroring a crop with its labels. Off, because a mirrored hand is
    in no codebook of right hands; SimpleHand's released value is 0.5."""
    channel_noise: float = 0.4
    """Each colour channel is multiplied by a factor from 1 +- this, saturating."""
    brightness: tuple[float, float] = (-0.4, 0.1)
    """Added brightness, as a share of 255."""
    contrast: float = 0.2
    """Contrast factor from 1 +- this; below 1."""


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
        ValueError: for an unknown key, or a value outside its range.
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
    for name in ("scale", "brightness"):
        _check_range(name, getattr(config, name))
    if config.scale[0] <= 0:
        raise ValueError(
            f"config.data.augment.scale={config.scale!r} must be above 0: it "
            "multiplies the box."
        )
    for name in ("channel_noise", "contrast"):
        if not 0 <= getattr(config, name) < 1:
            raise ValueError(
                f"config.data.augment.{name}={getattr(config, name)!r} must be a "
                "number from 0 to below 1."
            )
    if not 0 <= config.flip <= 1:
        raise ValueError(
            f"config.data.augment.flip={config.flip!r} is no probability; give a "
            "number from 0 to 1."
        )
    return config


def _check_range(name: str, value: Sequence[float]) -> None:
    if len(value) != 2 or not value[0] <= value[1]:
        raise ValueError(
            f"config.data.augment.{name}={value!r} must be two numbers, the smaller "
            "first."
        )


def draws(seed: int, positions: Sequence[int]) -> Float[np.ndarray, "batch draw"]:
    """Uniform numbers in [0, 1) of the examples at these positions of training."""
    # One generator whose key is changed: making one for each would take five times as
    # long.
    bits = np.random.Philox(key=[seed, 0])
    generator, state = np.random.Generator(bits), bits.state
    rows = np.empty((len(positions), NUM_DRAWS))
    for row, position in zip(rows, positions, strict=True):
        state["state"]["key"][1] = position
        bits.state = state
        generator.random(out=row)
    return rows


def jitter_boxes(
    config: AugmentConfig,
    drawn: Float[np.ndarray, "batch draw"],
    center: Float[np.ndarray, "batch 2"],
    extent: Float[np.ndarray, "batch 2"],
    last_px: Float[np.ndarray, "batch 2"],
) -> tuple[Float[np.ndarray, "batch 2"], Float[np.ndarray, "batch 2"]]:
    """Moved and grown boxes; centres stay in the picture.

    Args:
        config: strengths.
        drawn: from `draws`.
        center: x, y of the tight boxes.
        extent: their width and height.
        last_px: x, y of the last pixel of each picture.
    """
    shift = (2 * drawn[:, _SHIFT] - 1) * config.center_jitter * extent[:, :1]
    low, high = config.scale
    scale = low + (high - low) * drawn[:, _SCALE, None]
    return np.clip(center + shift, 0, last_px), extent * scale


def angles(
    config: AugmentConfig, drawn: Float[np.ndarray, "batch draw"]
) -> Float[np.ndarray, "batch"]:
    """In-plane turns, radians."""
    if config.rotation == "released":
        return np.clip(90 * ndtri(drawn[:, _ANGLE]), -180, 180)
    return (2 * drawn[:, _ANGLE] - 1) * config.max_rotation


def flips(
    config: AugmentConfig, drawn: Float[np.ndarray, "batch draw"]
) -> Bool[np.ndarray, "batch"]:
    """Which crops are mirrored."""
    return drawn[:, _FLIP] < config.flip


class Colours(NamedTuple):
    """What is done to each value x of channel c: min(gain_c x + offset, ceiling)."""

    affine: Float[np.ndarray, "batch 3 4"]
    """Gains on the diagonal, offset in the last column."""
    ceiling: Float[np.ndarray, "batch"]


def colours(config: AugmentConfig, drawn: Float[np.ndarray, "batch draw"]) -> Colours:
    """Channel noise, then contrast and brightness, each saturating at 0 and 255.

    clip(k clip(n x) + b) = clip(min(k n x + b, 255 k + b)): the first saturation is a
    ceiling for the second step, whose gain k is positive.
    """
    channel = 1 + (2 * drawn[:, _CHANNEL] - 1) * config.channel_noise
    contrast = 1 + (2 * drawn[:, _CONTRAST] - 1) * config.contrast
    low, high = config.brightness
    brightness = 255 * (low + (high - low) * drawn[:, _BRIGHTNESS])
    affine = np.zeros((len(drawn), 3, 4), np.float32)
    affine[:, range(3), range(3)] = channel * contrast[:, None]
    affine[:, :, 3] = brightness[:, None]
    return Colours(affine, np.clip(255 * contrast + brightness, 0, 255))


def recolour(
    image: UInt8[np.ndarray, "height width 3"],
    affine: Float[np.ndarray, "3 4"],
    ceiling: float,
    out: UInt8[np.ndarray, "height width 3"],
) -> None:
    """Apply one row of `Colours`."""
    cv2.transform(image, affine, dst=out)
    if ceiling < 255:
        cv2.threshold(out, ceiling, 255, cv2.THRESH_TRUNC, dst=out)
