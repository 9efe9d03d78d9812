"""`evaluate --benchmark --predictions`: any system's file, scored and checked."""

import json

import protocol_hands
import pytest

from handjax import evaluate
from handjax.evaluation import protocols, score_files
from handjax.evaluation.protocols import mesh_files
from handjax.evaluation.protocols.mesh_scores import Meshes
from handjax.metrics import mesh_errors


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Truth, predictions by somebody, and the same in HO3D's axes and order."""
    path = tmp_path_factory.mktemp("benchmark")
    truth = Meshes(*protocol_hands.hands(3))
    guess = Meshes(*(protocol_hands.guesses(x) for x in truth))
    protocol_hands.write_lists(path / "truth", *truth)
    protocol_hands.write_pred(path / "pred.json", *guess)
    mesh_files.write(path / "pred.zip", guess)
    return path


def flags(folder, output, *more):
    return [
        "--benchmark=freihand",
        f"--predictions={folder / 'pred.json'}",
        f"--truth={folder / 'truth'}",
        f"--output={output}",
        *more,
    ]


def test_a_file_of_predictions_is_scored(folder, tmp_path, capsys):
    assert evaluate.main(flags(folder, tmp_path)) == 0
    report = json.loads((tmp_path / "pred_freihand.json").read_text())
    benchmark = protocols.load("freihand")
    expected = benchmark.scores(
        benchmark.read_truth(folder / "truth"),
        benchmark.read_predictions(folder / "pred.json"),
        procrustes="freihand",
    )
    assert list(report["scores"]) == list(expected) and report["count"] == 3
    for name, score in expected.items():
        assert report["scores"][name] == score._asdict()
    assert "FreiHAND's eval.py" in report["protocol"]
    assert "reflections allowed" in report["protocol"]
    assert report["remarks"] == ["3 samples; freihand has 3,960"]
    found = report["metrics"]
    assert set(found) < set(mesh_errors.METRICS)
    aligned_mm = 10 * expected["xyz_al_mean3d"].value
    assert found["pa_mpjpe_mm"] == pytest.approx(aligned_mm)
    assert found["f5"] == expected["f_al_score_5"].value
    lines = (tmp_path / "pred_freihand_scores.txt").read_text().splitlines()
    assert lines[2] == f"xyz_al_mean3d: {aligned_mm / 10:f}" and len(lines) == 12
    shown = capsys.readouterr().out
    (row,) = [x for x in shown.splitlines() if x.split()[0] == "mesh_al_mean3d"]
    assert row.split()[2:] == ["cm", "freihand,", "procrustes=freihand"]
    (row,) = [x for x in shown.splitlines() if x.split()[0] == "f_score_5"]
    assert row.endswith("freihand, procrustes=freihand, as predicted")
    assert "remark: 3 samples; freihand has 3,960" in shown


def test_another_alignment_is_named_everywhere(folder, tmp_path, capsys):
    assert evaluate.main(flags(folder, tmp_path, "--procrustes=metro")) == 0
    report = json.loads((tmp_path / "pred_freihand_metro.json").read_text())
    assert "procrustes=metro (rotations only" in report["protocol"]
    assert report["options"] == {"procrustes": "metro"}
    assert "procrustes=metro" in capsys.readouterr().out.splitlines()[3]


def test_predictions_are_checked_without_the_truth(folder, capsys):
    call = ["--benchmark=ho3d_v2", f"--predictions={folder / 'pred.zip'}", "--check"]
    assert evaluate.main(call) == 1
    shown = capsys.readouterr().out
    assert "11,524" in shown and "OpenGL" in shown and "'mano'" in shown
    benchmark = protocols.load("ho3d_v2")
    benchmark.samples, samples = 3, benchmark.samples
    try:
        path = folder / "ho3d.zip"
        hands = protocol_hands.hands(3)
        order = [0, *(5, 6, 7), *(9, 10, 11), *(17, 18, 19), *(13, 14, 15)]
        order += [1, 2, 3, 4, 8, 12, 16, 20]
        axes = [1, -1, -1]
        mesh_files.write(path, Meshes(hands[0][:, order] * axes, hands[1] * axes))
        assert evaluate.main([call[0], f"--predictions={path}", "--check"]) == 0
    finally:
        benchmark.samples = samples
    assert "nothing to remark" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("drop", "more", "match"),
    [
        ("--benchmark", (), "--predictions needs --benchmark"),
        ("--truth", (), "--truth is missing. FreiHAND_pub_v2_eval.zip"),
        ("", ("--workdir=w",), "--workdir is of models"),
        ("", ("--tta=mean",), "--tta is of models"),
        ("", ("--config.eval.num=5",), "is of models"),
        ("", ("--split=val",), "split='val': freihand has no such option"),
        ("", ("--setup=s1",), "setup='s1': freihand has no such option"),
        ("--predictions", (), "--workdir"),
    ],
)
def test_flags_that_make_no_sense_are_one_line(
    folder, tmp_path, capsys, drop, more, match
):
    call = [x for x in flags(folder, tmp_path, *more) if not drop or drop not in x]
    assert evaluate.main(call) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and match in error
    assert not list(tmp_path.iterdir())


def test_a_wrong_count_is_one_line(folder, tmp_path, capsys):
    truth = protocol_hands.hands(2)
    protocol_hands.write_lists(tmp_path / "truth", *truth)
    call = flags(folder, tmp_path)
    call[2] = f"--truth={tmp_path / 'truth'}"
    assert evaluate.main(call) == 2
    assert "3 predictions for 2 samples" in capsys.readouterr().err


def test_the_flag_knows_every_alignment(capsys):
    with pytest.raises(SystemExit):
        evaluate.main(["--help"])
    said = capsys.readouterr().out
    assert "{" + ",".join(mesh_errors.PROTOCOLS) + "}" in said
    assert "{" + ",".join(protocols.names()) + "}" in said


def test_alignments_that_a_benchmark_lacks_are_refused():
    with pytest.raises(ValueError, match="freihand knows freihand or proper"):
        score_files.alignment(protocols.load("freihand"), "rigid")
