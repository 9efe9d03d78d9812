"""Versions, commit and devices of a run, for its reports."""

import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path

import jax

from handjax.io import atomic_files, json_files
from handjax.training.run import Run


def _write_environment(run: Run) -> None:
    """Add this start to environment.json."""
    path = run.workdir / "environment.json"
    starts = []
    if path.exists():
        advice = "Move it away; a new one is begun."
        starts = json_files.read(path, {"starts": list}, advice)["starts"]
    starts.append(
        {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "command": shlex.join([Path(sys.executable).name, *sys.orig_argv[1:]]),
            "versions": versions(),
            "commit": _commit(),
            "devices": [d.device_kind for d in jax.devices()],
            "processes": jax.process_count(),
            "platform": platform.platform(),
            "cpus": os.cpu_count(),
            "hand": run.hand_info,
            "data": run.data.describe(),
        }
    )
    atomic_files.write_json(path, {"starts": starts})


def versions() -> dict[str, str]:
    """Return versions of Python and of packages that decide results."""
    from importlib import metadata

    names = ("handjax", "jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _commit() -> str:
    """Return the commit of the source tree, "" where there is none."""
    try:
        result = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except OSError:
        return ""
    return result.stdout.strip()
