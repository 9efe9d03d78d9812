"""Convert the annotations of a batch of records to right hands; numpy only.

Left hands are mirrored here, and nowhere else in training: camera, labels and pose
together (`Hands.mirror` does the picture). Every later step sees right hands.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.loading.posing import Poser
from data_pipelines.storage import schema
from data_pipelines.storage.schema import Counts
from handjax.errors import HandjaxError
from handjax.geometry import crop

_MIRROR_AXIS_ANGLE = -crop.MIRROR
_RIGHT_MODEL = (0, 2)
"""`left_model` values whose betas mean the same on the mirrored, right-hand model."""

FIELDS = (
    "K",
    "bbox_center",
    "bbox_size",
    "has_K",
    "has_betas",
    "has_joints3d",
    "has_pose",
    "has_transl",
    "has_vertices",
    "image",
    "image_size",
    "is_right",
    "joints2d",
    "joints3d",
    "left_model",
    "mano_betas",
    "mano_pose",
    "mano_transl",
    "repose_mm",
    "vertices",
)
"""Fields of a record that `ExampleMaker` and filters need. `readers.Reader` adds
`index`, its position, and `posable`, whether the `Poser` is its annotators' hand
model."""


_LARGEST = {
    **dict.fromkeys(("bbox_center", "bbox_size", "joints2d", "K"), 1e6),
    **dict.fromkeys(("joints3d", "vertices", "mano_transl"), 100.0),
    **dict.fromkeys(("mano_pose", "mano_betas"), 1e3),
}
"""Field -> largest absolute value that a photo of a hand can have: pixels, metres,
radians. What is larger is damage."""


class BadRecordError(HandjaxError, ValueError):
    """One record cannot become an example; `row` is its place in the batch."""

    def __init__(self, row: int, reason: str):
        super().__init__(reason)
        self.row = row


class Hands(NamedTuple):
    """Right hands (mirrored left ones) or bodies in float64, before the crop."""

    K: np.ndarray
    """(batch, 3, 3)."""
    joints3d: np.ndarray
    """(batch, joint, 4): metres, camera axes; 1 where known."""
    vertices: np.ndarray
    """(batch, vertex, 3) metres; float32."""
    meshed: np.ndarray
    """(batch,): whether `vertices` are known."""
    mano_pose: np.ndarray
    """(batch, bone, 3)."""
    betas: np.ndarray
    """(batch, 10)."""
    joints2d: np.ndarray
    """(batch, joint, 2) photo pixels."""
    annotated: np.ndarray
    """(batch, joint): whether `joints2d` is known."""
    confidence: np.ndarray
    """(batch, joint): confidence of `joints2d`, 0..1; 1 for projections."""
    bbox_center: np.ndarray
    bbox_size: np.ndarray
    last_px: np.ndarray
    """(batch, 2): x, y of the last pixel."""
    mirror: np.ndarray
    """(batch, 3, 3): from pixels of the stored photo to those of this one."""


def right_hands(
    records: Sequence[dict[str, Any]],
    counts: Counts = schema.HAND,
    poser: Poser | None = None,
) -> Hands:
    """Return the annotations of a batch as right hands; left hands are mirrored.

    2-D joints are projections where 3-D and the camera are known, as in the released
    code: a data set's own 2-D annotation may disagree with its 3-D one.

    Args:
        records: Records with `FIELDS`.
        counts: Counts of their data set.
        poser: Makes meshes of parameters where no mesh is stored.

    Raises:
        BadRecordError: Names a record that makes no sense.
    """
    _check_sizes(records)
    left = ~flags(records, "is_right")
    height, width = stacked(records, "image_size").astype(np.float64).T
    K, joints3d = _cameras(records), finite(records, "joints3d")
    pose = finite(records, "mano_pose").reshape(-1, counts.bones, 3)
    betas, transl = finite(records, "mano_betas"), finite(records, "mano_transl")
    vertices = _vertices(records, counts.vertices)
    stored2d, center = finite(records, "joints2d"), finite(records, "bbox_center")
    mirror = np.broadcast_to(np.eye(3), K.shape).copy()
    if left.any():
        mirror[left] = crop.mirror_homography(width[left])
        K[left] = crop.mirror_intrinsics(K[left], width[left])
        joints3d[left, :, :3] *= crop.MIRROR
        vertices[left] *= crop.MIRROR.astype(np.float32)
        pose[left] *= _MIRROR_AXIS_ANGLE
        transl[left] *= crop.MIRROR
        stored2d[left, :, 0] = width[left, None] - 1 - stored2d[left, :, 0]
        center[left, 0] = width[left] - 1 - center[left, 0]
    meshed = flags(records, "has_vertices")
    if poser is not None:
        meshless = ~meshed & has_mano(records) & flags(records, "posable")
        if (rows := np.flatnonzero(meshless)).size:
            mesh = poser.vertices(pose[rows], betas[rows])
            # Without a translation the mesh's root is put onto that of the joints.
            place = joints3d[rows, poser.root, :3] - poser.roots(mesh)
            placed = flags(records, "has_transl")[rows, None]
            place = np.where(placed, transl[rows], place).astype(np.float32)
            vertices[rows], meshed[rows] = mesh + place[:, None], True
    projectable = _projectable(records)[:, None]
    projected = crop.project(joints3d[..., :3], K)
    return Hands(
        K=K,
        joints3d=joints3d,
        vertices=vertices,
        meshed=meshed,
        mano_pose=pose,
        betas=betas,
        joints2d=np.where(projectable[..., None], projected, stored2d[..., :2]),
        annotated=annotated2d(records),
        confidence=np.where(projectable, 1.0, stored2d[..., 2].clip(0, 1)),
        bbox_center=center,
        bbox_size=finite(records, "bbox_size"),
        last_px=np.stack([width, height], -1) - 1,
        mirror=mirror,
    )


def annotated2d(records: Sequence[dict[str, Any]]) -> np.ndarray:
    """Return whether 2-D joints (batch, joint) are known: projected, or stored."""
    joints3d = stacked(records, "joints3d")
    in_front = (joints3d[..., 2] > 1e-6) & (joints3d[..., 3] > 0)
    stored = stacked(records, "joints2d")[..., 2] > 0
    return np.where(_projectable(records)[:, None], in_front, stored)


def _projectable(records: Sequence[dict[str, Any]]) -> np.ndarray:
    return flags(records, "has_joints3d") & flags(records, "has_K")


def has_mano(records: Sequence[dict[str, Any]]) -> np.ndarray:
    """Return whether pose and betas (batch,) are known and fit the right-hand model."""
    same = [r["is_right"] or r["left_model"] in _RIGHT_MODEL for r in records]
    known = flags(records, "has_pose") & flags(records, "has_betas")
    return known & np.array(same, bool)


def finite(records: Sequence[dict[str, Any]], name: str) -> np.ndarray:
    """Return a field of the batch in float64; raise if a value cannot be.

    Raises:
        BadRecordError: Names a record with a value that is not finite, or is beyond
            what a photo of a hand can have.
    """
    values = stacked(records, name).astype(np.float64)
    finite = np.isfinite(values).reshape(len(values), -1)
    if not finite.all():
        row = int(finite.all(axis=1).argmin())
        raise BadRecordError(row, f"{name} holds values that are not finite")
    beyond = (np.abs(values) > _LARGEST[name]).reshape(len(values), -1).any(axis=1)
    if beyond.any():
        row = int(beyond.argmax())
        raise BadRecordError(row, f"{name} holds values beyond {_LARGEST[name]:g}")
    return values


def _check_sizes(records: Sequence[dict[str, Any]]) -> None:
    for row, record in enumerate(records):
        if np.min(record["image_size"]) <= 0:
            raise BadRecordError(row, "image_size is not above zero")
        if not np.min(record["bbox_size"]) >= 0:
            raise BadRecordError(row, "bbox_size is negative or not a number")


def _cameras(records: Sequence[dict[str, Any]]) -> np.ndarray:
    """Return camera matrices, assumed where a record has none.

    Raises:
        BadRecordError: Names a record whose focal lengths are not positive, or whose
            matrix has no inverse.
    """
    K = finite(records, "K")
    for row in np.flatnonzero(~flags(records, "has_K")):
        height, width = (int(n) for n in records[row]["image_size"])
        K[row] = crop.assumed_intrinsics(width, height)
    wrong = (K[:, [0, 1], [0, 1]] <= 0).any(axis=1)
    if wrong.any():
        row = int(wrong.argmax())
        focal = np.diag(K[row])[:2]
        raise BadRecordError(row, f"focal lengths {focal} are not positive")
    # The last row is 0, 0, 1, or a multiple of it in some data sets.
    wrong = ~(np.abs(np.linalg.det(K)) > 1e-9)
    if wrong.any():
        raise BadRecordError(int(wrong.argmax()), "K has no inverse")
    return K


def _vertices(records: Sequence[dict[str, Any]], count: int) -> np.ndarray:
    """Return meshes (batch, vertex, 3); zeros where there is none."""
    meshes = np.zeros((len(records), count, 3), np.float32)
    for row, record in enumerate(records):
        if not record["has_vertices"]:
            continue
        if (found := len(record["vertices"])) != count:
            raise BadRecordError(row, f"{found} vertices, not {count}")
        meshes[row] = record["vertices"]
    finite = np.isfinite(meshes.sum(axis=(1, 2)))
    if not finite.all():
        row = int(finite.argmin())
        raise BadRecordError(row, "vertices holds values that are not finite")
    if np.abs(meshes).max(initial=0) > (most := _LARGEST["vertices"]):
        row = int(np.abs(meshes).max(axis=(1, 2)).argmax())
        raise BadRecordError(row, f"vertices holds values beyond {most:g}")
    return meshes


def tight_boxes(hands: Hands, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return centre and extent of the boxes around the joints inside the photos.

    With fewer than two joints inside, the stored box; without one, the whole photo.
    """
    points, seen = hands.joints2d, inside[..., None]
    low = np.where(seen, points, np.inf).min(axis=1)
    high = np.where(seen, points, -np.inf).max(axis=1)
    few = inside.sum(axis=1) < 2
    if few.any():
        boxed = (hands.bbox_size[few] > 0).all(axis=1, keepdims=True)
        extent = np.where(boxed, hands.bbox_size[few], hands.last_px[few])
        center = np.where(boxed, hands.bbox_center[few], hands.last_px[few] / 2)
        low[few], high[few] = center - extent / 2, center + extent / 2
    return (low + high) / 2, np.maximum(high - low, 1.0)


def stacked(records: Sequence[dict[str, Any]], name: str) -> np.ndarray:
    """Return a field of the batch as one array."""
    return np.stack([record[name] for record in records])


def flags(records: Sequence[dict[str, Any]], name: str) -> np.ndarray:
    """Return a yes-or-no field of the batch as booleans."""
    return np.array([record[name] for record in records], bool)
