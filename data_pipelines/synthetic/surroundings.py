"""Draw light and background: panoramas, plain walls, tables that catch shadows."""

import functools
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from data_pipelines.synthetic import hand as hands
from handjax.io import image_files

_DIRECTIONS = np.random.default_rng(0).normal(size=(64, 3))
_DIRECTIONS /= np.linalg.norm(_DIRECTIONS, axis=1, keepdims=True)


class Panorama(NamedTuple):
    """One environment map (camera axes: x right, y down, z forward)."""

    image: Float[np.ndarray, "height width 3"]
    """Linear RGB, equirectangular."""
    harmonics: Float[np.ndarray, "9 3"]
    """Irradiance / pi without the brightest light."""
    key_direction: Float[np.ndarray, "3"]
    key_colour: Float[np.ndarray, "3"]


class Light(NamedTuple):
    """A directional light."""

    direction: Float[np.ndarray, "3"]
    """Unit vector towards it, camera axes."""
    colour: Float[np.ndarray, "3"]


class Surroundings(NamedTuple):
    """Lights and background of the scene."""

    background: Float[np.ndarray, "size size 3"]
    """Linear RGB."""
    harmonics: Float[np.ndarray, "9 3"]
    lights: list[Light]


@functools.cache
def panorama_names() -> tuple[str, ...]:
    """Return the names of the built-in environment maps."""
    with np.load(hands.ASSETS / "envs.npz") as arrays:
        return tuple(sorted({key.rsplit("_", 1)[0] for key in arrays.files}))


@functools.cache
def panorama(name: str) -> Panorama:
    """Read one environment map (once per process)."""
    with np.load(hands.ASSETS / "envs.npz") as arrays:
        jpeg = arrays[f"{name}_ldr"].tobytes()
        harmonics = arrays[f"{name}_sh"].astype(float)
        key = arrays[f"{name}_key"].astype(float)
    with image_files.opened(jpeg) as picture:
        image = np.asarray(picture.convert("RGB"), np.float32) / 255
    # Repeated columns let the sampler run over the seam.
    image = np.concatenate([image[:, -8:], image, image[:, :8]], 1)
    return Panorama((image**2.2).astype(np.float32), harmonics, key[:3], key[3:])


def sample(rng: np.random.Generator, size: int) -> Surroundings:
    """Draw light and background; most are photographs of places."""
    tint = rng.normal(0, 0.08)
    white = np.array([1 + tint, 1, 1 - tint])
    if rng.random() < 0.72:
        return _place(rng, size, white)
    return _studio(rng, size, white)


def _place(rng: np.random.Generator, size: int, white: np.ndarray) -> Surroundings:
    names = panorama_names()
    place = panorama(names[rng.integers(len(names))])
    angles = [rng.uniform(-180, 180), rng.normal(0, 18), rng.normal(0, 8)]
    turn = Rotation.from_euler("yxz", angles, degrees=True).as_matrix()
    gain = rng.uniform(0.7, 1.3)
    key = place.key_colour * gain * white * rng.uniform(0.5, 1)
    lights = [Light(turn @ place.key_direction, key)]
    if rng.random() < 0.3:
        direction = _unit(rng.normal(0, 1, 3) + [0, -0.3, -0.8])
        lights.append(Light(direction, white * rng.uniform(0.1, 0.5)))
    return Surroundings(
        _view(rng, place, turn, size) * white.astype(np.float32),
        rotate_harmonics(place.harmonics, turn) * gain * white,
        lights,
    )


def _view(rng, place: Panorama, turn: np.ndarray, size: int) -> np.ndarray:
    """Draw a photograph of the place, more or less out of focus."""
    half_field = np.radians(rng.uniform(40, 100)) / 2
    focal = 0.5 / np.tan(half_field)
    u = ((np.arange(size) + 0.5) / size - 0.5).astype(np.float32)
    x, y = np.meshgrid(u, u)
    ray = np.stack([x, y, np.full_like(x, focal)], -1) @ turn.astype(np.float32)
    ray /= np.linalg.norm(ray, axis=-1, keepdims=True)
    height, width = place.image.shape[0], place.image.shape[1] - 16
    column = (np.arctan2(ray[..., 0], ray[..., 2]) / (2 * np.pi) + 0.5) * width + 7.5
    row = np.arccos(np.clip(-ray[..., 1], -1, 1)) / np.pi * height - 0.5
    image = cv2.remap(
        place.image,
        column.astype(np.float32),
        row.astype(np.float32),
        cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REPLICATE,
    )
    # Pixels of the picture per pixel of the panorama: below that there is no detail.
    magnified = size / (2 * half_field) * 2 * np.pi / width
    blur = np.hypot(0.45 * magnified, size / 224 * rng.gamma(1.2, 1.3))
    image = cv2.GaussianBlur(np.maximum(image, 0), (0, 0), float(blur))
    return image * np.float32(rng.uniform(0.55, 1.4))


