"""Nearest points of a surface: closed forms and a search by brute force."""

import meshes
import numpy as np
import pytest

from handjax.geometry import closest_points

TRIANGLE = np.array([[0.0, 0, 0], [2, 0, 0], [0, 2, 0]])


@pytest.mark.parametrize(
    ("point", "weights"),
    [
        ((0.5, 0.5, 3), (0.5, 0.25, 0.25)),  # above the inside
        ((1, -1, 0), (0.5, 0.5, 0)),  # beside an edge
        ((2, 2, 1), (0, 0.5, 0.5)),
        ((-1, 1.5, -2), (0.25, 0, 0.75)),
        ((-1, -1, 1), (1, 0, 0)),  # beyond a corner
        ((5, -1, 0), (0, 1, 0)),
        ((0, 2, 0), (0, 0, 1)),  # a corner itself
    ],
)
def test_a_triangle(point, weights):
    corners, found = closest_points.on_surface(
        np.array([point], float), TRIANGLE, np.array([[0, 1, 2]])
    )
    np.testing.assert_array_equal(corners, [[0, 1, 2]])
    np.testing.assert_allclose(found, [weights], atol=1e-15)


def test_a_triangle_without_area_is_its_longest_edge():
    line = np.array([[0.0, 0, 0], [1, 0, 0], [4, 0, 0]])
    corners, found = closest_points.on_surface(
        np.array([[3.0, 1, 0]]), line, np.array([[0, 1, 2]])
    )
    np.testing.assert_allclose(found[0] @ line[corners[0]], [3, 0, 0], atol=1e-15)
    point = np.ones((3, 3))
    _, found = closest_points.on_surface(np.zeros((1, 3)), point, np.array([[0, 1, 2]]))
    assert found.sum() == 1


def test_of_equally_near_faces_the_first_is_taken():
    vertices, faces = meshes.grid(2, 2)
    on_diagonal = np.array([[0.5, 0.5, 1.0]])
    for order in ([0, 1], [1, 0]):
        corners, _ = closest_points.on_surface(on_diagonal, vertices, faces[order])
        np.testing.assert_array_equal(corners[0], faces[order[0]])


def test_no_sampled_point_of_the_surface_is_nearer():
    vertices, faces = meshes.bumpy(meshes.torus(9, 6), size=0.3)
    points = 4 * np.random.default_rng(1).normal(size=(300, 3))
    corners, weights = closest_points.on_surface(points, vertices, faces)
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-12)
    assert {frozenset(c) for c in corners.tolist()} <= {
        frozenset(f) for f in faces.tolist()
    }
    nearest = np.einsum("pk,pkx->px", weights, vertices[corners])
    distance = np.linalg.norm(points - nearest, axis=1)
    u, v = (x.ravel() for x in np.mgrid[:11, :11] / 10)
    u, v = u[u + v <= 1], v[u + v <= 1]
    grid = np.stack([1 - u - v, u, v], axis=1)
    samples = np.einsum("sk,fkx->fsx", grid, vertices[faces]).reshape(-1, 3)
    apart = np.linalg.norm(points[:, None] - samples, axis=-1).min(axis=1)
    assert (distance <= apart + 1e-12).all()
    # Samples are at most a tenth of an edge from any point of the surface.
    assert (distance >= apart - 0.3).all()
