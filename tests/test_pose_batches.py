"""Batches without pictures."""

import itertools

import fake_family
import numpy as np
import pytest

from data_pipelines.pose_files import PoseFile
from data_pipelines.synthetic.poses import PosePriorSource
from handjax import data, mano_files, sharding
from handjax.pose_batches import pose_batches, with_real_poses


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


# --- real poses ---------------------------------------------------------------------


def _real(num=3, *, file=None, start=0, batch_size=4, per_example=2, process=(0, 1)):
    made = with_real_poses(
        iter(_batches(start, num, batch_size=batch_size, process=process)),
        file,
        per_example=per_example,
        batch_size=batch_size,
        seed=4,
        start_step=start,
        process=process,
    )
    return list(made)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Seven poses that tell their number."""
    path = tmp_path_factory.mktemp("poses") / "mocap.npz"
    rows = np.arange(7.0)[:, None]
    np.savez(path, hand_pose=rows + np.arange(48) / 100, betas=-rows.repeat(10, 1))
    return PoseFile(path)


@pytest.mark.parametrize("from_file", [False, True])
def test_real_poses_depend_on_seed_and_step_alone(file, from_file):
    file = file if from_file else None
    whole, late = _real(4, file=file), _real(1, file=file, start=3)
    assert whole[0].real_pose.shape == (8, 16, 3)
    assert whole[0].real_betas.shape == (8, 10)
    assert np.abs(whole[0].real_pose - whole[1].real_pose).max() > 0
    for name in ("real_pose", "real_betas"):
        np.testing.assert_array_equal(getattr(whole[3], name), getattr(late[0], name))


@pytest.mark.parametrize("from_file", [False, True])
def test_processes_draw_together_what_one_would(file, from_file):
    file = file if from_file else None
    (one,) = _real(1, file=file)
    halves = [_real(1, file=file, batch_size=2, process=(i, 2))[0] for i in (0, 1)]
    each = np.stack([half.real_pose.reshape(2, 2, 16, 3) for half in halves], axis=1)
    np.testing.assert_array_equal(each.reshape(8, 16, 3), one.real_pose)


def test_all_poses_of_a_file_come_before_any_comes_again(file):
    batches = _real(7, file=file, batch_size=1, per_example=1)
    numbers = [int(batch.real_pose[0, 0, 0]) for batch in batches]
    assert sorted(numbers) == list(range(7)) != numbers
    for number, batch in zip(numbers, batches, strict=True):
        pose = number + np.arange(48).reshape(1, 16, 3) / 100
        np.testing.assert_allclose(batch.real_pose, pose, rtol=1e-6)
        np.testing.assert_array_equal(batch.real_betas, np.full((1, 10), -number))


def test_batches_pose_the_hands_of_a_file_all_before_any_comes_again(file):
    batches = _batches(0, 7, file=file, batch_size=2)
    numbers = np.concatenate([-batch.betas[:, 0] for batch in batches])
    for half in (numbers[:7], numbers[7:]):
        assert sorted(half.tolist()) == list(range(7))
    np.testing.assert_array_equal(
        _batches(3, 1, file=file, batch_size=2)[0].mano_pose, batches[3].mano_pose
    )
    joints = np.einsum(
        "jv,bvx->bjx",
        mano_files.joint_regressor(mano_files.load()),
        batches[0].vertices,
    )
    np.testing.assert_allclose(batches[0].joints3d, joints, atol=1e-4)


def test_real_poses_of_the_prior_are_not_those_to_train_on():
    (batch,) = _real(1, per_example=1)
    fingers, real = batch.mano_pose[:, 1:], batch.real_pose[:, 1:]
    assert np.abs(fingers[:, None] - real[None]).max(axis=(2, 3)).min() > 1e-3
    source = PosePriorSource(4)
    np.testing.assert_array_equal(batch.mano_pose[1], source[1]["mano_pose"])


def test_a_run_gives_real_poses_to_the_stages_that_ask_for_them(file):
    config = fake_family.get_config()
    config.data.poses = str(file.path)
    opened = data.OpenData(config, {}, mano_files.load())
    assert opened.describe_poses() == f"7 of {file.path}"
    stage = fake_family.stages(config)[0]
    plain = next(opened.train(stage, 8, 0))
    asked = next(opened.train(stage._replace(real_poses=2), 8, 0))
    assert plain.real_pose is None and plain.real_betas is None
    np.testing.assert_array_equal(asked.mano_pose, plain.mano_pose)
    placed = sharding.global_batch(sharding.make_mesh(config.mesh), asked)
    assert {x.data.shape for x in placed.real_pose.addressable_shards} == {(2, 16, 3)}
    example = data.for_stage(asked, stage._replace(real_poses=3))
    assert example.real_pose.shape == (24, 16, 3) and example.image is None


_GOOD = dict(hand_pose=np.zeros((5, 48)), betas=np.zeros((5, 10)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(betas=None), "has no array 'betas'; it has hand_pose.npy"),
        (dict(hand_pose=np.zeros((5, 45))), r"'hand_pose' is .*\(5, 45\).*\(N, 48\)"),
        (dict(betas=np.zeros((4, 10))), "5 rows of hand_pose and 4 of betas"),
        (dict(betas=np.full((5, 10), np.nan)), "'betas' holds values .* not finite"),
        (dict(betas=np.full((5, 10), print)), "'betas': Object arrays cannot be"),
    ],
)
def test_files_of_other_content_are_refused(tmp_path, changes, message):
    arrays = {k: v for k, v in (_GOOD | changes).items() if v is not None}
    np.savez(tmp_path / "poses.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        PoseFile(tmp_path / "poses.npz")


def test_files_that_are_missing_or_cut_off_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*hand_pose \(N, 48\)"):
        PoseFile(tmp_path / "none.npz")
    np.savez(tmp_path / "poses.npz", **_GOOD)
    data = (tmp_path / "poses.npz").read_bytes()
    (tmp_path / "poses.npz").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="not a complete npz"):
        PoseFile(tmp_path / "poses.npz")
