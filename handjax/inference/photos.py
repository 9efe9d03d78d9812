"""What prediction takes from outside: photos, boxes, camera intrinsics.

Every error here is a `PhotoError` with one line that a user can act on. Pixel centres
are at whole numbers; boxes are x0, y0, x1, y1 in pixels of the upright photo (after its
EXIF orientation, as viewers show it).
"""

import glob
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import ExifTags, Image, ImageOps

from handjax.errors import UserError, shown, suggest
from handjax.geometry.crop import assumed_intrinsics
from handjax.io import image_files, json_files, pixels
from handjax.io.folders import visible

if TYPE_CHECKING:
    from handjax.detection.hand_detector import DetectedHand

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff")
_OTHER_SUFFIXES = (".heic", ".heif", ".avif", ".gif", ".jp2", ".jxl", ".tga")
_OTHER_SUFFIXES += (".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2")

FULL_FRAME_DIAGONAL_MM = 43.2666
"""Diagonal of the 36 x 24 mm frame that EXIF's 35 mm equivalent focal length means."""
FOCAL_DIAGONALS = (0.2, 20.0)
"""Believed focal lengths, in diagonals of the photo: 9 to 865 mm on full frame. Others
are mostly in another unit, such as shares of the width."""

_MIN_BOX_PX = 4.0


class PhotoError(UserError):
    """Something about one photo that its owner can put right."""


class Photo(NamedTuple):
    """An upright picture and what its file says about the lens."""

    path: Path
    image: UInt8[np.ndarray, "height width 3"]
    """RGB, 0..255."""
    focal_exif_px: float | None
    """Focal length from EXIF, pixels; None where the file does not tell."""


class Intrinsics(NamedTuple):
    """Camera matrix of a photo and where it comes from."""

    matrix: Float[np.ndarray, "3 3"]
    source: str
    """"given", "exif" or "assumed"."""


class HandBox(NamedTuple):
    """Where one hand is, and which."""

    box_px: tuple[float, float, float, float]
    is_right: bool
    source: str
    """"given", "detector" or "whole_image"."""
    reading: "DetectedHand | None" = None
    """What handjax's detector read there: region, landmarks, presence."""
    side_given: bool = False
    """Whether the user named the side."""


def opened(image: Any) -> Photo:
    """Return a photo that is given as a file, as pixels, or opened.

    Everything that predicts from a picture takes it through here.

    Args:
        image: A path, a `Photo`, or what `io.pixels.from_array` takes.

    Raises:
        PhotoError: The file is not a picture that can be read, or the pixels have
            another shape or range.
    """
    if isinstance(image, str | Path):
        return read(image)
    photo = image if isinstance(image, Photo) else Photo(Path("image"), image, None)
    try:
        return photo._replace(image=pixels.from_array(photo.image))
    except UserError as error:
        raise PhotoError(f"{photo.path}: {error}") from None


def read(path: str | Path) -> Photo:
    """Open a photo, turn it upright, and check that it is whole.

    Raises:
        PhotoError: The file is missing, empty, truncated or no picture.
    """
    path = Path(path)
    if not path.is_file():
        raise PhotoError(f"{path}: no such file.")
    if path.stat().st_size == 0:
        raise PhotoError(f"{path}: the file is empty (0 bytes).")
    try:
        with image_files.opened(path) as picture:
            focal = _exif_focal_px(picture)
            _turn_upright(picture)
            image = pixels.from_picture(picture)
    except UserError as error:
        raise PhotoError(f"{path}: {error}") from None
    except MemoryError as error:
        raise PhotoError(f"{path}: it needs more memory than there is.") from error
    return Photo(path, image, focal)


def _turn_upright(picture: Image.Image) -> None:
    try:
        ImageOps.exif_transpose(picture, in_place=True)
    except Exception:  # damaged EXIF: left as stored, as viewers do
        return


def _exif_focal_px(picture: Image.Image) -> float | None:
    """Return the focal length in pixels from EXIF's 35 mm equivalent, or None."""
    try:
        exif = picture.getexif().get_ifd(ExifTags.IFD.Exif)
        equivalent_mm = float(exif.get(ExifTags.Base.FocalLengthIn35mmFilm, 0))
        cut = _cut(exif, picture)
    except Exception:  # damaged EXIF is common, and never worth losing the photo for
        return None
    low, high = (FULL_FRAME_DIAGONAL_MM * limit for limit in FOCAL_DIAGONALS)
    if not low <= equivalent_mm <= high or cut:
        return None
    return equivalent_mm * math.hypot(*picture.size) / FULL_FRAME_DIAGONAL_MM


def _cut(exif: Mapping[int, Any], picture: Image.Image) -> bool:
    """Return whether a part was cut out since the lens was noted.

    Cameras note how large their picture was. If it had other proportions, the rest of
    it is missing, and both focal length and principal point are of the whole.
    """
    noted = [
        float(exif.get(tag, 0))
        for tag in (ExifTags.Base.ExifImageWidth, ExifTags.Base.ExifImageHeight)
    ]
    if min(noted) <= 0:
        return False
    # Sorted, for programs that turn the pixels often leave the two numbers.
    (short, long), (least, most) = sorted(noted), sorted(picture.size)
    # Rounding of a reduced picture moves each side by half a pixel.
    return (
        abs(least * long - most * short) > 0.51 * (long + short) + 0.01 * most * short
    )


