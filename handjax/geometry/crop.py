"""The crop a network sees: a virtual camera turned towards a box. numpy only.

Training, evaluation and prediction crop with these functions and no others.

Conventions: pixels x right, y down, the centre of the first pixel is (0, 0); boxes are
x0, y0, x1, y1; cameras are OpenCV's (z forward). A crop is made by turning the camera
about its own centre until it looks at the middle of the box, which is a homography of
the picture and a rotation of everything 3-D; so a hand at the edge of a wide picture
looks as it would in the middle. The middle of the box falls on pixel `size / 2`, as in
the published crops of SimpleHand.
"""

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, UInt8

MIRROR = np.array([-1.0, 1.0, 1.0])
"""Factor on 3-D points, and (times -1) on axis-angle vectors, of a mirror image."""

_EPS = 1e-6


class CropConfig(NamedTuple):
    """How large a crop is."""

    size: int = 224
    """Side in pixels."""
    box_scale: float = 1.25
    """Growth of the tight box in evaluation and prediction."""


class View(NamedTuple):
    """A square crop as a camera; all fields may have leading batch axes."""

    intrinsics: Float[np.ndarray, "*batch 3 3"]
    """Camera matrix in pixels of the crop."""
    R_crop_camera: Float[np.ndarray, "*batch 3 3"]
    """Turns points from the photo's camera into the crop's."""
    H_crop_image: Float[np.ndarray, "*batch 3 3"]
    """Homography from pixels of the photo to pixels of the crop."""


def view(
    box_px: Float[np.ndarray, "*batch 4"],
    intrinsics: Float[np.ndarray, "*batch 3 3"],
    size: int,
    *,
    scale: float | int | Float[np.ndarray, "*batch"] = 1.0,
    angle: float | int | Float[np.ndarray, "*batch"] = 0.0,
) -> View:
    """Compute the camera that looks at a box.

    With ray r through the middle of the box, R the shortest turn that takes r to the
    optical axis, f = size / (larger side of the turned box) and c = size / 2:

        K' = [[fx f, 0, c], [0, fy f, c], [0, 0, 1]]
        R_crop_camera = Rz(angle) R
        H_crop_image = K' R_crop_camera K^-1

    So the picture is what a camera K' at R_crop_camera sees, also where fx != fy: the
    camera turns, not its pixels.

    Args:
        box_px: box in the photo; it need not lie inside.
        intrinsics: camera matrix of the photo.
        size: side of the crop, pixels.
        scale: growth of the box about its middle.
        angle: in-plane rotation, radians; positive turns x towards y.
    """
    K = np.asarray(intrinsics, np.float64)
    box = np.asarray(box_px, np.float64)
    centre = (box[..., :2] + box[..., 2:]) / 2
    half = (box[..., 2:] - box[..., :2]) / 2 * np.asarray(scale)[..., None]
    K_inverse = np.linalg.inv(K)
    R = _turn_to_axis(_rays(K_inverse, centre[..., None, :])[..., 0, :])
    signs = np.array([[-1.0, -1], [1, -1], [1, 1], [-1, 1]])
    corners = centre[..., None, :] + signs * half[..., None, :]
    turned = _rays(K_inverse, corners) @ np.swapaxes(R, -1, -2)
    focal = np.stack([K[..., 0, 0], K[..., 1, 1]], -1)
    flat = turned[..., :2] / np.maximum(turned[..., 2:], _EPS) * focal[..., None, :]
    side = (flat.max(-2) - flat.min(-2)).max(-1)
    crop_K = np.zeros_like(K)
    zoom = size / np.maximum(side, _EPS)
    crop_K[..., 0, 0], crop_K[..., 1, 1] = focal[..., 0] * zoom, focal[..., 1] * zoom
    crop_K[..., :2, 2], crop_K[..., 2, 2] = size / 2, 1
    R = rotation_z(np.broadcast_to(angle, side.shape)) @ R
    return View(crop_K, R, crop_K @ R @ K_inverse)


def homography(
    R_crop_camera: Float[np.ndarray, "*batch 3 3"],
    crop_intrinsics: Float[np.ndarray, "*batch 3 3"],
    intrinsics: Float[np.ndarray, "*batch 3 3"],
) -> Float[np.ndarray, "*batch 3 3"]:
    """Return `View.H_crop_image` of a view of which only the camera is known.

    Args:
        R_crop_camera: `View.R_crop_camera`, in-plane rotation included.
        crop_intrinsics: `View.intrinsics`.
        intrinsics: camera matrix of the photo.
    """
    return crop_intrinsics @ R_crop_camera @ np.linalg.inv(intrinsics)


def _rays(
    K_inverse: Float[np.ndarray, "*batch 3 3"],
    points: Float[np.ndarray, "*batch point 2"],
) -> Float[np.ndarray, "*batch point 3"]:
    """Return the directions of pixels, with z = 1."""
    shift = K_inverse[..., None, :2, 2]
    xy = points @ np.swapaxes(K_inverse[..., :2, :2], -1, -2) + shift
    return np.concatenate([xy, np.ones_like(xy[..., :1])], -1)


def _turn_to_axis(
    ray: Float[np.ndarray, "*batch 3"],
) -> Float[np.ndarray, "*batch 3 3"]:
    """Return the shortest rotation from a ray to (0, 0, 1).

    I + [v] + [v]^2 / (1 + c) with v = r x (0, 0, 1) and c = r_z: Rodrigues' formula
    without its division by sin, hence exactly the identity for the optical axis.
    """
    x, y, z = np.moveaxis(ray / np.linalg.norm(ray, axis=-1, keepdims=True), -1, 0)
    w = 1 / (1 + z)
    rows = [1 - x * x * w, -x * y * w, -x, -x * y * w, 1 - y * y * w, -y, x, y, z]
    return np.stack(rows, -1).reshape(*x.shape, 3, 3)


