"""Bodies go the way of hands: files, pictures, batches, training and evaluation."""

import importlib.util
import io
import json
import sys

import body_family
import jax
import numpy as np
import pytest
from PIL import Image
from places import CONFIGS

from data_pipelines.storage import shards
from data_pipelines.synthetic.body import __main__ as command
from data_pipelines.synthetic.body import mesh, pictures
from handjax import models
from handjax.checkpoints import workdir
from handjax.data import run_data
from handjax.evaluation import trained_model
from handjax.evaluation.report import make
from handjax.family import hand_constants
from handjax.family.stage import Stage
from handjax.geometry import skeleton
from handjax.inference.predictor import HandPredictor
from handjax.mano import hand_model, model_files
from handjax.training import launch, step

V, J, K = 624, 29, 24


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return pictures.ensure(tmp_path_factory.mktemp("bodies"), 16, 8, image_size=64)


@pytest.fixture(scope="module")
def file(directory):
    return model_files.load(directory / pictures.MODEL)


# The synthetic body.


def test_the_mesh_is_closed_and_turned_outwards(file):
    edges = file.faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2)
    directed = {tuple(edge) for edge in edges.tolist()}
    assert len(directed) == len(edges)
    assert all((b, a) in directed for a, b in directed)
    corners = file.v_template[file.faces]
    volume = np.linalg.det(corners).sum() / 6
    assert 0.04 < volume < 0.12  # cubic metres


def test_weights_are_shares_and_joints_lie_in_the_middle_of_their_rings(file):
    np.testing.assert_allclose(file.weights.sum(axis=1), 1, atol=1e-12)
    assert file.weights.min() >= 0
    left, right = (
        [skeleton.SMPL_JOINTS.index(f"{side}_{part}") for part in ("hip", "elbow")]
        for side in ("left", "right")
    )
    joints = file.J_regressor @ file.v_template
    np.testing.assert_allclose(joints[left], joints[right] * (-1, 1, 1), atol=1e-12)


def test_shapes_move_joints_with_the_skin(file):
    """Taller legs lower the knees; no shape tears the mesh apart."""
    shaped = file.v_template[..., None] + 3 * file.shapedirs
    joints = np.einsum("jv,vxb->jxb", file.J_regressor, shaped)
    knee = skeleton.SMPL_JOINTS.index("left_knee")
    assert joints[knee, 1, 2] < (file.J_regressor @ file.v_template)[knee, 1] - 0.05
    assert (np.abs(file.shapedirs).max(axis=(0, 1)) > 0.005).all()
    corners = shaped[file.faces]
    volume = np.linalg.det(np.moveaxis(corners, -1, 0)).sum(axis=-1) / 6
    assert ((volume > 0.03) & (volume < 0.25)).all()


# Its pictures.


def test_annotations_are_those_of_the_model(directory, file):
    split = shards.open_split(directory, "train")
    assert split.counts == (V, J, K)
    model, skin = hand_model.HandModel.from_file(file), jax.jit(hand_model.skin)
    for index in (0, 7):
        record = split[index]
        pose, shape = record["mano_pose"].reshape(K, 3), record["mano_betas"]
        vertices, _ = skin(model, pose, shape, record["mano_transl"])
        np.testing.assert_allclose(vertices, record["vertices"], atol=1e-5)
        joints = model_files.joint_regressor(file) @ record["vertices"]
        np.testing.assert_allclose(joints, record["joints3d"][:, :3], atol=1e-5)
        seen = joints @ record["K"].T
        pixels = seen[:, :2] / seen[:, 2:]
        np.testing.assert_allclose(pixels, record["joints2d"][:, :2], atol=1e-3)


def test_a_body_is_upright_and_where_its_joints_are(directory):
    split = shards.open_split(directory, "train")
    head, foot = (skeleton.SMPL_JOINTS.index(n) for n in ("head", "left_ankle"))
    above = [r["joints2d"][head, 1] < r["joints2d"][foot, 1] for r in iter_of(split)]
    assert np.mean(above) > 0.8
    assert {
        np.asarray(Image.open(io.BytesIO(r["image"]))).shape for r in iter_of(split)
    }


def iter_of(split):
    return (split[index] for index in range(len(split)))


def test_the_same_seed_gives_the_same_pictures_and_other_settings_are_refused(
    directory, file
):
    split = shards.open_split(directory, "test")
    again = pictures.Generator(file, seed=0, image_size=64)("test", 3)
    assert split[3]["image"] == again["image"]
    assert pictures.ensure(directory, 16, 8, image_size=64) == directory
    with pytest.raises(ValueError, match="made with other settings"):
        pictures.ensure(directory, 16, 8, image_size=64, seed=1)
    with pytest.raises(ValueError, match="num=0"):
        pictures.ensure(directory, 0)


def test_pictures_need_smpls_tree(tmp_path):
    arrays = mesh.arrays()
    arrays["kintree_table"] = np.array([[-1, *range(23)], range(24)])
    np.savez(tmp_path / "chain.npz", **arrays)
    with pytest.raises(ValueError, match="in another tree"):
        pictures.load(tmp_path / "chain.npz")


def test_the_command_writes_the_model_and_says_what_is_wrong(
    tmp_path, monkeypatch, capsys
):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["body", "--out", str(tmp_path), *arguments])
        return command.main()

    assert run() == 0
    assert model_files.load(tmp_path / pictures.MODEL).name == "body"
    assert run("--num", "4", "--source", str(tmp_path / "smpl.pkl")) == 2
    assert (
        "A body model in SMPL's format is given by its file" in capsys.readouterr().err
    )


# Batches.


