"""The templates in deploy/: shells read them, and handjax.train knows their flags."""

import re
import subprocess

import pytest
from places import ROOT

from handjax import train

DEPLOY = ROOT / "deploy"
FILES = sorted(path for path in DEPLOY.iterdir() if path.suffix != ".md")
SCRIPTS = [path for path in FILES if path.suffix in (".sh", ".sbatch")]


def _flags():
    return {flag.lstrip("-") for flag in train.parser()._option_string_actions}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_shell_can_read_it(path):
    subprocess.run(["bash", "-n", path], check=True)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_flag_is_one_of_the_trainer(path):
    text = re.sub(r"\\\n\s*", "", path.read_text())
    (command,) = re.findall(r"python -m handjax\.train (.*)", text)
    used = re.findall(r"--(\w+)", command)
    assert {"config", "workdir"} < set(used) <= _flags()
    assert "distributed" in used or {"coordinator", "num_processes"} < set(used)


def test_the_page_names_every_file():
    page = (DEPLOY / "README.md").read_text()
    assert set(re.findall(r"`(\w+\.\w+)`\]", page)) == {path.name for path in FILES}


def test_plain_hosts_get_one_process_each(tmp_path):
    """With an `ssh` that runs the command here."""
    ssh = tmp_path / "ssh"
    ssh.write_text('#!/usr/bin/env bash\necho "$2 runs: $3"\n')
    ssh.chmod(0o755)
    done = subprocess.run(
        [DEPLOY / "hosts.sh", "one two", "c.py", "/w", "--stop_after=3"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = sorted(done.stdout.splitlines())
    for number, (line, host) in enumerate(zip(lines, ("one", "two"), strict=True)):
        assert line.startswith(f"{host} runs: cd ")
        assert "--coordinator one:8476" in line and "--num_processes 2" in line
        assert f"--process_id {number} --stop_after=3" in line
