import json
import types

import jax
import numpy as np
import pytest

from handjax import evaluate, models
from handjax.distributed import split_shares
from handjax.errors import HandjaxError
from handjax.evaluation import mean_hand, split_errors, trained_model
from handjax.family.stage import Stage
from handjax.inference import tta
from handjax.metrics.mesh_errors import METRICS
from handjax.types import Batch, HandOutput


def batches(num=3, size=4):
    rng = np.random.default_rng(0)
    for i in range(num):
        vertices = rng.normal(0, 0.03, (size, 778, 3)).astype(np.float32)
        yes = np.ones(size, bool)
        fields = dict.fromkeys(Batch._fields)
        fields.update(
            vertices=vertices - vertices[:, 9:10],
            joints3d=(vertices - vertices[:, 9:10])[:, :21],
            joints3d_valid=yes,
            vertices_valid=yes,
            example_valid=yes if i < num - 1 else np.arange(size) < 1,
            index=np.arange(i * size, (i + 1) * size),
        )
        yield Batch(**fields)


def off_by(model, variables, batch):
    """A "model" whose answer is `variables` metres off in the vertices' x."""
    off = variables * np.array([1.0, 0, 0], np.float32)[None, None]
    return HandOutput(batch.vertices + off, batch.joints3d, logits=None)


STAGE = Stage(
    name="mesh", loss_fn=None, predict_fn=off_by, trainable=".*", needs_image=True
)


def test_measuring_counts_hands_and_measures_both():
    done = []
    report = split_errors.measure(
        None,
        np.float32(0.01),
        STAGE,
        batches(),
        root=9,
        mean_hand=mean_hand.fit(batches()),
        on_batch=done.append,
    ).report()
    assert report["count"] == 9 and done == [4, 8, 9]
    assert report["metrics"]["mpvpe_mm"] == pytest.approx(10, rel=1e-5)
    assert report["metrics"]["pa_mpvpe_mm"] == pytest.approx(0, abs=1e-3)
    assert report["metrics"]["mpjpe_mm"] == pytest.approx(0, abs=1e-4)
    assert report["metrics"]["f5"] == 1 and report["confidence"] is None
    assert report["baseline"]["mean_hand"]["pa_mpvpe_mm"] > 10


def nan_at(index, field):
    """A "model" that is off by 10 mm, but for one value of one hand."""

    def predict(model, variables, batch):
        output = off_by(model, np.float32(0.01), batch)
        values = jax.numpy.asarray(getattr(output, field))
        hit = (batch.index == index)[:, None, None] & (values == values[:, 5:6])
        return output._replace(**{field: jax.numpy.where(hit, np.nan, values)})

    return STAGE._replace(predict_fn=predict)


@pytest.mark.parametrize("field", ["vertices", "joints3d"])
def test_a_hand_that_is_not_finite_is_named_or_left_out_and_counted(field):
    def measured(stage, hands, **options):
        options = dict(root=9, mean_hand=mean_hand.fit(batches()), **options)
        return split_errors.measure(None, None, stage, hands, **options)

    stage = nan_at(6, field)
    match = rf"split 'val', hand 6: its predicted {field} holds nan"
    with pytest.raises(HandjaxError, match=match):
        measured(stage, batches(), split="val")
    sums = measured(stage, batches(), skip_nonfinite=True)
    report = sums.report()
    assert (report["count"], report["nonfinite"]) == (8, 1)
    assert report["metrics"]["mpvpe_mm"] == pytest.approx(10, rel=1e-5)
    assert np.isfinite(report["baseline"]["mean_hand"]["pa_mpvpe_mm"])
    # The hand was looked at, and shares of an evaluation add up.
    assert np.concatenate(sums.indices).tolist() == list(range(9))
    sums.merge(sums.state())
    assert sums.report()["nonfinite"] == 2 and sums.report()["count"] == 16
    # The baseline is of the same hands.
    others = [
        b._replace(example_valid=b.example_valid & (b.index != 6)) for b in batches()
    ]
    plain = measured(STAGE._replace(predict_fn=nan_at(-1, field).predict_fn), others)
    assert plain.report()["baseline"] == report["baseline"]


def test_annotations_that_are_not_finite_are_named_where_they_count():
    hands = list(batches())
    hands[0].vertices[2, 7, 1] = np.nan
    off = np.float32(0.01)
    with pytest.raises(HandjaxError, match="hand 2: its annotated vertices"):
        split_errors.measure(None, off, STAGE, hands, root=9)
    known = hands[0].vertices_valid & (hands[0].index != 2)
    right = STAGE._replace(
        predict_fn=lambda m, v, batch: HandOutput(
            jax.numpy.nan_to_num(batch.vertices), batch.joints3d
        )
    )
    hands[0] = hands[0]._replace(vertices_valid=known)
    measured = split_errors.measure(None, off, right, hands, root=9).report()
    assert measured["count"] == 9 and measured["nonfinite"] == 0


