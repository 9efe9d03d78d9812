"""Cameras: closed forms, inverses and the placement of a hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from handjax.geometry import camera

K = np.array([[480.0, 0, 320], [0, 500, 240], [0, 0, 1]], np.float32)


def _hand(rng, batch=()):
    return rng.normal(scale=0.05, size=(*batch, 21, 3)).astype(np.float32)


def test_project_by_hand():
    px = camera.project(np.float32([[0.1, -0.2, 2.0]]), K)
    np.testing.assert_allclose(px, [[480 * 0.05 + 320, 500 * -0.1 + 240]])


def test_project_finds_the_pixels_of_points_on_their_rays():
    rng = np.random.default_rng(0)
    intrinsics = np.broadcast_to(K, (4, 3, 3)).copy()
    intrinsics[:, 0, 1] = 3.0
    intrinsics[:, 0, 0] *= [1, 2, 3, 4]
    pixels = rng.uniform(0, 640, (4, 7, 2)).astype(np.float32)
    depth = rng.uniform(0.3, 2, (4, 7)).astype(np.float32)
    homogeneous = np.concatenate([pixels, np.ones((4, 7, 1))], axis=-1)
    rays = np.einsum("bij,bpj->bpi", np.linalg.inv(intrinsics), homogeneous)
    points = (rays * depth[..., None]).astype(np.float32)
    np.testing.assert_allclose(camera.project(points, intrinsics), pixels, atol=1e-3)
    shared = camera.project(points, K)
    assert shared.shape == (4, 7, 2)


def test_points_behind_the_camera_stay_finite():
    points = np.float32([[0.1, 0, 0], [0.1, 0.1, -1]])
    assert np.isfinite(camera.project(points, K)).all()
    gradient = jax.grad(lambda p: camera.project(p, K).sum())(jnp.asarray(points))
    assert np.isfinite(gradient).all()


def test_weak_perspective_and_translation_are_inverse():
    cam = np.float32([[0.8, 0.01, -0.02], [1.2, 0.0, 0.03]])
    transl = camera.weak_perspective_to_translation(cam, 5000, 256)
    np.testing.assert_allclose(transl[:, 2], 2 * 5000 / (256 * cam[:, 0]), rtol=1e-6)
    back = camera.translation_to_weak_perspective(transl, 5000, 256)
    np.testing.assert_allclose(back, cam, rtol=1e-5)


def test_weak_perspective_is_the_limit_of_perspective():
    points = _hand(np.random.default_rng(1))
    cam = np.float32([0.9, 0.02, -0.01])
    focal, size = 50_000.0, 224
    transl = camera.weak_perspective_to_translation(cam, focal, size)
    intrinsics = np.float32([[focal, 0, 112], [0, focal, 112], [0, 0, 1]])
    pixels = camera.project(points + np.asarray(transl), intrinsics)
    expected = 112 + 112 * np.asarray(camera.weak_project(points, cam))
    np.testing.assert_allclose(pixels, expected, atol=0.1)


def test_crop_camera_agrees_with_the_photo():
    """The hand lands in the photo where the crop said it was."""
    rng = np.random.default_rng(2)
    points = _hand(rng, (3,))
    cam = np.float32([[9.0, 0.01, 0.0], [8.0, 0.0, -0.01], [10.0, 0.0, 0.0]])
    centre = rng.uniform(100, 500, (3, 2)).astype(np.float32)
    size = np.float32([100, 150, 200])
    principal = np.float32([320, 240])
    focal = camera.default_focal_px((640, 480))
    assert float(focal) == 5000 / 256 * 640
    transl = camera.crop_camera_to_image(cam, centre, size, focal, principal)
    intrinsics = np.float32([[focal, 0, 320], [0, focal, 240], [0, 0, 1]])
    placed = points + np.asarray(transl)[:, None]
    pixels = np.asarray(camera.project(placed, intrinsics))
    in_crop = np.asarray(camera.weak_project(points, cam))
    expected = centre[:, None] + in_crop * size[:, None, None] / 2
    # Weak perspective itself is off by the relative depth of the hand.
    error = np.abs(pixels - expected).max()
    relief = np.abs(points[..., 2]).max() / np.asarray(transl)[:, 2].min()
    assert error < 1.1 * relief * np.abs(expected - principal).max()


def test_crop_camera_of_the_whole_photo_is_the_crop_camera():
    cam = np.float32([0.8, 0.01, -0.02])
    whole = camera.crop_camera_to_image(
        cam, np.float32([128, 128]), 256, 5000, np.float32([128, 128])
    )
    crop = camera.weak_perspective_to_translation(cam, 5000, 256)
    np.testing.assert_allclose(whole, crop, rtol=1e-6)


def test_gamma_by_hand_and_back():
    gamma = camera.gamma_from_root_depth(0.7, K)
    expected = 0.7 / np.sqrt(480 * 500 * 0.2**2 / 224**2)
    assert float(gamma) == pytest.approx(expected, rel=1e-6)
    assert float(camera.root_depth_from_gamma(gamma, K)) == pytest.approx(0.7, rel=1e-6)


@pytest.mark.parametrize("batch", [(), (5,), (2, 3)])
def test_solve_translation_recovers_the_hand(batch):
    rng = np.random.default_rng(3)
    points = _hand(rng, batch)
    transl = rng.uniform([-0.2, -0.2, 0.3], [0.2, 0.2, 1.5], (*batch, 3))
    transl = transl.astype(np.float32)
    pixels = camera.project(points + transl[..., None, :], K)
    found = camera.solve_translation(points, pixels, K)
    np.testing.assert_allclose(found, transl, atol=2e-5, rtol=2e-4)


def test_solve_translation_ignores_points_without_weight():
    rng = np.random.default_rng(4)
    points, transl = _hand(rng), np.float32([0.05, -0.1, 0.6])
    pixels = np.array(camera.project(points + transl, K))
    weights = np.ones(21, np.float32)
    weights[[2, 7]] = 0
    pixels[2], pixels[7], points[7] = 1e6, np.nan, np.inf
    found = camera.solve_translation(points, pixels, K, weights)
    np.testing.assert_allclose(found, transl, atol=2e-5, rtol=2e-4)


def test_solve_translation_is_the_least_squares_optimum():
    scipy_optimize = pytest.importorskip("scipy.optimize")
    rng = np.random.default_rng(5)
    points, transl = _hand(rng), np.float32([0.1, 0.0, 0.35])
    pixels = np.asarray(camera.project(points + transl, K))
    pixels = pixels + rng.normal(scale=8, size=pixels.shape).astype(np.float32)
    weights = rng.uniform(0.1, 1, 21).astype(np.float32)

    def residual(t):
        p = points.astype(np.float64) + t
        seen = (p @ K.T.astype(np.float64))[:, :2] / p[:, 2:]
        return (np.sqrt(weights)[:, None] * (seen - pixels)).ravel()

    best = scipy_optimize.least_squares(residual, transl.astype(np.float64), xtol=1e-12)
    found = np.asarray(camera.solve_translation(points, pixels, K, weights))
    np.testing.assert_allclose(found, best.x, atol=2e-5)


def test_solve_translation_says_nan_when_depth_is_open():
    points = _hand(np.random.default_rng(6))
    pixels = np.asarray(camera.project(points + np.float32([0, 0, 1]), K))
    weights = np.zeros(21, np.float32)
    assert np.isnan(camera.solve_translation(points, pixels, K, weights)).all()
    weights[3] = 1
    assert np.isnan(camera.solve_translation(points, pixels, K, weights)).all()
    weights[4] = 1
    assert np.isfinite(camera.solve_translation(points, pixels, K, weights)).all()


def test_solve_translation_has_gradients():
    points = jnp.asarray(_hand(np.random.default_rng(7)))
    transl = jnp.array([0.05, -0.1, 0.6])
    pixels = camera.project(points + jnp.broadcast_to(transl, points.shape), K)
    loss = lambda p: camera.solve_translation(p, pixels, K).sum()  # noqa: E731
    assert np.isfinite(jax.grad(loss)(points)).all()
