import numpy as np
import pytest

from data_pipelines.synthetic import hand as hands
from data_pipelines.synthetic.poses import PosePriorSource
from data_pipelines.synthetic.prior import PosePrior, segment_distance
from handjax.geometry import skeleton
from handjax.mano import numpy_skinning


@pytest.fixture(scope="module")
def hand():
    return hands.load()


def random_pose(rng, hand):
    angles = PosePrior(hand).sample(rng)
    betas = np.clip(rng.normal(size=10), -2, 2)
    root, bend = numpy_skinning.axis_angle_to_matrix(
        rng.normal(0, [[1], [0.3]], (2, 3))
    )
    return angles, betas, root, bend


def test_drawn_mesh_contains_the_annotated_one(hand):
    rng = np.random.default_rng(0)
    for _ in range(3):
        posed = hands.pose(hand, *random_pose(rng, hand))
        gap = np.linalg.norm(posed.drawn[hand.hand_subset] - posed.vertices, axis=1)
        assert gap.max() < 5e-5
        np.testing.assert_allclose(posed.joints3d[skeleton.WRIST], 0, atol=5e-4)


def test_forearm_reaches_out_of_every_picture_and_bends_alone(hand):
    zeros, straight = np.zeros((15, 3)), np.eye(3)
    rest = hands.pose(hand, zeros, np.zeros(10), straight, straight)
    assert np.linalg.norm(rest.drawn, axis=1).max() > 0.97 * hands.FOREARM_LENGTH
    bend = numpy_skinning.axis_angle_to_matrix(np.array([0, 0.3, 0.6]))
    bent = hands.pose(hand, zeros, np.zeros(10), straight, bend)
    moved = np.linalg.norm(bent.drawn - rest.drawn, axis=1)
    assert moved[hand.hand_subset].max() == 0
    assert moved.max() > 0.1
    # The drawn mesh has one opening, at the far end of the arm.
    edges = np.concatenate([hand.faces[:, [i, i - 1]] for i in range(3)])
    _, count = np.unique(np.sort(edges, 1), axis=0, return_counts=True)
    assert count.max() == 2
    assert (count == 1).sum() == hand.ring_faces // 2


def test_rodrigues_equals_scipy():
    from scipy.spatial.transform import Rotation

    vectors = np.random.default_rng(1).normal(0, 2, (50, 3))
    vectors[0] = 0
    expected = Rotation.from_rotvec(vectors).as_matrix()
    np.testing.assert_allclose(
        numpy_skinning.axis_angle_to_matrix(vectors), expected, atol=1e-12
    )


def test_segment_distance_equals_a_fine_grid():
    rng = np.random.default_rng(2)
    p1, q1, p2, q2 = rng.normal(size=(4, 40, 3))
    t = np.linspace(0, 1, 201)[:, None, None]
    a, b = p1 + t * (q1 - p1), p2 + t * (q2 - p2)
    grid = np.linalg.norm(a[:, None] - b[None], axis=-1).min((0, 1))
    np.testing.assert_allclose(segment_distance(p1, q1, p2, q2), grid, atol=0.02)


def test_prior_keeps_limits_and_its_fingers_apart(hand):
    prior, rng = PosePrior(hand), np.random.default_rng(3)
    poses = np.array([prior.sample(rng) for _ in range(100)])
    assert (poses >= hand.limits[..., 0] - 1e-9).all()
    assert (poses <= hand.limits[..., 1] + 1e-9).all()
    assert all((prior.overlap(pose) < prior.tolerance).all() for pose in poses)
    assert poses[:, 1, 0].std() > 0.3  # they differ


def test_pose_source_depends_on_seed_and_index_alone():
    source, again = PosePriorSource(5), PosePriorSource(5)
    forwards = [source[i] for i in (0, 7, 123456789)]
    backwards = [again[i] for i in (123456789, 7, 0)][::-1]
    for a, b in zip(forwards, backwards, strict=True):
        for key in ("mano_pose", "betas"):
            np.testing.assert_array_equal(a[key], b[key])
    assert forwards[0]["mano_pose"].shape == (16, 3)
    assert forwards[0]["mano_pose"].dtype == np.float32
    assert np.abs(forwards[0]["betas"]).max() <= 2.2
    assert not np.array_equal(source[0]["betas"], PosePriorSource(6)[0]["betas"])
    with pytest.raises(IndexError, match="0 to 9"):
        PosePriorSource(5, length=10)[10]


def test_pose_source_looks_at_the_hand_from_everywhere():
    source = PosePriorSource(1)
    roots = np.array([source[i]["mano_pose"][0] for i in range(400)])
    turns = numpy_skinning.axis_angle_to_matrix(roots.astype(float))
    # Uniform rotations have zero mean, each entry with variance 1/3.
    np.testing.assert_allclose(turns.mean(0), 0, atol=0.12)
    np.testing.assert_allclose((turns**2).mean(0), 1 / 3, atol=0.08)


def test_pose_source_travels_to_workers():
    import pickle

    source = PosePriorSource(2)
    before = source[3]["mano_pose"]
    copied = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copied[3]["mano_pose"], before)