ALONG = np.linspace(-0.05, 0.05, 778, dtype=np.float32)


def on_the_axis(brightness):
    """Points on the optical axis, which no view turns, each tenth off by brightness."""
    off = brightness[:, None] * (np.arange(778) % 10 == 0)[None]
    z = ALONG[None] + np.float32(0.1) * off
    return np.float32([0, 0, 1])[None, None] * z[:, :, None]


def sees_brightness(model, variables, batch):
    """A "model" that takes brightness above `variables` for depth."""
    mean = batch.image.astype(np.float32).mean(axis=(1, 2, 3)) / 255
    vertices = on_the_axis(mean - variables)
    return HandOutput(vertices, vertices[:, 2:23], logits=mean[:, None, None])


def test_augmentation_averages_predictions_or_their_errors():
    (batch,) = batches(1, size=3)
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (3, 16, 16, 3)).astype(np.uint8)
    truth = on_the_axis(np.zeros(3, np.float32))
    yes = np.array([True, False, True])
    batch = batch._replace(
        image=image, vertices=truth, joints3d=truth[:, 2:23], example_valid=yes
    )
    stage = STAGE._replace(predict_fn=sees_brightness)
    look = jax.jit(jax.vmap(tta.turned_and_zoomed, (None, 0, 0)))
    seen = np.float32(look(image, *tta.views("mean"))).mean(axis=(2, 3, 4)) / 255
    middle = np.median(seen)  # so that some views are brighter, some darker
    off = seen[:, yes] - middle
    expected = {"paper": np.abs(off).mean(), "mean": np.abs(off.mean(axis=0)).mean()}
    assert expected["paper"] > 2 * expected["mean"]
    for mode, error in expected.items():
        done = []
        report = split_errors.measure(
            None,
            middle,
            stage,
            [batch],
            root=9,
            tta_mode=mode,
            on_batch=done.append,
        ).report()
        assert report["count"] == 2 and done == [2]
        # A tenth of the vertices are off; joint 9, the root, is not.
        found = report["metrics"]["mpvpe_mm"]
        assert found == pytest.approx(100 * error * 78 / 778, rel=1e-4)


@pytest.fixture
def workdir(monkeypatch, tmp_path):
    """A stand-in for a trained workdir of a family with a tokenizer."""
    from handjax.config.schema import base
    from handjax.data import run_data

    config = base()
    config.family, config.data.name = "fake", "synthetic"
    config.stages = dict(tokenizer=dict(data="poses"), mesh=dict(data="images"))
    asked = []

    class Opened:
        def __init__(self, config):
            self.config = config

        def describe(self):
            return "made up"

        def train_split(self, stage):
            return batches()

        def evaluation(self, stage, split="test", share=split_shares.WHOLE):
            asked.append((stage.name, split, self.config.eval.num))
            assert share.count == 1
            return batches()

        def evaluation_count(self, stage, split="test"):
            return 9

    def better(model, variables, batch):
        return off_by(model, variables / 10, batch)

    stages = (
        Stage(
            name="tokenizer",
            loss_fn=None,
            predict_fn=better,
            trainable=".*",
            needs_image=False,
        ),
        Stage(
            name="mesh",
            loss_fn=None,
            predict_fn=off_by,
            trainable=".*",
            needs_image=True,
        ),
    )
    family = types.SimpleNamespace(stages=lambda config: stages)
    monkeypatch.setattr(models, "load", lambda name: family)
    monkeypatch.setattr(
        trained_model,
        "load_for_inference",
        lambda w, stage, step, change: (
            *(change(config.lock()), None),
            *(np.float32(0.01), stage or "mesh", 7),
        ),
    )
    monkeypatch.setattr(run_data, "open_data", lambda config, hand: Opened(config))
    return tmp_path, asked


def test_command_writes_a_report_with_baseline_and_floor(workdir, capsys):
    path, asked = workdir
    assert evaluate.main([f"--workdir={path}", "--config.eval.num=5"]) == 0
    report = json.loads((path / "eval" / "7" / "synthetic_test.json").read_text())
    assert report["benchmark"] == "synthetic_test" and report["step"] == 7
    assert report["changed"] == {"eval.num": "5"}
    assert "reflections allowed" in report["protocol"] and report["count"] == 9
    assert tuple(report["metrics"]) == METRICS
    assert tuple(report["baseline"]["mean_hand"]) == METRICS
    assert report["metrics"]["mpvpe_mm"] == pytest.approx(10, rel=1e-4)
    assert report["floor"]["tokenizer"]["mpvpe_mm"] == pytest.approx(1, rel=1e-4)
    assert "first 9 training hands" in report["definitions"]["mean_hand"]
    assert asked == [("mesh", "test", 5), ("tokenizer", "test", 5)]
    lines = capsys.readouterr().out.splitlines()
    (row,) = [x for x in lines if x.startswith("fake mesh")]
    assert row.split()[5] == "10.00"
    assert any(x.startswith("mean hand") for x in lines)
    assert any(x.startswith("floor: tokenizer") for x in lines)


