"""The virtual camera: closed forms, and pictures that agree with labels."""

import numpy as np
import pytest

from handjax.geometry import crop

K = np.array([[400.0, 0, 100], [0, 400, 90], [0, 0, 1]])
BOX = np.array([120.0, 60, 180, 140])
POINTS = np.array([[130.0, 70], [175, 130], [150, 100], [121, 139]])


def _rotation(ray):
    """Rodrigues between unit vectors, as a textbook writes it."""
    a, b = ray / np.linalg.norm(ray), np.array([0, 0, 1.0])
    axis = np.cross(a, b)
    sin, cos = np.linalg.norm(axis), a @ b
    x, y, z = axis / sin
    skew = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + sin * skew + (1 - cos) * skew @ skew


def test_the_middle_of_the_box_is_the_middle_of_the_crop():
    view = crop.view(BOX, K, 224, angle=0.7)
    middle = crop.warp_points(view.H_crop_image, np.array([[150.0, 100]]))
    np.testing.assert_allclose(middle, [[112, 112]], atol=1e-9)


def test_the_camera_turns_as_rodrigues_says():
    view = crop.view(BOX, K, 224)
    ray = np.linalg.inv(K) @ (150, 100, 1)
    np.testing.assert_allclose(view.R_crop_camera, _rotation(ray), atol=1e-12)


def test_a_box_around_the_principal_point_needs_no_turn():
    box = np.array([80.0, 70, 120, 110])
    view = crop.view(box, K, 100)
    np.testing.assert_array_equal(view.R_crop_camera, np.eye(3))
    np.testing.assert_allclose(view.intrinsics[0, 0], 400 * 100 / 40)
    np.testing.assert_allclose(
        crop.warp_points(view.H_crop_image, np.array([[80.0, 70], [120, 110]])),
        [[0, 0], [100, 100]],
        atol=1e-9,
    )


def test_the_turned_box_just_fits():
    view = crop.view(BOX, K, 224, scale=1.25)
    x0, y0, x1, y1 = 112.5, 50.0, 187.5, 150.0
    corners = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
    seen = crop.warp_points(view.H_crop_image, corners)
    assert np.ptp(seen, axis=0).max() == pytest.approx(224)


def test_warping_back_is_the_identity():
    view = crop.view(BOX, K, 224, scale=1.3, angle=2.0)
    there = crop.warp_points(view.H_crop_image, POINTS)
    back = crop.warp_points(np.linalg.inv(view.H_crop_image), there)
    np.testing.assert_allclose(back, POINTS, atol=1e-9)


@pytest.mark.parametrize("angle", [0.0, 1.1, np.pi / 2, -3.0])
@pytest.mark.parametrize("aspect", [1.0, 1.16])
def test_turned_points_project_where_the_picture_shows_them(angle, aspect, rng):
    lens = K * np.array([[1.0], [aspect], [1.0]])
    points = rng.normal(0, 0.05, (21, 3)) + (0.03, 0.02, 0.5)
    photo = crop.project(points, lens)
    view = crop.view(BOX, lens, 224, angle=angle)
    turned = crop.rotate(view.R_crop_camera, points)
    np.testing.assert_allclose(
        crop.project(turned, view.intrinsics),
        crop.warp_points(view.H_crop_image, photo),
        atol=1e-7,
    )
    H = crop.homography(view.R_crop_camera, view.intrinsics, lens)
    np.testing.assert_array_equal(H, view.H_crop_image)


def test_a_turned_camera_turns_directions_about_its_axis():
    """By a quarter, what is right of the axis is below it, at the same angle."""
    wide = K * np.array([[1.0], [1.16], [1.0]])
    rays = []
    for angle in (0.0, np.pi / 2):
        view = crop.view(BOX, wide, 224, angle=angle)
        pixels = crop.warp_points(view.H_crop_image, POINTS)
        focal = np.diag(view.intrinsics)[:2]
        rays.append((pixels - view.intrinsics[:2, 2]) / focal)
    np.testing.assert_allclose(rays[1][:, 0], -rays[0][:, 1], atol=1e-9)
    np.testing.assert_allclose(rays[1][:, 1], rays[0][:, 0], atol=1e-9)


def test_a_batch_is_its_examples(rng):
    boxes = BOX + rng.normal(0, 5, (2, 3, 4))
    scale, angle = rng.uniform(1, 2, (2, 3)), rng.uniform(-3, 3, (2, 3))
    Ks = np.broadcast_to(K, (2, 3, 3, 3))
    batch = crop.view(boxes, Ks, 64, scale=scale, angle=angle)
    for at in np.ndindex(2, 3):
        one = crop.view(boxes[at], K, 64, scale=scale[at], angle=angle[at])
        for got, want in zip(batch, one, strict=True):
            np.testing.assert_allclose(got[at], want, atol=1e-9)


