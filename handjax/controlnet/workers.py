"""Draw and write parts of a folder of control images, in several processes."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from data_pipelines.storage import shards
from data_pipelines.storage.workers import Workers
from handjax.controlnet import captions, examples, images
from handjax.controlnet.examples import HandInCamera, LeftOutError
from handjax.controlnet.folder import Folder
from handjax.geometry.crop import CropConfig
from handjax.mano import model_files


class Job(NamedTuple):
    """What every process draws, and where it goes."""

    data: str
    split: str
    hand: str
    folder: Folder
    crop: CropConfig


Predict = Callable[[Sequence[int]], dict[int, HandInCamera]]
"""Maps indices of a part to predicted hands; unreadable records are absent."""


def run(
    job: Job, parts: Sequence[range], count: int, predict: Predict | None = None
) -> Iterator[int]:
    """Make parts, in order; yield the number of examples of each finished part.

    Args:
        job: What is made.
        parts: Those to make.
        count: Number of processes.
        predict: Where hands come from; None for the annotated ones.
    """
    tasks = ((part, predict(part) if predict else None) for part in parts)
    with Workers(count, _start, job) as pool:
        for part, entries in zip(parts, pool.run(make_part, tasks), strict=True):
            job.folder.finish_part(part, entries)
            yield len(part)


class _Worker(NamedTuple):
    job: Job
    split: shards.Split
    file: model_files.ManoFile


_worker: Any = None


def _start(job: Job) -> None:
    global _worker
    import cv2

    cv2.setNumThreads(1)
    split = shards.open_split(job.data, job.split)
    _worker = _Worker(job, split, model_files.load(job.hand))


def make_part(
    part: Sequence[int], hands: dict[int, HandInCamera] | None
) -> list[dict[str, Any]]:
    """Write the pictures of some examples; return their entries in the metadata."""
    return [_made(_worker, index, hands) for index in part]


def _made(worker: _Worker, index: int, hands) -> dict[str, Any]:
    folder, config = worker.job.folder, worker.job.crop
    try:
        source = examples.open_record(worker.split, index)
        if hands is None:
            placed = examples.annotated(source)
        else:
            placed = hands.get(index)
        example = examples.make(
            source,
            worker.file,
            config,
            placed=placed,
            needs_mesh=bool(images.NEEDS_MESH & set(folder.kinds)),
        )
    except LeftOutError as error:
        return {"index": index, "left_out": str(error)}
    entry: dict[str, Any] = {
        "index": index,
        "caption": captions.describe(example.joints3d, is_right=example.is_right),
        "is_right": example.is_right,
    }
    for kind in folder.kinds:
        drawn = images.draw(kind, example.hand, config.size)
        folder.write_picture(folder.control(kind, index), drawn.image)
        if kind == "depth":
            # Loaders want one type in a column.
            entry["depth_range_m"] = list(drawn.depth_range_m or (0.0, 0.0))
    folder.write_picture(folder.target(index), example.target)
    return entry
