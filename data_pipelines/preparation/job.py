"""Prepare a published data set: resumable, parallel, every record accounted for.

    index      annotations that many examples share, read once (`index_files`)
    shards     each by one process, from the index and the source (`one_shard`)
    manifest   what was kept, what was dropped and why, checksums

The result does not depend on the number of processes, on who runs them (a pool of this
machine or Apache Beam), nor on how often the job was interrupted.
"""

import collections
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipelines import datasets
from data_pipelines.preparation import one_shard
from data_pipelines.preparation.one_shard import Job, Part, Task
from data_pipelines.preparation.runners import Runner
from data_pipelines.sources import conventions, index_files
from data_pipelines.sources.description import Builder, Index
from data_pipelines.sources.reading import SourceError
from data_pipelines.storage import contact_sheet, schema, shards
from data_pipelines.storage.directories import check_same, locked
from data_pipelines.storage.progress import Report
from handjax.errors import UserError, shown
from handjax.io import atomic_files, json_files
from handjax.io.folders import visible
from handjax.mano import numpy_skinning

VERSION = 1
"""Version of the records, raised whenever a source gives different ones."""
MANIFEST = "manifest.json"


def prepare(
    dataset: str,
    source: str | Path,
    out: str | Path,
    *,
    splits: Sequence[str] = (),
    hand: str = "",
    workers: int = 1,
    beam: str = "",
    beam_options: Sequence[str] = (),
) -> Path:
    """Prepare splits of a data set, going on where an interrupted job stopped.

    Args:
        dataset: Name of the data set, one of `datasets.names()`.
        source: Directory with what was downloaded.
        out: Directory of the prepared data set; may hold other splits of it.
        splits: Splits to prepare; () for the default ones.
        hand: MANO for poses that need it (`conventions.load_models`), "" for none.
        workers: Number of processes; 1 runs in this one.
        beam: Runner of Apache Beam to use instead.
        beam_options: Options of its pipeline.

    Returns:
        `out`.

    Raises:
        UserError: An unknown name, or a directory with other contents.
        SourceError: A downloaded file is missing or damaged.
        MissingFileError: There is no hand model at `hand`.
        ShardError: The disk is full or cannot be written.
    """
    root, out = (Path(path).expanduser().absolute() for path in (source, out))
    _, opened, kind = datasets.open_source(dataset, root)
    splits = _checked(opened.builder, splits)
    models = conventions.load_models(dataset, hand)
    job = Job(dataset, str(root), str(out), hand)
    settings = {
        "version": VERSION,
        "schema_version": schema.SCHEMA_VERSION,
        "dataset": dataset,
        "source": kind,
        "hands_sha256": [m.sha256 if m else "" for m in models],
    }
    if not root.is_dir() and not all(_is_complete(out, split) for split in splits):
        raise opened.missing(".", "the unpacked archives")
    with locked(out):
        _claim(out, settings)
        runner = Runner(workers, beam, beam_options)
        for split in splits:
            if not _is_complete(out, split):
                _make(job, split, runner)
        _finish(job, opened.builder, models)
    return out


def _checked(builder: Builder, splits: Sequence[str]) -> Sequence[str]:
    known = list(builder.splits)
    for split in splits:
        if split not in known:
            raise UserError(
                f"{builder.name} has no split {split!r}; it has {', '.join(known)}."
            )
    return tuple(splits) or builder.default_splits or tuple(known)


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """Record what a directory is for; refuse one with records made otherwise."""
    try:
        check_same(out, settings)
    except ValueError:
        if (out / MANIFEST).is_file() or any(out.glob("*.array_record-*")):
            raise
        # A job that failed before its first shard leaves nothing to be consistent with.
        (out / "settings.json").unlink(missing_ok=True)
        shutil.rmtree(out / one_shard.WORK, ignore_errors=True)
        check_same(out, settings)


def read_manifest(directory: Path) -> dict[str, Any]:
    """Read what a directory holds; without splits if it holds nothing yet."""
    path = Path(directory) / MANIFEST
    if not path.is_file():
        return {"splits": {}}
    advice = "Make the dataset again."
    found = json_files.read(path, {"splits": dict}, advice)
    part = {"file": str, "sha256": str, "bytes": int}
    for name, split in found["splits"].items():
        json_files.checked(split, f"{path}: {name}", {"shards": list}, advice)
        for shard in split["shards"]:
            json_files.checked(shard, f"{path}: {name}", part, advice)
            if Path(shard["file"]).name != shard["file"]:
                raise UserError(f"{path}: {shown(shard['file'])} is no shard. {advice}")
    return found


def _is_complete(out: Path, split: str) -> bool:
    """Return whether all shards of a split that was once finished still exist."""
    made = read_manifest(out)["splits"].get(split)
    return made is not None and all(
        (out / part["file"]).is_file()
        and (out / part["file"]).stat().st_size == part["bytes"]
        for part in made["shards"]
    )


# --- one split ----------------------------------------------------------------------


def _make(job: Job, split: str, runner: Runner) -> None:
    """Write the shards of a split that are missing, and its entry of the manifest."""
    out = Path(job.out)
    index, digest = _index(job, split)
    _recall(job, split)
    total = shards.num_shards(index.count)
    _remove_strangers(out, split, total)
    tasks = [Task(split, number, total, digest) for number in range(total)]
    missing = [task for task in tasks if not one_shard.finished(job, task)]
    if missing:
        ranges = shards.shard_ranges(index.count, total)
        left = sum(ranges[t.number][1] - ranges[t.number][0] for t in missing)
        name = f"{job.dataset} {split}"
        with Report(name, left, unit="examples") as bar:
            for part in runner.run(job, missing):
                bar.add(part.examples)
    parts = [one_shard.finished(job, task) for task in tasks]
    _write_entry(job, index, [part for part in parts if part])


