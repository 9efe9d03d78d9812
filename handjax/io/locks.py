"""A lock on a directory that ends with its process, however that ends."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from handjax.errors import UserError

try:
    import fcntl
except ImportError:  # Windows has no flock, and no lock here
    fcntl = None

NAME = ".lock"


@contextlib.contextmanager
def held(directory: Path) -> Iterator[None]:
    """Hold the lock of a directory, which is made where it is missing.

    The kernel gives a lock back when its process ends, so one that was killed leaves
    none behind. File systems that know no locks are used without.

    Raises:
        UserError: Another process holds it, which is named; or the directory cannot be
            written.
    """
    new = not directory.exists()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = (directory / NAME).open("a+")
    except OSError as error:
        raise UserError(f"{directory} cannot be written: {error.strerror}.") from None
    with file:
        _take(file, directory)
        try:
            yield
        finally:
            if new and os.listdir(directory) == [NAME]:
                # Nothing came of it: the directory is as free as before.
                (directory / NAME).unlink()
                directory.rmdir()


def _take(file, directory: Path) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        raise UserError(
            f"{directory} is in use by {file.read(200).strip() or 'another process'}; "
            "wait for it or stop it, or use another directory."
        ) from None
    except OSError:  # no locks on this file system
        return
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
