"""Make one shard of a prepared data set, in a worker process or a Beam worker.

A shard is a range of the index. Its content depends on the source alone, not on who
writes it, how often, or in which order.
"""

import collections
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from data_pipelines import datasets
from data_pipelines.sources import conventions, index_files, reposing
from data_pipelines.sources.description import DroppedError, Index
from data_pipelines.sources.reading import DownloadedFiles
from data_pipelines.storage import schema, shards
from handjax.errors import UserError
from handjax.io import atomic_files, json_files

WORK = ".work"
"""Folder of a data set that is being made: indices, and what is known of shards."""


class Job(NamedTuple):
    """A job, as every process receives it."""

    dataset: str
    source: str
    out: str
    hand: str
    """Argument `hand` of `conventions.load_models`."""


class Task(NamedTuple):
    """One shard."""

    split: str
    number: int
    total: int
    index_sha256: str
    """Hash of the index that the shard is made from."""

    def path(self, job: Job) -> Path:
        """Return the file of the shard."""
        name = job.dataset
        return shards.shard_path(
            Path(job.out), name, self.split, self.number, self.total
        )


class Part(NamedTuple):
    """Content of a finished shard."""

    file: str
    examples: int
    """Examples of the index; those that were not dropped are records."""
    records: int
    right: int
    """Records of right hands."""
    dropped: dict[str, int]
    """Reason -> examples."""
    bytes: int
    sha256: str
    index_sha256: str
    contradicting: int = 0
    """Records whose pose is more than `reposing.CONTRADICTS_MM` off its joints, of
    those that a hand model could re-pose."""


def index_directory(job: Job, split: str) -> Path:
    """Return where the index of a split lies while the split is made."""
    return Path(job.out) / WORK / split / "index"


def note_path(job: Job, task: Task) -> Path:
    """Return where the `Part` of a finished shard is noted."""
    return Path(job.out) / WORK / task.split / f"{task.number:05d}.json"


def finished(job: Job, task: Task) -> Part | None:
    """Return a shard's `Part` if it is complete and made from the same index."""
    note, path = note_path(job, task), task.path(job)
    if not (note.is_file() and path.is_file()):
        return None
    try:
        found = json_files.read(note, get_type_hints(Part))
    except UserError:  # half written: the shard is made again
        return None
    part = Part(**{name: found[name] for name in Part._fields})
    same = part.index_sha256 == task.index_sha256 and part.file == path.name
    return part if same and path.stat().st_size == part.bytes else None


def write(job: Job, task: Task) -> Part:
    """Write a shard, then the note that it is complete.

    Raises:
        SourceError: A downloaded file is missing or damaged.
        ShardError: The disk is full or cannot be written.
    """
    opened = _open(job, task.split, task.index_sha256)
    first, last = shards.shard_ranges(opened.index.count, task.total)[task.number]
    dropped: collections.Counter[str] = collections.Counter()
    right = contradicting = 0

    def records() -> Iterator[bytes]:
        nonlocal right, contradicting
        for row in range(first, last):
            try:
                example = opened.example(row)
            except DroppedError as reason:
                dropped[str(reason)] += 1
                continue
            right += bool(example["is_right"])
            contradicting += example["repose_mm"] > reposing.CONTRADICTS_MM
            yield schema.encode(example)

    path = task.path(job)
    try:
        count = shards.write_shard(path, records())
        content = path.read_bytes()
    except OSError as error:
        raise shards.write_error(path.parent, error) from error
    part = Part(
        file=path.name,
        examples=last - first,
        records=count,
        right=right,
        dropped=dict(sorted(dropped.items())),
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        index_sha256=task.index_sha256,
        contradicting=contradicting,
    )
    atomic_files.write_json(note_path(job, task), part._asdict())
    return part


class _Opened(NamedTuple):
    module: Any
    source: DownloadedFiles
    index: Index
    models: conventions.HandModels

    def example(self, row: int) -> dict[str, Any]:
        made = datasets.example(self.module, self.source, self.index, row, self.models)
        apart = reposing.apart_mm(made, self.models)
        return {"dataset": self.source.builder.name, "repose_mm": apart, **made}


@functools.lru_cache(maxsize=2)
def _open(job: Job, split: str, index_sha256: str) -> _Opened:
    """Open what the shards of a split have in common, once in each process."""
    module, source, _ = datasets.open_source(job.dataset, Path(job.source))
    index, found = index_files.read(index_directory(job, split))
    if found != index_sha256:
        raise UserError(
            f"The index of {split!r} in {job.out!r} was changed while shards were "
            "made of it. Run the command again, once at a time."
        )
    return _Opened(
        module=module,
        source=source,
        index=index,
        models=conventions.load_models(job.dataset, job.hand),
    )
