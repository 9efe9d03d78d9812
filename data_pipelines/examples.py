"""From a stored record to one training example; numpy only.

Left hands are mirrored here, and nowhere else in training: picture, camera, labels and
pose together. Every later step sees right hands.
"""

from typing import Any

import cv2
import numpy as np

from data_pipelines import augment
from data_pipelines.augment import AugmentConfig
from handjax import crop, skeleton
from handjax.crop import CropConfig

_MIRROR_POINT = np.array([-1.0, 1.0, 1.0])
_MIRROR_AXIS_ANGLE = np.array([1.0, -1.0, -1.0])


def decode_image(jpeg: bytes) -> np.ndarray:
    """RGB pixels of a JPEG.

    Raises:
        ValueError: if the bytes are no complete picture.
    """
    # A truncated JPEG decodes to grey without an error; its end marker tells.
    if b"\xff\xd9" not in jpeg[-64:]:
        raise ValueError("truncated JPEG")
    data = np.frombuffer(jpeg, np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise ValueError("the image is not a readable JPEG")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def as_right_hand(record: dict[str, Any]) -> dict[str, Any]:
    """The record mirrored if it shows a left hand; twice is the identity."""
    if record["is_right"]:
        return record
    width = int(record["image_size"][1])
    mirrored = dict(record)
    for name in ("joints2d", "bbox_center"):
        value = record[name].copy()
        value[..., 0] = width - 1 - value[..., 0]
        mirrored[name] = value
    joints3d = record["joints3d"].copy()
    joints3d[:, :3] *= _MIRROR_POINT
    pose = (record["mano_pose"].reshape(16, 3) * _MIRROR_AXIS_ANGLE).reshape(48)
    mirrored.update(
        joints3d=joints3d,
        vertices=record["vertices"] * _MIRROR_POINT,
        mano_pose=pose,
        mano_transl=record["mano_transl"] * _MIRROR_POINT,
        K=crop.mirror_intrinsics(record["K"], width),
    )
    if record.get("pixels") is not None:
        mirrored["pixels"] = np.ascontiguousarray(record["pixels"][:, ::-1])
    return mirrored


def make(
    record: dict[str, Any],
    config: CropConfig,
    *,
    root: int = skeleton.MIDDLE_MCP,
    augmentation: AugmentConfig | None = None,
    rng: np.random.Generator | None = None,
) -> dict[str, np.ndarray]:
    """Fields of `handjax.types.Batch` for one record (without the batch axis).

    Args:
        record: decoded (`schema.decode`), `pixels` holding the picture or None, `index`
            its position in the split.
        config: of the crop.
        root: joint that 3-D targets are relative to.
        augmentation: None for evaluation.
        rng: source of the augmentation's randomness.
    """
    hand = as_right_hand(record)
    height, width = (int(n) for n in hand["image_size"])
    K = (
        hand["K"].astype(np.float64)
        if hand["has_K"]
        else crop.assumed_intrinsics(width, height)
    )
    joints2d, confidence = photo_joints(hand, K)
    inside = confidence & _strictly_inside(joints2d, width - 1.0, height - 1.0)
    center, extent = _box(hand, joints2d, inside)
    angle = 0.0
    if augmentation is None:
        extent = extent * config.box_scale
    else:
        center, extent = augment.jitter_box(
            rng, augmentation, center, extent, (height, width)
        )
        angle = augment.angle(rng, augmentation)
    box = np.concatenate([center - extent / 2, center + extent / 2])
    view = crop.view(box, K, config.size, angle=angle)
    seen_at = crop.warp_points(view.H_crop_image, joints2d)
    example = _labels(hand, root, config.size, view, seen_at, inside)
    if hand.get("pixels") is not None:
        example["image"] = crop.warp_image(
            hand["pixels"], view.H_crop_image, config.size
        )
        if augmentation is not None:
            example["image"] = augment.colours(rng, augmentation, example["image"])
    example["is_right"] = np.bool_(record["is_right"])
    example["index"] = np.int64(record["index"])
    example["example_valid"] = np.bool_(record.get("example_valid", True))
    if augmentation is not None and rng.random() < augmentation.flip:
        example = _flipped(example, config.size)
    return example


def _labels(
    hand: dict[str, Any],
    root: int,
    size: int,
    view: crop.View,
    joints2d: np.ndarray,
    inside: np.ndarray,
) -> dict[str, np.ndarray]:
    R = view.R_crop_camera
    joints3d = hand["joints3d"][:, :3].astype(np.float64) @ R.T
    root3d = joints3d[root]
    vertices = np.zeros((skeleton.NUM_VERTICES, 3))
    if hand["has_vertices"]:
        vertices = hand["vertices"].astype(np.float64) @ R.T - root3d
    seen = inside & _strictly_inside(joints2d, size, size)
    # As released: 3-D counts unless both the middle knuckle and the wrist are unseen.
    anchored = seen[skeleton.MIDDLE_MCP] | seen[skeleton.WRIST]
    annotated = bool(hand["has_joints3d"]) and bool(anchored)
    pose = hand["mano_pose"].astype(np.float64).reshape(16, 3).copy()
    pose[0] = cv2.Rodrigues(R @ cv2.Rodrigues(pose[0])[0])[0][:, 0]
    example = {
        "vertices": vertices,
        "joints3d": joints3d - root3d,
        "joints2d": joints2d,
        "root3d": root3d,
        "intrinsics": view.intrinsics,
        "R_crop_camera": R,
        "mano_pose": pose,
        "betas": hand["mano_betas"],
    }
    example = {name: np.asarray(x, np.float32) for name, x in example.items()}
    return example | {
        "joints2d_valid": seen,
        "joints3d_valid": np.bool_(annotated),
        "vertices_valid": np.bool_(annotated and hand["has_vertices"]),
        "mano_valid": np.bool_(hand["has_pose"] and hand["has_betas"]),
    }


def photo_joints(hand: dict[str, Any], K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """2-D joints in photo pixels and which are annotated.

    Where 3-D is known it is projected, as released: a data set's own 2-D annotation may
    disagree with its 3-D one.
    """
    if hand["has_joints3d"] and hand["has_K"]:
        points = hand["joints3d"][:, :3].astype(np.float64) @ K.T
        in_front = points[:, 2] > 1e-6
        depth = np.where(in_front, points[:, 2], 1.0)[:, None]
        return points[:, :2] / depth, in_front & (hand["joints3d"][:, 3] > 0)
    return hand["joints2d"][:, :2].astype(np.float64), hand["joints2d"][:, 2] > 0


def _box(
    hand: dict[str, Any], joints2d: np.ndarray, inside: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Tight box of the joints inside the photo; the stored box where they are few."""
    if inside.sum() >= 2:
        low, high = joints2d[inside].min(axis=0), joints2d[inside].max(axis=0)
        return (low + high) / 2, np.maximum(high - low, 1.0)
    extent = np.maximum(hand["bbox_size"].astype(np.float64), 1.0)
    return hand["bbox_center"].astype(np.float64), extent


def _strictly_inside(points: np.ndarray, right: float, bottom: float) -> np.ndarray:
    return np.all((points > 0) & (points < np.array([right, bottom])), axis=-1)


def _flipped(example: dict[str, np.ndarray], size: int) -> dict[str, np.ndarray]:
    """SimpleHand's random flip: no relabelling, the topology turns inside out.

    The pose of a mirrored hand belongs to another hand model: `mano_valid` goes off.
    """
    example = dict(example)
    if "image" in example:
        example["image"] = np.ascontiguousarray(example["image"][:, ::-1])
    joints2d = example["joints2d"].copy()
    joints2d[:, 0] = size - 1 - joints2d[:, 0]
    flip = _MIRROR_POINT.astype(np.float32)
    example.update(
        joints2d=joints2d,
        joints3d=example["joints3d"] * flip,
        vertices=example["vertices"] * flip,
        root3d=example["root3d"] * flip,
        mano_valid=np.bool_(False),
    )
    return example
