"""Reports of several runs as tables."""

import csv
import io
import json

import pytest

from handjax import tables
from handjax.evaluation import protocols
from handjax.metrics.mesh_errors import METRICS


def own(name="synthetic_test", pa=17.55, **changes):
    metrics = dict.fromkeys(METRICS, 20.0) | {
        "pa_mpjpe_mm": pa,
        "f5": 0.48,
        "f15": pa / 100,
    }
    baseline = {"mean_hand": dict.fromkeys(METRICS, 50.0) | {"f5": 0.1, "f15": 0.2}}
    return {
        "benchmark": name,
        "protocol": "procrustes=freihand (reflections allowed)",
        "count": 1000,
        "tta": None,
        "metrics": metrics,
        "baseline": baseline,
    } | changes


def official(benchmark, values, **changes):
    scores = {
        key: {"value": value, "unit": "", "protocol": ""}
        for key, value in values.items()
    }
    return {
        "benchmark": benchmark,
        "protocol": "as the script does",
        "options": {"procrustes": "freihand"},
        "count": 3960,
        "metrics": {},
        "scores": scores,
    } | changes


FREIHAND = {
    "xyz_al_mean3d": 0.5749,
    "mesh_al_mean3d": 0.601,
    "f_al_score_5": 0.7717,
    "f_al_score_15": 0.98583,
}


@pytest.fixture
def runs(tmp_path):
    """Two workdirs with an old step each, and a report of somebody's predictions."""
    for name, step, pa in (("a", 50, 99.0), ("a", 400, 17.55), ("b", 400, 15.94)):
        folder = tmp_path / name / "eval" / str(step)
        folder.mkdir(parents=True)
        floor = {"tokenizer": dict.fromkeys(METRICS, 2.5)} if name == "b" else {}
        report = own(pa=pa, floor=floor)
        (folder / "synthetic_test.json").write_text(json.dumps(report))
    (tmp_path / "b/eval/400/freihand.json").write_text(
        json.dumps(official("freihand", FREIHAND))
    )
    better = FREIHAND | {"xyz_al_mean3d": 0.571, "f_al_score_5": 0.75}
    (tmp_path / "metro.json").write_text(
        json.dumps(official("freihand", better, tta={"mode": "released"}))
    )
    (tmp_path / "a" / "eval" / "notes").mkdir()
    return tmp_path


def lines(capsys):
    return [x for x in capsys.readouterr().out.splitlines() if x]


def test_own_data_gets_the_columns_of_the_results(runs, capsys):
    call = [str(runs / "a"), f"Best={runs / 'b'}", "--benchmark=synthetic_test"]
    assert tables.main(call) == 0
    head, rule, *rows = lines(capsys)
    assert head.startswith("| synthetic_test | PA-MPJPE mm | PA-MPVPE mm | MPJPE mm |")
    assert set(rule) == set("|- ")
    names = [row.split("|")[1].strip() for row in rows]
    assert names == ["mean hand", "a", "Best", "Best: tokenizer (floor)"]
    a, best = (rows[i].split("|") for i in (1, 2))
    assert a[2].strip() == "17.55" and best[2].strip() == "15.94"
    assert rows[3].split("|")[2].strip() == "**2.50**"  # the least error
    assert a[6].strip() == "0.480" and a[-2].strip().startswith("procrustes=freihand")
    assert a[-3].strip() == "1,000"


def test_benchmarks_get_the_columns_of_the_papers(runs, capsys):
    metro = runs / "metro.json"
    assert tables.main([f"METRO={metro}", str(runs / "b"), "--benchmark=freihand"]) == 0
    captured = capsys.readouterr()
    head, _, *rows = [
        [c.strip() for c in x.split("|")] for x in captured.out.split("\n") if x
    ]
    assert head[2:6] == ["PA-MPJPE mm", "PA-MPVPE mm", "F@5", "F@15"]
    # Centimetres of the script become millimetres; ties are both the best.
    assert rows[0][1:6] == [
        "METRO + TTA (released)",
        "**5.7**",
        "**6.0**",
        "0.750",
        "**0.986**",
    ]
    assert rows[1][1:6] == ["b", "**5.7**", "**6.0**", "**0.772**", "**0.986**"]
    assert rows[1][6:8] == ["3,960", "freihand, procrustes=freihand"]
    assert captured.err == ""


