"""From the network's crop back into the photo. numpy, batched, no model.

    view = placement.view(box_px, intrinsics, width, 224, is_right=is_right)
    crop.warp_image(photo, view.H_crop_photo, 224)  # for the network
    placed = placement.to_photo(output, view, intrinsics, root=9)
    placed.vertices + placed.translation  # metres, axes of the photo's camera

A left hand is seen in a mirrored photo, so that the network only knows right hands; it
is mirrored in `view` and un-mirrored in `to_photo`, for prediction, evaluation and
control images alike. A crop may be turned in its own plane: pixels go back by the
homography, directions by the rotation, and the translation is found in the photo's
camera, so none of the three needs to know the angle.
"""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float

from handjax.geometry import camera, crop
from handjax.types import HandOutput

ROOT_DEPTH, JOINTS2D, BOX, UNKNOWN = "root_depth", "joints2d", "box", "unknown"
"""Values of `Placed.translation_source`."""

# Without jit, its loop would be compiled at every call.
_solve_translation = jax.jit(camera.solve_translation)


class CropView(NamedTuple):
    """A crop as a camera, with the way from the photo to it; any batch axes."""

    H_crop_photo: Float[np.ndarray, "*batch 3 3"]
    """Homography from pixels of the photo to pixels of the crop; a left hand's mirrors
    the photo, and an in-plane rotation is part of it."""
    R_crop_camera: Float[np.ndarray, "*batch 3 3"]
    """Rotation from the camera's axes (a left hand's: mirrored) to the crop camera's,
    in-plane rotation included."""
    intrinsics: Float[np.ndarray, "*batch 3 3"]
    """Of the crop camera, pixels of the crop."""
    is_right: Bool[np.ndarray, "*batch"]
    """False where the crop shows the mirror image of a left hand."""

    def to_camera(
        self, points: Float[np.ndarray, "*#batch point 3"]
    ) -> Float[np.ndarray, "*batch point 3"]:
        """Turn points from the crop camera's axes to the photo camera's; un-mirror."""
        turned = crop.rotate(np.swapaxes(self.R_crop_camera, -1, -2), points)
        return turned * self._mirror

    def to_crop(
        self, points: Float[np.ndarray, "*#batch point 3"]
    ) -> Float[np.ndarray, "*batch point 3"]:
        """Turn points from the photo camera's axes to the crop camera's."""
        return crop.rotate(self.R_crop_camera, points * self._mirror)

    def to_photo_px(
        self, points: Float[np.ndarray, "*#batch point 2"]
    ) -> Float[np.ndarray, "*batch point 2"]:
        """Move pixels of the crop to the photo."""
        return crop.warp_points(np.linalg.inv(self.H_crop_photo), points)

    def to_crop_px(
        self, points: Float[np.ndarray, "*#batch point 2"]
    ) -> Float[np.ndarray, "*batch point 2"]:
        """Move pixels of the photo to the crop."""
        return crop.warp_points(self.H_crop_photo, points)

    @property
    def _mirror(self) -> Float[np.ndarray, "*batch 1 3"]:
        return np.where(self.is_right[..., None, None], 1.0, crop.MIRROR)


class BoxGuard(NamedTuple):
    """What the box around a hand says of its distance; for photos, not benchmarks."""

    box_px: Float[np.ndarray, "*batch 4"]
    """x0, y0, x1, y1 in the photo."""
    extent_m: float
    """Size of the hand or body that fills a box; decides the distance where the
    network's joints do not."""
    smallest: float | Float[np.ndarray, "*batch"] = 1 / 4
    """Smallest size of the placed hand, as a share of its box, that is believed."""
    largest: float = 4.0
    """Largest size that is believed."""


class Placed(NamedTuple):
    """Hands in the camera of the photo: metres, OpenCV axes, un-mirrored."""

    vertices: Float[np.ndarray, "*batch vertex 3"]
    """Relative to the root joint; add `translation` for the camera's frame."""
    joints3d: Float[np.ndarray, "*batch joint 3"]
    """Same frame."""
    joints2d: Float[np.ndarray, "*batch joint 2"] | None
    """Pixels of the photo; None where the network predicts none and no box is given."""
    translation: Float[np.ndarray, "*batch 3"]
    """Root joint in the camera's frame; zero where its source is "unknown"."""
    translation_source: np.ndarray
    """(*batch,) of "root_depth" (predicted), "joints2d" (3-D joints put onto the
    predicted 2-D ones), "box" (its size) or "unknown"."""


# --- into the crop ------------------------------------------------------------------


