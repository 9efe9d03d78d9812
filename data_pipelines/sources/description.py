"""Records that describe a data set: its builder, archives and index."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np


class Archive(NamedTuple):
    """One file to download."""

    name: str
    """Its file name."""
    holds: tuple[str, ...]
    """Patterns (`fnmatch`) of paths below the source directory that are in it."""
    url: str = ""
    """Its address, if it is not that of the data set."""


class Builder(NamedTuple):
    """Description of a data set."""

    name: str
    title: str
    url: str
    licence: str
    download: str
    """Steps, for people to follow."""
    archives: tuple[Archive, ...]
    splits: dict[str, int]
    """Split -> number of hands that are published or used in papers; 0: not known."""
    default_splits: tuple[str, ...] = ()
    """Splits that are prepared when none is named; () for all."""

    def describe(self) -> str:
        """Return a page of text about the data set."""
        splits = ", ".join(
            f"{split} ({count:,})" if count else split
            for split, count in self.splits.items()
        )
        return (
            f"{self.title}\n{self.url}\n\nLicence: {self.licence}\n\n"
            f"{self.download.strip()}\n\nSplits: {splits}\n"
        )


class Index(NamedTuple):
    """Annotations of a split, read once: arrays that processes share through files."""

    split: str
    count: int
    """Number of examples."""
    columns: dict[str, np.ndarray]
    """Columns of numbers; text is UTF-8 bytes (`text`)."""
    dropped: Mapping[str, int] = MappingProxyType({})
    """Reason -> examples that are not even in the index."""


class DroppedError(Exception):
    """An example is left out, for the reason that is its text."""


def text(values: Sequence[str]) -> np.ndarray:
    """Return a column of texts."""
    return np.array([value.encode() for value in values], np.bytes_)
