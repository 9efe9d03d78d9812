import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from handjax.inference import photos
from handjax.inference.photos import PhotoError


@pytest.fixture
def jpeg(tmp_path):
    """A noisy photo, so that cutting the file cuts picture data."""
    pixels = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    path = tmp_path / "hand.jpg"
    Image.fromarray(pixels).save(path, quality=95)
    return path


def test_photo_is_turned_upright(tmp_path):
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, :20] = 255  # bright left half
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # the camera was turned: show 90 degrees cw
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    image = photos.read(tmp_path / "turned.png").image
    assert image.shape == (40, 20, 3)
    assert image[:18].min() == 255 and image[22:].max() == 0


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_every_colour_mode_becomes_rgb(tmp_path, mode):
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    Image.new(mode, (8, 6), 120 if mode in "LP" else (120,) * len(mode)).save(path)
    image = photos.read(path).image
    assert image.shape == (6, 8, 3) and image.dtype == np.uint8


def test_bad_files_are_named_in_one_line(jpeg, tmp_path):
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "cut.jpg").write_bytes(jpeg.read_bytes()[: jpeg.stat().st_size // 2])
    for name, match in (
        ("none.jpg", "no such file"),
        ("empty.jpg", "empty"),
        ("text.jpg", "not a picture"),
        ("cut.jpg", "truncated"),
    ):
        with pytest.raises(PhotoError, match=match) as caught:
            photos.read(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)


def test_folder_lists_its_photos_by_name(jpeg, tmp_path):
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "a.PNG").write_bytes(b"")
    assert [p.name for p in photos.listed(tmp_path)] == ["a.PNG", "hand.jpg"]
    assert photos.listed(jpeg) == [jpeg]
    (tmp_path / "sub").mkdir()
    with pytest.raises(PhotoError, match="no photo"):
        photos.listed(tmp_path / "sub")
    with pytest.raises(PhotoError, match="no such file or folder"):
        photos.listed(tmp_path / "absent")


def test_intrinsics_are_given_or_from_exif_or_assumed(jpeg, tmp_path):
    opened = photos.read(jpeg)
    assumed = photos.intrinsics_of(opened)
    assert assumed.source == "assumed" and assumed.matrix[0, 0] == 100.0
    assert tuple(assumed.matrix[:2, 2]) == (39.5, 29.5)
    given = photos.intrinsics_of(opened, (50, 60, 1, 2))  # 1/2 diagonal and more
    assert given.source == "given" and given.matrix[1, 1] == 60

    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FocalLengthIn35mmFilm] = 50
    Image.new("RGB", (3600, 2400)).save(tmp_path / "e.jpg", exif=exif)
    found = photos.intrinsics_of(photos.read(tmp_path / "e.jpg"))
    # 3:2 like the film, so 36 mm are 3600 pixels.
    assert found.source == "exif"
    assert found.matrix[0, 0] == pytest.approx(5000, rel=1e-4)


@pytest.mark.parametrize("text", ["1,2,3", "1,2,3,x", "", "1,2,3,4,5", "1,2,3,nan"])
def test_wrong_numbers_say_what_is_expected(text):
    with pytest.raises(PhotoError, match=r"fx,fy,cx,cy"):
        photos.parse_numbers(text, "fx,fy,cx,cy")


def test_focal_length_has_to_be_positive():
    assert photos.parse_numbers("1, 2.5,-3,4", "a,b,c,d") == (1, 2.5, -3, 4)
    with pytest.raises(PhotoError, match="above 0"):
        photos.intrinsics_matrix((0, 5, 1, 1))


def test_boxes_are_clipped_or_refused(jpeg):
    opened = photos.read(jpeg)
    assert photos.checked_box((-5, 10, 30, 90), opened) == (0, 10, 30, 59)
    for box, match in (
        ((10, 10, 10, 50), "0 x 40"),
        ((50, 10, 20, 40), "-30 x 30"),
        ((90, 0, 120, 40), "outside the photo of 80 x 60"),
        ((0, 0, math.nan, 4), "four numbers"),
    ):
        with pytest.raises(PhotoError, match=match) as caught:
            photos.checked_box(box, opened)
        assert "hand.jpg" in str(caught.value)
    assert photos.whole_image_box(opened) == (10, 0, 69, 59)


