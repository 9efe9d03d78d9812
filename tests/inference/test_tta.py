import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from handjax.geometry import crop
from handjax.inference import tta
from handjax.types import HandOutput

SIZE = 48
COLOURED = np.float32([[7, -1.5], [-4.5, 6], [-1, -8]])
"""Middles of a red, a green and a blue spot, pixels from the middle of the crop."""


see = jax.jit(tta.turned_and_zoomed)


def spots(offsets, size=SIZE):
    """Smooth spots, one in each channel."""
    y, x = np.mgrid[:size, :size] - size / 2
    distance2 = [(x - dx) ** 2 + (y - dy) ** 2 for dx, dy in offsets]
    return np.uint8(np.stack([255 * np.exp(-d / 4.5) for d in distance2], axis=-1))


class FindsSpots:
    """A "model" that turns and grows with the picture: joints are its spots."""

    def __init__(self):
        self.seen = []

    def __call__(self, image):
        self.seen.append(image.shape)
        at = jnp.arange(SIZE, dtype=jnp.float32) - SIZE / 2
        weight = jnp.asarray(image, jnp.float32)
        total = jnp.sum(weight, axis=(1, 2))
        x = jnp.einsum("nhwc,w->nc", weight, at) / total
        y = jnp.einsum("nhwc,h->nc", weight, at) / total
        spread = jnp.mean(jnp.hypot(x, y), axis=1, keepdims=True)
        depth = spread * jnp.float32([[0.1, 0.5, -0.3]])
        joints3d = jnp.stack([x, y, depth], axis=-1)
        logits = jnp.repeat(x[:, None], 4, axis=1)
        return HandOutput(2 * joints3d, joints3d, joints3d[..., :2], logits)


def test_views_are_19_angles_times_5_scales_the_unaugmented_last():
    for mode, zoom in (("mean", 1.0), ("paper", 1.0), ("released", 1.12)):
        chosen = tta.views(mode)
        assert len(chosen.angle) == tta.NUM_VIEWS == 95
        assert (chosen.angle[-1], chosen.zoom[-1]) == (0, 1)
        pairs = set(zip(*(np.round(x, 5).tolist() for x in chosen), strict=True))
        assert len(pairs) == 95
        others = chosen.zoom[:-1]
        assert others.max() == pytest.approx(zoom / 0.7)
        assert others.min() == pytest.approx(zoom / 1.1)
    with pytest.raises(ValueError, match="'flip' is not one of mean, paper, released"):
        tta.views("flip")


# --- pictures -----------------------------------------------------------------------


def test_unaugmented_view_changes_no_bit():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (2, 31, 40, 3), dtype=np.uint8)
    for pixels in (image, image / np.float32(3)):
        seen = see(pixels, jnp.float32(0), jnp.float32(1))
        assert seen.dtype == pixels.dtype
        np.testing.assert_array_equal(seen, pixels)


@pytest.mark.parametrize(("angle", "zoom"), [(0.4, 1.6), (-1.3, 0.9), (np.pi / 2, 1)])
def test_pictures_are_bilinear_with_black_outside(angle, zoom):
    rng = np.random.default_rng(1)
    image = rng.uniform(0, 255, (1, 9, 12, 3)).astype(np.float32)
    seen = see(image, jnp.float32(angle), jnp.float32(zoom))
    height, width = image.shape[1:3]
    c = np.array([width, height]) / 2
    turn = Rotation.from_euler("z", angle).as_matrix()[:2, :2]
    for y, x in itertools.product(range(height), range(width)):
        from_x, from_y = turn.T @ (np.array([x, y]) - c) / zoom + c
        expected = np.zeros(3)
        for row, column in itertools.product(range(height), range(width)):
            hat = max(0, 1 - abs(from_x - column)) * max(0, 1 - abs(from_y - row))
            expected += hat * image[0, row, column]
        np.testing.assert_allclose(seen[0, y, x], expected, atol=2e-3)


