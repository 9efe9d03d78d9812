"""Features of a frozen network, computed once per picture and view, kept on disk.

Stages with `data="features"` train on them: thousands of updates a minute on a CPU.
The first view of a training picture is the region that the detector finds in it; the
further ones are that region jittered and the picture's colours changed. Where the
detector finds no region near the hand, the true one is jittered instead, for training
alone: test pictures keep what was found.

A split lies in `part-*.safetensors`, one for each `PER_PART` pictures, with labels in
the axes of its regions. An interrupted job goes on at the first missing part.
"""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import grain
import jax
import numpy as np
import safetensors.numpy
from jaxtyping import UInt8

from data_pipelines.loading import examples
from data_pipelines.loading.annotations import right_hands
from data_pipelines.loading.examples import ExampleMaker
from data_pipelines.loading.loader import Source
from data_pipelines.loading.readers import CorruptRecords, Reader
from data_pipelines.storage import progress
from data_pipelines.storage.directories import check_same, locked
from handjax.detection.hand_detector import HandDetector
from handjax.detection.regions import CROP_SIZE, Region, landmark_region
from handjax.distributed.split_shares import WHOLE, ProcessShare
from handjax.geometry.crop import CropConfig
from handjax.io import atomic_files
from handjax.nn import hand_features
from handjax.nn.backbones import hand_landmark
from handjax.types import Batch, HandFeatures

PER_PART = 250
VERSION = 1
"""Raised whenever the same pictures give other features or labels."""
_BATCH = 10
_TURN, _GROWTH, _SHIFT = 0.2, 0.1, 0.04
"""Standard deviations of the jitter: radians, logarithm of the side, and sides."""
_HALF = ("vertices", "features.pooled", "features.sampled")
"""Kept in float16: a vertex is rounded to 0.06 mm at most."""


class Views(NamedTuple):
    """Which features are made of a split."""

    variant: str
    """Landmark network (`backbones.hand_landmark.VARIANTS`)."""
    count: int
    """Views of each picture."""
    seed: int
    training: bool
    """Whether regions that miss the hand are replaced."""
    regions: str = "found"
    """Of first views: "found" by the detector, or "true": those of the true joints,
    half as far off as the jitter of training."""
    version: int = VERSION


