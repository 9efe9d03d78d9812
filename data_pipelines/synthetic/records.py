"""Make one picture and its annotations from a seed; the fields of `schema`."""

import io

import numpy as np
from PIL import Image

from data_pipelines.synthetic import render, scene

SPLITS = {"train": 1, "test": 2}
"""Splits, and the number that separates their randomness."""
_MIRROR = np.array([1.0, -1.0, -1.0])
"""A reflection in x turns an axis-angle vector (x, y, z) into (x, -y, -z)."""


class Generator:
    """Makes example `index` of a split; depends on nothing but the seed."""

    def __init__(
        self,
        *,
        seed: int,
        image_size: int,
        left_fraction: int | float,
        max_turn: int | float = 180.0,
        recipe: str = "default",
    ):
        self.seed, self.left_fraction = seed, left_fraction
        # Test pictures do not change with the recipe, so that results compare.
        self._samplers = {
            split: scene.Sampler(image_size, max_turn, name)
            for split, name in (("train", recipe), ("test", "default"))
        }

    def __call__(self, split: str, index: int) -> dict:
        """Return one record, see `data_pipelines.storage.schema`."""
        sampler, attempt = self._samplers[split], 0
        while True:
            rng = np.random.default_rng([self.seed, SPLITS[split], index, attempt])
            is_right = bool(rng.random() >= self.left_fraction)
            drawn = sampler(rng)
            picture = render.render(drawn, least_visible=sampler.recipe.least_visible)
            if picture is not None:
                break
            attempt += 1
        key = f"{split}/{self.seed}/{index}"
        return _record(drawn, picture, key=key, is_right=is_right)


def _record(
    drawn: scene.Scene, picture: render.Picture, *, key: str, is_right: bool
) -> dict:
    """Return the annotations; for a left hand the whole world is mirrored."""
    size = len(picture.image)
    image, vertices, joints3d = picture.image, drawn.vertices, drawn.joints3d
    mano_pose, transl = drawn.mano_pose, drawn.transl
    if not is_right:
        flip = np.array([-1.0, 1.0, 1.0])
        image = image[:, ::-1]
        vertices, joints3d, transl = vertices * flip, joints3d * flip, transl * flip
        mano_pose = mano_pose * _MIRROR
    joints2d = project(joints3d, drawn.intrinsics)
    outline = project(vertices, drawn.intrinsics)
    inside = ((joints2d >= 0) & (joints2d <= size - 1)).all(-1)
    low, high = outline.min(0), outline.max(0)
    low, high = np.maximum(low, 0), np.minimum(high, size - 1)
    ones = np.ones((len(joints3d), 1))
    betas = {"mano_betas": drawn.betas, "mano_transl": transl}
    return {
        "image": jpeg(image, drawn.lens.quality),
        "image_size": np.array([size, size]),
        "crop_origin": np.zeros(2),
        "crop_scale": 1.0,
        "key": key,
        "dataset": "synthetic",
        "is_right": is_right,
        "bbox_center": (low + high) / 2,
        "bbox_size": high - low,
        "joints2d": np.column_stack([joints2d, inside]),
        "joints3d": np.concatenate([joints3d, ones], -1),
        "vertices": vertices,
        "mano_pose": mano_pose.reshape(48),
        **({} if drawn.betas is None else betas),
        "K": drawn.intrinsics,
        "occluded": picture.hidden,
        "visible": picture.visible,
    }


def project(points: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """Project to pixels by a pinhole; the centre of the first pixel is (0, 0)."""
    homogeneous = points @ intrinsics.T
    return homogeneous[:, :2] / homogeneous[:, 2:]


def jpeg(image: np.ndarray, quality: int) -> bytes:
    """Encode a picture as it is stored."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
