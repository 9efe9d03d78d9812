"""Batches for training and evaluation, as a grain graph.

    positions -> mixed -> indices, shuffled, repeated -> grouped
              -> this process's groups -> batch (read, decode, crop, augment)
              -> from the step to resume at

The graph carries indices; records are read where a whole batch is made, in one go and
in one thread. Everything random follows from the seed and the position of an example in
the endless global sequence: batches are the same whatever the number of threads, the
global batch whatever the number of processes, and a run that resumes at step n goes on
with exactly the batch it would have seen.
"""

import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import cv2
import grain
import numpy as np

from data_pipelines.loading import augment as augmentations
from data_pipelines.loading import examples
from data_pipelines.loading.mixtures import Order
from data_pipelines.loading.posing import Poser
from data_pipelines.loading.readers import (
    CorruptDataError,
    CorruptRecords,
    Reader,
    with_replacements,
)
from data_pipelines.loading.recipes import Filters
from data_pipelines.storage.shards import Split
from handjax.errors import UserError
from handjax.geometry import skeleton
from handjax.geometry.crop import CropConfig
from handjax.mano.model_files import ManoFile
from handjax.types import Batch

__all__ = ["CorruptDataError", "Source", "eval_batches", "train_batches"]


class Source(NamedTuple):
    """A dataset in a mixture."""

    split: Split
    weight: float = 1.0
    rows: np.ndarray | None = None
    """Positions of the records that are read (`selections`); None for all."""
    hand: ManoFile | None = None
    """Hand model of its MANO parameters, with which hands that have no mesh are posed;
    None leaves them without."""

    @property
    def size(self) -> int:
        """Examples of one epoch."""
        return len(self.split) if self.rows is None else len(self.rows)


def train_batches(
    sources: Sequence[Source],
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    crop: CropConfig,
    augment: augmentations.Recipe,
    root: int = skeleton.MIDDLE_MCP,
    anchors: Sequence[int] = examples.HAND_ANCHORS,
    filters: Filters = Filters(),  # noqa: B008 - immutable
    load_image: bool = True,
    num_threads: int = 2,
    max_corrupt: int = 10,
) -> Iterator[Batch]:
    """Endless training batches.

    Args:
        sources: datasets and their weights; one or more.
        batch_size: of this process.
        seed: of order, mixture and augmentation; 0 or more.
        start_step: number of batches to skip (without reading them).
        process_index: of this process, whose batches are its rows of the global ones:
            those of process 0, then those of process 1, and so on.
        process_count: number of processes.
        crop: what the network sees.
        augment: strengths of the augmentation.
        root: joint (`skeleton.JOINTS` index) that 3-D targets are relative to.
        anchors: joints one of which must be seen for 3-D to count.
        filters: what of each record counts; `Source.rows` says which records do.
        load_image: False leaves pictures undecoded (`Batch.image` is None) and keeps
            the geometry the same.
        num_threads: that prepare batches ahead of time; 0 prepares none.
        max_corrupt: unreadable records that are replaced.

    Raises:
        UserError: without sources, with weights that are not positive, or with hands
            among bodies.
        CorruptDataError: while iterating, when too many records are unreadable.
    """
    order = Order([source.weight for source in sources])
    found = {source.split.counts for source in sources}
    if len(found) > 1:
        raise UserError(
            f"The data mixture has different counts of vertices, joints and bones: "
            f"{sorted(found)}. Hands and bodies are trained apart."
        )
    (counts,) = found
    corrupt = CorruptRecords(max_corrupt)
    readers = [
        Reader(
            source.split,
            corrupt,
            rows=source.rows,
            filters=filters,
            posable=source.hand is not None,
        )
        for source in sources
    ]
    poser = _poser([source.hand for source in sources], root)

    def make(items: Sequence[tuple[int, tuple[int, int]]]) -> Batch:
        drawn = augmentations.draws(seed, [position for position, _ in items])
        return with_replacements(
            [(readers[number], index) for _, (number, index) in items],
            lambda records: examples.make(
                records,
                crop,
                counts=counts,
                root=root,
                anchors=anchors,
                load_image=load_image,
                augmentation=augment,
                drawn=drawn,
                poser=poser,
                neutral_betas=filters.neutral_betas,
            ),
        )

    shuffled: list[Any] = [
        grain.MapDataset.range(source.size).seed(seed + number).shuffle().repeat()
        for number, source in enumerate(sources)
    ]

    def placed_at(position: int) -> tuple[int, tuple[int, int]]:
        number, given = order.at(position)
        return position, (number, shuffled[number][given])

    placed = grain.MapDataset.range(sys.maxsize).map(placed_at)
    groups = placed.batch(batch_size, drop_remainder=True, batch_fn=list)
    mine = groups[process_index::process_count].map(make)
    return _iterate(mine[start_step:], num_threads)


def eval_batches(
    split: Split,
    *,
    batch_size: int,
    crop: CropConfig,
    num: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    root: int = skeleton.MIDDLE_MCP,
    anchors: Sequence[int] = examples.HAND_ANCHORS,
    hand: ManoFile | None = None,
    load_image: bool = True,
    num_threads: int = 2,
    max_corrupt: int = 0,
) -> Iterator[Batch]:
    """The examples of a split once, in order; the last batch is padded.

    Padding repeats the last example with `example_valid` False, so that every process
    yields the same number of full batches and none counts an example twice.

    Args:
        split: to evaluate on.
        batch_size: of this process.
        crop: what the network sees.
        num: number of examples; 0 for all.
        process_index: of this process; it takes every `process_count`-th example.
        process_count: number of processes.
        root: joint (`skeleton.JOINTS` index) that 3-D targets are relative to.
        anchors: joints one of which must be seen for 3-D to count.
        hand: as `Source.hand`.
        load_image: False leaves pictures undecoded.
        num_threads: that prepare batches ahead of time; 0 prepares none.
        max_corrupt: unreadable records that may be left out (`example_valid` False);
            none by default, since a score must be over the whole split.

    Raises:
        CorruptDataError: while iterating, when too many records are unreadable.
    """
    reader = Reader(split, CorruptRecords(max_corrupt), posable=hand is not None)
    poser = _poser([hand], root)
    count = min(num or len(split), len(split))
    step = batch_size * process_count

    def make(positions: Sequence[int]) -> Batch:
        wanted = [min(position, count - 1) for position in positions]
        batch = with_replacements(
            [(reader, index) for index in wanted],
            lambda records: examples.make(
                records,
                crop,
                counts=split.counts,
                root=root,
                anchors=anchors,
                load_image=load_image,
                poser=poser,
            ),
        )
        valid = (np.array(positions) < count) & (batch.index == wanted)
        return batch._replace(example_valid=valid)

    ordered = grain.MapDataset.range(-(-count // step) * step)
    mine = ordered[process_index::process_count]
    batches = mine.batch(batch_size, drop_remainder=True, batch_fn=list).map(make)
    return _iterate(batches, num_threads)


def _poser(hands: Sequence[ManoFile | None], root: int) -> Poser | None:
    """Of the one hand model there is, if there is one."""
    known = [hand for hand in hands if hand is not None]
    return Poser(known[0], root) if known else None


def _iterate(batches: grain.MapDataset, threads: int) -> Iterator[Batch]:
    # The threads below keep the cores busy; OpenCV's own would only contend with them.
    cv2.setNumThreads(1)
    # One element is a whole batch: a few ahead are enough.
    options = grain.ReadOptions(
        num_threads=threads, prefetch_buffer_size=2 * threads if threads else 0
    )
    return iter(batches.to_iter_dataset(options))
