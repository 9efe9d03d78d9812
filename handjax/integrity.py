"""Whether saved arrays are the ones that were written, and the ones that are wanted."""

import gc
import hashlib
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from absl import logging as absl_logging


def sha256(flat: dict[str, Any]) -> str:
    """Hash of named arrays, the same on every machine; "" for none."""
    digest = hashlib.sha256()
    for name in sorted(flat):
        value = np.ascontiguousarray(jax.device_get(flat[name]))
        digest.update(f"{name} {value.dtype} {value.shape}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest() if flat else ""


def checksums(tree: Any) -> dict[str, int]:
    """CRC-32 by path: Orbax's files have none, and zstd passes many a flipped bit.

    Arrays that this process holds only a part of are left out.
    """
    return {
        path: zlib.crc32(np.ascontiguousarray(jax.device_get(leaf)).tobytes())
        for path, leaf in named(tree)
        if leaf.is_fully_addressable
    }


def verify(tree: Any, expected: dict[str, int]) -> None:
    """Compare with the `checksums` of when it was saved.

    Raises:
        OSError: names the first array that differs.
    """
    found = checksums(tree)
    wrong = [k for k in sorted(found) if expected.get(k, found[k]) != found[k]]
    if wrong:
        raise OSError(f"the bytes of {wrong[0]!r} are not those that were written")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Orbax's pages about each unreadable file out of the terminal."""
    hook, level = sys.unraisablehook, absl_logging.get_verbosity()
    sys.unraisablehook = lambda *_: None
    absl_logging.set_verbosity(absl_logging.FATAL)
    try:
        yield
    except BaseException as error:
        error.__traceback__ = None  # it holds the coroutines that would complain later
        gc.collect()
        raise
    finally:
        sys.unraisablehook = hook
        absl_logging.set_verbosity(level)


def misfit(mine: Any, theirs: Any) -> str:
    """How two trees of arrays differ in names and shapes; "" if they do not."""
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
    """Leaves of any pytree with their paths, `0/params/head/kernel`."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(jax.tree_util.keystr(p, simple=True, separator="/"), v) for p, v in leaves]
