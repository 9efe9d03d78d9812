"""Pictures: the formats that are read and no other, and sizes before pixels."""

import ast
import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, ImageFile
from places import ROOT

from data_pipelines.loading import examples
from data_pipelines.sources import pictures
from handjax.errors import UserError
from handjax.inference import photos
from handjax.io import image_files, limits

EPS = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n showpage\n%%EOF"
)


def encoded(mode="RGB", form="PNG", size=(6, 4), **options) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, form, **options)
    return buffer.getvalue()


def huge_png(side: int) -> bytes:
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    content = zlib.compress(bytes(1 + 3 * side) * 20)
    parts = [(b"IHDR", header), (b"IDAT", content), (b"IEND", b"")]
    made = b"\x89PNG\r\n\x1a\n"
    for kind, data in parts:
        made += struct.pack(">I", len(data)) + kind + data
        made += struct.pack(">I", zlib.crc32(kind + data))
    return made


def test_no_picture_is_opened_without_its_formats():
    """Pillow guesses from the content, and PostScript starts another program."""
    calls = []
    for folder in ("handjax", "data_pipelines", "scripts", "deploy"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                    "Image.open",
                    "PIL.Image.open",
                ):
                    named = "formats" in [k.arg for k in node.keywords]
                    calls.append((path.name, named))
    assert calls and all(call == ("image_files.py", True) for call in calls)


@pytest.mark.parametrize("form", image_files.FORMATS)
def test_the_formats_are_read(form):
    with image_files.opened(encoded(form=form)) as picture:
        assert (picture.format, picture.size) == (form, (6, 4))


@pytest.mark.parametrize("form", ["GIF", "PPM", "TGA", "ICO"])
def test_other_formats_are_refused(form):
    with pytest.raises(image_files.ImageError, match="allowed are JPEG, PNG"):
        with image_files.opened(encoded(form=form)):
            raise AssertionError


def test_phones_files_of_several_pictures_are_read():
    buffer = io.BytesIO()
    first, second = Image.new("RGB", (6, 4)), Image.new("RGB", (3, 2))
    first.save(buffer, "MPO", save_all=True, append_images=[second])
    with image_files.opened(buffer.getvalue()) as picture:
        assert picture.size == (6, 4)


def test_postscript_starts_no_other_program(tmp_path, monkeypatch):
    def started(*_, **__):
        raise AssertionError("Ghostscript was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", started)
    path = tmp_path / "photo.jpg"
    path.write_bytes(EPS)
    with pytest.raises(photos.PhotoError, match=r"photo\.jpg: not a picture that is"):
        photos.read(path)
    with pytest.raises(UserError, match="cannot be decoded"):
        pictures.store(EPS)
    with pytest.raises(UserError, match="not a readable JPEG"):
        examples.decode_image(EPS + b"\xff\xd9")


def test_the_size_is_compared_before_pixels_are_made(tmp_path):
    path = tmp_path / "small.png"
    path.write_bytes(huge_png(13300))
    assert path.stat().st_size < 30_000
    tracemalloc.start()
    with pytest.raises(
        photos.PhotoError, match=r"small\.png: it has 13300 x .*MAX_PIXELS=176890000"
    ):
        photos.read(path)
    with pytest.raises(UserError, match="more than 67,108,864"):
        pictures.numbers(path.read_bytes())
    with pytest.raises(UserError, match="pixels"):
        image_files.check_size(path.read_bytes())
    assert tracemalloc.get_traced_memory()[1] < 1e7
    tracemalloc.stop()


def test_the_limit_can_be_raised(monkeypatch):
    data = encoded(size=(40, 40))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow's own does not matter
    monkeypatch.setenv(limits.PIXELS.variable, "1599")
    with pytest.raises(UserError, match="HANDJAX_MAX_PIXELS=1600"):
        image_files.opened(data).__enter__()
    monkeypatch.setenv(limits.PIXELS.variable, "1600")
    with image_files.opened(data) as picture:
        assert picture.size == (40, 40)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_cut_off_pictures_are_not_filled_with_grey(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    for form in image_files.FORMATS:
        buffer = io.BytesIO()
        Image.fromarray(noise).save(buffer, form)
        with pytest.raises(image_files.ImageError):
            with image_files.opened(buffer.getvalue()[:-2000]):
                raise AssertionError(form)
    assert ImageFile.LOAD_TRUNCATED_IMAGES