def _noted(note: Path) -> dict[str, Any]:
    """Return which files an index was made of; none where that is not known."""
    try:
        return json_files.read(note) or {"": None}
    except UserError:
        return {"": None}


def _index(job: Job, split: str) -> tuple[Index, str]:
    """Return the index of a split and its SHA-256.

    The index is made again if a file has changed since: whoever replaces a file and
    runs the command again wants the new one.
    """
    directory = one_shard.index_directory(job, split)
    note = directory.with_name("files.json")
    module, source, _ = datasets.open_source(job.dataset, Path(job.source))
    known = directory.is_dir() and note.is_file()
    if not (known and source.is_as_before(_noted(note))):
        print(f"{job.dataset} {split}: reading annotations", file=sys.stderr)
        note.unlink(missing_ok=True)
        index = datasets.index(module, source, split)
        if not index.count:
            raise SourceError(
                f"{job.source!r} has no example of {job.dataset} {split}"
                f"{f', {dict(index.dropped)}' if index.dropped else ''}. "
                f"{source.builder.download.strip()}"
            )
        index_files.write(directory, index)
        atomic_files.write_json(note, source.touched())
    return index_files.read(directory)


def _recall(job: Job, split: str) -> None:
    """Restore the notes of a split's shards from the manifest, when some were lost."""
    made = read_manifest(Path(job.out))["splits"].get(split)
    for number, part in enumerate(made["shards"] if made else ()):
        task = Task(split, number, len(made["shards"]), part["index_sha256"])
        note = one_shard.note_path(job, task)
        if not note.is_file():
            atomic_files.write_json(note, part)


def _remove_strangers(out: Path, split: str, total: int) -> None:
    """Remove shards of an index of another length, and what was left half-written."""
    for path in visible(out, f"*-{split}.array_record-*"):
        if not path.name.endswith(f"-of-{total:05d}"):
            path.unlink()
    for path in out.glob(f".*-{split}.array_record-*.partial-*"):
        path.unlink()


def _write_entry(job: Job, index: Index, parts: Sequence[Part]) -> None:
    """Add a complete split to the manifest.

    Raises:
        SourceError: No example was kept.
    """
    split = index.split
    dropped = collections.Counter(index.dropped)
    for part in parts:
        dropped.update(part.dropped)
    kept = sum(part.records for part in parts)
    examples = kept + sum(dropped.values())
    if not kept:
        raise SourceError(
            f"{job.source!r}: none of the {examples:,} examples of {job.dataset} "
            f"{split} can be used: {dict(dropped)}."
        )
    right = sum(part.right for part in parts)
    builder = datasets.open_source(job.dataset, Path(job.source))[1].builder
    manifest = read_manifest(Path(job.out))
    manifest = {
        "dataset": job.dataset,
        "title": builder.title,
        "url": builder.url,
        "licence": builder.licence,
        "version": VERSION,
        "splits": manifest["splits"]
        | {
            split: {
                "published": builder.splits[split],
                "examples": examples,
                "kept": kept,
                "right": right,
                "left": kept - right,
                "contradicting_poses": sum(part.contradicting for part in parts),
                "dropped": dict(sorted(dropped.items())),
                "bytes": sum(part.bytes for part in parts),
                "shards": [part._asdict() for part in parts],
            }
        },
    }
    atomic_files.write_json(Path(job.out) / MANIFEST, manifest)


# --- the whole data set -------------------------------------------------------------


def _finish(job: Job, builder: Builder, models: conventions.HandModels) -> None:
    """Write what readers need, once the splits are there."""
    out = Path(job.out)
    made = read_manifest(out)["splits"]
    model = models.right or models.left
    shards.write_metadata(
        out,
        name=job.dataset,
        splits={
            split: made[split]["kept"] for split in builder.splits if split in made
        },
        description=builder.describe(),
        hand={"name": model.name, "sha256": model.sha256} if model else {},
        made_by=json_files.read(out / "settings.json"),
    )
    for split in made:
        sheet = out / f"contact_sheet_{split}.png"
        if not sheet.is_file():
            opened = shards.open_split(out, split)
            contact_sheet.write_split(sheet, opened, _mesh_of(models))
        shutil.rmtree(out / one_shard.WORK / split, ignore_errors=True)
    work = out / one_shard.WORK
    if work.is_dir() and not any(work.iterdir()):  # else of a split yet to be finished
        work.rmdir()


def _mesh_of(models: conventions.HandModels):
    """Return the mesh that `contact_sheet.write_split` draws for a record."""

    def mesh(record: dict[str, Any]):
        model = models.of(record["is_right"])
        if record["has_vertices"]:
            return record["vertices"], model.faces if model else None
        if model is None or not (record["has_pose"] and record["has_transl"]):
            return None
        pose, betas = record["mano_pose"].reshape(16, 3), record["mano_betas"]
        vertices = numpy_skinning.posed(model, pose.astype(float), betas.astype(float))
        return vertices + record["mano_transl"], model.faces

    return mesh
