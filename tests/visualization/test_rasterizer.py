import numpy as np

from handjax.visualization.rasterizer import interpolate, rasterize


def slow(points_px, depth, faces, height, width):
    """Per-pixel loop with matrix solves; perspective weights by intersecting rays."""
    zbuffer = np.full((height, width), np.inf)
    seen = np.full((height, width), -1)
    space = np.concatenate([points_px * depth[:, None], depth[:, None]], axis=1)
    for y in range(height):
        for x in range(width):
            for f, face in enumerate(faces):
                if abs(np.linalg.det(space[face])) < 1e-12:
                    continue
                # The ray (x, y, 1) t meets the plane where sum(w) = 1.
                w = np.linalg.solve(space[face].T, np.array([x, y, 1.0]))
                if (w >= -1e-9).all():
                    z = 1 / w.sum()
                    if z < zbuffer[y, x]:
                        zbuffer[y, x], seen[y, x] = z, f
    return zbuffer, seen


def test_equals_ray_casting():
    rng = np.random.default_rng(0)
    points_px = rng.uniform(-5, 25, (30, 2))
    depth = rng.uniform(0.5, 2, 30)
    faces = rng.permutation(30).reshape(10, 3)
    got = rasterize(points_px, depth, faces, 18, 22)
    zbuffer, seen = slow(points_px, depth, faces, 18, 22)
    assert (got.face_index == seen).all()
    np.testing.assert_allclose(got.zbuffer, zbuffer, rtol=1e-5)
    filled = seen >= 0
    assert 0.2 < filled.mean() < 1
    np.testing.assert_allclose(got.barycentric[filled].sum(-1), 1, atol=1e-6)
    # Depth itself is an attribute, so interpolating it gives the z-buffer back.
    again = interpolate(got, faces, depth[:, None])[..., 0]
    np.testing.assert_allclose(again[filled], zbuffer[filled], rtol=1e-5)


def test_pixel_centres_are_whole_numbers():
    square = np.array([[2.0, 3.0], [6.0, 3.0], [6.0, 5.0], [2.0, 5.0]])
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    seen = rasterize(square, np.ones(4), faces, 10, 10).face_index >= 0
    expected = np.zeros((10, 10), bool)
    expected[3:6, 2:7] = True
    assert (seen == expected).all()


def test_orthographic_depth_is_linear():
    points_px = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    depth = np.array([-1.0, 1.0, -1.0])
    got = rasterize(points_px, depth, np.array([[0, 1, 2]]), 2, 6, perspective=False)
    np.testing.assert_allclose(
        got.zbuffer[0], [-1, -0.8, -0.6, -0.4, -0.2, 0], atol=1e-6
    )


def test_behind_the_camera_and_not_finite_is_dropped():
    points_px = np.array([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0], [np.nan, 3.0]])
    depth = np.array([-1.0, 1.0, 1.0, 1.0])
    got = rasterize(points_px, depth, np.array([[0, 1, 2], [1, 2, 3]]), 8, 8)
    assert (got.face_index == -1).all() and np.isinf(got.zbuffer).all()


def test_no_cracks_inside_a_fan_of_slivers():
    angle = np.linspace(0, 2 * np.pi, 101)[:-1]
    rim = 30 + 25 * np.stack([np.cos(angle), np.sin(angle)], -1)
    points_px = np.concatenate([[[30.3, 29.7]], rim])
    faces = np.array([[0, 1 + i, 1 + (i + 1) % 100] for i in range(100)])
    got = rasterize(points_px, np.ones(101), faces, 61, 61)
    y, x = np.mgrid[:61, :61]
    assert (got.face_index[np.hypot(x - 30, y - 30) < 24.5] >= 0).all()
