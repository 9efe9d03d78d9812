"""From a model's answers in crops to files that benchmarks score."""

import json
import types

import cv2
import numpy as np
import protocol_hands
import pytest

from data_pipelines.storage import schema, shards
from handjax import evaluate, models
from handjax.config.schema import base
from handjax.data import run_data
from handjax.errors import HandjaxError
from handjax.evaluation import photo_frame, trained_model
from handjax.family.stage import Stage
from handjax.geometry import camera, crop
from handjax.geometry.skeleton import MIDDLE_MCP
from handjax.inference import tta
from handjax.mano import model_files
from handjax.types import HandOutput

SIZE, COUNT = 96, 5
K = np.array([[300.0, 0, 50], [0, 290, 44], [0, 0, 1]])


def fields(name, i, joints3d, vertices, is_right):
    """A record of a cropped picture, as a converter writes it."""
    picture = np.full((SIZE, SIZE, 3), 90, np.uint8)
    joints2d = crop.project(joints3d, K)
    return {
        "image": cv2.imencode(".jpg", picture)[1].tobytes(),
        "key": f"evaluation/rgb/{i:08d}.jpg",
        "dataset": name,
        "image_size": np.array([SIZE, SIZE]),
        "bbox_center": joints2d.mean(0),
        "bbox_size": np.ptp(joints2d, axis=0),
        "joints2d": np.column_stack([joints2d, np.ones(21)]),
        "joints3d": np.column_stack([joints3d, np.ones(21)]),
        "vertices": vertices,
        "K": K,
        "is_right": is_right,
        "crop_origin": np.array([10.0, 20.0]),
        "crop_scale": 0.5,
    }


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A data set of FreiHAND's name with two left hands, and its ground truth."""
    directory = tmp_path_factory.mktemp("prepared")
    joints3d, vertices = protocol_hands.hands(COUNT)
    records = [
        schema.encode(fields("freihand", i, joints3d[i], vertices[i], i not in (1, 3)))
        for i in range(COUNT)
    ]
    shards.write_split(
        directory,
        name="freihand",
        split="test",
        count=COUNT,
        records=lambda first, last: records[first:last],
    )
    shards.write_metadata(
        directory, name="freihand", splits={"test": COUNT}, description="made up"
    )
    protocol_hands.write_lists(directory / "truth", joints3d, vertices)
    return directory, joints3d, vertices


def knows(model, variables, batch):
    """A "model" that knows the hand."""
    return HandOutput(batch.vertices, batch.joints3d, joints2d=batch.joints2d)


def opened(directory):
    config = base()
    config.data.name, config.data.dir = "freihand", str(directory)
    config.data.crop_size, config.eval.batch_size = 32, 2
    config.family = "fake"
    config.stages = dict(mesh=dict(data="images"))
    return config, run_data.open_data(config, model_files.load())


STAGE = Stage(
    name="mesh", loss_fn=None, predict_fn=knows, trainable=".*", needs_image=True
)


def collected(directory, predict):
    _, found = opened(directory)
    return photo_frame.collect(
        lambda variables, batch: predict(None, variables, batch),
        None,
        found.evaluation(STAGE),
        found.records(),
        root=MIDDLE_MCP,
    )


def test_hands_come_back_to_their_photos(prepared):
    directory, joints3d, vertices = prepared
    done, index = collected(directory, knows)
    np.testing.assert_array_equal(index, np.arange(COUNT))
    assert done.keys[4] == "evaluation/rgb/00000004.jpg"
    assert done.is_right.tolist() == [True, False, True, False, True]
    # Where the hand is follows from its pixels, in float32.
    np.testing.assert_allclose(done.joints3d, joints3d, rtol=0, atol=1e-4)
    np.testing.assert_allclose(done.vertices, vertices, rtol=0, atol=1e-4)
    np.testing.assert_allclose(done.truth3d, joints3d, rtol=0, atol=1e-6)
    source = np.stack([crop.project(joints, K) / 0.5 + [10, 20] for joints in joints3d])
    np.testing.assert_allclose(done.joints2d, source, rtol=0, atol=2e-3)