def opened(directory, file, **changes):
    config = body_family.get_config(directory)
    config.data.update(changes)
    return run_data.open_data(config, file)


def test_batches_have_the_counts_of_the_body(directory, file):
    stage = Stage(
        name="mesh", loss_fn=None, predict_fn=None, trainable="", needs_image=True
    )
    batch = next(opened(directory, file).train(stage, 8, 0))
    assert batch.vertices.shape == (8, V, 3) and batch.mano_pose.shape == (8, K, 3)
    assert batch.joints3d.shape == (8, J, 3) and batch.joints2d.shape == (8, J, 2)
    assert batch.image.shape == (8, 32, 32, 3) and batch.mano_valid.any()
    np.testing.assert_array_equal(batch.joints3d[:, 0], 0)  # the pelvis
    regressor = model_files.joint_regressor(file).astype(np.float32)
    joints = np.einsum("jv,bvx->bjx", regressor, batch.vertices)
    np.testing.assert_allclose(joints, batch.joints3d, atol=1e-4)


def test_what_does_not_fit_a_body_is_named(directory, file):
    with pytest.raises(ValueError, match=r"root='wrist' is not a root.*pelvis"):
        opened(directory, file, root="wrist")
    with pytest.raises(
        ValueError, match=r"624 vertices, 29 joints, 24 bones, the hand"
    ):
        opened(directory, model_files.load(), root="wrist")
    with pytest.raises(ValueError, match="The built-in data are of hands"):
        opened(directory, file, name="synthetic", dir="")
    with pytest.raises(ValueError, match="the sides of a body's joints"):
        opened(directory, file, augment=dict(flip=0.5))
    constants = hand_constants.hand_constants(file)
    with pytest.raises(ValueError, match="SimpleHand is a network for hands"):
        constants.require_hand("SimpleHand")
    hand_constants.hand_constants(model_files.load()).require_hand("SimpleHand")


# Training and evaluation.


def test_a_parametric_family_trains_on_bodies_and_is_evaluated(
    directory, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(models, "load", lambda name: body_family)
    config = body_family.get_config(directory)
    assert launch.train(config, str(tmp_path)) == 0
    rows = [
        json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().split("\n") if x
    ]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 30 and np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    assert list((tmp_path / "images").iterdir())
    found = trained_model.load(tmp_path, None, None)
    report, _ = make(found, procrustes="proper")
    capsys.readouterr()
    metrics = report["metrics"]
    assert report["count"] == 8
    assert 10 < metrics["pa_mpjpe_mm"] < metrics["mpjpe_mm"] < 1000


def test_a_trained_model_knows_its_joints_but_for_the_names_of_end_points(file):
    hand = hand_constants.hand_constants(file).arrays()
    found = hand_constants.skeleton_of({"constants": {"hand": hand}})
    assert found.bones == file.skeleton.bones and found.roots == file.skeleton.roots
    assert found.joints == (*skeleton.SMPL_JOINTS, *(f"end{i}" for i in range(5)))
    hand = hand_constants.hand_constants(model_files.load()).arrays()
    assert hand_constants.skeleton_of({"constants": {"hand": hand}}) == skeleton.HAND


def hamba_config(directory, variant):
    path = CONFIGS / "hamba.py"
    spec = importlib.util.spec_from_file_location("hamba_config", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(variant)
    config.hand.source = str(directory / pictures.MODEL)
    config.data.dir = str(directory)
    return config


def test_hamba_takes_its_counts_from_the_body(directory, file):
    config = hamba_config(directory, "smoke,body")
    family = models.load("hamba")
    edges = file.skeleton.bones
    model = workdir.build_model(family, config, edges=edges)
    example = run_data.example_batch(config, file)
    hand = hand_constants.hand_constants(file)
    variables = jax.eval_shape(
        lambda: model.init(jax.random.key(0), example, hand, method="init_all")
    )
    shapes = step.flat(jax.tree.map(np.shape, variables["params"]))
    assert shapes["decoder_head/pose/kernel"][1] == 6 * K
    assert shapes["decoder/stage0_graph/conv/edge_logits"] == (2 * len(edges),)
    assert shapes["decoder_head/pose/kernel"][0] == 3 * config.model.width + 2 * J
    output = jax.eval_shape(model.apply, variables, example.image)
    assert output.vertices.shape == (2, V, 3) and output.joints2d.shape == (2, J, 2)
    with pytest.raises(ValueError, match=r"order of a hand.s 21 joints, .* are 29"):
        jax.eval_shape(model.clone(scan_order="mano").apply, variables, example.image)
    hands = opened(directory, file)
    with pytest.raises(ValueError, match="compares with real poses"):
        hands.train(
            Stage(
                name="mesh",
                loss_fn=None,
                predict_fn=None,
                trainable="",
                needs_image=True,
                real_poses=2,
            ),
            8,
            0,
        )


@pytest.mark.slow
def test_hamba_trains_on_bodies_and_predicts_without_their_file(
    directory, tmp_path, monkeypatch
):
    config = hamba_config(directory, "smoke,body")
    config.train.compile_cache = ""
    assert launch.train(config, str(tmp_path)) == 0
    report = json.loads((tmp_path / "eval/5/synthetic_body_test.json").read_text())
    assert 10 < report["metrics"]["pa_mpjpe_mm"] < 1000
    monkeypatch.delattr(model_files, "load")
    predictor = HandPredictor.from_workdir(tmp_path)
    found = predictor(np.zeros((60, 80, 3), np.uint8), box_px=(10, 10, 50, 50))
    assert found.vertices.shape == (V, 3) and found.joints2d.shape == (J, 2)
    assert found.skeleton.joints[:K] == skeleton.SMPL_JOINTS