def ensure(source: Source, directory: Path, views: Views, maker: ExampleMaker) -> Batch:
    """Return the features of a split, computing those that are missing.

    Args:
        source: Records to read.
        directory: Where the parts are kept.
        views: Which features.
        maker: Turns records into labels, without augmentation.

    Returns:
        All examples in one batch, those of a picture one after another; `image` is
        None.

    Raises:
        UserError: The directory holds features of other data.
    """
    size, directory = source.size, Path(directory)
    total = -(-size // PER_PART)
    paths = [
        directory / f"part-{i:05d}-of-{total:05d}.safetensors" for i in range(total)
    ]
    with locked(directory):
        filters = source.filters._asdict()
        check_same(directory, {"size": size, **filters, **views._asdict()})
        missing = [i for i, path in enumerate(paths) if not path.is_file()]
        if missing:
            _compute(_FeatureReader(source, views, maker), paths, missing, size)
    return concatenated([_from_bytes(path.read_bytes()) for path in paths])


def _compute(
    reader: "_FeatureReader", paths: Sequence[Path], missing: Sequence[int], size: int
) -> None:
    """Write the missing parts of a split."""
    pictures = [range(i * PER_PART, min((i + 1) * PER_PART, size)) for i in missing]
    total = sum(map(len, pictures))
    with progress.Report("features", total, unit="pictures") as report:
        for i, numbers in zip(missing, pictures, strict=True):
            atomic_files.write_bytes(paths[i], _to_bytes(reader(numbers)))
            report.add(len(numbers))


class _FeatureReader:
    """Computes parts of one split."""

    def __init__(self, source: Source, views: Views, maker: ExampleMaker):
        self.views, self.detector = views, HandDetector(views.variant)
        self.maker = maker._replace(crop=CropConfig(size=CROP_SIZE))
        self.reader = Reader(
            source.split,
            CorruptRecords(10),
            rows=source.rows,
            filters=source.filters,
            posable=source.posable,
        )

    def __call__(self, numbers: range) -> Batch:
        """Compute the features of some pictures, by their numbers."""
        records = [self.reader[number] for number in numbers]
        joints2d = right_hands(records, self.maker.counts).joints2d
        regions = [
            self._region(_picture(record), points, number)
            for record, points, number in zip(records, joints2d, numbers, strict=True)
        ]
        return _interleaved(
            [self._view(records, regions, numbers, v) for v in range(self.views.count)]
        )

    def _region(self, picture: np.ndarray, points: np.ndarray, number: int) -> Region:
        """Return the region of a hand, as the detector finds it near its box."""
        true, rng = (
            landmark_region(points),
            np.random.default_rng([self.views.seed, number]),
        )
        if self.views.regions == "true":
            return jittered(true, rng, 0.5)
        box = np.concatenate([points.min(0), points.max(0)])
        region = self.detector.find_in_box(picture, box).region
        if self.views.training and not is_near(region, true):
            return jittered(true, rng)
        return region

    def _view(
        self,
        records: Sequence[dict[str, Any]],
        regions: Sequence[Region],
        numbers: range,
        view: int,
    ) -> Batch:
        rngs = [np.random.default_rng([self.views.seed, n, view]) for n in numbers]
        if view:
            regions = [jittered(r, rng) for r, rng in zip(regions, rngs, strict=True)]
        rows = np.array([[*r.centre_px, r.size_px, r.angle] for r in regions])
        batch = self.maker(records, regions=rows)
        images = batch.image
        assert images is not None  # the maker loads them
        if view:
            changed = [recoloured(i, rng) for i, rng in zip(images, rngs, strict=True)]
            images = np.stack(changed)
        return batch._replace(image=None, features=read(self.views.variant, images))


def read(variant: str, images: UInt8[np.ndarray, "n 224 224 3"]) -> HandFeatures:
    """Return the features of any number of upright crops."""
    parts = []
    for start in range(0, len(images), _BATCH):
        part = images[start : start + _BATCH]
        padded = np.pad(part, ((0, _BATCH - len(part)), (0, 0), (0, 0), (0, 0)))
        found = jax.device_get(_network(variant)(padded))
        parts.append(HandFeatures(*(value[: len(part)] for value in found)))
    return HandFeatures(*map(np.concatenate, zip(*parts, strict=True)))


@functools.cache
def _network(variant: str):
    run = jax.jit(functools.partial(hand_features.of_crops, variant))
    return functools.partial(run, jax.device_put(hand_landmark.pretrained(variant)))


# --- regions and pictures -----------------------------------------------------------


def jittered(region: Region, rng: np.random.Generator, amount: float = 1.0) -> Region:
    """Return a region near by: turned, larger or smaller, moved."""
    side = region.size_px * float(np.exp(rng.normal(0, amount * _GROWTH)))
    return Region(
        region.centre_px + rng.normal(0, amount * _SHIFT, 2) * region.size_px,
        side,
        region.angle + float(rng.normal(0, amount * _TURN)),
    )


def recoloured(
    image: UInt8[np.ndarray, "height width 3"], rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """Return a crop in other light, sometimes blurred, coarse or nearly grey."""
    light = np.exp(rng.normal(0, 0.12, 3) + rng.normal(0, 0.2))
    gamma = np.exp(rng.normal(0, 0.2))
    out = (np.clip(image * light, 0, 255) / 255).astype(np.float32) ** gamma * 255
    if rng.random() < 0.3:
        out = cv2.GaussianBlur(out, (0, 0), float(rng.uniform(0.4, 1.6)))
    if rng.random() < 0.3:
        share, size = rng.uniform(0.35, 0.9), out.shape[:2][::-1]
        out = cv2.resize(out, None, fx=share, fy=share, interpolation=cv2.INTER_AREA)
        out = cv2.resize(out, size, interpolation=cv2.INTER_LINEAR)
    if rng.random() < 0.3:
        grey = rng.uniform(0.3, 1)
        out = grey * out.mean(-1, keepdims=True) + (1 - grey) * out
    out = out + rng.normal(0, 1, out.shape) * rng.uniform(0, 8)
    return np.clip(out, 0, 255).astype(np.uint8)


def is_near(region: Region, true: Region) -> bool:
    """Return whether a region shows the hand well enough to learn from it."""
    apart = np.linalg.norm(region.centre_px - true.centre_px)
    growth = region.size_px / true.size_px
    return bool(apart < 0.35 * true.size_px) and 0.5 < growth < 2


def _picture(record: dict[str, Any]) -> UInt8[np.ndarray, "height width 3"]:
    """Return the picture in which the hand is a right one."""
    picture = examples.decode_image(record["image"])
    return picture if record["is_right"] else np.ascontiguousarray(picture[:, ::-1])


# --- parts --------------------------------------------------------------------------


def _interleaved(views: Sequence[Batch]) -> Batch:
    """Return the examples of several views, those of a picture one after another."""
    return jax.tree.map(
        lambda *values: np.stack(values, 1).reshape(-1, *values[0].shape[1:]), *views
    )


def concatenated(parts: Sequence[Batch]) -> Batch:
    """Return the examples of several batches in one."""
    return jax.tree.map(lambda *values: np.concatenate(values), *parts)


def _to_bytes(batch: Batch) -> bytes:
    fields = batch._asdict()
    features = fields.pop("features")._asdict()
    arrays = {k: v for k, v in fields.items() if v is not None}
    arrays |= {f"features.{k}": v for k, v in features.items()}
    for name in _HALF:
        arrays[name] = arrays[name].astype(np.float16)
    return safetensors.numpy.save(
        {k: np.ascontiguousarray(v) for k, v in arrays.items()}
    )


def _from_bytes(content: bytes) -> Batch:
    arrays = safetensors.numpy.load(content)
    features = HandFeatures(
        *(arrays.pop(f"features.{name}") for name in HandFeatures._fields)
    )
    return Batch(image=None, **arrays, features=features)


# --- batches ------------------------------------------------------------------------


def train_batches(
    cached: Batch,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process: ProcessShare = WHOLE,
    threads: int = 2,
) -> Iterator[Batch]:
    """Yield batches without end; update n is the same however a run resumes."""
    order = grain.MapDataset.range(len(cached.index)).seed(seed).shuffle().repeat()
    groups = order.batch(batch_size, drop_remainder=True, batch_fn=np.asarray)
    mine = groups[process.index :: process.count][start_step:]
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4)
    yield from mine.map(functools.partial(_rows, cached)).to_iter_dataset(options)


def in_order(
    cached: Batch, *, batch_size: int, num: int = 0, process: ProcessShare = WHOLE
) -> Iterator[Batch]:
    """Yield all examples once; batches are padded as those of `loader.eval_batches`."""
    size = min(num or len(cached.index), len(cached.index))
    for start in range(0, size, batch_size * process.count):
        rows = start + process.index + process.count * np.arange(batch_size)
        batch = _rows(cached, np.minimum(rows, size - 1))
        yield batch._replace(example_valid=rows < size)


def _rows(cached: Batch, rows: np.ndarray) -> Batch:
    """Return rows of a batch, in float32."""

    def take(values: np.ndarray) -> np.ndarray:
        taken = values[rows]
        return taken.astype(np.float32) if taken.dtype == np.float16 else taken

    return jax.tree.map(take, cached)
