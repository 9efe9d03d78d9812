"""Write files and folders that are either complete or absent."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write to a temporary neighbour, then rename: readers never see half a file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            # Renaming alone leaves an empty file after a power cut.
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes private files; give the usual permissions.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: str | Path, value: Any) -> None:
    """Write readable JSON; NaN and infinity, which JSON lacks, are refused."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    write_bytes(path, text.encode())


@contextlib.contextmanager
def new_directory(path: str | Path) -> Iterator[Path]:
    """Fill a temporary neighbour, then replace `path` with it.

    The old folder is removed once the new one exists; after an error it is untouched.
    """
    path = Path(path).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        made, old = temporary / "new", temporary / "old"
        made.mkdir()
        yield made
        if path.exists():
            path.rename(old)
        try:
            made.rename(path)
        except BaseException:
            if old.exists():
                old.rename(path)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
