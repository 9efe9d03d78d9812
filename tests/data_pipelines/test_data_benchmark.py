"""The benchmark runs, and its lines hold what was agreed; no timing is asserted."""

import json
import sys

import pytest
from fake_records import write

from data_pipelines import benchmark


def _run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["benchmark", *arguments])
    status = benchmark.main()
    return status, capsys.readouterr()


def test_every_line_is_json_with_the_agreed_keys(tmp_path, monkeypatch, capsys):
    write(tmp_path)
    quick = ["--rounds=2", "--seconds=0.02", "--batch_size=2", "--threads=2"]
    status, captured = _run(monkeypatch, capsys, f"--data={tmp_path}", *quick)
    lines = [json.loads(line) for line in captured.out.splitlines()]
    assert status == 0 and len(lines) == 6
    for line in lines:
        assert set(line) == {"name", "metric", "value", "unit", "device", "versions"}
        assert line["value"] > 0
    by_key = {(line["name"], line["metric"]): line["value"] for line in lines}
    assert by_key["loader, 2 threads", "rate_per_core"] == pytest.approx(
        by_key["loader, 2 threads", "rate"] / 2, rel=0.01
    )


def test_a_missing_data_set_is_one_line(tmp_path, monkeypatch, capsys):
    status, captured = _run(monkeypatch, capsys, f"--data={tmp_path}")
    assert status == 2 and captured.err.count("\n") == 1
    assert "holds no finished dataset" in captured.err