def test_a_hand_that_is_not_finite_is_named_before_a_file_is_written(prepared):
    def broken(model, variables, batch):
        hit = (np.asarray(batch.index) == 3)[:, None, None]
        output = knows(model, variables, batch)
        return output._replace(vertices=np.where(hit, np.nan, output.vertices))

    with pytest.raises(
        HandjaxError, match=r"hand 3 of the split \(evaluation/rgb/0000"
    ):
        collected(prepared[0], broken)


def test_a_predicted_depth_of_the_root_places_the_hand(prepared):
    def deep(model, variables, batch):
        gamma = camera.gamma_from_root_depth(batch.root3d[:, 2], batch.intrinsics)
        # 3-D of half the size would be taken for a hand twice as near.
        joints3d = 0.5 * batch.joints3d
        return HandOutput(
            batch.vertices,
            joints3d,
            joints2d=batch.joints2d,
            root_gamma=np.asarray(gamma),
        )

    directory, joints3d, _ = prepared
    done, _ = collected(directory, deep)
    np.testing.assert_allclose(
        done.joints3d[:, MIDDLE_MCP], joints3d[:, MIDDLE_MCP], rtol=0, atol=1e-4
    )


def test_hands_without_pixels_stay_in_the_middle(prepared):
    def blind(model, variables, batch):
        return HandOutput(batch.vertices, batch.joints3d)

    directory, joints3d, _ = prepared
    done, _ = collected(directory, blind)
    assert done.joints2d is None
    root = joints3d[:, MIDDLE_MCP, None]
    np.testing.assert_allclose(done.joints3d, joints3d - root, rtol=0, atol=1e-6)


@pytest.fixture
def workdir(prepared, monkeypatch, tmp_path):
    config, _ = opened(prepared[0])
    family = types.SimpleNamespace(stages=lambda config: (STAGE,))
    monkeypatch.setattr(models, "load", lambda name: family)
    monkeypatch.setattr(
        trained_model,
        "load_for_inference",
        lambda w, stage, step, change: (change(config.lock()), None, None, "mesh", 7),
    )
    return tmp_path


def test_a_model_is_scored_by_the_file_it_writes(prepared, workdir, capsys):
    truth = prepared[0] / "truth"
    call = [f"--workdir={workdir}", "--benchmark=freihand", f"--truth={truth}"]
    assert evaluate.main(call) == 0
    folder = workdir / "eval" / "7"
    names = {p.name for p in folder.iterdir()}
    assert names == {"freihand.json", "freihand_pred.zip", "freihand_scores.txt"}
    report = json.loads((folder / "freihand.json").read_text())
    assert report["stage"] == "mesh" and report["step"] == 7 and report["count"] == 5
    assert report["scores"]["xyz_mean3d"]["value"] < 0.02
    assert report["metrics"]["pa_mpvpe_mm"] < 0.01
    assert "freihand, procrustes=freihand" in capsys.readouterr().out
    # The same file, scored by itself, has the same scores.
    path = folder / "freihand_pred.zip"
    call = ["--benchmark=freihand", f"--predictions={path}", f"--truth={truth}"]
    assert evaluate.main([*call, f"--output={workdir}"]) == 0
    again = json.loads((workdir / "freihand_pred_freihand.json").read_text())
    assert again["scores"] == report["scores"]


def test_without_the_truth_the_file_is_only_written(workdir, capsys):
    assert evaluate.main([f"--workdir={workdir}", "--benchmark=freihand"]) == 0
    (path,) = (workdir / "eval" / "7").iterdir()
    assert path.name == "freihand_pred.zip"
    shown = capsys.readouterr().out
    assert "remark: 5 samples; freihand has 3,960" in shown
    assert "not scored: --truth is missing. FreiHAND_pub_v2_eval.zip" in shown


