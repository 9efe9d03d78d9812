"""Records of a split with their pictures decoded, and what happens to damaged ones."""

import logging
import threading
from typing import Any

from data_pipelines import examples
from data_pipelines.shards import Split

_log = logging.getLogger("handjax.data")


class CorruptDataError(RuntimeError):
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
            CorruptDataError: if it is one too many.
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
    """Random access to the records of a split, ready for `examples.make`.

    In the place of an unreadable record comes the next readable one (its `index`
    tells), so that batches stay the same on every run.
    """

    def __init__(self, split: Split, corrupt: CorruptRecords, load_image: bool):
        self._split, self._corrupt, self._load_image = split, corrupt, load_image

    def __getitem__(self, index: int) -> dict[str, Any]:
        for step in range(len(self._split)):
            at = (index + step) % len(self._split)
            try:
                return self._read(at)
            except ValueError as error:
                where = self._split.locate(at)
                self._corrupt.add(where, str(error).removeprefix(f"{where}: "))
        raise CorruptDataError(
            f"No record of {self._split.name} can be read. Make the dataset again."
        )

    def _read(self, index: int) -> dict[str, Any]:
        record = self._split[index]
        examples.check(record)
        record["index"], record["pixels"] = index, None
        if self._load_image:
            pixels = examples.decode_image(record["image"])
            height, width = record["image_size"]
            if pixels.shape[:2] != (height, width):
                raise ValueError(
                    f"the picture is {pixels.shape[1]} x {pixels.shape[0]} pixels, its "
                    f"record says {width} x {height}"
                )
            record["pixels"] = pixels
        return record
