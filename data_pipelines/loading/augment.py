"""Random boxes, turns and colours of training examples; numpy, a batch at a time.

Two published recipes with their amounts as config values: SimpleHand's, which TokenHand
inherits, and HaMeR's, which Hamba inherits. A recipe turns its draws into `Changes`,
which are applied in the same way for both. Every example has its own row
of uniform numbers (`draws`), which depends on the seed and on the example's position in
training alone, not on batches, threads or processes.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy.special import ndtri

from handjax.errors import UserError

NUM_DRAWS = 10
_SHIFT, _SCALE, _ANGLE = slice(0, 2), 2, 3
_CHANNEL, _CONTRAST, _BRIGHTNESS, _FLIP = slice(4, 7), 7, 8, 9
_TURNED = 9  # of HaMeR's recipe, which does not flip


class Changes(NamedTuple):
    """Changes to each example of a batch."""

    shift: Float[np.ndarray, "batch 2"]
    """Movement of the box's centre, pixels of the photo."""
    growth: Float[np.ndarray, "batch"]
    """Factor on the sides of the tight box."""
    angle: Float[np.ndarray, "batch"]
    """In-plane turn, radians."""
    flip: Bool[np.ndarray, "batch"]
    """Whether the crop is mirrored."""
    channel: Float[np.ndarray, "batch 3"]
    """Factor on each colour channel."""
    contrast: Float[np.ndarray, "batch"]
    """Factor on all channels."""
    brightness: Float[np.ndarray, "batch"]
    """Added value, as a share of 255."""


class AugmentConfig(NamedTuple):
    """Strengths of SimpleHand's recipe; the defaults are those of its released code."""

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

    def changes(
        self,
        drawn: Float[np.ndarray, "batch draw"],
        extent: Float[np.ndarray, "batch 2"],
        box_scale: float,
    ) -> Changes:
        """Turn uniform draws into changes of boxes of this extent.

        Args:
            drawn: From `draws`.
            extent: Width and height of the tight boxes, pixels.
            box_scale: Their growth in evaluation; not used, `scale` replaces it.
        """
        del box_scale
        (low, high), (dark, bright) = self.scale, self.brightness
        return Changes(
            shift=(2 * drawn[:, _SHIFT] - 1) * self.center_jitter * extent[:, :1],
            growth=low + (high - low) * drawn[:, _SCALE],
            angle=self._angles(drawn[:, _ANGLE]),
            flip=drawn[:, _FLIP] < self.flip,
            channel=1 + (2 * drawn[:, _CHANNEL] - 1) * self.channel_noise,
            contrast=1 + (2 * drawn[:, _CONTRAST] - 1) * self.contrast,
            brightness=dark + (bright - dark) * drawn[:, _BRIGHTNESS],
        )

    def _angles(self, uniform: np.ndarray) -> np.ndarray:
        if self.rotation == "released":
            return np.clip(90 * ndtri(uniform), -180, 180)
        return (2 * uniform - 1) * self.max_rotation


class HamerConfig(NamedTuple):
    """Strengths of HaMeR's recipe; the defaults are those of its released code.

    Normal numbers are clipped, not drawn anew: a third of the boxes have the largest or
    the smallest size.
    """

    shift: float = 0.02
    """Standard deviation of the box's centre along both axes, clipped at one of them;
    a share of the side of evaluation's box."""
    scale: float = 0.3
    """Standard deviation of the growth of that box, clipped at one; below 1."""
    rotation: float = float(np.pi / 6)
    """Standard deviation of the in-plane turn, radians, clipped at two."""
    rotation_rate: float = 0.6
    """Probability that an example is turned at all."""
    channel_noise: float = 0.2
    """Each colour channel is multiplied by a factor from 1 +- this, saturating."""

    def changes(
        self,
        drawn: Float[np.ndarray, "batch draw"],
        extent: Float[np.ndarray, "batch 2"],
        box_scale: float,
    ) -> Changes:
        """Turn uniform draws into changes of boxes of this extent.

        Args:
            drawn: From `draws`.
            extent: Width and height of the tight boxes, pixels.
            box_scale: Their growth in evaluation, about which `scale` varies.
        """
        side = box_scale * extent.max(axis=1, keepdims=True)
        turned = drawn[:, _TURNED] < self.rotation_rate
        same = np.ones(len(drawn))
        return Changes(
            shift=self.shift * _clipped_normal(drawn[:, _SHIFT], 1.0) * side,
            growth=box_scale
            * (1 + self.scale * _clipped_normal(drawn[:, _SCALE], 1.0)),
            angle=turned * self.rotation * _clipped_normal(drawn[:, _ANGLE], 2.0),
            flip=np.zeros(len(drawn), bool),
            channel=1 + (2 * drawn[:, _CHANNEL] - 1) * self.channel_noise,
            contrast=same,
            brightness=0 * same,
        )


