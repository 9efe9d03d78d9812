"""Turn light into a photograph: blur, exposure, vignetting, noise, tone curve."""

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, UInt8

SHOULDER = 0.6
"""Linear light from which the tone curve bends."""
_GREY = 0.2
"""Mean light that the automatic exposure aims at; it goes half of the way."""


class Lens(NamedTuple):
    """One camera and its settings."""

    exposure: float
    blur: float
    """Standard deviation of the point spread, output pixels."""
    motion: tuple[float, float]
    """Length in output pixels and direction in radians of motion blur."""
    vignette: float
    """Share of the light lost in the corners."""
    noise: float
    """Standard deviation at mid grey, display units."""
    grain: float
    """Size of the noise's grain, pixels."""
    quality: int
    """Quality of the JPEG."""
    seed: int
    """Seed of the noise."""


def sample(rng: np.random.Generator) -> Lens:
    """Draw moderate defects; most pictures are clean."""
    moving = rng.random() < 0.15
    return Lens(
        exposure=float(rng.uniform(0.8, 1.25)),
        blur=float(0.38 + max(0.0, rng.normal(0, 0.25))),
        motion=(float(rng.uniform(1, 5)) if moving else 0.0, rng.uniform(0, np.pi)),
        vignette=float(rng.uniform(0, 0.35) if rng.random() < 0.5 else 0),
        noise=float(abs(rng.normal(0, 0.007))),
        grain=float(rng.uniform(0.3, 0.9)),
        quality=int(rng.integers(70, 96)),
        seed=int(rng.integers(2**31)),
    )


def expose(
    light: Float[np.ndarray, "fine fine 3"], lens: Lens, size: int
) -> UInt8[np.ndarray, "size size 3"]:
    """Turn supersampled linear light into display RGB.

    Args:
        light: Linear RGB up to 1, several samples to a pixel along each side.
        lens: The camera.
        size: Pixels along each side of the picture.
    """
    per_pixel = light.shape[0] / size
    if lens.motion[0] > 0:
        light = cv2.filter2D(light, -1, _streak(lens.motion, per_pixel))
    light = cv2.GaussianBlur(light, (0, 0), lens.blur * per_pixel)
    image = cv2.resize(light, (size, size), interpolation=cv2.INTER_AREA)
    if lens.vignette > 0:
        u = np.linspace(-1, 1, size, dtype=np.float32)
        falloff = 1 - lens.vignette * (u[:, None] ** 2 + u[None] ** 2) / 2
        image = image * falloff[..., None].astype(np.float32)
    image *= np.float32(_gain(image))
    image = np.clip(image, 0, 1) ** np.float32(1 / 2.2)
    image = image + _noise(lens, image)
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def _gain(image: np.ndarray) -> float:
    """Return the gain of automatic exposure; it causes no new clipping."""
    brightest = float(np.percentile(image[::4, ::4].max(-1), 99))
    gain = (_GREY / max(float(image.mean()), 1e-4)) ** 0.5
    return min(max(gain, 0.75), 2.5, max(1.0, 0.98 / max(brightest, 1e-4)))


def _streak(motion: tuple[float, float], per_pixel: float) -> np.ndarray:
    length, angle = motion[0] * per_pixel, motion[1]
    half = int(np.ceil(length / 2)) + 1
    kernel = np.zeros((2 * half + 1, 2 * half + 1), np.float32)
    for step in np.linspace(-length / 2, length / 2, 8 * half):
        x, y = half + step * np.cos(angle), half + step * np.sin(angle)
        x0, y0 = int(x), int(y)
        for i, wy in ((y0, 1 - y + y0), (y0 + 1, y - y0)):
            for j, wx in ((x0, 1 - x + x0), (x0 + 1, x - x0)):
                kernel[i, j] += wy * wx
    return kernel / kernel.sum()


def _noise(lens: Lens, image: np.ndarray) -> np.ndarray:
    """Draw grainy noise, stronger in shadows and mostly the same in all colours."""
    rng = np.random.default_rng(lens.seed)
    size = image.shape[0]
    noise = rng.standard_normal((size, size, 4), dtype=np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), lens.grain)
    noise /= noise.std()
    both = 0.8 * noise[..., 3:] + 0.6 * noise[..., :3]
    return lens.noise * both * (1.25 - 0.5 * np.clip(image, 0, 1))
