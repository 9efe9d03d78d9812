"""Find which records of a split the filters leave, once, and keep them in a file.

An epoch is every remaining record once, so they have to be known before the first is
read. Looking at millions takes minutes; the result is kept under a name made of all
that decides it.
"""

import hashlib
import io
import json
import logging
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_pipelines.loading.filters import FIELDS, judge
from data_pipelines.loading.recipes import Filters
from data_pipelines.storage.progress import Report
from data_pipelines.storage.shards import Split
from handjax.errors import UserError
from handjax.io import array_files, atomic_files, json_files

VERSION = 1
"""Version of `filters.judge`, raised whenever its result changes."""
_CHUNK = 512
_log = logging.getLogger("handjax.data")


class Selection(NamedTuple):
    """Records that training reads."""

    rows: np.ndarray
    """Their positions in the split, rising."""
    total: int
    """Records of the split."""
    left_out: dict[str, int]
    """Reason -> records."""
    changed: dict[str, int]
    """Removed annotation -> number of remaining records that lose it."""

    def describe(self) -> str:
        """Return one line: how many records are used, and what was changed."""
        said = f"{len(self.rows):,} of {self.total:,} records"
        for what, counts in (("left out", self.left_out), ("kept with", self.changed)):
            some = [f"{n:,} {reason}" for reason, n in counts.items() if n]
            said += f"; {what}: {', '.join(some)}" if some else ""
        return said


def select(
    split: Split, filters: Filters, cache: Path, *, keep: bool = True
) -> Selection:
    """Apply filters to all records of a split.

    An unreadable record stays: training reports it when it is read.

    Args:
        split: Of a data set.
        filters: Of `config.data.filters`.
        cache: Directory of earlier results.
        keep: Whether to write the result there.

    Raises:
        UserError: No record is left.
    """
    if filters == Filters():
        return Selection(np.arange(len(split)), len(split), {}, {})
    path = cache / f"{_key(split, filters)}.npz"
    found = _read(path) if path.is_file() else None
    if found is None:
        found = _scan(split, filters)
        if keep:
            _write(path, found)
    if not len(found.rows):
        raise UserError(
            f"The filters of config.data.filters ({filters.describe()}) leave nothing "
            f"of {split.name}: {found.describe()}. Loosen them."
        )
    return found


def _scan(split: Split, filters: Filters) -> Selection:
    out = np.zeros(len(split), bool)
    left_out: Counter[str] = Counter()
    changed: Counter[str] = Counter()
    with Report(f"filters, {split.name}", len(split), unit="records") as report:
        for first in range(0, len(split), _CHUNK):
            rows, records = [], []
            for row in range(first, min(first + _CHUNK, len(split))):
                try:
                    records.append(split.read(row, FIELDS))
                except ValueError:
                    continue
                rows.append(row)
            report.add(min(_CHUNK, len(split) - first))
            if not records:
                continue
            judged = judge(records, filters)
            for reason, which in judged.left_out.items():
                out[np.array(rows)[which]] = True
                left_out[reason] += int(which.sum())
            for what, which in judged.changed.items():
                changed[what] += int(which.sum())
    return Selection(np.flatnonzero(~out), len(split), dict(left_out), dict(changed))


def _key(split: Split, filters: Filters) -> str:
    """Return a name of all that decides a selection: records, filters, version."""
    digest = hashlib.sha256(f"{VERSION} {filters} {split.name}".encode())
    digest.update(json.dumps(split.metadata, sort_keys=True).encode())
    for path in split.paths:
        stat = path.stat()
        digest.update(f"{path.name} {stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()[:24]


def _read(path: Path) -> Selection | None:
    """Read a selection; None for a file that is not one, which is then made anew."""
    try:
        kept = array_files.load_npz(path, names=["about", "kept"])
        kinds = {"total": int, "left_out": dict, "changed": dict}
        about = json_files.parse(str(kept["about"]), path)
        about = {k: json_files.checked(about, path, kinds)[k] for k in kinds}
        if not 0 <= about["total"] <= 8 * kept["kept"].size:
            raise UserError(f"{path}: its counts do not fit.")
        bits = np.unpackbits(kept["kept"], count=about["total"])
    except (OSError, ValueError, TypeError) as error:
        _log.warning(
            "%s cannot be read (%s); looking at all records again", path, error
        )
        return None
    return Selection(np.flatnonzero(bits), **about)


def _write(path: Path, found: Selection) -> None:
    kept = np.zeros(found.total, bool)
    kept[found.rows] = True
    about = {k: v for k, v in found._asdict().items() if k != "rows"}
    data = io.BytesIO()
    np.savez(data, kept=np.packbits(kept), about=json.dumps(about))
    try:
        atomic_files.write_bytes(path, data.getvalue())
    except OSError as error:
        _log.warning("%s cannot be written: %s", path, error.strerror)
