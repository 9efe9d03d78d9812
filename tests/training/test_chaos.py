"""Training that is interrupted at random ends as if nothing had happened."""

import json
import shutil
import sys

import pytest
from places import SUPPORT

from handjax import chaos
from handjax.chaos import Chaos, Failure

FAKE = [
    *(sys.executable, str(SUPPORT / "fake_train.py")),
    f"--config={SUPPORT / 'fake_family.py'}",
]


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")


@pytest.fixture(scope="module")
def survived(tmp_path_factory):
    """A kill and a request to stop, then the end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", "")
        patch.setenv("JAX_NUM_CPU_DEVICES", "1")
        run = Chaos(FAKE, tmp_path_factory.mktemp("chaos"), seed=3, grace_s=100.0)
        run.run(kills=1, terms=1)
    return run


@pytest.mark.slow
def test_interrupted_runs_end_as_the_unbroken_one(survived):
    counts = survived.hits
    assert sum(counts[x] for x in counts if x.startswith("SIGKILL")) == 1
    assert sum(counts[x] for x in counts if x.startswith("SIGTERM")) == 1
    assert survived.rounds >= 1
    assert (survived.root / f"broken-{survived.rounds}" / "DONE").exists()


@pytest.mark.slow
@pytest.mark.parametrize("what", ["parameters", "lines"])
def test_a_difference_is_found(survived, tmp_path, what):
    for name in ("unbroken", "broken-1"):
        shutil.copytree(survived.root / name, tmp_path / name)
    workdir = tmp_path / "broken-1"
    if what == "lines":
        path = workdir / "metrics.jsonl"
        first, *rest = path.read_text().splitlines(keepends=True)
        line = json.loads(first) | {"loss": 1.0}
        path.write_text("".join([json.dumps(line) + "\n", *rest]))
    else:  # those of two steps before
        found = sorted(int(p.name) for p in (workdir / "checkpoints/mesh").iterdir())
        last, before = workdir / f"checkpoints/mesh/{found[-1]}", found[-2]
        shutil.rmtree(last)
        (workdir / f"checkpoints/mesh/{before}").rename(last)
    moved = Chaos(FAKE, tmp_path, seed=0, grace_s=1.0)
    words = {"parameters": "stage mesh: .* arrays differ", "lines": "other lines"}
    with pytest.raises(Failure, match=words[what]):
        moved._compare(workdir)


def test_a_command_that_fails_is_shown(tmp_path):
    run = Chaos([*FAKE, "--config.model.widht=3"], tmp_path, seed=0, grace_s=1.0)
    with pytest.raises(Failure, match=r"unbroken ended with 2:(.|\n)*Did you mean"):
        run.run(kills=1, terms=0)


def test_a_directory_with_something_in_it_is_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("years of work")
    arguments = ["--workdir", str(tmp_path), "--train=--config=x"]
    assert chaos.main(arguments) == 2
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.slow
def test_a_real_run_survives_many_interruptions(tmp_path):
    train = [
        *(sys.executable, "-m", "handjax.train"),
        "--config=configs/tokenhand.py:smoke",
        "--config.train.checkpoint_every=3",
        "--config.train.log_every=1",
    ]
    run = Chaos(train, tmp_path, seed=0, grace_s=100.0)
    run.run(kills=10, terms=4)
    assert {hit.split()[0] for hit in run.hits} == {"SIGKILL", "SIGTERM"}
