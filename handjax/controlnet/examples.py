"""From a record to a crop with the hand in it, as the picture shows it.

Evaluation's crop (`crop.py`), but left hands stay left hands: an image generator is to
learn both. The mesh is the annotated one, or one that a model predicts.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8

from data_pipelines.loading import examples
from data_pipelines.loading.annotations import FIELDS, right_hands, tight_boxes
from data_pipelines.storage.shards import Split
from handjax.controlnet.images import HandInView
from handjax.errors import HandjaxError, UserError
from handjax.geometry import crop
from handjax.geometry.crop import CropConfig
from handjax.inference import placement
from handjax.mano.model_files import ManoFile, joint_regressor
from handjax.visualization.mesh_export import outward_faces

_SAME_HAND_M = 0.01
"""Mean distance of annotated joints from those of the mesh: of another vertex order it
is some centimetres."""


class LeftOutError(HandjaxError, ValueError):
    """A record that gives no example; says why."""


class HandRecord(NamedTuple):
    """A record with the box of its hand, in the stored photo and not mirrored."""

    record: dict[str, Any]
    box_px: Float[np.ndarray, "4"]
    """Tight around the joints."""
    K: Float[np.ndarray, "3 3"]
    """Of the photo, assumed where the record has none."""

    @property
    def is_right(self) -> bool:
        """The side of the hand."""
        return bool(self.record["is_right"])


class HandInCamera(NamedTuple):
    """A hand in the photo's camera, not mirrored: annotated, or predicted."""

    vertices: Float[np.ndarray, "vertex 3"]
    """Metres from the camera."""
    joints3d: Float[np.ndarray, "joint 3"]
    """Of the mesh: the 2-D pose is their projection, so that it lies on the mesh."""


class Example(NamedTuple):
    """A crop and the hand in it."""

    target: UInt8[np.ndarray, "size size 3"]
    hand: HandInView
    joints3d: Float[np.ndarray, "joint 3"] | None
    """Axes of the crop's camera, metres; None where not annotated."""
    is_right: bool


def open_record(split: Split, index: int) -> HandRecord:
    """Read a record and find its box.

    Raises:
        LeftOutError: It cannot be read.
    """
    try:
        record = split.read(index, FIELDS)
        hands = right_hands([record], split.counts)
    except ValueError as error:
        raise LeftOutError(f"unreadable: {error}") from error
    inside = hands.annotated & examples.strictly_inside(
        hands.joints2d, hands.last_px[:, None]
    )
    center, extent = tight_boxes(hands, inside)
    box = np.concatenate([center - extent / 2, center + extent / 2], -1)
    width, right = int(record["image_size"][1]), np.array([record["is_right"]], bool)
    return HandRecord(
        record,
        placement.mirror_left_boxes(box, width, right)[0],
        placement.mirror_left_cameras(hands.K, width, right)[0],
    )


def annotated(source: HandRecord) -> HandInCamera | None:
    """Return the record's own mesh; None if its picture cannot show one."""
    record = source.record
    if not (record["has_vertices"] and record["has_joints3d"] and record["has_K"]):
        return None
    joints3d = record["joints3d"].astype(np.float64)
    if not (joints3d[:, 3] > 0).all():
        return None
    vertices = record["vertices"].astype(np.float64)
    return HandInCamera(vertices, joints3d[:, :3])


def make(
    source: HandRecord,
    file: ManoFile,
    config: CropConfig,
    *,
    placed: HandInCamera | None,
    needs_mesh: bool,
) -> Example:
    """Crop the photo and everything in it.

    Args:
        source: What `open_record` gave.
        file: The hand model, for its faces.
        config: Of the crop.
        placed: The hand; None for 2-D joints alone.
        needs_mesh: Whether such an example is of any use.

    Raises:
        LeftOutError: It has no mesh, fewer than two joints, or no readable picture.
    """
    if placed is None and needs_mesh:
        raise LeftOutError("no mesh with a camera is annotated")
    try:
        photo = examples.decode_image(source.record["image"])
    except ValueError as error:
        raise LeftOutError(f"unreadable: {error}") from error
    # Not `source.is_right`: left hands stay left hands.
    view = placement.view(
        source.box_px,
        source.K,
        photo.shape[1],
        config.size,
        is_right=True,
        scale=config.box_scale,
    )
    if placed is None:
        points, known = _stored_joints(source.record)
    else:
        points = crop.project(placed.joints3d, source.K)
        known = placed.joints3d[:, 2] > 1e-6
    if known.sum() < 2:
        raise LeftOutError("fewer than two joints are annotated")
    joints2d = np.full(points.shape, np.nan)
    joints2d[known] = view.to_crop_px(points[known])
    hand = HandInView(
        intrinsics=view.intrinsics,
        joints2d=joints2d,
        vertices=None if placed is None else view.to_crop(placed.vertices),
        faces=outward_faces(np.asarray(file.faces), is_right=source.is_right),
    )
    return Example(
        target=crop.warp_image(photo, view.H_crop_photo, config.size),
        hand=hand,
        joints3d=None if placed is None else view.to_crop(placed.joints3d),
        is_right=source.is_right,
    )


def _stored_joints(
    record: dict[str, Any],
) -> tuple[Float[np.ndarray, "joint 2"], Bool[np.ndarray, "joint"]]:
    joints2d = record["joints2d"].astype(np.float64)
    return joints2d[:, :2], joints2d[:, 2] > 0


def check_hand(split: Split, file: ManoFile, *, look_at: int = 50) -> None:
    """Refuse a hand model whose vertices are not in the order of the data set's.

    Raises:
        UserError: The joints of the model's regressor are not the annotated ones.
    """
    for index in range(min(look_at, len(split))):
        try:
            placed = annotated(open_record(split, index))
        except LeftOutError:
            continue
        if placed is None:
            continue
        off = joint_regressor(file) @ placed.vertices - placed.joints3d
        error = float(np.linalg.norm(off, axis=-1).mean())
        if error > _SAME_HAND_M:
            named = split.metadata.get("hand", {}).get("name", "another one")
            raise UserError(
                f"--hand {file.name!r} does not fit {split.name}: joints of its mesh "
                f"are {1000 * error:.0f} mm off. The data are of {named!r}; give that "
                "model's file with --hand."
            )
        return
