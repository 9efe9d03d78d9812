"""Write and read datasets on disk: ArrayRecord shards in TFDS layout.

    DIR/<name>-<split>.array_record-00000-of-00008
    DIR/features.json, DIR/dataset_info.json   for tfds.builder_from_directory(DIR)
    DIR/metadata.json                  hand model, counts, schema version, settings

A shard appears under its name only when it is complete, so an interrupted job continues
where it stopped and a reader never sees half a file.
"""

import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from data_pipelines.storage import schema
from handjax.errors import HandjaxError, MissingFileError, UserError
from handjax.io import json_files

RECORDS_PER_SHARD = 2_500
"""At about 20 kB each, 50 MB: little is lost when a job is interrupted."""

ABANDONED_AFTER_S = 3600.0
"""Age from which an unfinished shard counts as left by a killed job."""
_FULL_BYTES = 1 << 20
_FORMAT = "group_size:1,uncompressed"
"""One record per chunk, for random reads. No compression: it cannot shrink JPEG, and
decompressing would take four times as long as the read."""


class ShardError(HandjaxError, RuntimeError):
    """A dataset cannot be written or read; the message says what to do."""


def num_shards(count: int) -> int:
    """Return how many shards hold `count` records."""
    return max(1, -(-count // RECORDS_PER_SHARD))


def shard_ranges(count: int, shards: int) -> list[tuple[int, int]]:
    """Return first and last+1 record of each shard, as even as possible."""
    return [(count * i // shards, count * (i + 1) // shards) for i in range(shards)]


def shard_path(directory: Path, name: str, split: str, index: int, total: int) -> Path:
    """Return the file of one shard."""
    return Path(directory) / (f"{name}-{split}.array_record-{index:05d}-of-{total:05d}")


def write_split(
    directory: Path,
    *,
    name: str,
    split: str,
    count: int,
    records: Callable[[int, int], Iterable[bytes]],
    shards: int | None = None,
    on_records: Callable[[int], None] | None = None,
) -> None:
    """Write the shards of a split that do not exist yet.

    Args:
        directory: Directory of the dataset; made if missing.
        name: Name of the dataset, e.g. "synthetic".
        split: "train" or "test".
        count: Number of records.
        records: (first, last) -> encoded records `first` up to, not including, `last`;
            must not depend on how the range is cut.
        shards: Number of files; None chooses by `RECORDS_PER_SHARD`.
        on_records: Called with the number of records newly on disk.

    Raises:
        ShardError: When the disk is full or the folder cannot be written; finished
            shards stay.
    """
    directory = Path(directory)
    total = shards or num_shards(count)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for index, (first, last) in enumerate(shard_ranges(count, total)):
            path = shard_path(directory, name, split, index, total)
            if not (path.exists() and _count(path) == last - first):
                write_shard(path, records(first, last))
            if on_records:
                on_records(last - first)
    except OSError as error:
        raise write_error(directory, error) from error


def write_shard(path: Path, records: Iterable[bytes]) -> int:
    """Write one shard, which appears under its name only when it is complete.

    Args:
        path: Path of the shard, in a folder that exists.
        records: Encoded records, in order.

    Returns:
        The number of records.

    Raises:
        OSError: When the disk is full or the folder cannot be written.
    """
    from array_record.python import array_record_module

    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    _remove_abandoned(path)
    count = 0
    try:
        writer = array_record_module.ArrayRecordWriter(str(partial), _FORMAT)
        try:
            for record in records:
                writer.write(record)
                count += 1
        finally:
            _close(writer, partial)
        _sync(partial)
        # The writer does not report every failure of the disk: read the shard back.
        if _count(partial) != count:
            raise OSError(errno.EIO, f"{partial.name} could not be read back")
        partial.rename(path)
        _sync(path.parent)
        return count
    finally:
        partial.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Force a file or a folder onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_abandoned(path: Path) -> None:
    """Delete what killed jobs left of a shard; running jobs touch their file often."""
    for left in path.parent.glob(f".{path.name}.partial-*"):
        if time.time() - left.stat().st_mtime > ABANDONED_AFTER_S:
            left.unlink(missing_ok=True)


def _close(writer: Any, partial: Path) -> None:
    """Close a writer; its C++ errors (a full disk) become OSErrors."""
    try:
        writer.close()
    except RuntimeError as error:
        raise OSError(errno.EIO, f"could not finish {partial.name}: {error}") from error


def write_error(directory: Path, error: OSError) -> ShardError:
    """Return the error for a data set that cannot be written."""
    full = shutil.disk_usage(directory).free < _FULL_BYTES if directory.is_dir() else 0
    if error.errno == errno.ENOSPC or full:
        what = "the disk is full"
    else:
        what = error.strerror or str(error)
    return ShardError(
        f"Could not write the dataset {str(directory)!r}: {what}. Shards that were "
        "finished are kept; free some space (or choose another folder) and run the "
        "same command to go on."
    )


def write_metadata(
    directory: Path,
    *,
    name: str,
    splits: dict[str, int],
    description: str,
    hand: dict[str, str] | None = None,
    made_by: dict[str, Any] | None = None,
    counts: schema.Counts = schema.HAND,
) -> None:
    """Write what readers need beside the shards, once all exist.

    Args:
        directory: Directory of the dataset.
        name: Name of the dataset.
        splits: Split -> number of records.
        description: What the data is, with its licence.
        hand: `name` and `sha256` of the hand model of the annotations, if any.
        made_by: Settings that reproduce the dataset.
        counts: Counts with which its records were encoded.
    """
    import tensorflow_datasets as tfds

    directory = Path(directory)
    template = tfds.core.ShardedFileTemplate(
        data_dir=directory,
        template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        dataset_name=name,
        filetype_suffix="array_record",
    )
    infos = []
    for split, count in splits.items():
        paths = _shard_files(directory, split)
        infos.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[_count(path) for path in paths],
                num_bytes=sum(path.stat().st_size for path in paths),
                filename_template=template,
            )
        )
        if sum(infos[-1].shard_lengths) != count:
            raise ShardError(
                f"{str(directory)!r} holds {sum(infos[-1].shard_lengths)} records of "
                f"split {split!r}, {count} were to be written. Remove the folder and "
                "make the dataset again."
            )
    tfds.folder_dataset.write_metadata(
        data_dir=directory,
        features=schema.features(counts),
        split_infos=infos,
        filename_template=template,
        description=description,
        check_data=False,
    )
    metadata = {
        "name": name,
        "schema_version": schema.SCHEMA_VERSION,
        "splits": splits,
        "hand": hand or {},
        "counts": counts._asdict(),
        "made_by": made_by or {},
    }
    partial = directory / ".metadata.json.partial"
    partial.write_text(json.dumps(metadata, indent=1, sort_keys=True) + "\n")
    partial.rename(directory / "metadata.json")


def read_metadata(directory: Path) -> dict[str, Any]:
    """Read the dataset's `metadata.json`.

    Raises:
        MissingFileError: The folder holds no finished dataset.
        ShardError: It was made for another version of the schema.
    """
    path = Path(directory) / "metadata.json"
    if not path.is_file():
        raise MissingFileError(
            f"{str(directory)!r} holds no finished dataset (no metadata.json). Make "
            "one with `python -m data_pipelines.synthetic --out DIR`, or of a "
            "published one with `python -m data_pipelines.prepare NAME --source DIR "
            "--out DIR`; or correct the path."
        )
    advice = "Make the dataset again."
    metadata = json_files.read(path, {"schema_version": int}, advice)
    if metadata["schema_version"] != schema.SCHEMA_VERSION:
        raise ShardError(
            f"{str(directory)!r} has schema version {metadata['schema_version']}, this "
            f"program reads version {schema.SCHEMA_VERSION}; make the dataset again."
        )
    json_files.checked(metadata, path, {"name": str, "splits": dict}, advice)
    kinds = dict.fromkeys(metadata["splits"], int)
    json_files.checked(metadata["splits"], f"{path}: splits", kinds, advice)
    for key, kind in {"hand": dict, "made_by": dict, "counts": dict}.items():
        if key in metadata:
            json_files.checked(metadata, path, {key: kind}, advice)
    counts = metadata.get("counts", {})
    kinds = dict.fromkeys(schema.Counts._fields, int) if counts else {}
    json_files.checked(counts, f"{path}: counts", kinds, advice)
    if "/" in metadata["name"] or min(metadata["splits"].values(), default=0) < 0:
        raise UserError(f"{path}: a name with a slash, or a size below 0. {advice}")
    return metadata


def counts_of(metadata: dict[str, Any]) -> schema.Counts:
    """Return the counts of a dataset; a hand's where old metadata has none."""
    counts = metadata.get("counts", {})
    return schema.Counts(**{k: counts[k] for k in schema.Counts._fields if k in counts})


def _shard_files(directory: Path, split: str) -> list[Path]:
    # Shards that are being written have names that begin with a dot.
    return sorted(directory.glob(f"[!.]*-{split}.array_record-*-of-*"))


def _count(path: Path) -> int:
    """Return the number of records of a shard; -1 if it cannot be read."""
    from array_record.python import array_record_module

    try:
        reader = array_record_module.ArrayRecordReader(str(path))
        count = reader.num_records()
        reader.close()
        return count
    except (RuntimeError, ValueError):
        return -1


def open_split(directory: Path | str, split: str) -> "Split":
    """Open a split for random access to its records.

    Raises:
        MissingFileError: There is no finished dataset or no such split.
        ShardError: Shards are missing or cannot be read.
    """
    directory = Path(directory)
    metadata = read_metadata(directory)
    if split not in metadata["splits"]:
        raise MissingFileError(
            f"{str(directory)!r} has no split {split!r}; it has "
            f"{sorted(metadata['splits'])}."
        )
    paths = _shard_files(directory, split)
    total = int(paths[0].name.rsplit("-", 1)[1]) if paths else 1
    expected = [
        shard_path(directory, metadata["name"], split, i, total) for i in range(total)
    ]
    missing = [path.name for path in expected if path not in paths]
    if missing:
        raise ShardError(
            f"{str(directory)!r}: shard {missing[0]} is missing"
            f"{f' (and {len(missing) - 1} more)' if len(missing) > 1 else ''}. Restore "
            "it, or make the dataset again with the same command: finished shards are "
            "kept."
        )
    return Split(expected, metadata, split)


class Split:
    """Records of a split by index, decoded on access."""

    def __init__(self, paths: list[Path], metadata: dict[str, Any], name: str):
        import grain

        counts = [_count(path) for path in paths]
        for path, count in zip(paths, counts, strict=True):
            if count < 0:
                raise ShardError(
                    f"Shard {str(path)!r} is truncated or not an ArrayRecord file. "
                    "Delete it and run the command that made the dataset again: only "
                    "this shard is written anew."
                )
        expected = metadata["splits"][name]
        if sum(counts) != expected:
            raise ShardError(
                f"{str(paths[0].parent)!r}: the shards of split {name!r} hold "
                f"{sum(counts)} records, metadata.json says {expected}. Make the "
                "dataset again in an empty folder."
            )
        self.metadata, self.counts = metadata, counts_of(metadata)
        self.name = f"split {name!r} of {str(paths[0].parent)!r}"
        self._source = grain.sources.ArrayRecordDataSource([str(p) for p in paths])
        self.paths, self._counts, self._length = paths, counts, sum(counts)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return all decoded fields of one record; see `read`."""
        return self.read(index)

    def read(self, index: int, fields: Collection[str] | None = None) -> dict[str, Any]:
        """Read decoded fields of one record (`schema.decode`); None for all of them.

        Raises:
            IndexError: Past the end.
            UserError: Names shard and position of a record that cannot be read.
        """
        if not 0 <= index < len(self):
            raise IndexError(
                f"{self.name} has {len(self)} records; {index} is not one of them."
            )
        try:
            return schema.decode(self._source[int(index)], fields, self.counts)
        except Exception as error:
            raise UserError(f"{self.locate(int(index))}: {error}") from error

    def locate(self, index: int) -> str:
        """Return shard file and position of a record, for messages."""
        for path, count in zip(self.paths, self._counts, strict=True):
            if index < count:
                return f"{path} record {index}"
            index -= count
        return f"record {index} after the end"
