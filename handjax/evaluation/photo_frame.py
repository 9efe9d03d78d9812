"""Predict hands of a split, in the frames that benchmarks score them in.

Undoes what `data_pipelines.loading.examples` does to a record, by
`inference.placement`. A model that predicts neither a depth nor 2-D joints leaves the
root joint in the camera's centre; aligned and root-relative scores do not depend on it.
Translations are believed however large the hand seems (`placement.BoxGuard` is for
photos): the benchmarks score what the model says.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from data_pipelines.loading import annotations as record_hands
from data_pipelines.storage.shards import Split
from handjax.errors import HandjaxError
from handjax.evaluation.protocols import PhotoHands
from handjax.inference import placement
from handjax.types import Batch, HandOutput

_FIELDS = (*record_hands.FIELDS, "key", "crop_origin", "crop_scale")
_READ = tuple(name for name in _FIELDS if name != "image")


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
        predict: Compiled function that gives one answer for each hand.
        variables: Its first argument.
        eval_batches: Numpy batches of the split, padding marked by `example_valid`.
        split: The split with their records.
        root: Joint that predictions are relative to.
        on_batch: Called with the number of hands so far.

    Returns:
        The hands, and their positions in the split.

    Raises:
        HandjaxError: Names a hand whose prediction is nan or infinite, which no file
            of predictions can hold.
    """
    parts, indices, count = [], [], 0
    for batch in eval_batches:
        output = jax.device_get(predict(variables, batch)._replace(logits=None))
        valid = np.asarray(batch.example_valid)
        index = np.asarray(batch.index)[valid]
        records = [split.read(int(i), _READ) for i in index]
        if records:
            labels = _rows(batch._replace(image=None), valid)
            part = _in_photo(labels, _rows(output, valid), records, root)
            _check_finite(part, index)
            parts.append(part)
            indices.append(index)
        count += len(index)
        if on_batch:
            on_batch(count)
    if not parts:
        return from_arrays(_nothing(split)), np.zeros(0, np.int64)
    return joined(parts), np.concatenate(indices)


def _check_finite(hands: PhotoHands, index: np.ndarray) -> None:
    for name in ("joints3d", "vertices", "joints2d"):
        values = getattr(hands, name)
        if values is None:
            continue
        bad = ~np.isfinite(values).all(axis=(1, 2))
        if bad.any():
            row = int(np.argmax(bad))
            raise HandjaxError(
                f"hand {int(index[row])} of the split ({hands.keys[row]}): its "
                f"predicted {name} holds nan or infinite values, which no file of "
                "predictions can hold."
            )


def _nothing(split: Split) -> dict[str, np.ndarray]:
    """Return the arrays of a share that has no hands."""
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
    """Concatenate hands of several parts, in another order if one is given."""
    found = [arrays(part) for part in parts]
    whole = {name: np.concatenate([x[name] for x in found]) for name in found[0]}
    if order is not None:
        whole = {name: rows[order] for name, rows in whole.items()}
    return from_arrays(whole)


def arrays(hands: PhotoHands) -> dict[str, np.ndarray]:
    """Return hands as plain arrays; `from_arrays` undoes it."""
    found = {name: x for name, x in hands._asdict().items() if x is not None}
    return {name: np.asarray(x) for name, x in found.items()}


def from_arrays(found: Mapping[str, np.ndarray]) -> PhotoHands:
    """Return the hands of `arrays`; further arrays are ignored."""
    fields = {name: found.get(name) for name in PhotoHands._fields}
    return PhotoHands(**{**fields, "keys": tuple(found["keys"].tolist())})


def _rows(record: Batch | HandOutput, valid: np.ndarray) -> Any:
    """Select the valid examples of a batch or of the answers to it."""
    return type(record)(*(None if x is None else np.asarray(x)[valid] for x in record))


def _in_photo(
    batch: Batch, output: HandOutput, records: list[dict[str, Any]], root: int
) -> PhotoHands:
    """Place the answers in the camera of each record's picture."""
    is_right = np.asarray(batch.is_right)
    K, width = _cameras(records, is_right)
    view = placement.view_of_camera(
        np.asarray(batch.R_crop_camera, np.float64),
        np.asarray(batch.intrinsics, np.float64),
        K,
        width,
        is_right=is_right,
    )
    placed = placement.to_photo(output, view, K, root=root)
    truth = np.stack([record["joints3d"] for record in records]).astype(np.float64)
    known = np.array([record["has_joints3d"] for record in records])[:, None]
    known = (known & (truth[..., 3] > 0))[..., None]
    return PhotoHands(
        keys=tuple(record["key"] for record in records),
        joints3d=placed.joints3d + placed.translation[:, None],
        vertices=placed.vertices + placed.translation[:, None],
        joints2d=_source_pixels(placed.joints2d, records),
        is_right=is_right,
        truth3d=np.where(known, truth[..., :3], np.nan),
    )


def _cameras(
    records: list[dict[str, Any]], is_right: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return camera matrices of the stored pictures, and widths in pixels."""
    width = np.array([record["image_size"][1] for record in records], np.float64)
    # Those of the loader, which assumes one where a record has none, are mirrored.
    mirrored = record_hands.right_hands(records).K
    return placement.mirror_left_cameras(mirrored, width, is_right), width


def _source_pixels(
    joints2d: np.ndarray | None, records: list[dict[str, Any]]
) -> np.ndarray | None:
    """Move pixels of the stored pictures to those of the source's."""
    if joints2d is None:
        return None
    origin, scale = (
        np.stack([record[name] for record in records]).astype(np.float64)
        for name in ("crop_origin", "crop_scale")
    )
    return origin[:, None] + joints2d / scale[:, None, None]