def test_augmentation_has_a_name_of_its_own(workdir, monkeypatch, prepared):
    # The stand-in looks at no picture.
    monkeypatch.setattr(tta, "augmented", lambda predict_fn, mode: predict_fn)
    call = [f"--workdir={workdir}", "--benchmark=freihand", "--tta=mean"]
    assert evaluate.main([*call, f"--truth={prepared[0] / 'truth'}"]) == 0
    report = json.loads((workdir / "eval/7/freihand_tta_mean.json").read_text())
    assert report["tta"]["views"] == 95


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (["--benchmark=hint"], "--benchmark=hint needs its pictures, and the data are"),
        (["--benchmark=freihand", "--tta=paper"], "--tta=paper averages errors"),
        (["--benchmark=hint", "--procrustes=proper"], "hint aligns nothing"),
        (["--benchmark=freihand", "--setup=s1"], "freihand has no such option"),
    ],
)
def test_what_cannot_be_submitted_is_one_line(workdir, capsys, flags, match):
    assert evaluate.main([f"--workdir={workdir}", *flags]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and match in error
    assert not (workdir / "eval").exists()


def test_a_split_in_another_order_is_refused(prepared, workdir, tmp_path, capsys):
    _, joints3d, vertices = prepared
    protocol_hands.write_lists(tmp_path / "other", joints3d[::-1], vertices[::-1])
    call = [f"--workdir={workdir}", "--benchmark=freihand"]
    assert evaluate.main([*call, f"--truth={tmp_path / 'other'}"]) == 2
    assert "4 of 5 hands of the split are not where" in capsys.readouterr().err
    assert evaluate.main([*call, "--config.eval.num=3", f"--truth={prepared[0]}/truth"])
    assert "the split has 3 hands" in capsys.readouterr().err


# --- several processes --------------------------------------------------------------


def test_shares_make_the_file_of_one_process(prepared, workdir, capsys):
    truth = prepared[0] / "truth"
    call = [f"--workdir={workdir}", "--benchmark=freihand", f"--truth={truth}"]
    assert evaluate.main(call) == 0
    folder = workdir / "eval" / "7"
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    for path in folder.iterdir():
        path.unlink()
    for index in (2, 0):
        assert evaluate.main([*call, f"--share={index}/3"]) == 0
        assert f"share {index}/3 is done" in capsys.readouterr().out
        assert not list(folder.glob("f*"))
    assert evaluate.main([*call, "--share=1/3"]) == 0
    assert "xyz_al_mean3d" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole
    # More processes than hands.
    for index in range(7):
        assert evaluate.main([*call, f"--share={index}/7"]) == 0
    again = json.loads((folder / "freihand.json").read_text())
    assert again["scores"] == json.loads(whole["freihand.json"])["scores"]


def test_shares_add_up_to_the_errors_of_one_process(workdir, prepared, monkeypatch):
    """Five hands in batches of two: padded, and in three processes more so."""

    def unsure(model, variables, batch):
        off = 0.01 * (1 + batch.index % 3).astype(np.float32)
        vertices = batch.vertices + off[:, None, None] * np.float32([[[1, 0, 0]]])
        return HandOutput(vertices, batch.joints3d, confidence=1 - off)

    stages = (
        Stage(
            name="tokenizer",
            loss_fn=None,
            predict_fn=knows,
            trainable=".*",
            needs_image=False,
        ),
        Stage(
            name="mesh",
            loss_fn=None,
            predict_fn=unsure,
            trainable=".*",
            needs_image=True,
        ),
    )
    config, _ = opened(prepared[0])
    config.stages = dict(tokenizer=dict(data="images"), mesh=dict(data="images"))
    monkeypatch.setattr(
        models, "load", lambda name: types.SimpleNamespace(stages=lambda c: stages)
    )
    monkeypatch.setattr(
        trained_model,
        "load_for_inference",
        lambda w, stage, step, change: (change(config.lock()), None, None, "mesh", 7),
    )
    monkeypatch.setattr(run_data.OpenData, "train_split", lambda self, stage: iter(()))
    call = [f"--workdir={workdir}"]
    assert evaluate.main(call) == 0
    path = workdir / "eval" / "7" / "freihand_test.json"
    whole = json.loads(path.read_text())
    path.unlink()
    assert whole["count"] == COUNT and whole["metrics"]["mpvpe_mm"] > 10
    for index in range(3):
        assert not path.exists()
        assert evaluate.main([*call, f"--share={index}/3"]) == 0
    found = json.loads(path.read_text())
    assert found["count"] == COUNT
    for name in ("metrics", "floor", "confidence"):
        first, second = (np.array(_numbers(x[name])) for x in (whole, found))
        np.testing.assert_allclose(first, second, rtol=1e-12)


def _numbers(value):
    if isinstance(value, dict):
        return [x for v in value.values() for x in _numbers(v)]
    return [value]
