"""Measure the loader beside bare decoding and warping of pictures.

python -m data_pipelines.benchmark --data DIR

Prints one JSON object a line: name, metric, value, unit, device, versions. "bare" is
one thread that decodes JPEGs from memory and warps them to the crop, which no loader of
this data can beat. It takes turns with the loader in one thread, in short rounds, both
counted in seconds of processor time, so that other work on the machine does not
distort `share_of_bare`; the median round counts. The `rate` of several threads is in
wall-clock time.
"""

import argparse
import itertools
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from handjax.io import command_line
from handjax.io.command_line import Parser, at_least


def _parser() -> Parser:
    parser = Parser("data benchmark", __doc__)
    parser.add_argument("--data", required=True, help="directory of the data set")
    parser.add_argument("--split", default="train")
    parser.add_argument("--batch_size", type=at_least(1), default=64)
    parser.add_argument("--crop_size", type=at_least(1), default=224, help="pixels")
    parser.add_argument(
        "--threads",
        type=at_least(1),
        default=os.cpu_count() or 1,
        help="default: all cores",
    )
    parser.add_argument("--rounds", type=at_least(1), default=9)
    parser.add_argument(
        "--seconds", type=at_least(0, float), default=0.5, help="of each round"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; return the exit code."""
    return command_line.run(lambda: _benchmark(_parser().parse_args(argv)))


def _benchmark(arguments: argparse.Namespace) -> None:
    from data_pipelines.storage import shards

    split = shards.open_split(arguments.data, arguments.split)
    about = {"device": _device(), "versions": _versions()}
    for result in measure(
        split,
        batch_size=arguments.batch_size,
        crop_size=arguments.crop_size,
        threads=arguments.threads,
        rounds=arguments.rounds,
        seconds=arguments.seconds,
    ):
        print(json.dumps(result | about), flush=True)


def measure(
    split: Any,
    *,
    batch_size: int,
    crop_size: int,
    threads: int,
    rounds: int,
    seconds: float,
) -> Iterator[dict[str, Any]]:
    """Yield one result after another; arguments as on the command line."""
    import statistics

    from data_pipelines.loading import loader
    from data_pipelines.loading.augment import AugmentConfig
    from data_pipelines.loading.examples import ExampleMaker
    from handjax.geometry.crop import CropConfig

    make = ExampleMaker(CropConfig(size=crop_size), augmentation=AugmentConfig())

    def batches(threads: int, load_image: bool = True) -> Callable[[], int]:
        made = loader.train_batches(
            [loader.Source(split)],
            make._replace(load_image=load_image),
            batch_size=batch_size,
            seed=0,
            threads=threads,
        )
        return lambda: len(next(made).index)

    tasks = {
        "bare": _bare(split, batch_size, crop_size),
        "loader, 1 thread": batches(0),
        "loader, no pictures, 1 thread": batches(0, load_image=False),
        f"loader, {threads} threads": batches(threads),
    }
    bare, one, no_pictures, all_threads = tasks
    rates: dict[str, list[float]] = {name: [] for name in tasks}
    for task in tasks.values():
        task()  # first use: files are opened, modules imported
    for _ in range(rounds):
        for name in (bare, one, no_pictures):
            rates[name].append(_rate(tasks[name], seconds, time.process_time))
    # Last, because its threads go on preparing batches between two calls.
    for _ in range(2 * threads):
        tasks[all_threads]()  # those that were prepared before the clock starts
    rates[all_threads].append(
        _rate(tasks[all_threads], rounds * seconds, time.perf_counter)
    )
    for name, values in rates.items():
        unit = "examples/s" if name == all_threads else "examples/CPU s"
        yield _result(name, "rate", statistics.median(values), unit)
    shares = [a / b for a, b in zip(rates[one], rates[bare], strict=True)]
    yield _result(one, "share_of_bare", statistics.median(shares), "1")
    cores = min(threads, os.cpu_count() or 1)
    per_core = rates[all_threads][0] / cores
    yield _result(all_threads, "rate_per_core", per_core, "examples/s")


def _result(name: str, metric: str, value: float, unit: str) -> dict[str, Any]:
    return {"name": name, "metric": metric, "value": round(value, 3), "unit": unit}


def _rate(task: Callable[[], int], seconds: float, clock: Callable[[], float]) -> float:
    """Return examples per second of a clock, measured over at least `seconds`."""
    done, start = 0, clock()
    while (passed := clock() - start) < seconds or not done:
        done += task()
    return done / passed


def _bare(split: Any, batch_size: int, crop_size: int) -> Callable[[], int]:
    """Decode and warp pictures that are in memory, to the crops of evaluation."""
    import cv2
    import numpy as np

    from data_pipelines.loading.annotations import right_hands
    from handjax.geometry import crop

    records = [split[i] for i in range(min(len(split), 500))]
    hands = right_hands(records)
    half = hands.bbox_size / 2 * CROP_SCALE
    box = np.concatenate([hands.bbox_center - half, hands.bbox_center + half], -1)
    H = crop.view(box, hands.K, crop_size).H_crop_image @ hands.mirror
    jpegs = [np.frombuffer(record["image"], np.uint8) for record in records]
    turns = itertools.cycle(zip(jpegs, H, strict=True))

    def task() -> int:
        for jpeg, homography in itertools.islice(turns, batch_size):
            image = cv2.imdecode(jpeg, cv2.IMREAD_COLOR_RGB)
            cv2.warpPerspective(image, homography, (crop_size, crop_size))
        return batch_size

    return task


CROP_SCALE = 1.25
"""Mean growth of the box in training."""


def _device() -> str:
    return f"{os.cpu_count()} x {_processor()}"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("handjax", "grain", "opencv-python-headless", "numpy")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except ImportError:
            continue
    return found


if __name__ == "__main__":
    sys.exit(main())