def view(
    box_px: Float[np.ndarray, "*batch 4"],
    intrinsics: Float[np.ndarray, "*batch 3 3"],
    width: int | Float[np.ndarray, "*batch"],
    size: int,
    *,
    is_right: bool | Bool[np.ndarray, "*batch"] = True,
    scale: float | int | Float[np.ndarray, "*batch"] = 1.0,
    angle: float | int | Float[np.ndarray, "*batch"] = 0.0,
) -> CropView:
    """Return the view of a box as the network is to see it: of a right hand.

    Args:
        box_px: x0, y0, x1, y1 in the photo; it need not lie inside.
        intrinsics: Camera matrix of the photo, pixels.
        width: Of the photo, pixels.
        size: Side of the crop, pixels.
        is_right: Where False, the photo is mirrored first. A crop that is to show a
            left hand as it is takes True.
        scale: Growth of the box about its middle.
        angle: In-plane rotation of what the crop shows, radians; positive turns x
            towards y in the photo, left hands before they are mirrored.
    """
    right = np.broadcast_to(np.asarray(is_right, bool), np.shape(box_px)[:-1])
    seen = crop.view(
        mirror_left_boxes(box_px, width, right),
        mirror_left_cameras(intrinsics, width, right),
        size,
        scale=scale,
        angle=np.where(right, angle, -np.asarray(angle)),
    )
    H = seen.H_crop_image @ mirror_left_pixels(width, right)
    return CropView(H, seen.R_crop_camera, seen.intrinsics, right)


def view_of_camera(
    R_crop_camera: Float[np.ndarray, "*batch 3 3"],
    intrinsics_crop: Float[np.ndarray, "*batch 3 3"],
    intrinsics: Float[np.ndarray, "*batch 3 3"],
    width: int | Float[np.ndarray, "*batch"],
    *,
    is_right: Bool[np.ndarray, "*batch"],
) -> CropView:
    """Return the view of a crop of which only the camera is known, as of a `Batch`.

    Args:
        R_crop_camera: `Batch.R_crop_camera`.
        intrinsics_crop: `Batch.intrinsics`.
        intrinsics: Camera matrix of the photo, pixels.
        width: Of the photo, pixels.
        is_right: False where the crop was made of the mirrored photo.
    """
    K = mirror_left_cameras(intrinsics, width, is_right)
    H = crop.homography(R_crop_camera, intrinsics_crop, K)
    H = H @ mirror_left_pixels(width, is_right)
    return CropView(H, R_crop_camera, intrinsics_crop, is_right)


def mirror_left_boxes(
    box_px: Float[np.ndarray, "*batch 4"],
    width: int | Float[np.ndarray, "*batch"],
    is_right: Bool[np.ndarray, "*batch"],
) -> Float[np.ndarray, "*batch 4"]:
    """Mirror the boxes of left hands; twice is the identity."""
    mirrored = crop.mirror_box(box_px, width)
    return np.where(is_right[..., None], box_px, mirrored)


def mirror_left_cameras(
    intrinsics: Float[np.ndarray, "*batch 3 3"],
    width: int | Float[np.ndarray, "*batch"],
    is_right: Bool[np.ndarray, "*batch"],
) -> Float[np.ndarray, "*batch 3 3"]:
    """Mirror the camera matrices of left hands; twice is the identity."""
    mirrored = crop.mirror_intrinsics(intrinsics, width)
    return np.where(is_right[..., None, None], intrinsics, mirrored)


def mirror_left_pixels(
    width: int | Float[np.ndarray, "*batch"], is_right: Bool[np.ndarray, "*batch"]
) -> Float[np.ndarray, "*batch 3 3"]:
    """Return the homography that mirrors photos of left hands."""
    mirror = crop.mirror_homography(width)
    return np.where(is_right[..., None, None], np.eye(3), mirror)


def unmirrored(view: CropView, size: int) -> CropView:
    """Return the view that shows its left hands un-mirrored, for pictures.

    Its crop is the network's one with the columns of left hands reversed.

    Args:
        view: As the network sees it.
        size: Side of the crop, pixels.
    """
    M = np.diag(crop.MIRROR)
    left = ~view.is_right[..., None, None]
    return CropView(
        H_crop_photo=np.where(
            left, crop.mirror_homography(size) @ view.H_crop_photo, view.H_crop_photo
        ),
        R_crop_camera=np.where(left, M @ view.R_crop_camera @ M, view.R_crop_camera),
        intrinsics=np.where(
            left, crop.mirror_intrinsics(view.intrinsics, size), view.intrinsics
        ),
        is_right=np.ones_like(view.is_right),
    )


# --- and back -----------------------------------------------------------------------


