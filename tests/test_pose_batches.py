"""Batches without pictures."""

import itertools

import numpy as np

from handjax import mano_files
from handjax.pose_batches import pose_batches


def _batches(start, num, **changes):
    options = dict(batch_size=3, seed=4, root=9, crop_size=64) | changes
    made = pose_batches(mano_files.load(), start_step=start, **options)
    return list(itertools.islice(made, num))


def test_resuming_at_a_step_gives_the_same_batch():
    whole, late = _batches(0, 4), _batches(3, 1)
    for a, b in zip(whole[3], late[0], strict=True):
        np.testing.assert_array_equal(a, b)


def test_joints_come_from_the_vertices_and_the_root_is_the_origin():
    batch = _batches(0, 1)[0]
    regressor = mano_files.joint_regressor(mano_files.load())
    joints = np.einsum("jv,bvx->bjx", regressor, batch.vertices)
    np.testing.assert_allclose(batch.joints3d, joints, atol=1e-5)
    np.testing.assert_array_equal(batch.joints3d[:, 9], 0)


def test_processes_draw_different_poses():
    one = _batches(0, 1, process=(0, 2))[0]
    two = _batches(0, 1, process=(1, 2))[0]
    assert (
        np.abs(one.mano_pose[:, None] - two.mano_pose[None]).max(axis=(2, 3)).min() > 0
    )


def test_joints_project_where_the_batch_says():
    batch = _batches(0, 1)[0]
    points = (batch.joints3d + batch.root3d[:, None]) @ batch.intrinsics[0].T
    np.testing.assert_allclose(
        points[..., :2] / points[..., 2:], batch.joints2d, rtol=1e-4
    )
