"""Turn stored records into a batch: picture, crop, augmentation, labels; numpy only.

Geometry is computed for a whole batch at once, which is ten times faster than example
by example.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Float
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
from handjax.geometry.crop import CropConfig, View
from handjax.io import image_files
from handjax.types import Batch

HAND_ANCHORS = tuple(skeleton.HAND.roots.values())
"""Wrist and middle knuckle: the 3-D of a hand is valid if one of them is visible."""


def decode_image(jpeg: bytes) -> np.ndarray:
    """Decode the RGB pixels of a JPEG, as stored (EXIF orientation is not applied).

    Raises:
        UserError: The bytes are not a complete picture.
    """
    # OpenCV fills the missing part of a truncated JPEG with grey and reports no error,
    # so the end marker is checked instead.
    if b"\xff\xd9" not in jpeg[-64:]:
        raise UserError("truncated JPEG")
    image_files.check_size(bytes(jpeg), ("JPEG",))
    data = np.frombuffer(jpeg, np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise UserError("the image is not a readable JPEG")
    return image


class ExampleMaker(NamedTuple):
    """Turns decoded records into a batch; holds what all batches of a run share."""

    crop: CropConfig
    counts: Counts = schema.HAND
    """Counts of the records' data set."""
    root: int = skeleton.MIDDLE_MCP
    """Joint (`skeleton.JOINTS` index) that 3-D targets are relative to."""
    anchors: tuple[int, ...] = HAND_ANCHORS
    """Joints one of which must be visible for 3-D to be valid."""
    load_image: bool = True
    """Whether to decode the pictures; without them `Batch.image` is None, and all else
    is the same."""
    augmentation: augment.Recipe | None = None
    """Recipe of training; None crops as in evaluation."""
    poser: Poser | None = None
    """Makes meshes from MANO parameters where a record has no mesh."""
    neutral_betas: bool = False
    """Whether unknown betas are supervised as zero, the mean shape."""

    def __call__(
        self,
        records: Sequence[dict[str, Any]],
        draws: Float[np.ndarray, "batch draw"] | None = None,
        *,
        regions: Float[np.ndarray, "batch 4"] | None = None,
    ) -> Batch:
        """Make one batch.

        Args:
            records: Decoded (`schema.decode`) with `index`, their position in the
                split.
            draws: Uniform numbers from `augment.draws`, a row for each record; None
                leaves the augmentation out.
            regions: Turned squares to crop instead of boxes, in pixels of the picture
                with a right hand: middle x, y, side, and the angle in radians by which
                the square is turned (positive from x towards y).

        Raises:
            BadRecordError: A record or its picture makes no sense.
        """
        hands = right_hands(records, self.counts, self.poser)
        inside = hands.annotated & strictly_inside(
            hands.joints2d, hands.last_px[:, None]
        )
        center, extent = tight_boxes(hands, inside)
        angle, flip = np.zeros(len(records)), np.zeros(len(records), bool)
        colours = None
        if regions is not None:
            center, extent = regions[:, :2], np.repeat(regions[:, 2:3], 2, axis=1)
            angle = -regions[:, 3]
        elif self.augmentation is None or draws is None:
            extent = extent * self.crop.box_scale
        else:
            changes = self.augmentation.changes(draws, extent, self.crop.box_scale)
            center, extent = augment.move_boxes(changes, center, extent, hands.last_px)
            angle, flip, colours = changes.angle, changes.flip, augment.colours(changes)
        box = np.concatenate([center - extent / 2, center + extent / 2], axis=-1)
        view = crop.view(box, hands.K, self.crop.size, angle=angle)
        view = _flipped(view, flip, self.crop)
        batch = self._labels(records, hands, inside, view)
        # A flipped hand has a pose of another hand model (see `_flipped`).
        known = batch.mano_valid & ~flip
        neutral = self.neutral_betas & ~has_mano(records)
        batch = batch._replace(
            mano_valid=known,
            betas=np.where(neutral[:, None], np.float32(0), batch.betas),
            betas_valid=known | neutral,
        )
        if not self.load_image:
            return batch
        H = view.H_crop_image @ hands.mirror
        return batch._replace(image=_pictures(records, H, colours, self.crop.size))

    def _labels(
        self,
        records: Sequence[dict[str, Any]],
        hands: Hands,
        inside: np.ndarray,
        view: View,
    ) -> Batch:
        """Return the batch without its pictures."""
        R = view.R_crop_camera
        joints2d = crop.warp_points(view.H_crop_image, hands.joints2d)
        joints3d = crop.rotate(R, hands.joints3d[..., :3])
        root3d = joints3d[:, self.root]
        # The mesh in float32: most of the numbers, and rounding it costs nanometres.
        vertices = hands.vertices - hands.joints3d[:, None, self.root, :3].astype(
            np.float32
        )
        # The place that an assumed camera gives a hand is not an annotation.
        placed = np.where(flags(records, "has_K")[:, None], root3d, 0.0)
        seen = inside & strictly_inside(joints2d, np.full(2, float(self.crop.size)))
        # As released: 3-D is valid unless neither middle knuckle nor wrist is visible.
        anchored = seen[:, list(self.anchors)].any(axis=1)
        has_3d = flags(records, "has_joints3d") & anchored
        known = (hands.joints3d[..., 3] > 0) & has_3d[:, None]
        known &= known[:, [self.root]]  # the others are relative to it
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
            vertices_valid=hands.meshed & known[:, self.root],
            mano_valid=has_mano(records) & anchored,
            is_right=flags(records, "is_right"),
            example_valid=np.ones(len(records), bool),
            index=np.array([r["index"] for r in records], np.int64),
            joints2d_confidence=hands.confidence.astype(np.float32),
            joints3d_known=known,
        )


def _pictures(
    records: Sequence[dict[str, Any]],
    H: np.ndarray,
    colours: augment.Colours | None,
    size: int,
) -> np.ndarray:
    """Return crops of the stored pictures, uint8 (batch, size, size, 3)."""
    images = np.empty((len(records), size, size, 3), np.uint8)
    plain = np.empty_like(images[0])
    blocks = crop.shrinking(H, size).astype(int).tolist()
    # Each picture is finished before the next is decoded, while it is in the cache.
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


def _turned_pose(R: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Return the poses with their global orientation in the crop's axes."""
    turned = pose.astype(np.float32)
    # Poses of mirrored crops are not valid, but scipy still needs a proper rotation:
    # the sign turns a reflection into one.
    R = R * np.sign(np.linalg.det(R))[:, None, None]
    orient = Rotation.from_rotvec(pose[:, 0]).as_matrix()
    turned[:, 0] = Rotation.from_matrix(R @ orient).as_rotvec()
    return turned


def _flipped(view: crop.View, flip: np.ndarray, config: CropConfig) -> crop.View:
    """Mirror the views of some examples: SimpleHand's random flip.

    Labels keep their names, so that a right hand becomes a left one, and
    `R_crop_camera` becomes a reflection. The pose of such a hand belongs to another
    hand model: its `mano_valid` must be False.
    """
    if not flip.any():
        return view
    intrinsics, R, H = (field.copy() for field in view)
    intrinsics[flip] = crop.mirror_intrinsics(intrinsics[flip], config.size)
    R[flip] = np.diag(crop.MIRROR) @ R[flip]
    H[flip] = crop.mirror_homography(config.size) @ H[flip]
    return crop.View(intrinsics, R, H)


def strictly_inside(points: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Return whether pixels (batch, joint, 2) lie between 0 and `last`, exclusive."""
    return np.all((points > 0) & (points < last), axis=-1)
