"""Read filtered records of a split, and replace damaged ones."""

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from data_pipelines.loading.annotations import FIELDS, BadRecordError
from data_pipelines.loading.filters import counted
from data_pipelines.loading.recipes import Filters
from data_pipelines.storage.shards import Split
from handjax.errors import HandjaxError
from handjax.types import Batch

_log = logging.getLogger("handjax.data")


class CorruptDataError(HandjaxError, RuntimeError):
    """More records are unreadable than `max_corrupt` allows."""


class CorruptRecords:
    """The unreadable records met so far: each is counted and reported once."""

    def __init__(self, limit: int):
        self.limit = limit
        self.reasons: dict[str, str] = {}
        """Shard file and position -> what is wrong."""
        self._lock = threading.Lock()

    def add(self, where: str, reason: str) -> None:
        """Report a record.

        Raises:
            CorruptDataError: If it is one too many.
        """
        with self._lock:
            new = where not in self.reasons
            self.reasons[where] = reason
            count = len(self.reasons)
        if count > self.limit:
            raise CorruptDataError(
                f"{count} records cannot be read, config.data.max_corrupt={self.limit} "
                f"allows no more; the last: {where}: {reason}. Delete the shard and "
                "make the dataset again, or raise the limit."
            )
        if new:
            _log.warning(
                "unreadable record %d (at most %d are skipped): %s: %s",
                count,
                self.limit,
                where,
                reason,
            )


class Reader:
    """Random access to the records of a split, ready for `ExampleMaker`.

    An unreadable record is replaced by the next readable one (see its `index`), so that
    batches are the same on every run.
    """

    def __init__(
        self,
        split: Split,
        corrupt: CorruptRecords,
        *,
        rows: np.ndarray | None = None,
        filters: Filters = Filters(),  # noqa: B008 - immutable
        posable: bool = False,
    ):
        """Read some records of a split.

        Args:
            split: The records.
            corrupt: Counts those that cannot be read.
            rows: Positions of the records to read; None for all.
            filters: Which of their annotations are used.
            posable: Whether their MANO parameters belong to the hand model of the run.
        """
        self._split, self._corrupt = split, corrupt
        self._rows = np.arange(len(split)) if rows is None else rows
        self._filters, self._posable = filters, posable
        self._bad: set[int] = set()

    def __getitem__(self, number: int) -> dict[str, Any]:
        for step in range(len(self._rows)):
            at = int(self._rows[(number + step) % len(self._rows)])
            if at in self._bad:
                continue
            try:
                record = self._split.read(at, FIELDS)
            except ValueError as error:
                self.reject(at, error)
            else:
                given = {"index": at, "posable": self._posable}
                return counted(record, self._filters) | given
        raise CorruptDataError(
            f"No record of {self._split.name} can be read. Make the dataset again."
        )

    def reject(self, index: int, error: ValueError) -> None:
        """Report the record at this position, and never return it again."""
        where = self._split.locate(index)
        self._corrupt.add(where, str(error).removeprefix(f"{where}: "))
        self._bad.add(index)


def with_replacements(
    wanted: Sequence[tuple[Reader, int]],
    make: Callable[[list[dict[str, Any]]], Batch],
) -> Batch:
    """Make a batch; replace records that turn out to be damaged.

    Args:
        wanted: Reader of each row, and number of its record there.
        make: From records to the batch; raises `BadRecordError`.
    """
    records = [reader[number] for reader, number in wanted]
    while True:
        try:
            return make(records)
        except BadRecordError as error:
            reader, number = wanted[error.row]
            reader.reject(records[error.row]["index"], error)
            records[error.row] = reader[number]
