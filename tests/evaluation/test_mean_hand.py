import numpy as np
from scipy.spatial.transform import Rotation

from handjax.evaluation import mean_hand
from handjax.metrics import mesh_errors
from handjax.types import Batch


def batch_of(points, valid=None):
    b = len(points)
    fields = dict.fromkeys(Batch._fields)
    fields.update(
        joints3d=points[:, :21].astype(np.float32),
        vertices=points[:, 21:].astype(np.float32),
        joints3d_valid=np.ones(b, bool),
        vertices_valid=np.ones(b, bool),
        example_valid=np.ones(b, bool) if valid is None else valid,
    )
    return Batch(**fields)


def turned_copies(num, noise=0.0):
    rng = np.random.default_rng(0)
    hand = rng.normal(0, [0.05, 0.03, 0.01], (799, 3))
    R = Rotation.random(num, random_state=0).as_matrix()
    scale = rng.uniform(0.8, 1.2, (num, 1, 1))
    copies = scale * np.einsum("nij,vj->nvi", R, hand)
    copies += rng.normal(0, noise, copies.shape)
    return hand, copies - copies[:, 9:10]


def test_mean_of_turned_copies_is_the_hand_itself():
    hand, copies = turned_copies(12)
    mean = mean_hand.fit([batch_of(copies)])
    for found, part in (
        (mean.aligned_joints3d, hand[:21]),
        (mean.aligned_vertices, hand[21:]),
    ):
        aligned = mesh_errors.procrustes_align(part, found, procrustes="proper")
        assert mesh_errors.point_errors_mm(part, aligned).max() < 1e-3
    np.testing.assert_allclose(mean.relative_vertices, copies.mean(0)[21:], atol=1e-7)


def test_only_valid_hands_up_to_the_limit_are_used():
    _, copies = turned_copies(10)
    valid = np.arange(10) != 1
    mean = mean_hand.fit([batch_of(copies, valid), batch_of(copies)], num_hands=4)
    assert mean.count == 4
    expected = copies[[0, 2, 3, 4], 21:].mean(0)
    np.testing.assert_allclose(mean.relative_vertices, expected, atol=1e-7)
    assert mean_hand.fit([batch_of(copies, np.zeros(10, bool))]) is None


def test_hands_that_are_not_finite_are_left_out():
    _, copies = turned_copies(6)
    expected = mean_hand.fit([batch_of(copies[1:])])
    copies[0, 100, 1] = np.nan
    found = mean_hand.fit([batch_of(copies)])
    assert found.count == 5
    np.testing.assert_allclose(found.aligned_vertices, expected.aligned_vertices)


def test_each_mean_is_the_better_constant_for_its_metric():
    _, copies = turned_copies(40, noise=0.004)
    mean = mean_hand.fit([batch_of(copies[:30])])
    test = batch_of(copies[30:])
    sums = mean_hand.MeanHandSums(mean, root=9)
    sums.add(test)
    got = sums.means()
    assert tuple(got) == mesh_errors.METRICS
    swapped = mean._replace(
        relative_vertices=mean.aligned_vertices,
        relative_joints3d=mean.aligned_joints3d,
        aligned_vertices=mean.relative_vertices,
        aligned_joints3d=mean.relative_joints3d,
    )
    sums = mean_hand.MeanHandSums(swapped, root=9)
    sums.add(test)
    other = sums.means()
    assert got["mpvpe_mm"] < other["mpvpe_mm"]
    assert got["pa_mpvpe_mm"] < other["pa_mpvpe_mm"] and got["f5"] > other["f5"]
