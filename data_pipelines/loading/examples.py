"""From stored records to a batch: picture, crop, augmentation, labels; numpy only.

Geometry is worked out for a whole batch at once, which is ten times faster than example
by example.
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from data_pipelines.loading import augment
from data_pipelines.loading.annotations import (
    BadRecordError,
    Hands,
    flags,
    has_mano,
    right_hands,
    tight_boxes,
)
from data_pipelines.loading.posing import Poser
from data_pipelines.storage import schema
from data_pipelines.storage.schema import Counts
from handjax.errors import UserError
from handjax.geometry import crop, skeleton
from handjax.geometry.crop import CropConfig
from handjax.types import Batch

HAND_ANCHORS = tuple(skeleton.HAND.roots.values())
"""Wrist and middle knuckle: 3-D of a hand counts where one of them is seen."""


def decode_image(jpeg: bytes) -> np.ndarray:
    """RGB pixels of a JPEG, as stored (EXIF orientation is not applied).

    Raises:
        UserError: if the bytes are no complete picture.
    """
    # A truncated JPEG decodes to grey without an error; its end marker tells.
    if b"\xff\xd9" not in jpeg[-64:]:
        raise UserError("truncated JPEG")
    data = np.frombuffer(jpeg, np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise UserError("the image is not a readable JPEG")
    return image


def make(
    records: Sequence[dict[str, Any]],
    config: CropConfig,
    *,
    counts: Counts = schema.HAND,
    root: int = skeleton.MIDDLE_MCP,
    anchors: Sequence[int] = HAND_ANCHORS,
    load_image: bool = True,
    augmentation: augment.Recipe | None = None,
    drawn: np.ndarray | None = None,
    poser: Poser | None = None,
    neutral_betas: bool = False,
) -> Batch:
    """One batch.

    Args:
        records: decoded (`schema.decode`) with `index`, their position in the split.
        config: of the crop.
        counts: of their data set.
        root: joint that 3-D targets are relative to.
        anchors: joints one of which must be seen for 3-D to count.
        load_image: whether to decode the pictures.
        augmentation: None for evaluation.
        drawn: what `augment.draws` gave for these examples.
        poser: makes meshes of parameters where none are stored.
        neutral_betas: whether betas that are not known count as zero.

    Raises:
        BadRecordError: if a record or its picture makes no sense.
    """
    hands = right_hands(records, counts, poser)
    inside = hands.annotated & strictly_inside(hands.joints2d, hands.last_px[:, None])
    center, extent = tight_boxes(hands, inside)
    angle, flip = np.zeros(len(records)), np.zeros(len(records), bool)
    colours = None
    if augmentation is None or drawn is None:
        extent = extent * config.box_scale
    else:
        changes = augmentation.changes(drawn, extent, config.box_scale)
        center, extent = augment.move_boxes(changes, center, extent, hands.last_px)
        angle, flip, colours = changes.angle, changes.flip, augment.colours(changes)
    box = np.concatenate([center - extent / 2, center + extent / 2], axis=-1)
    view = _flipped(crop.view(box, hands.K, config.size, angle=angle), flip, config)
    batch = _labels(
        records, hands, inside, view, root=root, anchors=anchors, size=config.size
    )
    known, likely = batch.mano_valid & ~flip, neutral_betas & ~has_mano(records)
    batch = batch._replace(
        mano_valid=known,
        betas=np.where(likely[:, None], np.float32(0), batch.betas),
        betas_valid=known | likely,
    )
    if not load_image:
        return batch
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
        raise UserError(
            f"the picture is {photo.shape[1]} x {photo.shape[0]} pixels, its record "
            f"says {width} x {height}"
        )
    return photo


def _labels(
    records: Sequence[dict[str, Any]],
    hands: Hands,
    inside: np.ndarray,
    view: crop.View,
    *,
    root: int,
    anchors: Sequence[int],
    size: int,
) -> Batch:
    """Everything of a batch but the pictures."""
    R = view.R_crop_camera
    joints2d = crop.warp_points(view.H_crop_image, hands.joints2d)
    joints3d = crop.rotate(R, hands.joints3d[..., :3])
    root3d = joints3d[:, root]
    # The mesh in float32: most of the numbers, and rounding it costs nanometres.
    vertices = hands.vertices - hands.joints3d[:, None, root, :3].astype(np.float32)
    # Where an assumed camera puts a hand is no annotation.
    placed = np.where(flags(records, "has_K")[:, None], root3d, 0.0)
    seen = inside & strictly_inside(joints2d, np.full(2, float(size)))
    # As released: 3-D counts unless both the middle knuckle and the wrist are unseen.
    anchored = seen[:, list(anchors)].any(axis=1)
    has_3d = flags(records, "has_joints3d") & anchored
    known = (hands.joints3d[..., 3] > 0) & has_3d[:, None]
    known &= known[:, [root]]  # that the others are relative to
    return Batch(
        image=None,
        vertices=crop.rotate(R.astype(np.float32), vertices),
        joints3d=(joints3d - root3d[:, None]).astype(np.float32),
        joints2d=joints2d.astype(np.float32),
        root3d=placed.astype(np.float32),
        intrinsics=view.intrinsics.astype(np.float32),
        R_crop_camera=R.astype(np.float32),
        mano_pose=_turned_pose(R, hands.mano_pose),
        betas=hands.betas.astype(np.float32),
        joints2d_valid=seen,
        joints3d_valid=known.all(axis=1),
        vertices_valid=hands.meshed & known[:, root],
        mano_valid=has_mano(records) & anchored,
        is_right=flags(records, "is_right"),
        example_valid=np.ones(len(records), bool),
        index=np.array([r["index"] for r in records], np.int64),
        joints2d_confidence=hands.confidence.astype(np.float32),
        joints3d_known=known,
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


def strictly_inside(points: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Whether pixels (batch, joint, 2) are before the border, `last` the last pixel."""
    return np.all((points > 0) & (points < last), axis=-1)
