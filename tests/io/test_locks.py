"""One run at a time in a directory, also after one was killed."""

import os
import signal
import subprocess
import sys

import pytest

from handjax.errors import UserError
from handjax.io import locks

HOLD = """
import sys, time
from pathlib import Path
from handjax.io import locks
with locks.held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the lock of `tmp_path / "run"`."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_another_process_is_named_and_a_killed_one_leaves_no_lock(other, tmp_path):
    with pytest.raises(UserError, match=rf"in use by process {other.pid} on \w"):
        with locks.held(tmp_path / "run"):
            pass
    other.send_signal(signal.SIGKILL)
    other.wait()
    with locks.held(tmp_path / "run"):
        assert str(os.getpid()) in (tmp_path / "run" / locks.NAME).read_text()


def test_a_directory_of_which_nothing_came_is_not_left(tmp_path):
    with pytest.raises(ZeroDivisionError), locks.held(tmp_path / "run"):
        1 / 0  # noqa: B018
    assert not (tmp_path / "run").exists()
    with locks.held(tmp_path / "run"):
        (tmp_path / "run" / "config.json").touch()
    assert (tmp_path / "run" / "config.json").exists()


def test_a_file_in_the_place_of_a_directory_is_said(tmp_path):
    (tmp_path / "run").touch()
    with (
        pytest.raises(UserError, match="cannot be written"),
        locks.held(tmp_path / "run"),
    ):
        pass
