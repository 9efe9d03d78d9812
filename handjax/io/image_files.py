"""Open pictures of the formats that handjax says it reads, and of no other.

Pillow guesses the format from the content: a .jpg that holds PostScript would start
another program. Its size is compared with `limits.PIXELS` before it is decoded.
"""

import contextlib
import io
import os
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageFile

from handjax.errors import UserError
from handjax.io import limits

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
"""By Pillow's names. JPEG includes phones' files of several pictures (MPO)."""

_LOCK = threading.Lock()
"""Held while Pillow's global settings are other than a program may expect."""


class ImageError(UserError):
    """A file is not a picture that can be read; the message does not say which."""


@contextlib.contextmanager
def opened(
    source: str | Path | bytes, formats: tuple[str, ...] = FORMATS
) -> Iterator[Image.Image]:
    """Open and decode a picture, which is closed at the end of the `with`.

    Args:
        source: Path of a file, or its content.
        formats: Formats of `FORMATS` that are allowed.

    Raises:
        ImageError: It is of another format, truncated, damaged or too large.
        OSError: The file cannot be opened.
    """
    with _file(source) as file, _decoded(file, formats) as picture:
        yield picture


def _file(source: str | Path | bytes) -> io.BufferedIOBase:
    return io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")


def _decoded(file: io.BufferedIOBase, formats: tuple[str, ...]) -> Image.Image:
    with _LOCK, _pillows_settings():
        try:
            picture = Image.open(file, formats=formats)
            width, height = picture.size
            limits.PIXELS.check(
                width * height, f"it has {width} x {height} = {width * height:,} pixels"
            )
            picture.load()
        except UserError as error:
            raise ImageError(str(error)) from None
        except MemoryError as error:
            raise ImageError("it needs more memory than there is.") from error
        except Exception as error:  # Pillow's decoders raise many kinds
            what = (
                f"not a picture that is read; allowed are {', '.join(FORMATS)}"
                if isinstance(error, Image.UnidentifiedImageError)
                else f"truncated or damaged picture ({error})"
            )
            raise ImageError(f"{what}.") from error
    return picture


@contextlib.contextmanager
def _pillows_settings() -> Iterator[None]:
    """Have Pillow neither fill cut-off pictures nor warn of large ones meanwhile."""
    most, fills = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = None, False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd tags, which nothing here uses
            yield
    finally:
        Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = most, fills


def check_size(data: bytes | os.PathLike, formats: tuple[str, ...] = FORMATS) -> None:
    """Check format and number of pixels of a picture that another library decodes.

    Raises:
        ImageError: It is of another format, damaged or too large.
    """
    file = _file(data if isinstance(data, bytes) else Path(data))
    with file, _LOCK, _pillows_settings():
        try:
            width, height = Image.open(file, formats=formats).size
        except Exception as error:
            raise ImageError(
                f"the image is not a readable {', '.join(formats)}"
            ) from error
    try:
        limits.PIXELS.check(width * height, f"it has {width} x {height} pixels")
    except UserError as error:
        raise ImageError(str(error)) from None
