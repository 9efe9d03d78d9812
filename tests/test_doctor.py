"""`handjax doctor` on this machine, and on machines that lack something."""

import importlib.metadata
import json
import platform

import pytest

from handjax.doctor import __main__ as doctor
from handjax.doctor import checks
from handjax.inference import released


def test_a_machine_on_which_tests_run_has_no_problem(capsys):
    assert doctor.main(["--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["Python"]["found"].startswith(platform.python_version())
    assert "778 vertices" in rows["hand model"]["found"]
    assert rows["model landmarks"]["found"].endswith("Apache-2.0")
    assert not [row for row in rows.values() if row["state"] == checks.PROBLEM]
    assert all(row["advice"] for row in rows.values() if row["state"] != checks.OK)


def test_a_problem_is_a_line_with_advice_and_exit_code_1(capsys, monkeypatch):
    monkeypatch.setattr(platform, "python_version_tuple", lambda: ("3", "9", "1"))
    assert doctor.main([]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("problem  Python")
    assert "install Python 3.11" in lines[1]


def test_a_card_that_jax_does_not_use_is_a_problem(monkeypatch, tmp_path):
    card = tmp_path / "nvidiactl"
    monkeypatch.setattr(checks, "CARDS", {str(card): ("gpu", "a card", "cuda12")})
    assert checks._devices().state == checks.OK
    card.touch()
    row = checks._devices()
    assert row.state == checks.PROBLEM and row.advice == "pip install 'jax[cuda12]'"


def test_damaged_weights_are_named(monkeypatch, tmp_path):
    damaged = tmp_path / "landmarks.safetensors"
    damaged.write_bytes(b"not weights")
    monkeypatch.setattr(released, "path_of", lambda name: damaged)
    row = next(checks._models())
    assert row.state == checks.PROBLEM and str(damaged) in row.found


@pytest.mark.parametrize("installed", [True, False])
def test_extras_are_those_of_the_package(monkeypatch, installed):
    version = "1.0" if installed else None
    monkeypatch.setattr(checks, "_version", lambda name: version)
    rows = list(checks._extras())
    declared = importlib.metadata.metadata("handjax").get_all("Provides-Extra")
    hidden = {"cuda12", "cuda13", "tpu", "dev"}
    assert {row.name for row in rows} == {f"extra {x}" for x in {*declared} - hidden}
    assert {row.state for row in rows} == {checks.OK if installed else checks.NOTE}


def test_a_cache_that_cannot_be_written_is_a_problem(monkeypatch, tmp_path):
    monkeypatch.setenv("HANDJAX_DATA", str(tmp_path / "data"))
    assert checks._cache().state == checks.OK
    monkeypatch.setattr(checks.os, "access", lambda path, mode: False)
    row = checks._cache()
    assert row.state == checks.PROBLEM and "HANDJAX_DATA" in row.advice