def to_photo(
    output: HandOutput,
    view: CropView,
    intrinsics: Float[np.ndarray, "*batch 3 3"],
    *,
    root: int,
    guard: BoxGuard | None = None,
) -> Placed:
    """Place what a network says about crops in the cameras of their photos.

    The root joint is where its predicted depth and pixel put it. Without a depth, or if
    that is behind the camera, it is where the 3-D joints project onto the predicted
    2-D ones, and if that cannot be, at the distance at which a hand of usual size fills
    its box.

    Args:
        output: With the batch axes of `view`.
        view: As `view` or `view_of_camera` made it.
        intrinsics: Camera matrices of the photos, pixels.
        root: Joint that 3-D is relative to.
        guard: Of photos: refuse a translation from 2-D joints that makes the hand much
            smaller or larger than its box (joints that bunch together would put it
            metres away), and fall back on the box. None believes every translation in
            front of the camera and reports the others as "unknown".
    """
    K = np.asarray(intrinsics, np.float64)
    vertices = view.to_camera(np.asarray(output.vertices, np.float64))
    joints3d = view.to_camera(np.asarray(output.joints3d, np.float64))
    translation, source = np.zeros_like(joints3d[..., 0, :]), UNKNOWN
    source = np.full(translation.shape[:-1], UNKNOWN, "<U10")
    if guard is not None:
        translation, source[...] = _from_box(joints3d, K, guard), BOX
    if output.joints2d is None:
        seen = None if guard is None else _project(joints3d, translation, K)
        return Placed(vertices, joints3d, seen, translation, source)
    joints2d = view.to_photo_px(np.asarray(output.joints2d, np.float64))
    solved = np.asarray(_solve_translation(joints3d, joints2d, K), np.float64)
    usable = np.isfinite(solved).all(axis=-1) & (solved[..., 2] > 0)
    if guard is not None:
        usable &= _fits(joints3d, solved, K, guard)
    translation = np.where(usable[..., None], solved, translation)
    source = np.where(usable, JOINTS2D, source)
    if output.root_gamma is not None:
        gamma = np.asarray(output.root_gamma)
        at_depth, usable = _at_depth(joints2d[..., root, :], gamma, view, K)
        translation = np.where(usable[..., None], at_depth, translation)
        source = np.where(usable, ROOT_DEPTH, source)
    return Placed(vertices, joints3d, joints2d, translation, source)


def _at_depth(
    root_px: np.ndarray, gamma: np.ndarray, view: CropView, K: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return root joints at their pixels and depths, and which are in front."""
    depth = np.asarray(camera.root_depth_from_gamma(gamma, view.intrinsics), np.float64)
    ray = _rays(root_px, K)
    # The depth is measured along the crop camera's axis, not along the photo camera's.
    along = view.to_crop(ray[..., None, :])[..., 0, 2]
    usable = np.isfinite(depth) & (depth > 0) & (along > 0)
    far = np.where(usable, depth, 0.0) / np.where(usable, along, 1.0)
    return ray * far[..., None], usable


def _from_box(joints3d: np.ndarray, K: np.ndarray, guard: BoxGuard) -> np.ndarray:
    """Return where a hand of usual size fills its box: a guess, reported as one."""
    box = np.asarray(guard.box_px, np.float64)
    low, high = box[..., :2], box[..., 2:]
    depth = K[..., 0, 0] * guard.extent_m / np.max(high - low, axis=-1)
    middle = joints3d.mean(axis=-2) * [1.0, 1.0, 0.0]
    return _rays((low + high) / 2, K) * depth[..., None] - middle


def _fits(
    joints3d: np.ndarray, translation: np.ndarray, K: np.ndarray, guard: BoxGuard
) -> np.ndarray:
    """Return which hands are in front of the camera and about as large as their box."""
    ahead = (joints3d + translation[..., None, :])[..., 2].min(axis=-1) > 0
    box = np.asarray(guard.box_px, np.float64)
    side = np.max(box[..., 2:] - box[..., :2], axis=-1)
    safe = np.where(ahead[..., None], translation, [0.0, 0.0, 1e3])
    seen = _project(joints3d, safe, K)
    ratio = np.ptp(seen, axis=-2).max(axis=-1) / side
    return ahead & (guard.smallest < ratio) & (ratio < guard.largest)


def _project(joints3d: np.ndarray, translation: np.ndarray, K: np.ndarray):
    return crop.project(joints3d + translation[..., None, :], K)


def _rays(points: np.ndarray, K: np.ndarray) -> np.ndarray:
    """Return directions of pixels (*batch, 2), with z = 1."""
    homogeneous = np.concatenate([points, np.ones_like(points[..., :1])], axis=-1)
    return np.linalg.solve(K, homogeneous[..., None])[..., 0]