def passed_over(folder: str | Path) -> list[str]:
    """Name the pictures of a folder that `listed` leaves out for their format."""
    return [p.name for p in visible(folder) if p.suffix.lower() in _OTHER_SUFFIXES]


_VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm")


def listed_all(names: Sequence[str]) -> list[Path]:
    """List the photos that files, folders and patterns such as `*.jpg` name, once each.

    Raises:
        PhotoError: One of them names no photo.
    """
    paths: dict[Path, None] = {}
    for name in names:
        if re.match(r"[a-z]+://", name):
            raise PhotoError(
                f"{name}: addresses are not opened; download the photo first, such as "
                f"with curl -O {shlex.quote(name)}"
            )
        matches = [] if Path(name).exists() else sorted(glob.glob(name))
        for match in matches or [name]:
            paths |= dict.fromkeys(listed(match))
    return list(paths)


def listed(path: str | Path) -> list[Path]:
    """List the photo itself, or all photos directly inside a folder, by name."""
    path = Path(path)
    if path.suffix.lower() in _VIDEO_SUFFIXES and path.is_file():
        raise PhotoError(
            f"{path}: a video; cut it into photos first, such as with mkdir frames && "
            f"ffmpeg -i {shlex.quote(str(path))} frames/%05d.jpg, and give the folder."
        )
    if path.is_dir():
        found = [p for p in visible(path) if p.suffix.lower() in SUFFIXES]
        if not found:
            other = passed_over(path)
            held = f"; {other[0]} has to be converted" if other else ""
            raise PhotoError(
                f"{path}: no photo ({', '.join(SUFFIXES)}) in this folder{held}."
            )
        return found
    if not path.exists():
        raise PhotoError(f"{path}: no such file or folder.")
    return [path]


# --- intrinsics ---------------------------------------------------------------------


def parse_numbers(text: str, names: str) -> tuple[float, ...]:
    """Parse comma-separated numbers, as many as `names` has.

    Raises:
        PhotoError: Shows what was given and the form that is expected.
    """
    parts = [part.strip() for part in text.split(",")]
    try:
        values = tuple(float(part) for part in parts)
    except ValueError:
        values = ()
    if len(values) != names.count(",") + 1 or not all(map(math.isfinite, values)):
        raise PhotoError(
            f"{text!r} is not {names}: give that many numbers, with commas."
        )
    return values


def four_numbers(
    where: str, name: str, value: Any
) -> tuple[float, float, float, float]:
    """Return four finite numbers from whatever sequence or array holds them.

    Raises:
        PhotoError: Begins with `where` and shows what was given.
    """
    try:
        numbers = tuple(float(v) for v in value)
    except (TypeError, ValueError, OverflowError):
        numbers = ()
    if len(numbers) != 4 or not all(map(math.isfinite, numbers)):
        shown = " ".join(repr(value).split())[:100]
        raise PhotoError(f"{where}: {name}={shown} is not a list of four numbers.")
    return numbers


def intrinsics_matrix(values: Sequence[float | int]) -> Float[np.ndarray, "3 3"]:
    """Build the camera matrix from fx, fy, cx, cy in pixels."""
    fx, fy, cx, cy = four_numbers("intrinsics", "fx, fy, cx, cy", values)
    if fx <= 0 or fy <= 0:
        raise PhotoError(f"intrinsics fx={fx:g}, fy={fy:g} must be above 0 pixels.")
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])


def intrinsics_of(
    photo: Photo, given: Sequence[float | int] | None = None
) -> Intrinsics:
    """Return the camera of a photo: as given, else from EXIF, else assumed.

    The assumed focal length is the photo's diagonal (a 43 mm lens on full frame, 53
    degrees corner to corner), with the principal point in the middle. It sets how far
    away the hand is placed; its shape hardly depends on it.

    Raises:
        PhotoError: The given focal lengths are outside of `FOCAL_DIAGONALS`.
    """
    height, width = photo.image.shape[:2]
    if given is not None:
        matrix = intrinsics_matrix(given)
        _check_focal(photo, float(matrix[0, 0]), float(matrix[1, 1]))
        return Intrinsics(matrix, "given")
    matrix = assumed_intrinsics(float(width), float(height))
    if photo.focal_exif_px is None:
        return Intrinsics(matrix, "assumed")
    matrix[[0, 1], [0, 1]] = photo.focal_exif_px
    return Intrinsics(matrix, "exif")


def _check_focal(photo: Photo, fx: float, fy: float) -> None:
    height, width = photo.image.shape[:2]
    low, high = (math.hypot(width, height) * limit for limit in FOCAL_DIAGONALS)
    if not (low <= min(fx, fy) and max(fx, fy) <= high):
        raise PhotoError(
            f"{photo.path}: a camera with fx={fx:g}, fy={fy:g} pixels cannot have "
            f"taken a photo of {width} x {height}; give fx, fy, cx, cy in pixels of "
            f"this photo, focal lengths between {low:.0f} and {high:.0f}."
        )


