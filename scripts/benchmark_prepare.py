"""How fast data sets are prepared: InterHand2.6M's layout with generated frames.

python scripts/benchmark_prepare.py --frames 2000

Frames have the real size (512 x 334, half of them grey and upright) and show the open
hand with a sensor's noise. Prints one JSON object a line: frames a second with one
process and with two, the speed-up, seconds of processor time and bytes of one example,
and what follows for all of InterHand2.6M.
"""

import argparse
import json
import os
import platform
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

HANDS = 687_548 + 2 * 673_514
"""Of InterHand2.6M's training split: single ones, and two in interacting pictures."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure data_pipelines.prepare.")
    parser.add_argument("--frames", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    from miniatures import interhand26m

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        interhand26m.make(root / "source", copies=arguments.frames // 8, noise=4.0)
        _run(root, "warm", 1)
        one, several = (_run(root, str(n), n) for n in (1, arguments.workers))
    speedup = several["rate"] / one["rate"]
    _print("rate", one["rate"], "frames/s", workers=1)
    _print("rate", several["rate"], "frames/s", workers=arguments.workers)
    _print("speed_up", speedup, "times", workers=arguments.workers)
    _print("processor_time", 1000 * one["processor"], "ms/example", workers=1)
    _print("size", one["bytes"], "bytes/example")
    _print("interhand26m_disk", one["bytes"] * HANDS / 1e9, "GB", hands=HANDS)
    for cores in (2, 64):
        hours = one["processor"] * HANDS / cores / 3600
        _print("interhand26m_time", hours, "h", cores=cores)


def _run(root: Path, name: str, workers: int) -> dict[str, float]:
    """Prepare once.

    Neither reading the annotations nor starting processes is counted: the clock runs
    from the first finished shard of each process to the last shard of all.
    """
    from data_pipelines.preparation import runners
    from data_pipelines.preparation.job import prepare, read_manifest
    from data_pipelines.storage import shards

    shards.RECORDS_PER_SHARD = 100
    marks: list[tuple[float, float, int]] = []
    make = runners.Runner.run

    def timed(self, job, tasks):
        for part in make(self, job, tasks):
            marks.append((time.monotonic(), _processor(), part.records))
            yield part

    runners.Runner.run = timed
    try:
        out = prepare(
            "interhand26m",
            root / "source",
            root / name,
            splits=["train"],
            hand="open",
            workers=workers,
        )
    finally:
        runners.Runner.run = make
    made = read_manifest(out)["splits"]["train"]
    counted = marks[workers - 1 :]
    examples = sum(records for _, _, records in counted[1:])
    (begin, begin_processor, _), (end, end_processor, _) = counted[0], counted[-1]
    return {
        "rate": examples / (end - begin),
        "processor": (end_processor - begin_processor) / examples,
        "bytes": made["bytes"] / made["kept"],
    }


def _processor() -> float:
    """Seconds of this process."""
    return sum(resource.getrusage(resource.RUSAGE_SELF)[:2])


def _print(metric: str, value: float, unit: str, **more: Any) -> None:
    about = {"device": f"{platform.machine()}, {os.cpu_count()} cores"}
    line = {"name": "prepare", "metric": metric, "value": round(value, 4), "unit": unit}
    print(json.dumps(line | more | about), flush=True)


if __name__ == "__main__":
    main()