# --- pictures -----------------------------------------------------------------------


def _dot(size, at, sigma=2.0):
    y, x = np.mgrid[:size, :size]
    light = np.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / (2 * sigma**2))
    return np.repeat((255 * light[..., None]).astype(np.uint8), 3, axis=-1)


def _centroid(image):
    light = image[..., 0].astype(float)
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    return np.array([(light * x).sum(), (light * y).sum()]) / light.sum()


@pytest.mark.parametrize("angle", [0.0, 0.9])
@pytest.mark.parametrize("aspect", [1.0, 1.16])
def test_a_dot_is_found_at_its_label(angle, aspect):
    lens = K * np.array([[1.0], [aspect], [1.0]])
    view = crop.view(BOX, lens, 224, scale=1.5, angle=angle)
    dot = np.array([[140.25, 107.5]])
    image = crop.warp_image(_dot(200, dot[0]), view.H_crop_image, 224)
    label = crop.warp_points(view.H_crop_image, dot)[0]
    np.testing.assert_allclose(_centroid(image), label, atol=0.1)


def test_a_dot_of_a_large_photo_is_found_after_averaging():
    box = np.array([100.0, 130, 1300, 1330])
    lens = np.array([[1500.0, 0, 700], [0, 1500, 650], [0, 0, 1]])
    view = crop.view(box, lens, 128)
    assert crop.shrinking(view.H_crop_image, 128) > 9
    dot = np.array([[640.0, 811.0]])
    image = crop.warp_image(_dot(1400, dot[0], 30), view.H_crop_image, 128)
    label = crop.warp_points(view.H_crop_image, dot)[0]
    np.testing.assert_allclose(_centroid(image), label, atol=0.1)


def test_shrinking_does_not_alias(rng):
    """Fine noise becomes its mean; bilinear sampling alone would keep it noisy."""
    noise = rng.integers(0, 2, (800, 800, 1)).astype(np.uint8) * np.full(3, 255, "u1")
    view = crop.view(
        np.array([0.0, 0, 799, 799]),
        np.array([[900.0, 0, 399.5], [0, 900, 399.5], [0, 0, 1]]),
        64,
    )
    assert crop.warp_image(noise, view.H_crop_image, 64)[4:-4, 4:-4].std() < 15


def test_outside_the_photo_is_black():
    white = np.full((50, 50, 3), 255, np.uint8)
    lens = np.array([[60.0, 0, 24.5], [0, 60, 24.5], [0, 0, 1]])
    view = crop.view(np.array([30.0, 10, 70, 50]), lens, 64)
    image = crop.warp_image(white, view.H_crop_image, 64)
    assert image[:, -5:].max() == 0 and image[20, 5].min() == 255


def test_the_given_array_is_written():
    view, out = crop.view(BOX, K, 64), np.zeros((64, 64, 3), np.uint8)
    image = _dot(200, (150, 100))
    expected = crop.warp_image(image, view.H_crop_image, 64)
    crop.warp_image(image, view.H_crop_image, 64, out)
    np.testing.assert_array_equal(out, expected)
    assert out.max() > 0


# --- mirror images ------------------------------------------------------------------


def test_mirroring_twice_is_the_identity():
    np.testing.assert_allclose(
        crop.mirror_intrinsics(crop.mirror_intrinsics(K, 320), 320), K
    )
    np.testing.assert_allclose(crop.mirror_box(crop.mirror_box(BOX, 320), 320), BOX)
    twice = crop.mirror_homography(320) @ crop.mirror_homography(320)
    np.testing.assert_allclose(twice, np.eye(3))


def test_a_mirrored_camera_sees_the_mirrored_world_in_the_mirrored_picture(rng):
    points = rng.normal(0, 0.05, (21, 3)) + (0, 0, 0.5)
    mirrored = crop.project(points * crop.MIRROR, crop.mirror_intrinsics(K, 320))
    expected = crop.project(points, K) * (-1, 1) + (319, 0)
    np.testing.assert_allclose(mirrored, expected)


def test_the_assumed_camera_has_a_lens_as_long_as_the_diagonal():
    lens = crop.assumed_intrinsics(640, 480)
    np.testing.assert_allclose(lens, [[800, 0, 319.5], [0, 800, 239.5], [0, 0, 1]])


@pytest.fixture
def rng():
    return np.random.default_rng(0)
