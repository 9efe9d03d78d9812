import numpy as np
import pytest

from data_pipelines.synthetic import hand as hands
from data_pipelines.synthetic import holding, objects


def winding_number(points, vertices, faces):
    """Solid angle of the mesh seen from each point, in turns: 1 inside, 0 outside."""
    a, b, c = (vertices[faces[:, i]] - points[:, None] for i in range(3))
    la, lb, lc = (np.linalg.norm(x, axis=-1) for x in (a, b, c))
    volume = np.einsum("pfi,pfi->pf", a, np.cross(b, c))
    ab, bc, ca = ((x * y).sum(-1) for x, y in ((a, b), (b, c), (c, a)))
    return (2 * np.arctan2(volume, la * lb * lc + ab * lc + bc * la + ca * lb)).sum(
        -1
    ) / (4 * np.pi)


@pytest.mark.parametrize("kind", objects.KINDS)
def test_mesh_and_signed_distance_are_the_same_solid(kind):
    rng = np.random.default_rng(0)
    shape = objects.sample(rng, kind)
    vertices, faces = objects.mesh(shape)
    on_surface = objects.signed_distance(shape, vertices)
    # Flat sides of round things and triangles of round edges lie a little inside.
    assert np.abs(on_surface).max() < 0.02 * shape.half_size.max()
    points = rng.uniform(-1.3, 1.3, (300, 3)) * shape.half_size
    distance = objects.signed_distance(shape, points)
    clear = np.abs(distance) > 0.03 * shape.half_size.max()
    inside = winding_number(points, vertices, faces)
    np.testing.assert_allclose(inside[clear], (distance < 0)[clear], atol=1e-6)
    assert clear.sum() > 50


@pytest.mark.parametrize("kind", objects.KINDS)
def test_signed_distance_grows_no_faster_than_space(kind):
    rng = np.random.default_rng(1)
    shape = objects.sample(rng, kind)
    a = rng.uniform(-2, 2, (500, 3)) * shape.half_size
    b = a + rng.normal(0, 0.002, a.shape)
    change = objects.signed_distance(shape, a) - objects.signed_distance(shape, b)
    assert (np.abs(change) <= np.linalg.norm(a - b, axis=1) + 1e-9).all()


def test_held_things_touch_the_hand_and_do_not_cut_it():
    hand = hands.load()
    rng = np.random.default_rng(2)
    found = touching = 0
    for _ in range(40):
        betas = np.clip(rng.normal(size=10), -2, 2)
        grasp = holding.grasp(rng, hand, betas)
        if grasp is None:
            continue
        placed, angles = grasp
        posed = hands.pose(hand, angles, betas, np.eye(3), np.eye(3))
        distance = placed.distance(posed.drawn)
        assert distance.min() > -0.0016
        assert distance.min() < 0.003
        owner = hand.file.weights.argmax(1)
        of_mesh = placed.distance(posed.vertices)
        touching += sum(
            of_mesh[(owner - 1) // 3 == finger].min() < 0.004 for finger in range(5)
        )
        found += 1
    assert found >= 20, found
    assert touching / found > 1.5  # fingers on the thing, of five


def test_free_things_keep_away():
    rng = np.random.default_rng(3)
    cloud = rng.normal(0, 0.03, (500, 3))
    for _ in range(20):
        placed = holding.stand_in_the_way(rng, cloud, np.zeros(3), 0.15)
        if placed is not None:
            assert placed.distance(cloud).min() > 0