def _studio(rng: np.random.Generator, size: int, white: np.ndarray) -> Surroundings:
    """Draw lamps in a plain room."""
    lights = []
    for i in range(rng.integers(1, 4)):
        direction = _unit(rng.normal(0, 1, 3) * [1, 1, 0.8] + [0, -0.5, -0.6])
        colour = white * (1 + rng.normal(0, 0.05, 3)) * rng.uniform(0.4, 1.1) / (1 + i)
        lights.append(Light(direction, colour))
    above = white * rng.uniform(0.25, 0.8) * (1 + rng.normal(0, 0.04, 3))
    below = white * rng.uniform(0.1, 0.45) * (1 + rng.normal(0, 0.08, 3))
    up = _unit(rng.normal(0, 0.4, 3) + [0, -1, -0.2])
    harmonics = np.zeros((9, 3))
    harmonics[0] = (above + below) / 2 / 0.282095
    harmonics[[3, 1, 2]] = up[:, None] * (above - below) / 2 / 0.488603
    return Surroundings(_wall(rng, size) * white.astype(np.float32), harmonics, lights)


def _wall(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw a wall out of focus: uneven light, perhaps soft shapes of a room."""
    colour = muted_colour(rng, 0.5) ** 2.2
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size - 0.5
    angle, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.9)
    light = 1 + slope * (np.cos(angle) * x + np.sin(angle) * y)
    spot = rng.uniform(-0.6, 0.6, 2)
    light = light * (
        1 - rng.uniform(0, 0.4) * ((x - spot[0]) ** 2 + (y - spot[1]) ** 2)
    )
    image = colour * light[..., None]
    for _ in range(rng.integers(0, 3)):
        shape = np.zeros((size, size), np.float32)
        # Centred on the rim: doors, shelves and windows are seldom seen whole.
        centre = np.where(rng.random(2) < 0.5, rng.uniform(-0.1, 1.1, 2), 0.0)
        centre = np.where(rng.random(2) < 0.5, centre, 1.0) * size
        sides = rng.uniform(0.3, 1.4, 2) * size
        box = cv2.boxPoints((centre.tolist(), sides.tolist(), float(rng.normal(0, 6))))
        cv2.fillPoly(shape, [box.astype(np.int32)], 1.0)
        shape = cv2.GaussianBlur(shape, (0, 0), float(rng.uniform(1.5, 9) * size / 224))
        other = (muted_colour(rng, 0.7) ** 2.2) * light[..., None]
        image = image + shape[..., None] * rng.uniform(0.4, 1) * (other - image)
    return np.clip(image, 0.002, 1.2).astype(np.float32)


def muted_colour(rng: np.random.Generator, vivid: float = 1.0) -> np.ndarray:
    """Draw a display colour as walls, clothes and things have it: seldom garish."""
    bright = rng.uniform(0.08, 0.92)
    colour = bright + rng.normal(0, 1, 3) * rng.gamma(1.5, 0.05) * vivid
    warm = np.array([0.06, 0.01, -0.06]) * rng.uniform(-0.3, 1.5)
    return np.clip(colour + warm * bright, 0.03, 0.96)


def harmonic_basis(
    direction: Float[np.ndarray, "point 3"],
) -> Float[np.ndarray, "point 9"]:
    """Return the nine real spherical harmonics up to degree 2 at unit vectors."""
    x, y, z = direction.T
    return np.stack(
        [
            np.full_like(x, 0.282095),
            0.488603 * y,
            0.488603 * z,
            0.488603 * x,
            1.092548 * x * y,
            1.092548 * y * z,
            0.315392 * (3 * z * z - 1),
            1.092548 * x * z,
            0.546274 * (x * x - y * y),
        ],
        -1,
    )


def rotate_harmonics(
    harmonics: Float[np.ndarray, "9 3"], turn: Float[np.ndarray, "3 3"]
) -> Float[np.ndarray, "9 3"]:
    """Return coefficients of f(turn^-1 d): exact, as rotation keeps degree 2."""
    values = harmonic_basis(_DIRECTIONS @ turn) @ harmonics
    return np.linalg.lstsq(harmonic_basis(_DIRECTIONS), values, rcond=None)[0]


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)
