"""Batches for training and evaluation, as a grain graph.

    records -> shuffled, repeated -> example (decode, crop, augment) -> mixed
            -> this process's share -> batches -> from the step to resume at

Everything random follows from the seed and the position of an example in the endless
global sequence, so batches are the same whatever the number of threads, and a run that
resumes at step n goes on with exactly the batch it would have seen.
"""

import logging
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

from data_pipelines import examples
from data_pipelines.augment import AugmentConfig
from data_pipelines.shards import Split
from handjax import skeleton
from handjax.crop import CropConfig
from handjax.types import Batch

_log = logging.getLogger("handjax.data")


class CorruptDataError(RuntimeError):
    """More records are unreadable than `max_corrupt` allows."""


class Source(NamedTuple):
    """A dataset in a mixture."""

    split: Split
    weight: float = 1.0


class Examples:
    """Records of a split with their pictures decoded; unreadable ones are replaced.

    An unreadable record is reported once (shard and position), counted, and replaced
    by the next readable one, so that batches stay the same on every run.
    """

    def __init__(self, split: Split, *, load_image: bool, max_corrupt: int):
        self._split, self._load_image = split, load_image
        self._max_corrupt, self._corrupt = max_corrupt, {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, index: int) -> dict[str, Any]:
        for step in range(len(self)):
            at = (index + step) % len(self)
            try:
                record = self._split[at]
                pixels = None
                if self._load_image:
                    pixels = examples.decode_image(record["image"])
                    if pixels.shape[:2] != tuple(record["image_size"]):
                        raise ValueError(
                            f"the picture is {pixels.shape[1]}x{pixels.shape[0]}, its "
                            f"record says {record['image_size'][::-1].tolist()}"
                        )
                return record | {"pixels": pixels, "index": at}
            except ValueError as error:
                self._report(at, error)
        raise CorruptDataError("No record of the split can be read.")

    @property
    def corrupt(self) -> dict[int, str]:
        """Position and reason of every unreadable record met so far."""
        return dict(self._corrupt)

    def _report(self, index: int, error: ValueError) -> None:
        with self._lock:
            if index in self._corrupt:
                return
            where = self._split.locate(index)
            self._corrupt[index] = f"{where}: {error}"
            count = len(self._corrupt)
        _log.warning(
            "unreadable record %d of at most %d skipped: %s: %s",
            count,
            self._max_corrupt,
            where,
            str(error).removeprefix(f"{where}: "),
        )
        if count > self._max_corrupt:
            raise CorruptDataError(
                f"{count} records cannot be read (the last: {self._corrupt[index]}), "
                f"config.data.max_corrupt={self._max_corrupt} allows fewer. Make the "
                "dataset again, or raise the limit."
            )


def train_batches(
    sources: Sequence[Source],
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    crop: CropConfig,
    augment: AugmentConfig,
    root: int = skeleton.MIDDLE_MCP,
    load_image: bool = True,
    num_threads: int = 2,
    max_corrupt: int = 10,
) -> Iterator[Batch]:
    """Endless training batches.

    Args:
        sources: datasets and their weights; one or more.
        batch_size: of this process.
        seed: of order, mixture and augmentation.
        start_step: number of batches to skip (without reading them).
        process_index: of this process; it reads every `process_count`-th example.
        process_count: number of processes.
        crop: what the network sees.
        augment: strengths of the augmentation.
        root: joint (`skeleton.JOINTS` index) that 3-D targets are relative to.
        load_image: False leaves pictures undecoded (`Batch.image` is None) and keeps
            the geometry the same.
        num_threads: that prepare batches ahead of time.
        max_corrupt: unreadable records of a dataset that are skipped.

    Raises:
        ValueError: without sources, or with weights that are not positive.
        CorruptDataError: while iterating, when too many records are unreadable.
    """
    if not sources or any(source.weight <= 0 for source in sources):
        raise ValueError(
            f"Weights {[source.weight for source in sources]} of the data mixture must "
            "be positive, and there must be at least one."
        )

    def example(record: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return examples.make(record, crop, root=root, augmentation=augment, rng=rng)

    parts = [
        grain.MapDataset.source(
            Examples(source.split, load_image=load_image, max_corrupt=max_corrupt)
        )
        .seed(seed + number)
        .shuffle()
        .repeat()
        .random_map(example)
        for number, source in enumerate(sources)
    ]
    mixed = parts[0]
    if len(parts) > 1:
        mixed = grain.MapDataset.mix(parts, [source.weight for source in sources])
    mine = mixed[process_index::process_count].batch(batch_size, drop_remainder=True)
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
        load_image: False leaves pictures undecoded.
        num_threads: that prepare batches ahead of time.
        max_corrupt: unreadable records that may be replaced; none by default, since a
            score must be over the whole split.
    """
    source = _Padded(
        Examples(split, load_image=load_image, max_corrupt=max_corrupt),
        num=min(num or len(split), len(split)),
        multiple=batch_size * process_count,
    )
    ordered = grain.MapDataset.source(source).map(
        lambda r: examples.make(r, crop, root=root)
    )
    mine = ordered[process_index::process_count].batch(batch_size, drop_remainder=True)
    return _iterate(mine, num_threads)


class _Padded:
    """The first `num` records, then the last one again up to a multiple."""

    def __init__(self, source: Examples, *, num: int, multiple: int):
        self._source, self._num = source, num
        self._length = -(-num // multiple) * multiple

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self._source[min(index, self._num - 1)]
        return record | {"example_valid": index < self._num}


def _iterate(dataset: grain.MapDataset, threads: int) -> Iterator[Batch]:
    # One element is a whole batch: a few ahead are enough.
    options = grain.ReadOptions(
        num_threads=threads, prefetch_buffer_size=2 * max(threads, 1)
    )
    for fields in dataset.to_iter_dataset(options):
        yield Batch(**{"image": None, **fields})
