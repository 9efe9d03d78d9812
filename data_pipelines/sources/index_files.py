"""Write and read columns of numbers that processes share without copying.

An index (`description.Index`) of millions of hands is read from a data set's own files
once, and then by every process from here: one `.npy` a column, mapped into memory.
"""

import hashlib
import json
from pathlib import Path

import numpy as np

from data_pipelines.sources.description import Index
from handjax.io import atomic_files, json_files
from handjax.io.folders import visible

_ABOUT = "about.json"


def write(directory: Path, index: Index) -> None:
    """Put an index into a new directory, which appears when it is complete.

    Raises:
        ValueError: A column holds objects.
    """
    with atomic_files.new_directory(directory) as made:
        for name, column in index.columns.items():
            column = np.ascontiguousarray(column)
            np.save(made / f"{name}.npy", column, allow_pickle=False)
        digest = _digest(index)
        about = {
            "split": index.split,
            "count": index.count,
            "dropped": dict(index.dropped),
            "sha256": digest,
        }
        (made / _ABOUT).write_text(json.dumps(about))


def read(directory: Path) -> tuple[Index, str]:
    """Read an index and the SHA-256 of its content."""
    kinds = {"split": str, "count": int, "dropped": dict, "sha256": str}
    about = json_files.read(directory / _ABOUT, kinds, "Remove its directory.")
    columns = {
        path.stem: np.load(path, mmap_mode="r", allow_pickle=False)
        for path in visible(directory, "*.npy")
    }
    index = Index(about["split"], about["count"], columns, about["dropped"])
    return index, about["sha256"]


def _digest(index: Index) -> str:
    digest = hashlib.sha256(f"{index.count} {dict(index.dropped)}".encode())
    for name, column in sorted(index.columns.items()):
        digest.update(f"{name} {column.dtype.str} {column.shape}".encode())
        digest.update(np.ascontiguousarray(column).reshape(-1).view(np.uint8))
    return digest.hexdigest()
