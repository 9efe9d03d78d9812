"""Make batches for training and evaluation with a grain graph.

    positions -> mixed -> indices, shuffled, repeated -> grouped
              -> this process's groups -> batch (read, decode, crop, augment)
              -> from the step to resume at

The graph carries indices; a whole batch of records is read at once, in one thread.
Everything random follows from the seed and the position of an example in the endless
global sequence: batches do not depend on the number of threads, nor the global batch on
the number of processes, and a run that resumes at step n continues with exactly the
batch that it would have used.
"""

import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import cv2
import grain
import numpy as np

from data_pipelines.loading import augment
from data_pipelines.loading.examples import ExampleMaker
from data_pipelines.loading.mixtures import Order
from data_pipelines.loading.readers import (
    CorruptDataError,
    CorruptRecords,
    Reader,
    with_replacements,
)
from data_pipelines.loading.recipes import Filters
from data_pipelines.storage.schema import Counts
from data_pipelines.storage.shards import Split
from handjax.distributed.split_shares import WHOLE, ProcessShare
from handjax.errors import UserError
from handjax.types import Batch

__all__ = ["CorruptDataError", "Source", "eval_batches", "train_batches"]


class Source(NamedTuple):
    """A dataset in a mixture."""

    split: Split
    weight: float = 1.0
    rows: np.ndarray | None = None
    """Positions of the records that are read (`selections`); None for all."""
    filters: Filters = Filters()
    """Filters of the annotations of those records."""
    posable: bool = False
    """Whether its MANO parameters belong to the hand model of the maker's poser, which
    then makes the meshes that are not stored."""

    @property
    def size(self) -> int:
        """Number of examples of one epoch."""
        return len(self.split) if self.rows is None else len(self.rows)


def train_batches(
    sources: Sequence[Source],
    make: ExampleMaker,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process: ProcessShare = WHOLE,
    threads: int = 2,
    max_corrupt: int = 10,
) -> Iterator[Batch]:
    """Return endless training batches.

    Args:
        sources: Datasets and their weights; one or more.
        make: Turns records into a batch.
        batch_size: Batch size of this process.
        seed: Seed of order, mixture and augmentation; 0 or more.
        start_step: Number of batches to skip (without reading them).
        process: Which rows of the global batches these are: process 0 makes the first,
            process 1 those that follow, and so on.
        threads: Number of threads that prepare batches ahead of time; 0 prepares none.
        max_corrupt: Unreadable records that are replaced.

    Raises:
        UserError: There is no source, a weight is not positive, or hands are mixed
            with bodies.
        CorruptDataError: While iterating, when too many records are unreadable.
    """
    order = Order([source.weight for source in sources])
    _check_counts({source.split.counts for source in sources})
    corrupt = CorruptRecords(max_corrupt)
    readers = [
        Reader(s.split, corrupt, rows=s.rows, filters=s.filters, posable=s.posable)
        for s in sources
    ]
    shuffled: list[Any] = [
        grain.MapDataset.range(source.size).seed(seed + number).shuffle().repeat()
        for number, source in enumerate(sources)
    ]

    def placed_at(position: int) -> tuple[int, Reader, int]:
        number, given = order.at(position)
        return position, readers[number], shuffled[number][given]

    def batch_of(items: Sequence[tuple[int, Reader, int]]) -> Batch:
        draws = augment.draws(seed, [position for position, _, _ in items])
        wanted = [(reader, index) for _, reader, index in items]
        return with_replacements(wanted, lambda records: make(records, draws))

    placed = grain.MapDataset.range(sys.maxsize).map(placed_at)
    groups = placed.batch(batch_size, drop_remainder=True, batch_fn=list)
    mine = groups[process.index :: process.count].map(batch_of)
    return _iterate(mine[start_step:], threads)


def eval_batches(
    split: Split,
    make: ExampleMaker,
    *,
    batch_size: int,
    num: int = 0,
    process: ProcessShare = WHOLE,
    posable: bool = False,
    threads: int = 2,
    max_corrupt: int = 0,
) -> Iterator[Batch]:
    """Return the examples of a split once, in order; the last batch is padded.

    Padding repeats the last example with `example_valid` False, so that every process
    yields the same number of full batches and none counts an example twice.

    Args:
        split: Split to evaluate on.
        make: Turns records into a batch; augmentation is left out.
        batch_size: Batch size of this process.
        num: Number of examples; 0 for all.
        process: Which examples these are: every `process.count`-th.
        posable: As `Source.posable`.
        threads: Number of threads that prepare batches ahead of time; 0 prepares none.
        max_corrupt: Unreadable records that may be left out (`example_valid` False);
            none by default, since a score must be over the whole split.

    Raises:
        CorruptDataError: While iterating, when too many records are unreadable.
    """
    reader = Reader(split, CorruptRecords(max_corrupt), posable=posable)
    count = min(num or len(split), len(split))

    def batch_of(positions: Sequence[int]) -> Batch:
        wanted = [min(position, count - 1) for position in positions]
        batch = with_replacements([(reader, index) for index in wanted], make)
        valid = (np.array(positions) < count) & (batch.index == wanted)
        return batch._replace(example_valid=valid)

    step = batch_size * process.count
    ordered = grain.MapDataset.range(-(-count // step) * step)
    mine = ordered[process.index :: process.count]
    batches = mine.batch(batch_size, drop_remainder=True, batch_fn=list).map(batch_of)
    return _iterate(batches, threads)


def _check_counts(found: set[Counts]) -> None:
    if len(found) > 1:
        raise UserError(
            "The data mixture has different counts of vertices, joints and bones: "
            f"{sorted(found)}. Train hands and bodies in separate runs."
        )


def _iterate(batches: grain.MapDataset, threads: int) -> Iterator[Batch]:
    # The loader's threads keep the cores busy; OpenCV's own would compete with them.
    cv2.setNumThreads(1)
    # One element is a whole batch: a few ahead are enough.
    options = grain.ReadOptions(
        num_threads=threads, prefetch_buffer_size=2 * threads if threads else 0
    )
    return iter(batches.to_iter_dataset(options))