def test_confidences_are_reported_and_shown(workdir, monkeypatch, capsys):
    path, _ = workdir

    def unsure(model, variables, batch):
        size = len(batch.vertices)
        sure = np.linspace(0.2, 0.8, size, dtype=np.float32)
        off = np.float32([0.01, 0, 0]) * (1 - sure)[:, None, None]
        return HandOutput(batch.vertices + off, batch.joints3d, confidence=sure)

    monkeypatch.setattr(models, "load", lambda name: family(unsure))
    assert evaluate.main([f"--workdir={path}"]) == 0
    report = json.loads((path / "eval" / "7" / "synthetic_test.json").read_text())
    most, least = (report["confidence"][k + "_confident"] for k in ("most", "least"))
    # Nine hands: one on each side.
    assert most["mpvpe_mm"] == pytest.approx(2, rel=1e-3)
    assert least["mpvpe_mm"] == pytest.approx(8, rel=1e-3)
    assert "tenth of the hands" in report["definitions"]["confidence"]
    lines = capsys.readouterr().out.splitlines()
    (row,) = [x for x in lines if x.startswith("most confident tenth")]
    assert row.split()[3:8] == ["0.00", "0.00", "0.00", "2.00", "-"]
    assert any(x.startswith("least confident tenth") for x in lines)


def family(predict_fn):
    stage = Stage(
        name="mesh",
        loss_fn=None,
        predict_fn=predict_fn,
        trainable=".*",
        needs_image=True,
    )
    return types.SimpleNamespace(stages=lambda config: (stage,))


def test_the_command_names_a_hand_that_is_not_finite(workdir, monkeypatch, capsys):
    path, _ = workdir
    predict = nan_at(6, "vertices").predict_fn
    monkeypatch.setattr(models, "load", lambda name: family(predict))
    assert evaluate.main([f"--workdir={path}"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "split 'test', hand 6: its predicted vert" in said
    assert evaluate.main([f"--workdir={path}", "--skip_nonfinite"]) == 0
    report = json.loads((path / "eval" / "7" / "synthetic_test.json").read_text())
    assert report["nonfinite"] == 1 and report["count"] == 8
    assert "nan or infinite values: 1" in capsys.readouterr().out
    for flag in ("--benchmark=freihand", "--benchmark=freihand --predictions=p.json"):
        arguments = [*flag.split(), "--skip_nonfinite", f"--workdir={path}"]
        assert evaluate.main(arguments) == 2


def test_stages_splits_and_protocols_have_files_of_their_own(workdir):
    path, asked = workdir
    evaluate.main([f"--workdir={path}", "--stage=tokenizer", "--split=train"])
    evaluate.main([f"--workdir={path}", "--procrustes=proper"])
    names = sorted(p.name for p in (path / "eval" / "7").iterdir())
    assert names == ["synthetic_test_proper.json", "synthetic_train_tokenizer.json"]
    assert asked[0] == ("tokenizer", "train", 0)


def test_augmentation_is_named_in_table_and_report(workdir, monkeypatch, capsys):
    path, _ = workdir
    # The stand-in looks at no picture.
    monkeypatch.setattr(tta, "augmented", lambda predict_fn, mode: predict_fn)
    assert evaluate.main([f"--workdir={path}", "--tta=mean"]) == 0
    (report,) = (path / "eval" / "7").iterdir()
    assert report.name == "synthetic_test_tta_mean.json"
    said = json.loads(report.read_text())["tta"]
    assert said == {"mode": "mean", "views": 95, "what": tta.MODES["mean"]}
    shown = capsys.readouterr().out
    assert shown.count("test-time augmentation 'mean', 95 views: mean of the pred") == 2
    assert evaluate.main([f"--workdir={path}", "--tta=mean", "--stage=tokenizer"]) == 2
    assert "--tta=mean: stage 'tokenizer' sees no picture" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "match"),
    [
        ("--config.eval.nun=5", "Did you mean"),
        ("--colour=red", "is not an argument"),
        ("--config.eval.num=many", "config.eval.num"),
    ],
)
def test_wrong_flags_are_one_line(workdir, capsys, flag, match):
    path, _ = workdir
    assert evaluate.main([f"--workdir={path}", flag]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and match in error
    assert not (path / "eval").exists()


def test_missing_workdir_is_one_line(tmp_path, capsys):
    assert evaluate.main([f"--workdir={tmp_path / 'none'}"]) == 2
    assert "is not a workdir" in capsys.readouterr().err


def test_the_flag_knows_every_mode(capsys):
    with pytest.raises(SystemExit):
        evaluate.main(["--help"])
    said = capsys.readouterr().out
    assert all(mode in said for mode in tta.MODES)