def rotation_z(
    angle: Float[np.ndarray, "*batch"] | float | int,
) -> Float[np.ndarray, "*batch 3 3"]:
    """Return the rotation about the optical axis (or a picture's origin)."""
    c, s = np.cos(angle), np.sin(angle)
    out = np.zeros((*np.shape(c), 3, 3))
    out[..., 0, 0], out[..., 0, 1], out[..., 1, 0], out[..., 1, 1] = c, -s, s, c
    out[..., 2, 2] = 1
    return out


# --- applying it --------------------------------------------------------------------


def warp_points(
    H: Float[np.ndarray, "*#batch 3 3"], points: Float[np.ndarray, "*#batch point 2"]
) -> Float[np.ndarray, "*batch point 2"]:
    """Move pixels by a homography.

    Use `np.linalg.inv(view.H_crop_image)` to go from the crop back to the photo.
    """
    HT = np.swapaxes(H, -1, -2)
    moved = points @ HT[..., :2, :] + HT[..., 2:, :]
    return moved[..., :2] / moved[..., 2:]


def rotate(
    R: Float[np.ndarray, "*#batch 3 3"], points: Float[np.ndarray, "*#batch point 3"]
) -> Float[np.ndarray, "*batch point 3"]:
    """Turn 3-D points; `rotate(R^T, .)` turns them back."""
    return points @ np.swapaxes(R, -1, -2)


def project(
    points: Float[np.ndarray, "*#batch point 3"],
    intrinsics: Float[np.ndarray, "*#batch 3 3"],
) -> Float[np.ndarray, "*batch point 2"]:
    """Project points in front of a camera to pixels."""
    seen = points @ np.swapaxes(intrinsics, -1, -2)
    return seen[..., :2] / np.maximum(seen[..., 2:], _EPS)


def warp_image(
    image: UInt8[np.ndarray, "height width 3"],
    H: Float[np.ndarray, "3 3"],
    size: int,
    out: UInt8[np.ndarray, "size size 3"] | None = None,
    *,
    block: int | None = None,
) -> UInt8[np.ndarray, "size size 3"]:
    """Resample a picture, bilinear, black outside.

    A crop more than twice coarser than the photo first averages whole blocks of pixels,
    for bilinear interpolation alone would skip most of them.

    Args:
        image: photo.
        H: from its pixels to those of the crop (`View.H_crop_image`).
        size: side of the crop.
        out: where to write it.
        block: side of the averaged blocks; None works it out (`shrinking`, rounded
            down).
    """
    if block is None:
        block = int(shrinking(H, size))
    if block >= 2:
        image, H = _averaged(image, H, block)
    return cv2.warpPerspective(
        image, H, (size, size), dst=out, flags=cv2.INTER_LINEAR, borderValue=(0, 0, 0)
    )


def shrinking(
    H: Float[np.ndarray, "*batch 3 3"], size: int
) -> Float[np.ndarray, "*batch"]:
    """Return photo pixels per crop pixel, in the crop's middle, along one side."""
    inverse = np.linalg.inv(H)
    # |det J| of the homography G = H^-1 at p is |det G| / w^3, w the last row times p.
    w = inverse[..., 2, :2].sum(-1) * (size / 2) + inverse[..., 2, 2]
    return np.asarray(np.sqrt(np.abs(np.linalg.det(inverse) / w**3)))


def _averaged(
    image: np.ndarray, H: np.ndarray, block: int
) -> tuple[np.ndarray, np.ndarray]:
    """Average a picture over blocks; return it and the homography from it."""
    height, width = image.shape[0] // block, image.shape[1] // block
    if min(height, width) < 2:
        return image, H
    whole = image[: height * block, : width * block]
    small = cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA)
    shift = (block - 1) / 2  # centre of the first block
    from_small = np.array([[block, 0, shift], [0, block, shift], [0, 0, 1.0]])
    return small, H @ from_small


# --- mirror images ------------------------------------------------------------------


def mirror_homography(
    width: int | Float[np.ndarray, "*batch"],
) -> Float[np.ndarray, "*batch 3 3"]:
    """Return the left-right mirror of pixels: x becomes width - 1 - x."""
    out = np.zeros((*np.shape(width), 3, 3))
    out[..., 0, 0], out[..., 1, 1], out[..., 2, 2] = -1, 1, 1
    out[..., 0, 2] = np.asarray(width) - 1
    return out


def mirror_intrinsics(
    intrinsics: Float[np.ndarray, "*batch 3 3"],
    width: int | Float[np.ndarray, "*batch"],
) -> Float[np.ndarray, "*batch 3 3"]:
    """Return the camera whose picture of the mirrored world is the mirrored one."""
    return mirror_homography(width) @ intrinsics * MIRROR


def mirror_box(
    box_px: Float[np.ndarray, "*batch 4"], width: int | Float[np.ndarray, "*batch"]
) -> Float[np.ndarray, "*batch 4"]:
    """Return the box in the mirrored picture."""
    out = np.array(box_px, np.float64)
    last = np.asarray(width, np.float64) - 1
    out[..., 0], out[..., 2] = last - box_px[..., 2], last - box_px[..., 0]
    return out


def assumed_intrinsics(
    width: float | int, height: float | int
) -> Float[np.ndarray, "3 3"]:
    """Return an assumed camera, whose focal length is the picture's diagonal."""
    focal = float(np.hypot(width, height))
    centre = (width - 1) / 2, (height - 1) / 2
    return np.array([[focal, 0, centre[0]], [0, focal, centre[1]], [0, 0, 1.0]])
