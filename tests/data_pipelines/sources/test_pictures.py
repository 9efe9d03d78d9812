"""Stored pictures: pixels stay where annotations say, bytes stay where they can."""

import io

import cv2
import numpy as np
import pytest
from miniatures.hands import encoded
from PIL import Image

from data_pipelines.sources import pictures
from data_pipelines.sources.description import DroppedError


def dots(width, height, points):
    """A black picture with smooth white dots."""
    y, x = np.mgrid[:height, :width]
    image = np.zeros((height, width))
    for px, py in points:
        image += 255 * np.exp(-((x - px) ** 2 + (y - py) ** 2) / 50)
    return np.repeat(image.clip(0, 255).astype(np.uint8)[..., None], 3, -1)


def centroid(jpeg):
    grey = cv2.imdecode(np.frombuffer(jpeg, np.uint8), 0).astype(float)
    grey[grey < 60] = 0
    y, x = np.mgrid[: grey.shape[0], : grey.shape[1]]
    return np.array([(grey * x).sum(), (grey * y).sum()]) / grey.sum()


@pytest.mark.parametrize(
    "size, center, box",
    [
        ((640, 480), (300.25, 200.5), 60),  # cut
        ((1020, 580), (900.0, 300.0), 400),  # cut at the edge, reduced
        ((900, 700), (451.5, 300.0), 2000),  # whole, reduced
        ((40, 30), (20.0, 15.0), 1),  # nothing to cut
    ],
)
def test_a_point_is_where_origin_and_scale_say(size, center, box):
    data = encoded(dots(*size, [center]), "PNG")
    stored = pictures.store(data, (np.array(center), np.full(2, float(box))))
    expected = (np.array(center) - stored.origin) * stored.scale
    np.testing.assert_allclose(centroid(stored.jpeg), expected, atol=0.1)
    assert max(stored.width, stored.height) <= pictures.LONGEST
    with Image.open(io.BytesIO(stored.jpeg)) as image:
        assert image.size == (stored.width, stored.height)
        assert image.format == "JPEG"


def test_crops_are_about_three_boxes_wide():
    data = encoded(np.zeros((480, 640, 3), np.uint8))
    stored = pictures.store(data, (np.array([320.0, 240]), np.array([80.0, 50])))
    assert (stored.width, stored.height) == (241, 241)
    assert stored.origin.tolist() == [200, 120] and stored.scale == 1


def test_bytes_that_need_no_change_are_kept():
    data = encoded(dots(64, 48, [(30, 20)]))
    assert pictures.store(data).jpeg == data
    assert pictures.store(data, (np.array([30.0, 20]), np.full(2, 64.0))).jpeg == data


def test_grey_and_png_pictures_become_colour_jpegs():
    """Trap: some cameras of InterHand2.6M are grey."""
    for data in (
        encoded(np.full((20, 30), 77, np.uint8)),
        encoded(np.full((20, 30, 3), 77, np.uint8), "PNG"),
    ):
        stored = pictures.store(data)
        with Image.open(io.BytesIO(stored.jpeg)) as image:
            assert (image.mode, image.format, image.size) == ("RGB", "JPEG", (30, 20))


