"""JSONL, means that can be resumed, and the progress line."""

import json

import numpy as np

from handjax.io import console
from handjax.training import logs


def test_means_are_the_same_when_resumed_in_between():
    values = np.random.default_rng(0).normal(size=20).astype(np.float32)
    whole = logs.Metrics()
    for value in values:
        whole.add({"loss": value})
    first = logs.Metrics()
    for value in values[:7]:
        first.add({"loss": value})
    second = logs.Metrics(json.loads(json.dumps(first.state())))
    for value in values[7:]:
        second.add({"loss": value})
    assert whole.mean() == second.mean()
    assert whole.count == 0


def test_truncation_drops_later_and_half_written_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"stage": "a", "step": n}) for n in range(4)]
    path.write_text("\n".join(lines) + '\n{"stage": "a", "st')
    logs.truncate(path, lambda line: line["step"] <= 1)
    assert path.read_text() == "\n".join(lines[:2]) + "\n"
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_lines_are_json_even_for_nan(tmp_path):
    writer = logs.Writer(tmp_path, "a", 0, active=True)
    writer.scalars(3, {"loss": float("nan"), "mm": 1.5})
    writer.image(3, "picture", np.zeros((4, 5, 3), np.uint8))
    writer.close()
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line == {"stage": "a", "step": 3, "loss": None, "mm": 1.5}
    assert list((tmp_path / "tensorboard" / "a").glob("events.*"))


def test_other_processes_write_nothing(tmp_path):
    writer = logs.Writer(tmp_path, "a", 0, active=False)
    writer.scalars(3, {"loss": 1.0})
    writer.close()
    assert not list(tmp_path.iterdir())


def test_the_line_names_step_loss_error_codes_speed_and_time_left(capsys, monkeypatch):
    clock = iter(range(0, 100, 2))
    monkeypatch.setattr(logs.time, "monotonic", lambda: float(next(clock)))
    with logs.Progress("tokenizer", 10) as progress:
        progress.tick(1)
        progress.tick(2)
        progress.log(
            2, {"loss": 0.5, "mm": 12.345, "usage": 0.9, "images_per_s": 40.0, "x": 1.0}
        )
    assert capsys.readouterr().out == (
        "tokenizer 2/10  loss 0.5  12.35 mm  codes 90%  40 img/s  16 s left\n"
    )


def test_durations():
    assert [console.duration(s) for s in (0.4, 59.0, 61.0, 3599.0, 7500.0)] == [
        "0 s",
        "59 s",
        "1 min 01 s",
        "59 min 59 s",
        "2 h 05 min",
    ]


def test_what_takes_long_says_how_long(capsys):
    with console.timed("compiling train step"):
        pass
    assert capsys.readouterr().out == "compiling train step ... 0 s\n"
