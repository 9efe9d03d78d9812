"""Hands that a model finds on a split, in the frames that benchmarks score them in.

Undoes what `data_pipelines.loading.examples` does to a record: the virtual camera of
the crop is turned back, left hands are mirrored back, pixels go back to the source's
picture.

Models answer relative to a root joint. Where that is in front of the camera follows
from the predicted depth of the root and its pixel, or else from the predicted 2-D
joints (`camera.solve_translation`); a model that predicts neither leaves it in the
camera's centre. Aligned and root-relative scores do not depend on it.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from data_pipelines.loading import annotations as record_hands
from data_pipelines.storage.shards import Split
from handjax.evaluation.protocols import PhotoHands
from handjax.geometry import camera, crop
from handjax.types import Batch, HandOutput

_FIELDS = (*record_hands.FIELDS, "key", "crop_origin", "crop_scale")
_READ = tuple(name for name in _FIELDS if name != "image")
# Without jit its loop would be compiled at every call.
_solve_translation = jax.jit(camera.solve_translation)


def collect(
    predict: Callable[[Any, Batch], HandOutput],
    variables: Any,
    eval_batches: Iterable[Batch],
    split: Split,
    *,
    root: int,
    on_batch: Callable[[int], None] | None = None,
) -> tuple[PhotoHands, np.ndarray]:
    """Predict a split.

    Args:
        predict: Compiled; gives one answer for each hand.
        variables: Its first argument.
        eval_batches: Numpy batches of the split, padding marked by `example_valid`.
        split: Where their records are.
        root: Joint that the answers are relative to.
        on_batch: Called with the number of hands done so far.

    Returns:
        The hands, and their positions in the split.
    """
    parts, indices, count = [], [], 0
    for batch in eval_batches:
        output = jax.device_get(predict(variables, batch)._replace(logits=None))
        valid = np.asarray(batch.example_valid)
        index = np.asarray(batch.index)[valid]
        records = [split.read(int(i), _READ) for i in index]
        if records:
            rows = (_rows(x, valid) for x in (batch, output))
            parts.append(_in_photo(*rows, records, root))
            indices.append(index)
        count += len(index)
        if on_batch:
            on_batch(count)
    if not parts:
        return from_arrays(_nothing(split)), np.zeros(0, np.int64)
    return joined(parts), np.concatenate(indices)


def _nothing(split: Split) -> dict[str, np.ndarray]:
    """A share of a split that has fewer hands than there are processes."""
    points = np.zeros((0, split.counts.joints, 3))
    return {
        "keys": np.zeros(0, str),
        "joints3d": points,
        "vertices": np.zeros((0, split.counts.vertices, 3)),
        "joints2d": points[..., :2],
        "is_right": np.zeros(0, bool),
        "truth3d": points,
    }


def joined(parts: list[PhotoHands], order: np.ndarray | None = None) -> PhotoHands:
    """Hands of several parts after each other, or in another order."""
    found = [arrays(part) for part in parts]
    whole = {name: np.concatenate([x[name] for x in found]) for name in found[0]}
    if order is not None:
        whole = {name: rows[order] for name, rows in whole.items()}
    return from_arrays(whole)


def arrays(hands: PhotoHands) -> dict[str, np.ndarray]:
    """Hands as arrays alone; `from_arrays` undoes it."""
    found = {name: x for name, x in hands._asdict().items() if x is not None}
    return {name: np.asarray(x) for name, x in found.items()}


def from_arrays(found: Mapping[str, np.ndarray]) -> PhotoHands:
    """Hands of `arrays`; other arrays may be there, too."""
    fields = {name: found.get(name) for name in PhotoHands._fields}
    return PhotoHands(**{**fields, "keys": tuple(found["keys"].tolist())})


def _rows(record: Batch | HandOutput, valid: np.ndarray) -> dict[str, np.ndarray]:
    """Some rows of what is needed of a batch or of its answers, in float64."""
    names = (
        *("vertices", "joints3d", "joints2d", "root_gamma"),
        *("intrinsics", "R_crop_camera", "is_right"),
    )
    found = {}
    for name in names:
        value = getattr(record, name, None)
        if value is not None:
            found[name] = np.asarray(value)[valid].astype(np.float64)
    return found


def _in_photo(
    batch: dict[str, np.ndarray],
    output: dict[str, np.ndarray],
    records: list[dict[str, Any]],
    root: int,
) -> PhotoHands:
    is_right = batch["is_right"] > 0
    mirror = np.where(is_right[:, None], 1.0, crop.MIRROR)[:, None]
    back = np.swapaxes(batch["R_crop_camera"], -1, -2)
    position = _positions(output, batch["intrinsics"], root)[:, None]
    joints3d, vertices = (
        crop.rotate(back, output[name] + position) * mirror
        for name in ("joints3d", "vertices")
    )
    truth = np.stack([record["joints3d"] for record in records]).astype(np.float64)
    known = np.array([record["has_joints3d"] for record in records])[:, None]
    known = (known & (truth[..., 3] > 0))[..., None]
    return PhotoHands(
        keys=tuple(record["key"] for record in records),
        joints3d=joints3d,
        vertices=vertices,
        joints2d=_source_pixels(batch, output, records, back),
        is_right=is_right,
        truth3d=np.where(known, truth[..., :3], np.nan),
    )


def _positions(
    output: dict[str, np.ndarray], intrinsics: np.ndarray, root: int
) -> np.ndarray:
    """Root joints in the cameras of the crops, metres; 0 where nothing tells."""
    if "joints2d" not in output:
        return np.zeros((len(intrinsics), 3))
    pixels, joints3d = output["joints2d"], output["joints3d"]
    found = np.asarray(_solve_translation(joints3d, pixels, intrinsics))
    if "root_gamma" in output:
        gamma = output["root_gamma"]
        depth = np.asarray(camera.root_depth_from_gamma(gamma, intrinsics))
        ones = np.ones_like(pixels[:, root, :1])
        pixel = np.concatenate([pixels[:, root], ones], axis=-1)
        ray = np.linalg.solve(intrinsics, pixel[..., None])[..., 0]
        ahead = depth > 0
        found = np.where(ahead[:, None], ray * depth[:, None], found)
    seen = np.isfinite(found).all(axis=-1) & (found[:, 2] > 0)
    return np.where(seen[:, None], found, 0.0).astype(np.float64)


def _source_pixels(
    batch: dict[str, np.ndarray],
    output: dict[str, np.ndarray],
    records: list[dict[str, Any]],
    back: np.ndarray,
) -> np.ndarray | None:
    """2-D joints: out of the crop, out of the mirror, into the source's picture."""
    if "joints2d" not in output:
        return None
    found = record_hands.right_hands(records)
    H = found.K @ back @ np.linalg.inv(batch["intrinsics"])
    stored = crop.warp_points(np.linalg.inv(found.mirror) @ H, output["joints2d"])
    origin, scale = (
        np.stack([record[name] for record in records]).astype(np.float64)
        for name in ("crop_origin", "crop_scale")
    )
    return origin[:, None] + stored / scale[:, None, None]
