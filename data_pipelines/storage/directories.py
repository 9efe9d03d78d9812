"""Protect the directory of a data set: one job at a time, and one data set only."""

import contextlib
import fcntl
from collections.abc import Collection
from pathlib import Path
from typing import Any

from handjax.errors import UserError
from handjax.io import atomic_files, json_files
from handjax.io.folders import visible


@contextlib.contextmanager
def locked(directory: Path):
    """Let one process make a data set while others wait.

    The system releases the lock of a process that dies.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = open(directory / ".lock", "w")
    except OSError as error:
        if (directory / "metadata.json").is_file():  # read-only data is fine
            yield
            return
        raise UserError(
            f"Cannot write to {str(directory)!r}: {error.strerror}. Choose another "
            "directory (--out, or config.data.dir)."
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def check_same(
    directory: Path, settings: dict[str, Any], *, beside: Collection[str] = ()
) -> None:
    """Refuse a directory that holds something else; record what an empty one is for.

    Args:
        directory: Directory for a data set.
        settings: Settings that decide its records.
        beside: Files that may exist before it.
    """
    path = directory / "settings.json"
    if not path.is_file():
        strangers = {p.name for p in visible(directory)} - {*beside}
        if strangers:
            raise UserError(
                f"{str(directory)!r} holds {sorted(strangers)[0]!r} and no "
                "settings.json, so it is not a data set of this program. Choose an "
                "empty directory."
            )
        atomic_files.write_json(path, settings)
        return
    advice = "Choose another directory or remove this one."
    found = json_files.read(path, advice=advice)
    different = [
        f"{key}: {found.get(key)!r} there, {settings.get(key)!r} asked for"
        for key in sorted({*found, *settings})
        if found.get(key) != settings.get(key)
    ]
    if different:
        raise UserError(
            f"{str(directory)!r} holds a data set made with other settings "
            f"({'; '.join(different)}). Choose another directory or remove this one."
        )
