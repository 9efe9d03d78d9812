"""Batches without pictures."""

import itertools

import fake_family
import numpy as np
import pytest

from data_pipelines.loading.pose_files import PoseFile
from data_pipelines.synthetic import letters
from data_pipelines.synthetic.poses import PosePriorSource
from handjax.config import schema as configs
from handjax.data import run_data
from handjax.data.poses import Letters, letters_in_order, pose_batches, with_real_poses
from handjax.distributed import sharding
from handjax.distributed.split_shares import WHOLE, ProcessShare
from handjax.mano import model_files


def _batches(start, num, **changes):
    options = dict(batch_size=3, seed=4, root=9, crop_size=64) | changes
    made = pose_batches(model_files.load(), start_step=start, **options)
    return list(itertools.islice(made, num))


def test_resuming_at_a_step_gives_the_same_batch():
    whole, late = _batches(0, 4), _batches(3, 1)
    for a, b in zip(whole[3], late[0], strict=True):
        np.testing.assert_array_equal(a, b)


def test_joints_come_from_the_vertices_and_the_root_is_the_origin():
    batch = _batches(0, 1)[0]
    regressor = model_files.joint_regressor(model_files.load())
    joints = np.einsum("jv,bvx->bjx", regressor, batch.vertices)
    np.testing.assert_allclose(batch.joints3d, joints, atol=1e-5)
    np.testing.assert_array_equal(batch.joints3d[:, 9], 0)


def test_processes_hold_the_batch_of_one_process_one_after_the_other():
    whole = _batches(1, 1, batch_size=6)[0]
    parts = [_batches(1, 1, process=ProcessShare(i, 2))[0] for i in (0, 1)]
    poses = np.concatenate([part.mano_pose for part in parts])
    np.testing.assert_array_equal(poses, whole.mano_pose)


def test_joints_project_where_the_batch_says():
    batch = _batches(0, 1)[0]
    points = (batch.joints3d + batch.root3d[:, None]) @ batch.intrinsics[0].T
    np.testing.assert_allclose(
        points[..., :2] / points[..., 2:], batch.joints2d, rtol=1e-4
    )


def test_upright_hands_are_the_same_hands_turned_about_the_optical_axis():
    (plain,), (upright,) = _batches(0, 1), _batches(0, 1, upright=True)

    knuckles = (upright.joints3d[:, 5] + upright.joints3d[:, 13]) / 4
    upwards = (knuckles + upright.joints3d[:, 9] / 2 - upright.joints3d[:, 0])[:, :2]
    angle = np.arctan2(upwards[:, 0], -upwards[:, 1])
    roll = np.array([PosePriorSource(4)[i]["roll"] for i in range(3)])

    np.testing.assert_allclose(angle, roll, atol=1e-4)
    np.testing.assert_allclose(
        upright.vertices[..., 2], plain.vertices[..., 2], atol=1e-6
    )
    np.testing.assert_allclose(
        np.linalg.norm(upright.vertices, axis=-1),
        np.linalg.norm(plain.vertices, axis=-1),
        atol=1e-6,
    )
    assert 0.05 < np.abs(roll).mean() < 0.5


# --- real poses ---------------------------------------------------------------------


def _real(num=3, *, file=None, start=0, batch_size=4, per_example=2, process=WHOLE):
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
    halves = [
        _real(1, file=file, batch_size=2, process=ProcessShare(i, 2))[0] for i in (0, 1)
    ]
    both = np.concatenate([half.real_pose for half in halves])
    np.testing.assert_array_equal(both, one.real_pose)


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
        model_files.joint_regressor(model_files.load()),
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
    opened = run_data.OpenData(config, {}, model_files.load())
    assert opened.describe_poses() == f"7 of {file.path}"
    stage = fake_family.stages(config)[0]
    plain = next(opened.train(stage, 8, 0))
    asked = next(opened.train(stage._replace(real_poses=2), 8, 0))
    assert plain.real_pose is None and plain.real_betas is None
    np.testing.assert_array_equal(asked.mano_pose, plain.mano_pose)
    placed = sharding.global_batch(sharding.make_mesh(config.mesh), asked)
    assert {x.data.shape for x in placed.real_pose.addressable_shards} == {(2, 16, 3)}
    example = run_data.for_stage(asked, stage._replace(real_poses=3))
    assert example.real_pose.shape == (24, 16, 3) and example.image is None


