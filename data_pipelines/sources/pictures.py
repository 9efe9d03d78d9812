"""Make stored pictures: as published, or cropped around the hand.

Pixels as in `schema`: the centre of the first one is (0, 0). EXIF orientation is not
applied, neither here nor by readers, since annotations are of the pixels as stored.
"""

import io
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Float
from PIL import Image

from data_pipelines.sources.description import DroppedError
from handjax.errors import UserError
from handjax.geometry import crop
from handjax.io import image_files, pixels

AROUND = 3.0
"""Side of a stored crop, relative to the longer side of the hand's box: room for
augmentation, which turns boxes, moves them and grows them up to twice."""
LONGEST = 512
"""Pixels along the longer side of a stored picture; larger ones are reduced."""
QUALITY = 95
_SMALLEST = 32
"""Least pixels along the side of a box, so that even a dot gets a picture."""

FOCAL_DIAGONALS = (0.2, 20.0)
"""Believed focal lengths, in diagonals of the published picture; others are in another
unit than pixels."""
_FURTHEST = 1e6

Box = tuple[Float[np.ndarray, "2"], Float[np.ndarray, "2"]]
"""Centre and size (width, height), pixels."""


class Lens(NamedTuple):
    """A camera with lens distortion."""

    K: Float[np.ndarray, "3 3"]
    distortion: Float[np.ndarray, "5"]
    """k1, k2, p1, p2, k3, as OpenCV has them."""


class Picture(NamedTuple):
    """A stored picture; source pixel = origin + stored pixel / scale."""

    jpeg: bytes
    height: int
    width: int
    origin: Float[np.ndarray, "2"]
    scale: float
    source_height: int
    source_width: int


def store(data: bytes, box: Box | None = None, lens: Lens | None = None) -> Picture:
    """Make a stored picture of a published one.

    Args:
        data: Content of the published file.
        box: Box of the hand; None keeps the whole picture at its size.
        lens: Lens whose distortion is removed; the box is in undistorted pixels.

    Returns:
        The published bytes if they are a colour JPEG that need not be changed.

    Raises:
        UserError: The picture is truncated or cannot be decoded.
        DroppedError: The box is none.
    """
    if box is not None:
        _check_box(box)
    image = _decoded(data)
    width, height = image.size
    low, high = np.zeros(2, np.int64), np.array([width, height])
    if box is not None:
        low, high = _window(box, width, height)
    size = high - low
    scale = 1.0 if box is None else min(1.0, LONGEST / float(size.max()))
    whole = scale == 1 and size.tolist() == [width, height] and lens is None
    if whole and _is_plain(image, data):
        return Picture(data, height, width, np.zeros(2), 1.0, height, width)
    # Whole stored pixels; the window gives up less than one of them.
    stored = np.maximum(np.floor(size * scale + 1e-9), 1).astype(int)
    # Pixel centres lie half a pixel inside, of the source and of the stored picture.
    origin = low + 0.5 / scale - 0.5
    image = Image.fromarray(pixels.from_picture(image))
    if lens is not None:
        cut = _undistorted(image, lens, origin, scale, stored)
    elif scale == 1:
        cut = image.crop((*low.tolist(), *high.tolist()))
    else:
        window = (*low.tolist(), *np.minimum(low + stored / scale, high).tolist())
        lanczos = Image.Resampling.LANCZOS
        cut = image.resize(tuple(stored.tolist()), lanczos, box=window)
    buffer = io.BytesIO()
    cut.save(buffer, "JPEG", quality=QUALITY)
    jpeg = buffer.getvalue()
    return Picture(jpeg, cut.height, cut.width, origin, scale, height, width)


def _undistorted(
    image: Image.Image,
    lens: Lens,
    origin: np.ndarray,
    scale: float,
    size: np.ndarray,
) -> Image.Image:
    """Return the part of the picture that an ideal pinhole camera would take."""
    K = np.array(lens.K, np.float64)
    K[:2, 2] -= origin
    K[:2] *= scale
    maps = cv2.initUndistortRectifyMap(
        lens.K, lens.distortion, np.eye(3), K, size.tolist(), cv2.CV_32FC1
    )
    whole = np.asarray(image)
    if scale < 1:  # interpolation alone would skip pixels
        sigma = 0.4 / scale
        whole = cv2.GaussianBlur(whole, (0, 0), sigma)
    return Image.fromarray(cv2.remap(whole, *maps, cv2.INTER_LINEAR))