# --- boxes --------------------------------------------------------------------------


def checked_box(
    box_px: Sequence[float | int], photo: Photo
) -> tuple[float, float, float, float]:
    """Clip a box to the photo, which it must overlap.

    Raises:
        PhotoError: The box is degenerate, or outside the photo.
    """
    height, width = photo.image.shape[:2]
    x0, y0, x1, y1 = four_numbers(str(photo.path), "box", box_px)
    shown = f"{photo.path}: box {x0:g},{y0:g},{x1:g},{y1:g}"
    if x1 - x0 < _MIN_BOX_PX or y1 - y0 < _MIN_BOX_PX:
        raise PhotoError(
            f"{shown} is {x1 - x0:g} x {y1 - y0:g} pixels; give x0,y0,x1,y1 with x1 "
            f"and y1 at least {_MIN_BOX_PX:g} more than x0 and y0."
        )
    clipped = (max(x0, 0.0), max(y0, 0.0), min(x1, width - 1.0), min(y1, height - 1.0))
    if clipped[2] - clipped[0] < _MIN_BOX_PX or clipped[3] - clipped[1] < _MIN_BOX_PX:
        raise PhotoError(f"{shown} is outside the photo of {width} x {height} pixels.")
    return clipped


def in_photo(
    boxes: Sequence[HandBox], image: UInt8[np.ndarray, "height width 3"]
) -> list[HandBox]:
    """Return the boxes that `checked_box` accepts: detectors look past the border."""
    photo, kept = Photo(Path(), image, None), []
    for box in boxes:
        try:
            checked_box(box.box_px, photo)
        except PhotoError:
            continue
        kept.append(box)
    return kept


def whole_image_box(photo: Photo) -> tuple[float, float, float, float]:
    """Return the largest centred square, for photos of one hand and little else.

    Raises:
        PhotoError: The photo is only a few pixels wide or high.
    """
    height, width = photo.image.shape[:2]
    side = min(height, width) - 1.0
    if side < _MIN_BOX_PX:
        raise PhotoError(
            f"{photo.path}: a photo of {width} x {height} pixels is too small."
        )
    x0, y0 = (width - 1 - side) / 2, (height - 1 - side) / 2
    return (x0, y0, x0 + side, y0 + side)


class Annotation(NamedTuple):
    """What a boxes file says about one photo."""

    hands: tuple[HandBox, ...]
    intrinsics: tuple[float, ...] | None


def read_boxes(path: str | Path) -> dict[str, Annotation]:
    """Read `--boxes`: a JSON object, file name -> hand, or list of hands.

    A hand is `{"box": [x0, y0, x1, y1], "side": "right" | "left"}` (side defaults to
    right); a photo may also be `{"hands": [...], "intrinsics": [fx, fy, cx, cy]}`.

    Raises:
        PhotoError: Names the file, the entry and the form that is expected.
    """
    path = Path(path)
    try:
        data = json_files.parse(path.read_bytes(), f"--boxes {path}")
    except FileNotFoundError:
        raise PhotoError(f"--boxes {path}: no such file.") from None
    except OSError as error:
        raise PhotoError(f"--boxes {path}: {error.strerror}.") from None
    except UserError as error:
        raise PhotoError(str(error)) from None
    if not isinstance(data, dict):
        raise PhotoError(
            f"--boxes {path}: the top level must be an object, name -> hand."
        )
    return {
        name: _annotation(f"--boxes {path}: {name!r}", v) for name, v in data.items()
    }


def _annotation(where: str, value: Any) -> Annotation:
    intrinsics = None
    if isinstance(value, Mapping):
        if value.get("intrinsics") is not None:
            intrinsics = four_numbers(where, "intrinsics", value["intrinsics"])
        value = {key: v for key, v in value.items() if key != "intrinsics"}
        if "hands" in value:
            _check_keys(where, value, ("hands",))
        value = value.get("hands", [value])
    if not isinstance(value, list) or not value:
        raise PhotoError(f"{where}: give a hand or a list of hands.")
    return Annotation(tuple(_hand(where, hand) for hand in value), intrinsics)


def _check_keys(where: str, value: Mapping[Any, Any], known: tuple[str, ...]) -> None:
    """Refuse other keys, such as a mistyped "side", which would mean its default."""
    for key in value:
        if key not in known:
            raise PhotoError(f"{where}: unknown key {key!r}{suggest(str(key), known)}")


def _hand(where: str, hand: Any) -> HandBox:
    if not isinstance(hand, Mapping) or "box" not in hand:
        raise PhotoError(
            f'{where}: a hand is {{"box": [x0, y0, x1, y1], "side": ...}}.'
        )
    _check_keys(where, hand, ("box", "side"))
    side = hand.get("side", "right")
    if side not in ("right", "left"):
        raise PhotoError(f"{where}: side={shown(side)} is not 'right' or 'left'.")
    x0, y0, x1, y1 = four_numbers(where, "box", hand["box"])
    return HandBox((x0, y0, x1, y1), side == "right", "given")