_GOOD = dict(hand_pose=np.zeros((5, 48)), betas=np.zeros((5, 10)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(betas=None), "no arrays betas among hand_pose"),
        (dict(hand_pose=np.zeros((5, 45))), r"'hand_pose' is .*\(5, 45\).*\(N, 48\)"),
        (dict(betas=np.zeros((4, 10))), "5 rows of hand_pose and 4 of betas"),
        (dict(betas=np.full((5, 10), np.nan)), "'betas' holds values .* not finite"),
        (dict(betas=np.full((5, 10), print)), "'betas.npy': it holds objects"),
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


# --- letters ------------------------------------------------------------------------

IDS = np.arange(15, dtype=np.int32)[:, None] + 100


def _letters(start=0, num=1, **changes):
    return _batches(start, num, letters_as=Letters(IDS, 20.0), **changes)


def test_letters_come_with_their_ids_and_resume_exactly():
    whole, late = _letters(0, 3), _letters(2, 1)
    for a, b in zip(whole[2], late[0], strict=True):
        np.testing.assert_array_equal(a, b)
    source = letters.LetterSource(4, max_turn=20.0)
    drawn = [source[i] for i in range(6, 9)]
    np.testing.assert_array_equal(whole[2].text, [IDS[row["label"]] for row in drawn])
    poses = [row["mano_pose"] for row in drawn]
    np.testing.assert_array_equal(whole[2].mano_pose, poses)
    assert _batches(0, 1)[0].text is None


def test_letters_are_evaluated_in_order_on_others_than_are_trained_on():
    options = dict(batch_size=4, seed=4, root=9, crop_size=64)
    options["letters_as"] = Letters(IDS, 20.0)
    test = list(letters_in_order(model_files.load(), split="test", num=6, **options))
    assert [batch.example_valid.sum() for batch in test] == [4, 2]
    np.testing.assert_array_equal(test[1].index, [4, 5, 6, 7])
    for array in (test[1].mano_pose, test[1].text):
        np.testing.assert_array_equal(array[2], array[1])  # padding repeats
    (train,) = letters_in_order(model_files.load(), split="train", num=4, **options)
    np.testing.assert_array_equal(train.mano_pose[:3], _letters()[0].mano_pose)
    assert np.abs(train.betas - test[0].betas).max() > 0
    with pytest.raises(ValueError, match="splits train and test, not val"):
        next(letters_in_order(model_files.load(), split="val", num=4, **options))


def test_a_stage_on_labelled_poses_is_fed_evaluated_and_begun_with_texts():
    config = fake_family.get_config()
    config.stages.mesh.data = "labelled_poses"
    config.model.update(text="labels", labels=tuple(letters.names()))
    config.eval.batch_size, config.eval.num = 4, 6
    opened = run_data.OpenData(config, {}, model_files.load())
    tokenizer, mesh = fake_family.stages(config)
    with pytest.raises(ValueError, match="data='labelled_poses' has no pictures, whic"):
        opened.train(mesh, 8, 0)
    mesh = mesh._replace(needs_image=False)
    batch = next(opened.train(mesh, 8, 0))
    assert batch.text.shape == (8, 1) and batch.image is None
    assert [b.text.shape for b in opened.evaluation(mesh)] == [(4, 1)] * 2
    assert next(opened.train_split(mesh)).text.shape == (4, 1)
    assert next(opened.train(tokenizer, 8, 0)).text is None
    example = run_data.example_batch(config, model_files.load())
    np.testing.assert_array_equal(example.text, [[0], [0]])
    config.model.labels = ("a", "b")
    with pytest.raises(ValueError, match=r"'c' is not one of the labels .*: a, b"):
        _ = run_data.OpenData(config, {}, model_files.load()).letters
    assert configs.evaluated_on(config, "mesh") == "asl_letters"
    assert configs.evaluated_on(config, "tokenizer") == config.data.name
