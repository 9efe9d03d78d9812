"""A few seconds of `make fuzz`, and the inputs that once ended badly."""

from pathlib import Path

import pytest
import readers
import run

from data_pipelines import datasets

KEPT = Path(__file__).parent / "kept"
INPUTS = 6
_SETS = set(datasets.names()) - {"rhd", "freihand"}  # their miniatures take a second
SLICE = [
    pytest.param(name, marks=[pytest.mark.slow] if name in _SETS else [])
    for name in readers.READERS
]


@pytest.fixture(scope="module")
def guard():
    return run.Guard()


@pytest.mark.parametrize("name", SLICE)
def test_damaged_files_are_read_or_refused_in_one_line(name, guard):
    """Nothing outside of their folder is touched; see run.py."""
    counts, longest, faults = run.fuzz(name, INPUTS, 1, None, guard, limits=False)
    assert faults == [] and sum(counts.values()) == INPUTS and longest < run.SECONDS


@pytest.mark.parametrize("path", sorted(KEPT.glob("*/*")), ids=lambda p: p.parent.name)
def test_what_once_ended_badly_does_no_more(path, guard):
    outcome = run.read(
        readers.READERS[path.parent.name], path.parent, path, guard, limits=False
    )
    assert outcome.kind in ("read", "refused"), outcome.text


def test_the_rule_notices_what_it_forbids(tmp_path, guard):
    """A reader that writes, starts a program, or raises what is not for users."""
    import subprocess

    folder = tmp_path / "input"
    folder.mkdir()
    bad = {
        "open": lambda p: (tmp_path / "outside").write_bytes(b""),
        "subprocess.Popen": lambda p: subprocess.run(["true"]),
        "KeyError": lambda p: {}["a"],
    }
    for word, read in bad.items():
        reader = readers.Reader(read, lambda p: None)
        outcome = run.read(reader, folder, folder / "a", guard, limits=False)
        assert outcome.kind == "fault" and word in outcome.text
    good = readers.Reader(lambda p: (folder / "a").write_bytes(b""), lambda p: None)
    assert run.read(good, folder, folder / "a", guard, limits=False).kind == "read"
