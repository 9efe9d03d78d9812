"""Poses in blocks: the prior's own distribution, free of collisions, random access."""

import pickle

import numpy as np
import pytest
from scipy import stats
from scipy.spatial.transform import Rotation

from data_pipelines.synthetic import hand as hands
from data_pipelines.synthetic import pose_blocks
from data_pipelines.synthetic.poses import BLOCK, PosePriorSource
from data_pipelines.synthetic.prior import PosePrior


@pytest.fixture(scope="module")
def prior():
    return PosePrior(hands.load())


@pytest.fixture(scope="module")
def angles(prior):
    return pose_blocks.sample(prior, np.random.default_rng(0), 1500)


def test_the_distribution_is_that_of_single_draws(prior, angles):
    rng = np.random.default_rng(1)
    single = np.stack([prior.sample(rng) for _ in range(500)])
    worst = min(
        stats.ks_2samp(single[:, j, k], angles[:, j, k]).pvalue
        for j in range(15)
        for k in range(3)
    )
    assert worst > 1e-4  # 45 tests of equal distributions
    np.testing.assert_allclose(
        np.corrcoef(single[:, :, 0].T), np.corrcoef(angles[:, :, 0].T), atol=0.25
    )


def test_overlaps_and_rotations_are_those_of_single_poses(prior, angles):
    some = angles[:20]
    overlaps = np.stack([prior.overlap(pose) for pose in some])
    np.testing.assert_allclose(pose_blocks.overlaps(prior, some), overlaps, atol=1e-9)
    turns = np.stack([hands.joint_rotations(prior.hand, pose) for pose in some])
    np.testing.assert_allclose(pose_blocks.rotations(prior, some), turns, atol=1e-12)


def test_poses_do_not_collide_and_keep_the_limits(prior, angles):
    assert not pose_blocks.collides(prior, angles).any()
    limits = prior.hand.limits
    assert (angles >= limits[..., 0]).all() and (angles <= limits[..., 1]).all()


def test_proposals_do_collide(prior):
    proposed = pose_blocks.propose(prior, np.random.default_rng(0), 500)
    assert 0.05 < pose_blocks.collides(prior, proposed).mean() < 0.6


def test_items_do_not_depend_on_what_was_read_before():
    indices = [0, BLOCK - 1, BLOCK, 40 * BLOCK + 3, 7]
    forwards, backwards = (
        PosePriorSource(3),
        pickle.loads(pickle.dumps(PosePriorSource(3))),
    )
    a = [forwards[i] for i in indices]
    b = [backwards[i] for i in reversed(indices)][::-1]
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x["mano_pose"], y["mano_pose"])
        np.testing.assert_array_equal(x["betas"], y["betas"])
    assert np.abs(PosePriorSource(4)[0]["betas"] - a[0]["betas"]).max() > 0


def test_global_orientations_are_uniform():
    """The mean of uniformly random rotation matrices is zero."""
    source = PosePriorSource(0)
    roots = np.stack([source[i]["mano_pose"][0] for i in range(4 * BLOCK)])
    mean = Rotation.from_rotvec(roots).as_matrix().mean(0)
    assert np.abs(mean).max() < 0.08
