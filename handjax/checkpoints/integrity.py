"""Verify that saved arrays are those that were written, and those that are expected."""

import errno
import gc
import hashlib
import json
import logging
import os
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from handjax.io import console

_MACHINE = (
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.ENOMEM,
)
"""What the system says when a file may be whole, but cannot be read now."""


def sha256(flat: dict[str, Any]) -> str:
    """Return a hash of named arrays, the same on every machine; "" for none.

    Every process calls it, since arrays may be split over processes.
    """
    digest = hashlib.sha256()
    for name in sorted(flat):
        value = np.ascontiguousarray(_whole(flat[name]))
        digest.update(f"{name} {value.dtype} {value.shape}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest() if flat else ""


def checksums(tree: Any) -> dict[str, int]:
    """Return CRC-32 by path; Orbax stores none, and zstd misses flipped bits.

    Arrays that this process holds only a part of are left out.
    """
    return {
        path: zlib.crc32(np.ascontiguousarray(jax.device_get(leaf)).tobytes())
        for path, leaf in named(tree)
        if isinstance(leaf, np.ndarray)
        or leaf.is_fully_addressable
        or leaf.is_fully_replicated
    }


def _whole(array: Any) -> np.ndarray:
    """Return the array on this host, gathered if processes hold a part each."""
    if getattr(array, "is_fully_addressable", True) or array.is_fully_replicated:
        return jax.device_get(array)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(array, tiled=True)


def verify(tree: Any, expected: dict[str, int]) -> None:
    """Compare with the `checksums` of when it was saved.

    Raises:
        OSError: An array differs; names the first.
    """
    found = checksums(tree)
    wrong = [k for k in sorted(found) if expected.get(k, found[k]) != found[k]]
    if wrong:
        raise OSError(f"the bytes of {wrong[0]!r} are not those that were written")


def withheld(directory: Path, error: BaseException) -> str:
    """Return why the system does not hand out a checkpoint's files; "" if it does.

    Such a checkpoint may be whole: rights, open files or a disk have to be put right.

    Args:
        directory: Directory of the step.
        error: What reading it has raised.
    """
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.errno in _MACHINE:
            return os.strerror(link.errno)
        for number in _MACHINE:  # TensorStore's errors have a text alone
            if os.strerror(number) in str(link):
                return os.strerror(number)
        link = link.__cause__ or link.__context__
    try:
        for folder, _, names in os.walk(directory, onerror=_raise):
            for name in names:
                with open(Path(folder) / name, "rb") as file:
                    while file.read(1 << 24):
                        pass
    except OSError as refused:
        if refused.errno in _MACHINE:
            return f"{refused.filename or directory}: {os.strerror(refused.errno)}"
    return ""


def _raise(error: OSError) -> None:
    raise error


def unreadable(directory: Path) -> str:
    """Return what is wrong with the files of a checkpoint; "" if nothing is.

    One process reads everything on its own: restoring is done by all processes
    together, and would wait for ever for one that has met a broken file.

    Args:
        directory: Directory of the step.
    """
    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(),
        active_processes={jax.process_index()},
        barrier_sync_key_prefix="alone",
    )
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    try:
        meta = json.loads((directory / "meta" / "metadata").read_text())
        found = []
        for item in ("variables", "train"):
            shapes = handler.metadata(directory / item).tree
            as_numpy = jax.tree.map(
                lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes
            )
            args = ocp.args.PyTreeRestore(restore_args=as_numpy)
            found.append(handler.restore(directory / item, args=args))
        verify(tuple(found), meta.get("crc32", {}))
    except (MemoryError, NameError, TypeError):
        raise
    except Exception as error:
        return f"{type(error).__name__}: {console.first_line(error, limit=200)}"
    return ""


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Orbax's pages about each unreadable file out of the terminal."""
    orbax_log = logging.getLogger("absl")
    hook, level = sys.unraisablehook, orbax_log.level
    sys.unraisablehook = lambda *_: None
    orbax_log.setLevel(logging.CRITICAL)
    try:
        yield
    except BaseException as error:
        error.__traceback__ = None  # it holds the coroutines that would complain later
        gc.collect()
        raise
    finally:
        sys.unraisablehook = hook
        orbax_log.setLevel(level)


def difference(mine: Any, theirs: Any) -> str:
    """Return how two trees of arrays differ in names and shapes; "" if they do not."""
    a, b = ({k: tuple(v.shape) for k, v in named(tree)} for tree in (mine, theirs))
    lists = {
        "missing there": sorted(set(a) - set(b)),
        "unknown here": sorted(set(b) - set(a)),
        "other shapes": [
            f"{k} {b[k]} there, {a[k]} here"
            for k in sorted(set(a) & set(b))
            if a[k] != b[k]
        ],
    }
    return "; ".join(
        f"{what}: {', '.join(names[:4])}"
        + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        for what, names in lists.items()
        if names
    )


def named(tree: Any) -> list[tuple[str, Any]]:
    """Return the leaves of any pytree with their paths, `0/params/head/kernel`."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(jax.tree_util.keystr(p, simple=True, separator="/"), v) for p, v in leaves]
