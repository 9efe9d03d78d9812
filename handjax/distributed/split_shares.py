"""Combine the work of several processes on one split, from files.

Process i of n takes every n-th example and writes its results to a folder that all of
them see. The process that finds all parts there combines them, so that none waits for
another and none can hang; parts of an interrupted evaluation of the same checkpoint
with the same options are reused. Every example has to be counted once: an evaluation
that loses or repeats some, as padded batches on several devices easily do, is
refused.
"""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from handjax.errors import UserError
from handjax.io import array_files
from handjax.io.atomic_files import write_bytes

Arrays = dict[str, np.ndarray]

_ABOUT = "about"


class ProcessShare(NamedTuple):
    """The share of one process: every `count`-th example or batch, from `index` on."""

    index: int = 0
    count: int = 1


WHOLE = ProcessShare()
"""All of it, in one process."""


def this_process() -> ProcessShare:
    """Return the share of this process among those of `jax.distributed`."""
    # Loaders import this module, and they stay free of jax.
    import jax

    return ProcessShare(jax.process_index(), jax.process_count())


def parse(text: str | None) -> ProcessShare:
    """Parse a share of the command line, "0/4" for the first of four.

    Without one, the share of this process among those of `jax.distributed`, which is
    the whole unless that has been set up.

    Raises:
        UserError: It is not such a pair.
    """
    if text is None:
        return this_process()
    index, slash, count = text.partition("/")
    if slash and index.isdecimal() and count.isdecimal() and int(index) < int(count):
        return ProcessShare(int(index), int(count))
    raise UserError(
        f"--share={text!r}: give the process and how many there are, 0/4 to 3/4."
    )


def gather_parts(
    folder: Path,
    name: str,
    share: ProcessShare,
    arrays: Arrays,
    about: Mapping[str, Any],
) -> list[Arrays] | None:
    """Write this process's part; return all once every process has written.

    Args:
        folder: A folder that all processes see.
        name: Name of the evaluation.
        share: The share of this process.
        arrays: Its results; no object arrays.
        about: All that decides the numbers; parts with other values are ignored.
    """
    if share.count == 1:
        return [arrays]
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    paths = [folder / f".{name}.{i}-of-{share.count}.npz" for i in range(share.count)]
    buffer = io.BytesIO()
    np.savez(buffer, **{_ABOUT: np.array(digest)}, **arrays)
    write_bytes(paths[share.index], buffer.getvalue())
    parts = [_read(path, digest) for path in paths]
    if any(part is None for part in parts):
        return None
    for path in paths:
        path.unlink(missing_ok=True)
    return [part for part in parts if part is not None]


def _read(path: Path, digest: str) -> Arrays | None:
    # Another process may combine the parts, and remove them, meanwhile.
    try:
        found = array_files.load_npz(path)
        about = found.pop(_ABOUT, None)
        return found if about is not None and about.item() == digest else None
    except FileNotFoundError:
        return None


def check_whole(indices: Sequence[np.ndarray] | np.ndarray, count: int) -> None:
    """Refuse a split with examples that are missing or counted twice.

    Args:
        indices: Positions of the examples, of any process.
        count: Examples of the split.

    Raises:
        UserError: Names the first wrong example.
    """
    found = np.concatenate([np.ravel(part) for part in indices] or [np.zeros(0)])
    times = np.bincount(found.astype(np.int64), minlength=count)
    missing, doubled = np.flatnonzero(times[:count] == 0), np.flatnonzero(times > 1)
    foreign = np.flatnonzero(times[count:]) + count
    for wrong, what in (
        (missing, "were not evaluated"),
        (doubled, "were evaluated more than once"),
        (foreign, "do not exist"),
    ):
        if len(wrong):
            raise UserError(
                f"{len(wrong):,} of {count:,} examples {what}, first {wrong[0]}."
            )


def packed(parts: Mapping[str, Arrays]) -> Arrays:
    """Pack the arrays of several parts into one dict."""
    return {f"{n}/{k}": v for n, arrays in parts.items() for k, v in arrays.items()}


def unpacked(arrays: Arrays, name: str) -> Arrays:
    """Return the arrays of one part that `packed` has packed."""
    start = f"{name}/"
    return {k.removeprefix(start): v for k, v in arrays.items() if k.startswith(start)}