def test_rows_that_were_not_measured_alike_are_said(runs, capsys):
    other = official("freihand", FREIHAND, count=12, options={"procrustes": "metro"})
    (runs / "other.json").write_text(json.dumps(other))
    assert tables.main([str(runs / "metro.json"), str(runs / "other.json")]) == 0
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "not comparable: freihand: different protocols: "
        "freihand, procrustes=freihand; freihand, procrustes=metro",
        "not comparable: freihand: different numbers of samples: 12; 3,960",
    ]


def test_all_benchmarks_of_a_run_come_after_each_other(runs, capsys):
    assert tables.main([str(runs / "b")]) == 0
    heads = [x.split("|")[1].strip() for x in lines(capsys) if "samples" in x]
    assert heads == ["freihand", "synthetic_test"]


def test_hint_has_a_table_for_each_kind_of_joint(tmp_path, capsys):
    columns = protocols.load("hint").columns
    values = {c.key: i / 100 for i, c in enumerate(columns)}
    values["ego4d_all_pck_0.05"] = None  # nobody has the frames
    report = official("hint", values, options={"split": "test"})
    (tmp_path / "mine.json").write_text(json.dumps(report))
    assert tables.main([str(tmp_path / "mine.json")]) == 0
    shown = lines(capsys)
    heads = [x.split("|")[1].strip() for x in shown if "samples" in x]
    assert heads == [
        "hint, all joints",
        "hint, visible joints",
        "hint, occluded joints",
    ]
    first = [c.strip() for c in shown[2].split("|")]
    assert first[2:6] == ["0.0", "1.0", "2.0", "3.0"]  # per cent, one row: no bold
    assert first[8] == "-"


def test_meshes_without_correspondence_have_no_errors(tmp_path, capsys):
    values = FREIHAND | {"mesh_al_mean3d": -100.0}
    (tmp_path / "x.json").write_text(json.dumps(official("freihand", values)))
    assert tables.main([str(tmp_path / "x.json")]) == 0
    assert lines(capsys)[2].split("|")[3].strip() == "-"


def test_latex_and_csv_have_the_same_numbers(runs, capsys):
    call = [f"M_1={runs / 'metro.json'}", str(runs / "b"), "--benchmark=freihand"]
    assert tables.main([*call, "--format=csv"]) == 0
    rows = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert rows[2][:5] == ["b", "5.7", "6.0", "0.772", "0.986"]
    assert tables.main([*call, "--format=latex"]) == 0
    shown = lines(capsys)
    assert shown[0] == "\\begin{tabular}{lcccc}" and shown[-1] == "\\end{tabular}"
    row = next(x for x in shown if x.startswith("M\\_1"))
    assert row.startswith("M\\_1 + TTA (released) & \\textbf{5.7} & \\textbf{6.0} &")
    assert row.endswith("\\\\  % 3,960 samples, freihand, procrustes=freihand")


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda p: ["none"], "'none' is neither a report nor a workdir"),
        (lambda p: [str(p / "a"), "--benchmark=hint"], "it has synthetic_test"),
        (lambda p: [str(p / "empty")], "has no evaluation; run"),
        (lambda p: [str(p / "bad.json")], "not a report of"),
    ],
)
def test_what_is_no_run_is_one_line(runs, capsys, make, match):
    (runs / "empty").mkdir()
    (runs / "bad.json").write_text("[]")
    assert tables.main(make(runs)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and match in error


def test_every_benchmark_has_columns_of_its_own():
    for name in protocols.names():
        keys = [c.key for c in protocols.load(name).columns]
        assert len(set(keys)) == len(keys) > 3
