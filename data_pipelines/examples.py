"""From stored records to a batch: picture, crop, augmentation, labels; numpy only.

Left hands are mirrored here, and nowhere else in training: picture, camera, labels and
pose together. Every later step sees right hands. Geometry is worked out for a whole
batch at once, which is ten times faster than example by example.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from data_pipelines import augment
from data_pipelines.augment import AugmentConfig
from handjax import crop, skeleton
from handjax.crop import CropConfig
from handjax.types import Batch

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
    "has_vertices",
    "image",
    "image_size",
    "is_right",
    "joints2d",
    "joints3d",
    "left_model",
    "mano_betas",
    "mano_pose",
    "vertices",
)
"""Fields of a record that `make` needs."""


def decode_image(jpeg: bytes) -> np.ndarray:
    """RGB pixels of a JPEG, as stored (EXIF orientation is not applied).

    Raises:
        ValueError: if the bytes are no complete picture.
    """
    # A truncated JPEG decodes to grey without an error; its end marker tells.
    if b"\xff\xd9" not in jpeg[-64:]:
        raise ValueError("truncated JPEG")
    data = np.frombuffer(jpeg, np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise ValueError("the image is not a readable JPEG")
    return image


class BadRecordError(ValueError):
    """One record cannot become an example; `row` is its place in the batch."""

    def __init__(self, row: int, reason: str):
        super().__init__(reason)
        self.row = row


class Hands(NamedTuple):
    """Right hands (mirrored left ones) in float64, before the crop."""

    K: np.ndarray
    """(batch, 3, 3)."""
    joints3d: np.ndarray
    """(batch, 21, 4): metres, camera axes; 1 where known."""
    vertices: np.ndarray
    """(batch, 778, 3) metres; float32."""
    mano_pose: np.ndarray
    """(batch, 16, 3)."""
    joints2d: np.ndarray
    """(batch, 21, 2) photo pixels."""
    annotated: np.ndarray
    """(batch, 21): whether `joints2d` is known."""
    bbox_center: np.ndarray
    bbox_size: np.ndarray
    last_px: np.ndarray
    """(batch, 2): x, y of the last pixel."""
    mirror: np.ndarray
    """(batch, 3, 3): from pixels of the stored photo to those of this one."""


def make(
    records: Sequence[dict[str, Any]],
    config: CropConfig,
    *,
    root: int = skeleton.MIDDLE_MCP,
    load_image: bool = True,
    augmentation: AugmentConfig | None = None,
    drawn: np.ndarray | None = None,
) -> Batch:
    """One batch.

    Args:
        records: decoded (`schema.decode`) with `index`, their position in the split.
        config: of the crop.
        root: joint that 3-D targets are relative to.
        load_image: whether to decode the pictures.
        augmentation: None for evaluation.
        drawn: what `augment.draws` gave for these examples.

    Raises:
        BadRecordError: if a record or its picture makes no sense.
    """
    hands = right_hands(records)
    inside = hands.annotated & _strictly_inside(hands.joints2d, hands.last_px[:, None])
    center, extent = tight_boxes(hands, inside)
    angle, flip = np.zeros(len(records)), np.zeros(len(records), bool)
    if augmentation is None or drawn is None:
        extent = extent * config.box_scale
    else:
        center, extent = augment.jitter_boxes(
            augmentation, drawn, center, extent, hands.last_px
        )
        angle = augment.angles(augmentation, drawn)
        flip = augment.flips(augmentation, drawn)
    box = np.concatenate([center - extent / 2, center + extent / 2], axis=-1)
    view = _flipped(crop.view(box, hands.K, config.size, angle=angle), flip, config)
    batch = _labels(records, hands, inside, view, root=root, size=config.size)
    batch = batch._replace(mano_valid=batch.mano_valid & ~flip)
    if not load_image:
        return batch
    colours = None
    if augmentation is not None and drawn is not None:
        colours = augment.colours(augmentation, drawn)
    H = view.H_crop_image @ hands.mirror
    return batch._replace(image=_pictures(records, H, colours, config.size))


def _pictures(
    records: Sequence[dict[str, Any]],
    H: np.ndarray,
    colours: augment.Colours | None,
    size: int,
) -> np.ndarray:
    """Crops of the stored pictures (batch, size, size, 3).

    Each picture is finished before the next is decoded, while it is in the cache.
    """
    images = np.empty((len(records), size, size, 3), np.uint8)
    plain = np.empty_like(images[0])
    blocks = crop.shrinking(H, size).astype(int).tolist()
    for i, (record, image) in enumerate(zip(records, images, strict=True)):
        try:
            photo = _photo(record)
        except ValueError as error:
            raise BadRecordError(i, str(error)) from error
        out = image if colours is None else plain
        crop.warp_image(photo, H[i], size, out, block=blocks[i])
        if colours is not None:
            ceiling = float(colours.ceiling[i])
            augment.recolour(plain, colours.affine[i], ceiling, image)
    return images


def _photo(record: dict[str, Any]) -> np.ndarray:
    photo = decode_image(record["image"])
    height, width = record["image_size"]
    if photo.shape[:2] != (height, width):
        raise ValueError(
            f"the picture is {photo.shape[1]} x {photo.shape[0]} pixels, its record "
            f"says {width} x {height}"
        )
    return photo


def right_hands(records: Sequence[dict[str, Any]]) -> Hands:
    """Annotations of a batch, left hands mirrored, 2-D joints as they are trained on.

    2-D joints are projections where 3-D and the camera are known, as in the released
    code: a data set's own 2-D annotation may disagree with its 3-D one.
    """
    left = ~_flags(records, "is_right")
    height, width = _stacked(records, "image_size").astype(np.float64).T
    K, joints3d = _cameras(records), _finite(records, "joints3d")
    pose = _finite(records, "mano_pose").reshape(-1, 16, 3)
    vertices = _vertices(records)
    stored2d, center = _finite(records, "joints2d"), _finite(records, "bbox_center")
    mirror = np.broadcast_to(np.eye(3), K.shape).copy()
    if left.any():
        mirror[left] = crop.mirror_homography(width[left])
        K[left] = crop.mirror_intrinsics(K[left], width[left])
        joints3d[left, :, :3] *= crop.MIRROR
        vertices[left] *= crop.MIRROR.astype(np.float32)
        pose[left] *= _MIRROR_AXIS_ANGLE
        stored2d[left, :, 0] = width[left, None] - 1 - stored2d[left, :, 0]
        center[left, 0] = width[left] - 1 - center[left, 0]
    projectable = (_flags(records, "has_joints3d") & _flags(records, "has_K"))[:, None]
    in_front = (joints3d[..., 2] > 1e-6) & (joints3d[..., 3] > 0)
    projected = crop.project(joints3d[..., :3], K)
    return Hands(
        K=K,
        joints3d=joints3d,
        vertices=vertices,
        mano_pose=pose,
        joints2d=np.where(projectable[..., None], projected, stored2d[..., :2]),
        annotated=np.where(projectable, in_front, stored2d[..., 2] > 0),
        bbox_center=center,
        bbox_size=_finite(records, "bbox_size"),
        last_px=np.stack([width, height], -1) - 1,
        mirror=mirror,
    )


def _finite(records: Sequence[dict[str, Any]], name: str) -> np.ndarray:
    """A field of the batch in float64.

    Raises:
        BadRecordError: names a record with an infinity or no number in it.
    """
    values = _stacked(records, name).astype(np.float64)
    finite = np.isfinite(values).reshape(len(values), -1)
    if not finite.all():
        row = int(finite.all(axis=1).argmin())
        raise BadRecordError(row, f"{name} holds values that are not finite")
    return values


def _cameras(records: Sequence[dict[str, Any]]) -> np.ndarray:
    """Camera matrices, assumed where a record has none.

    Raises:
        BadRecordError: names a record with a camera that is none.
    """
    K = _finite(records, "K")
    for row in np.flatnonzero(~_flags(records, "has_K")):
        height, width = (int(n) for n in records[row]["image_size"])
        K[row] = crop.assumed_intrinsics(width, height)
    wrong = (K[:, [0, 1], [0, 1]] <= 0).any(axis=1)
    if wrong.any():
        row = int(wrong.argmax())
        focal = np.diag(K[row])[:2]
        raise BadRecordError(row, f"focal lengths {focal} are not positive")
    return K


def _vertices(records: Sequence[dict[str, Any]]) -> np.ndarray:
    """Meshes (batch, 778, 3); zeros where there is none."""
    meshes = np.zeros((len(records), skeleton.NUM_VERTICES, 3), np.float32)
    for row, record in enumerate(records):
        if not record["has_vertices"]:
            continue
        if len(record["vertices"]) != skeleton.NUM_VERTICES:
            raise BadRecordError(
                row, f"{len(record['vertices'])} vertices, not {skeleton.NUM_VERTICES}"
            )
        meshes[row] = record["vertices"]
    finite = np.isfinite(meshes.sum(axis=(1, 2)))
    if not finite.all():
        row = int(finite.argmin())
        raise BadRecordError(row, "vertices holds values that are not finite")
    return meshes


def tight_boxes(hands: Hands, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre and extent around the joints inside the photo.

    Where fewer than two of them are, the stored box; where there is none, the photo.
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


def _labels(
    records: Sequence[dict[str, Any]],
    hands: Hands,
    inside: np.ndarray,
    view: crop.View,
    *,
    root: int,
    size: int,
) -> Batch:
    """Everything of a batch but the pictures."""
    R = view.R_crop_camera
    joints2d = crop.warp_points(view.H_crop_image, hands.joints2d)
    joints3d = crop.rotate(R, hands.joints3d[..., :3])
    root3d = joints3d[:, root]
    # The mesh in float32: most of the numbers, and rounding it costs nanometres.
    vertices = hands.vertices - hands.joints3d[:, None, root, :3].astype(np.float32)
    seen = inside & _strictly_inside(joints2d, np.full(2, float(size)))
    # As released: 3-D counts unless both the middle knuckle and the wrist are unseen.
    anchored = seen[:, skeleton.MIDDLE_MCP] | seen[:, skeleton.WRIST]
    known = (hands.joints3d[..., 3] > 0).all(axis=1)
    has_3d = _flags(records, "has_joints3d") & anchored
    has_mano = _flags(records, "has_pose") & _flags(records, "has_betas") & anchored
    same_model = [r["is_right"] or r["left_model"] in _RIGHT_MODEL for r in records]
    return Batch(
        image=None,
        vertices=crop.rotate(R.astype(np.float32), vertices),
        joints3d=(joints3d - root3d[:, None]).astype(np.float32),
        joints2d=joints2d.astype(np.float32),
        root3d=root3d.astype(np.float32),
        intrinsics=view.intrinsics.astype(np.float32),
        R_crop_camera=R.astype(np.float32),
        mano_pose=_turned_pose(R, hands.mano_pose),
        betas=_finite(records, "mano_betas").astype(np.float32),
        joints2d_valid=seen,
        joints3d_valid=has_3d & known,
        vertices_valid=has_3d
        & _flags(records, "has_vertices")
        & (hands.joints3d[:, root, 3] > 0),
        mano_valid=has_mano & np.array(same_model, bool),
        is_right=_flags(records, "is_right"),
        example_valid=np.ones(len(records), bool),
        index=np.array([r["index"] for r in records], np.int64),
    )


def _turned_pose(R: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Poses with the global orientation in the crop's axes."""
    turned = pose.astype(np.float32)
    # Mirrored crops have no valid pose; without the sign theirs would be no rotation.
    R = R * np.sign(np.linalg.det(R))[:, None, None]
    orient = Rotation.from_rotvec(pose[:, 0]).as_matrix()
    turned[:, 0] = Rotation.from_matrix(R @ orient).as_rotvec()
    return turned


def _flipped(view: crop.View, flip: np.ndarray, config: CropConfig) -> crop.View:
    """SimpleHand's random flip: no relabelling, the hand turns inside out.

    `R_crop_camera` then mirrors as well. The pose of such a hand belongs to another
    hand model: `mano_valid` goes off.
    """
    if not flip.any():
        return view
    intrinsics, R, H = (field.copy() for field in view)
    intrinsics[flip] = crop.mirror_intrinsics(intrinsics[flip], config.size)
    R[flip] = np.diag(crop.MIRROR) @ R[flip]
    H[flip] = crop.mirror_homography(config.size) @ H[flip]
    return crop.View(intrinsics, R, H)


def _stacked(records: Sequence[dict[str, Any]], name: str) -> np.ndarray:
    return np.stack([record[name] for record in records])


def _flags(records: Sequence[dict[str, Any]], name: str) -> np.ndarray:
    return np.array([record[name] for record in records], bool)


def _strictly_inside(points: np.ndarray, last: np.ndarray) -> np.ndarray:
    return np.all((points > 0) & (points < last), axis=-1)