def test_boxes_file_holds_hands_and_cameras(tmp_path):
    path = tmp_path / "boxes.json"
    path.write_text(
        json.dumps(
            {
                "a.jpg": {"box": [1, 2, 30, 40]},
                "b.jpg": [
                    {"box": [1, 2, 3, 4], "side": "left"},
                    {"box": [5, 6, 7, 8], "side": "right"},
                ],
                "c.jpg": {
                    "hands": [{"box": [1, 2, 3, 4]}],
                    "intrinsics": [9, 9, 1, 1],
                },
            }
        )
    )
    found = photos.read_boxes(path)
    assert found["a.jpg"].hands == (photos.HandBox((1, 2, 30, 40), True, "given"),)
    assert [hand.is_right for hand in found["b.jpg"].hands] == [False, True]
    assert found["c.jpg"].intrinsics == (9, 9, 1, 1)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "not complete JSON"),
        ("[]", "top level"),
        ('{"a.jpg": []}', "list of hands"),
        ('{"a.jpg": {"side": "left"}}', "a hand is"),
        ('{"a.jpg": {"box": [1, 2, 3]}}', "four numbers"),
        ('{"a.jpg": {"box": [1, 2, 3, 4], "side": "top"}}', "'right' or 'left'"),
    ],
)
def test_wrong_boxes_files_are_explained(tmp_path, text, match):
    path = tmp_path / "boxes.json"
    path.write_text(text)
    with pytest.raises(PhotoError, match=match):
        photos.read_boxes(path)
    with pytest.raises(PhotoError, match="no such file"):
        photos.read_boxes(tmp_path / "absent.json")


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "CMYK"])
def test_turned_tiffs_without_compression_are_not_scrambled(tmp_path, mode):
    pixels = np.random.default_rng(0).integers(0, 255, (5, 8, 3), np.uint8)
    picture = Image.fromarray(pixels).convert(mode)
    picture.save(tmp_path / "turned.tif", tiffinfo={274: 6})
    image = photos.read(tmp_path / "turned.tif").image
    np.testing.assert_array_equal(image, np.rot90(np.array(picture.convert("RGB")), -1))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_photos_of_16_bits_keep_their_levels_and_stay_upright(tmp_path, suffix):
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(1, -1)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    path = tmp_path / f"deep.{suffix}"
    Image.fromarray(ramp.repeat(9, 0)).save(path, exif=exif)
    image = photos.read(path).image
    assert image.shape == (256, 9, 3)
    np.testing.assert_array_equal(image[:, 0, 0], np.arange(256))


def test_a_float_photo_without_a_known_white_is_refused_in_one_line(tmp_path):
    path = tmp_path / "float.tif"
    Image.fromarray(np.full((8, 8), 200, np.float32)).save(path)
    with pytest.raises(PhotoError, match=r"float\.tif: float32 pixels of 200"):
        photos.read(path)


def test_pixels_are_taken_in_any_unambiguous_form_by_all_who_open_photos():
    image = np.random.default_rng(1).integers(0, 256, (9, 7, 3), np.uint8)
    for same in (image / 255, image.astype(int), Image.fromarray(image)):
        np.testing.assert_array_equal(photos.opened(same).image, image)
    deep = photos.Photo(Path("deep.png"), image.astype(np.uint16) * 257, None)
    with pytest.raises(PhotoError, match=r"deep\.png: uint16 pixels"):
        photos.opened(deep)


@pytest.mark.parametrize(
    "given",
    [
        (1.2, 1.6, 0.5, 0.5),  # shares of the width and height
        (19.9, 60, 40, 30),
        (60, 2001, 40, 30),
    ],
)
def test_cameras_in_another_unit_are_refused(jpeg, given):
    opened = photos.read(jpeg)  # 80 x 60, a diagonal of 100
    with pytest.raises(PhotoError, match=r"in pixels .* between 20 and 2000") as caught:
        photos.intrinsics_of(opened, given)
    assert "hand.jpg: a camera with fx=" in str(caught.value)
    assert photos.intrinsics_of(opened, (20, 2000, 40, 30)).source == "given"


@pytest.mark.parametrize(
    ("size", "noted", "source"),
    [
        ((1800, 1200), (3600, 2400), "exif"),  # reduced
        ((900, 1200), (4032, 3024), "exif"),  # turned, and the note was left
        ((113, 85), (4032, 3024), "exif"),  # reduced, and rounded
        ((1200, 1200), (3600, 2400), "assumed"),  # cut
        ((1200, 700), (1200, 800), "assumed"),
        ((1200, 800), (0, 0), "exif"),  # nothing is noted
    ],
)
def test_the_lens_of_a_cut_photo_is_not_believed(tmp_path, size, noted, source):
    exif = Image.Exif()
    ifd = exif.get_ifd(ExifTags.IFD.Exif)
    ifd[ExifTags.Base.FocalLengthIn35mmFilm] = 26
    ifd[ExifTags.Base.ExifImageWidth], ifd[ExifTags.Base.ExifImageHeight] = noted
    Image.new("RGB", size).save(tmp_path / "e.jpg", exif=exif)
    found = photos.intrinsics_of(photos.read(tmp_path / "e.jpg"))
    assert found.source == source
    if source == "exif":
        expected = 26 / 43.2666 * math.hypot(*size)
        assert found.matrix[0, 0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("wrong", [(1, 2, 3), [1, 2, 3, "x"], 5, (1, 2, 3, math.inf)])
def test_four_numbers_are_four_numbers(wrong):
    with pytest.raises(PhotoError, match=r"a\.jpg: box=.* is not a list of four num"):
        photos.four_numbers("a.jpg", "box", wrong)
    assert photos.four_numbers("", "", np.arange(4)) == (0, 1, 2, 3)