def test_orientation_tags_do_not_turn_anything():
    """Annotations are of the stored pixels, as readers see them."""
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(dots(64, 48, [(50, 10)])).save(buffer, "JPEG", exif=exif)
    stored = pictures.store(buffer.getvalue())
    assert (stored.width, stored.height) == (64, 48)
    cut = pictures.store(buffer.getvalue(), (np.array([50.0, 10]), np.full(2, 4.0)))
    expected = np.array([50, 10]) - cut.origin
    np.testing.assert_allclose(centroid(cut.jpeg), expected, atol=0.5)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_truncated_picture_is_refused(kind):
    noise = np.random.default_rng(0).integers(0, 255, (50, 50, 3), dtype=np.uint8)
    data = encoded(noise, kind)
    for part in (data[: len(data) // 2], b"", b"no picture"):
        with pytest.raises(ValueError, match="cannot be decoded"):
            pictures.store(part)


def test_a_box_outside_of_the_picture_gives_its_nearest_part():
    data = encoded(np.zeros((480, 640, 3), np.uint8))
    stored = pictures.store(data, (np.array([900.0, -50]), np.full(2, 20.0)))
    assert stored.width > 10 and stored.height > 10


def test_fields_move_points_boxes_and_camera_alike():
    rng = np.random.default_rng(0)
    data = encoded(np.zeros((1080, 1920), np.uint8))
    K = np.array([[1400.0, 0, 950], [0, 1410, 530], [0, 0, 1]])
    joints3d = np.column_stack([rng.normal(0, 0.1, (21, 3)) + [0.1, 0, 0.5], [1] * 21])
    joints3d[3, 3] = 0
    joints3d[4, 2] = -1
    joints2d = pictures.projected(joints3d, K)
    assert joints2d[:, 2].tolist() == [1] * 3 + [0, 0] + [1] * 16
    box = pictures.tight_box(joints2d)
    made = pictures.fields(pictures.store(data, box), joints2d=joints2d, box=box, K=K)
    assert made["crop_scale"] < 1
    known = joints2d[:, 2] > 0
    again = pictures.projected(joints3d, made["K"])
    np.testing.assert_allclose(made["joints2d"][known], again[known], atol=1e-9)
    source = made["crop_origin"] + made["joints2d"][:, :2] / made["crop_scale"]
    np.testing.assert_allclose(source[known], joints2d[known, :2], atol=1e-9)
    center, size = pictures.tight_box(made["joints2d"])
    np.testing.assert_allclose(made["bbox_center"], center)
    np.testing.assert_allclose(made["bbox_size"], size)


NO_BOXES = {
    "not finite": (np.array([np.nan, 1.0]), np.array([5.0, 5])),
    "not near": (np.array([1e30, 1.0]), np.array([5.0, 5])),
    "wrong order": (np.array([9.0, 9]), np.array([-5.0, 5])),
}


@pytest.mark.parametrize("why", NO_BOXES)
def test_boxes_that_are_none_drop_the_example(why):
    data, good = encoded(dots(40, 30, []), "PNG"), (np.zeros(2), np.ones(2))
    picture = pictures.store(data, good)
    with pytest.raises(DroppedError, match=why):
        pictures.store(data, NO_BOXES[why])
    with pytest.raises(DroppedError, match=why):
        pictures.fields(picture, joints2d=np.ones((21, 3)), box=NO_BOXES[why])


@pytest.mark.parametrize(
    ("K", "why"),
    [
        (np.diag([1.2, 1.6, 1]), "a focal length outside of 0.2 to 20 diagonals"),
        (np.diag([50.0, 9000, 1]), "a focal length outside"),
        (np.diag([-50.0, 50, 1]), "a focal length outside"),
        (np.diag([0.0, 50, 1]), "cannot be inverted"),
        (np.diag([np.inf, 50, 1]), "cannot be inverted"),
        (np.diag([50.0, 50, 1]), None),
    ],
)
def test_cameras_that_cannot_have_taken_the_picture_drop_the_example(K, why):
    picture = pictures.store(encoded(dots(40, 30, []), "PNG"))  # a diagonal of 50
    given = dict(joints2d=np.ones((21, 3)), box=(np.zeros(2), np.ones(2)), K=K)
    if why is None:
        assert pictures.fields(picture, **given)["K"][0, 0] == 50
        return
    with pytest.raises(DroppedError, match=why):
        pictures.fields(picture, **given)


def test_pictures_of_16_bits_are_stored_with_all_their_levels():
    grey = np.linspace(0, 65535, 200).round().astype(np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(grey.reshape(1, -1).repeat(60, 0)).save(buffer, "PNG")
    stored = pictures.store(buffer.getvalue())
    found = np.asarray(Image.open(io.BytesIO(stored.jpeg))).astype(float)
    np.testing.assert_allclose(found[30, :, 0], grey / 257, atol=4)