def test_a_view_is_what_a_turned_camera_with_that_focal_length_sees():
    """The in-plane turn and the zoom of `crop.view`, which the loader uses."""
    image = spots(COLOURED)
    angle, scale = 0.7, 0.8
    K = np.array([[500.0, 0, SIZE / 2], [0, 500, SIZE / 2], [0, 0, 1]])
    box = np.array([0.0, 0, SIZE, SIZE])
    view = crop.view(box, K, SIZE, scale=scale, angle=angle)
    expected = crop.warp_image(image, view.H_crop_image, SIZE)
    angle, zoom = jnp.float32(angle), jnp.float32(1 / scale)
    seen = see(image[None], angle, zoom)
    # OpenCV rounds positions to 1/32 pixel.
    np.testing.assert_allclose(seen[0], np.float32(expected), atol=4)
    points = np.random.default_rng(0).normal(size=(5, 3))
    turned = jnp.asarray(points @ view.R_crop_camera.T, jnp.float32)
    back = jax.jit(tta.turned_back)(turned, angle)
    np.testing.assert_allclose(back, points, atol=1e-6)


# --- fusion -------------------------------------------------------------------------


def aligned_slowly(target, points):
    """Umeyama's similarity without reflection, one set, float64."""
    a, b = points - points.mean(0), target - target.mean(0)
    u, s, vt = np.linalg.svd(b.T @ a)
    sign = np.array([1, 1, np.linalg.det(u) * np.linalg.det(vt)])
    R = u @ np.diag(sign) @ vt
    scale = (s * sign).sum() / (a**2).sum()
    return scale * a @ R.T + target.mean(0)


def test_released_fusion_counts_the_unaugmented_answer_twice():
    rng = np.random.default_rng(2)
    points = rng.normal(0, 0.05, (2, 21, 3)) + rng.normal(0, 0.01, (95, 2, 21, 3))
    # Similar up to noise, and one mirrored answer, which no rotation mends.
    for view in range(94):
        R = Rotation.random(random_state=view).as_matrix()
        points[view] = rng.uniform(0.5, 2) * points[view] @ R.T + rng.normal(size=3)
    points[3] *= [-1, 1, 1]
    fused = jax.jit(tta.fuse_released)(jnp.asarray(points, jnp.float32))
    for hand in range(2):
        reference = points[-1, hand]
        total = reference.copy()
        for view in range(95):
            total += aligned_slowly(reference, points[view, hand])
        np.testing.assert_allclose(fused[hand], total / 96, atol=2e-7)


PICTURES = np.stack([spots(COLOURED), spots(-0.7 * COLOURED)])


@pytest.mark.parametrize(("at_once", "group"), [(9, 1), (38, 19)])
def test_answers_of_a_model_that_turns_with_the_picture_agree(at_once, group):
    model = FindsSpots()
    plain = jax.jit(model)(PICTURES)
    run = jax.jit(lambda x: tta.predict(model, x, mode="paper", at_once=at_once))
    each = run(PICTURES)
    assert each.vertices.shape == (190, 3, 3) and each.joints2d is None
    zoom = tta.views("paper").zoom[:, None, None, None]
    found = np.reshape(each.joints3d, (95, 2, 3, 3))
    # Turned back with the wrong sign, spots 8 pixels out would be 16 pixels off.
    np.testing.assert_allclose(found, zoom * np.asarray(plain.joints3d), atol=0.15)
    # At most `at_once` pictures, or one view, together; traced for that number only.
    assert set(model.seen) == {(2, SIZE, SIZE, 3), (2 * group, SIZE, SIZE, 3)}
    traced = len(model.seen)
    np.testing.assert_array_equal(run(PICTURES).vertices, each.vertices)
    assert len(model.seen) == traced and run._cache_size() == 1


@pytest.mark.parametrize("mode", ["mean", "released"])
def test_only_vertices_and_3d_joints_are_fused(mode):
    model = FindsSpots()
    fused = jax.jit(lambda x: tta.predict(model, x, mode=mode))(PICTURES)
    plain = jax.jit(model)(PICTURES)
    np.testing.assert_array_equal(fused.joints2d, plain.joints2d)
    np.testing.assert_array_equal(fused.logits, plain.logits)
    assert fused.indices is None
    # Alignment undoes the zoom, the mean does not.
    zoom = tta.views(mode).zoom.mean() if mode == "mean" else 1
    np.testing.assert_allclose(fused.joints3d, zoom * plain.joints3d, atol=0.15)
    np.testing.assert_allclose(fused.vertices, 2 * fused.joints3d, rtol=1e-3, atol=1e-3)
