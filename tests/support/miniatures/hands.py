"""Hands of the built-in model in front of cameras, for miniatures of data sets."""

import io
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

from handjax.mano import model_files, numpy_skinning
from handjax.visualization import render

FILES = {True: model_files.load("open"), False: model_files.load("open", side="left")}
"""By `is_right`."""
LEFT_MODELS = {"as_is": 1, "x_negated": 2, "all_negated": 3}


class Posed(NamedTuple):
    """A hand as records have it: metres, OpenCV axes of its camera, absolute pose."""

    is_right: bool
    pose: np.ndarray
    """(48,)."""
    betas: np.ndarray
    transl: np.ndarray
    vertices: np.ndarray
    joints3d: np.ndarray
    """(21, 3) in `skeleton.JOINTS` order."""


def posed(
    seed: int,
    *,
    is_right: bool = True,
    place: tuple[float, float, float] = (0.0, 0.0, 0.6),
) -> Posed:
    """A random hand whose middle knuckle is at `place`."""
    rng = np.random.default_rng([seed, is_right])
    file = FILES[is_right]
    pose = rng.normal(0, 0.15, 48)
    pose[3:] += file.hands_mean
    # Fingers up, palm or back to the camera, somewhat turned.
    upright = Rotation.from_euler("z", -90 if is_right else 90, degrees=True)
    turned = Rotation.from_rotvec(rng.normal(0, 0.5, 3)) * upright.inv()
    pose[:3] = turned.as_rotvec()
    betas = rng.normal(0, 1, 10).clip(-2, 2)
    mesh = numpy_skinning.posed(file, pose.reshape(16, 3), betas)
    transl = np.array(place) - (model_files.joint_regressor(file) @ mesh)[9]
    return _placed(is_right, pose, betas, transl)


def _placed(is_right, pose, betas, transl) -> Posed:
    file = FILES[is_right]
    vertices = numpy_skinning.posed(file, pose.reshape(16, 3), betas) + transl
    joints3d = model_files.joint_regressor(file) @ vertices
    return Posed(is_right, pose, betas, transl, vertices, joints3d)


def reshaped(hand: Posed, betas: np.ndarray) -> Posed:
    """The same pose and translation with another shape."""
    return _placed(hand.is_right, hand.pose, betas, hand.transl)


def camera(width: int, height: int, focal: float) -> np.ndarray:
    """A camera matrix whose axis is a little off the middle."""
    return np.array(
        [[focal, 0, width / 2 - 3.25], [0, focal, height / 2 + 2.5], [0, 0, 1]]
    )


def project(points: np.ndarray, K: np.ndarray) -> np.ndarray:
    pixels = points @ K.T
    return pixels[:, :2] / pixels[:, 2:]


def picture(
    hands: list[Posed],
    K: np.ndarray,
    width: int,
    height: int,
    *,
    seed: int = 0,
    noise: float = 0.0,
) -> np.ndarray:
    """Hands before coloured clouds, RGB; with noise like a sensor's."""
    rng = np.random.default_rng(seed)
    clouds = cv2.resize(
        rng.uniform(30, 200, (4, 4, 3)), (width, height), interpolation=cv2.INTER_CUBIC
    )
    image = clouds.clip(0, 255).astype(np.uint8)
    for hand in sorted(hands, key=lambda h: -h.transl[2]):
        faces = FILES[hand.is_right].faces
        image = render.draw_mesh(image, hand.vertices, faces, K, alpha=1.0)
    if noise:
        noisy = image + rng.normal(0, noise, image.shape)
        image = noisy.clip(0, 255).astype(np.uint8)
    return image


def encoded(image: np.ndarray, kind: str = "JPEG") -> bytes:
    """A picture file; grey if the array has two axes."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()