def numbers(data: bytes) -> np.ndarray:
    """Read the pixels of a picture as they are stored, e.g. of a mask.

    Raises:
        UserError: The picture is truncated or cannot be decoded.
    """
    return np.asarray(_decoded(data))


def _decoded(data: bytes) -> Image.Image:
    try:
        with image_files.opened(data) as image:
            return image
    except image_files.ImageError as error:
        raise UserError(f"it cannot be decoded: {error}") from error


def _is_plain(image: Image.Image, data: bytes) -> bool:
    """Return whether readers can take the file as it is."""
    return image.format == "JPEG" and image.mode == "RGB" and b"\xff\xd9" in data[-64:]


def _window(box: Box, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Return first and last+1 pixels of the part of the picture that is kept."""
    last = np.array([width, height])
    center = np.clip(box[0], 0, last - 1)
    half = AROUND / 2 * max(float(np.max(box[1])), _SMALLEST)
    low = np.floor(center - half).astype(np.int64)
    high = np.ceil(center + half).astype(np.int64) + 1
    return np.maximum(low, 0), np.minimum(high, last)


def tight_box(joints2d: Float[np.ndarray, "joint 3"]) -> Box:
    """Return the box around joints with confidence; zero size if there are none."""
    known = joints2d[joints2d[:, 2] > 0, :2]
    if not len(known):
        return np.zeros(2), np.zeros(2)
    low, high = known.min(axis=0), known.max(axis=0)
    return (low + high) / 2, high - low


def fields(
    picture: Picture,
    *,
    joints2d: Float[np.ndarray, "joint 3"],
    box: Box,
    K: Float[np.ndarray, "3 3"] | None = None,
) -> dict[str, Any]:
    """Return the fields of a record that are in stored pixels.

    Args:
        picture: The stored picture.
        joints2d: Source pixels, and confidence.
        box: Box of the hand, source pixels.
        K: Camera matrix of the source picture.

    Raises:
        DroppedError: A number cannot be what it is said to be; see `FOCAL_DIAGONALS`.
    """
    _check_box(box)
    if not np.isfinite(joints2d).all():
        raise DroppedError("2-D joints that are not finite")
    if K is not None:
        _check_camera(picture, np.asarray(K, np.float64))
    origin, scale = picture.origin, picture.scale
    points = np.array(joints2d, np.float64)
    points[:, :2] = np.where(points[:, 2:] > 0, (points[:, :2] - origin) * scale, 0)
    made: dict[str, Any] = {
        "image": picture.jpeg,
        "image_size": np.array([picture.height, picture.width]),
        "crop_origin": origin,
        "crop_scale": scale,
        "joints2d": points,
        "bbox_center": (box[0] - origin) * scale,
        "bbox_size": box[1] * scale,
    }
    if K is not None:
        K = np.array(K, np.float64)
        K[:2, 2] = K[:2, 2] - origin * K[2, 2]
        K[:2] *= scale
        made["K"] = K
    return made


def _check_box(box: Box) -> None:
    """Refuse boxes that are none: annotations may hold any number."""
    numbers = np.concatenate(box).astype(np.float64)
    if not np.isfinite(numbers).all() or np.abs(numbers).max() > _FURTHEST:
        raise DroppedError("a box that is not finite or not near the picture")
    if np.min(box[1]) < 0:
        raise DroppedError("a box whose corners are in the wrong order")


def _check_camera(picture: Picture, K: np.ndarray) -> None:
    low, high = FOCAL_DIAGONALS
    focal = K[[0, 1], [0, 1]]
    diagonal = np.hypot(picture.source_height, picture.source_width)
    if not (np.isfinite(K).all() and np.linalg.det(K) != 0):
        raise DroppedError("a camera matrix that cannot be inverted")
    if not (low * diagonal <= focal.min() and focal.max() <= high * diagonal):
        raise DroppedError(f"a focal length outside of {low:g} to {high:g} diagonals")


def projected(
    joints3d: Float[np.ndarray, "joint 4"], K: Float[np.ndarray, "3 3"]
) -> Float[np.ndarray, "joint 3"]:
    """Project known 3-D joints; joints behind the camera are marked unknown."""
    known = (joints3d[:, 3] > 0) & (joints3d[:, 2] > 1e-6)
    pixels = np.where(known[:, None], crop.project(joints3d[:, :3], K), 0.0)
    return np.column_stack([pixels, known])