def _clipped_normal(uniform: np.ndarray, limit: float) -> np.ndarray:
    return np.clip(ndtri(uniform), -limit, limit)


Recipe = AugmentConfig | HamerConfig


def config_from(values: dict[str, Any]) -> Recipe:
    """Return the recipe that `config.data.augment` names, with its amounts.

    SimpleHand's amounts are keys of `values`, HaMeR's of `values["hamer"]`.

    Raises:
        UserError: For an unknown recipe or key, or a value outside its range.
    """
    recipe = values.get("recipe", "simplehand")
    if recipe == "hamer":
        return _hamer(values.get("hamer", {}))
    if recipe == "simplehand":
        amounts = {k: v for k, v in values.items() if k not in ("recipe", "hamer")}
        return _simplehand(amounts)
    raise UserError(
        f"config.data.augment.recipe={recipe!r} is not one of 'simplehand', 'hamer'."
    )


def _simplehand(values: dict[str, Any]) -> AugmentConfig:
    _check_keys("augment", values, AugmentConfig._fields)
    config = AugmentConfig(**values)
    if config.rotation not in ("uniform", "released"):
        raise UserError(
            f"config.data.augment.rotation={config.rotation!r} is not one of "
            "'uniform', 'released'."
        )
    for name in ("scale", "brightness"):
        _check_range(name, getattr(config, name))
    if config.scale[0] <= 0:
        raise UserError(
            f"config.data.augment.scale={config.scale!r} must be above 0: it "
            "multiplies the box."
        )
    for name in ("channel_noise", "contrast"):
        _check_share(name, getattr(config, name))
    _check_probability("flip", config.flip)
    return config


def _hamer(values: dict[str, Any]) -> HamerConfig:
    _check_keys("augment.hamer", values, HamerConfig._fields)
    config = HamerConfig(**values)
    for name in ("shift", "scale", "channel_noise"):
        _check_share(f"hamer.{name}", getattr(config, name))
    _check_probability("hamer.rotation_rate", config.rotation_rate)
    if not 0 <= config.rotation < np.inf:
        raise UserError(
            f"config.data.augment.hamer.rotation={config.rotation!r} must be an angle "
            "in radians, 0 or more."
        )
    return config


def _check_keys(where: str, values: dict[str, Any], known: tuple[str, ...]) -> None:
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise UserError(
            f"config.data.{where} has no key {unknown[0]!r}; allowed: "
            f"{', '.join(known)}."
        )


def _check_share(name: str, value: float | int) -> None:
    if not 0 <= value < 1:
        raise UserError(
            f"config.data.augment.{name}={value!r} must be a number from 0 to below 1."
        )


def _check_probability(name: str, value: float | int) -> None:
    if not 0 <= value <= 1:
        raise UserError(
            f"config.data.augment.{name}={value!r} is not a probability; give a number "
            "from 0 to 1."
        )


def _check_range(name: str, value: Sequence[float]) -> None:
    if len(value) != 2 or not value[0] <= value[1]:
        raise UserError(
            f"config.data.augment.{name}={value!r} must be two numbers, the smaller "
            "first."
        )


def draws(seed: int, positions: Sequence[int]) -> Float[np.ndarray, "batch draw"]:
    """Draw uniform numbers in [0, 1) for the examples at these training positions."""
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


def move_boxes(
    changes: Changes,
    center: Float[np.ndarray, "batch 2"],
    extent: Float[np.ndarray, "batch 2"],
    last_px: Float[np.ndarray, "batch 2"],
) -> tuple[Float[np.ndarray, "batch 2"], Float[np.ndarray, "batch 2"]]:
    """Move and grow boxes; their centres stay in the picture.

    Args:
        changes: Changes of the examples.
        center: Centres (x, y) of the tight boxes.
        extent: Their width and height.
        last_px: Last pixel (x, y) of each picture.
    """
    moved = np.clip(center + changes.shift, 0, last_px)
    return moved, extent * changes.growth[:, None]


class Colours(NamedTuple):
    """Change of each value x of channel c: min(gain_c x + offset, ceiling)."""

    affine: Float[np.ndarray, "batch 3 4"]
    """Gains on the diagonal, offset in the last column."""
    ceiling: Float[np.ndarray, "batch"]


def colours(changes: Changes) -> Colours:
    """Combine channel noise, contrast and brightness, each saturating at 0 and 255.

    clip(k clip(n x) + b) = clip(min(k n x + b, 255 k + b)): the first saturation is a
    ceiling for the second step, whose gain k is positive.
    """
    contrast, brightness = changes.contrast, 255 * changes.brightness
    affine = np.zeros((len(contrast), 3, 4), np.float32)
    affine[:, range(3), range(3)] = changes.channel * contrast[:, None]
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
