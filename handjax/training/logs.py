"""Where the numbers of a run go: JSONL, TensorBoard and one live line.

All of it is written by process 0 only; the other processes get the same objects, which
then do nothing.
"""

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from jaxtyping import UInt8

from handjax.io import atomic_files, json_files
from handjax.io.console import duration, say


class Metrics:
    """Means of the metrics since the last logged step, in an order that can be resumed.

    Sums are Python floats (float64) added step by step, and go into the checkpoint's
    JSON, which keeps them exactly: a resumed run logs the same means to the last bit.
    """

    def __init__(self, saved: dict[str, Any] | None = None):
        saved = saved or {}
        self.sums: dict[str, float] = dict(saved.get("sums", {}))
        self.count: int = int(saved.get("count", 0))

    def add(self, values: dict[str, Any]) -> None:
        """Add the metrics of one step."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)
        self.count += 1

    def mean(self) -> dict[str, float]:
        """Return the means since the last call, and start anew."""
        means = {name: total / self.count for name, total in self.sums.items()}
        self.sums, self.count = {}, 0
        return means

    def state(self) -> dict[str, Any]:
        """Return the arguments of `__init__`, as JSON values."""
        return {"sums": dict(self.sums), "count": self.count}


class Writer:
    """Appends to `metrics.jsonl` and to the TensorBoard events of one stage."""

    def __init__(self, workdir: Path, stage: str, start_step: int, *, active: bool):
        self.stage = stage
        self._file: TextIO | None = None
        self._board: Any = None
        if active:
            from tensorboardX import SummaryWriter

            path = Path(workdir) / "metrics.jsonl"
            self._file = path.open("a", encoding="utf-8")
            self._board = SummaryWriter(
                str(Path(workdir) / "tensorboard" / stage), purge_step=start_step + 1
            )

    def scalars(self, step: int, values: dict[str, Any]) -> None:
        """Write one JSON line, and one point of each TensorBoard curve."""
        if self._file is None:
            return
        line = {"stage": self.stage, "step": step, **_json_numbers(values)}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, (int, float)):
                self._board.add_scalar(name, value, step)

    def image(self, step: int, name: str, image: UInt8[np.ndarray, "h w 3"]) -> None:
        """Write a picture for TensorBoard."""
        if self._board is not None:
            self._board.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        """Flush and close the files."""
        if self._file is not None:
            self._file.close()
            self._board.close()


def _json_numbers(values: dict[str, Any]) -> dict[str, Any]:
    """Replace numbers that are not finite by None, as JSON has no nan."""
    return {
        k: None if isinstance(v, float) and not math.isfinite(v) else v
        for k, v in values.items()
    }


def truncate(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Drop the lines of a JSONL file that a restart will write again.

    A last line that was only half written is dropped too. The file is replaced at once,
    so that a crash in between loses nothing.
    """
    if not path.exists():
        return
    kept = []
    for line, record in json_files.raw_lines(path, {"stage": str, "step": int}):
        if keep(record):
            kept.append(line + b"\n")
    atomic_files.write_bytes(path, b"".join(kept))


class Shares:
    """Where the time between two logged steps goes: data, evaluation, checkpoint, step.

    "step" is what is left: computing, and waiting for the device.
    """

    PARTS = ("data", "evaluation", "checkpoint")

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._seconds = dict.fromkeys(self.PARTS, 0.0)

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Count the time of a block as one of `PARTS`."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._seconds[part] += time.monotonic() - start

    def take(self) -> tuple[float, dict[str, float]]:
        """Return seconds since the last call and each part's share; start anew."""
        now = time.monotonic()
        whole = max(now - self._since, 1e-9)
        shares = {name: value / whole for name, value in self._seconds.items()}
        shares["step"] = max(1.0 - sum(shares.values()), 0.0)
        self._since, self._seconds = now, dict.fromkeys(self.PARTS, 0.0)
        return whole, shares


# --- The progress line -------------------------------------------------------

SHOWN = {
    "loss": "loss {:.4g}",
    "mm": "{:.2f} mm",
    "usage": "codes {:.0%}",
    "images_per_s": "{:.0f} img/s",
}
"""Metrics on the progress line and how they are written."""

TIMES = {f"share_{name}": name for name in ("step", *Shares.PARTS)}
"""Shares of the time, written behind them."""


class Progress:
    """One live line on a terminal; plain lines, one per log, in a pipe."""

    def __init__(self, stage: str, steps: int, *, active: bool = True):
        self.stage, self.steps = stage, steps
        self._active = active
        self._live: Any = None
        self._marks: list[tuple[float, int]] = []
        self._values: dict[str, float] = {}

    def __enter__(self) -> "Progress":
        if self._active and sys.stdout.isatty():
            from rich.live import Live

            self._live = Live(refresh_per_second=4, transient=False)
            self._live.start()
        return self

    def __exit__(self, *exc: Any) -> None:
        if self._live is not None:
            self._live.stop()

    def tick(self, step: int) -> None:
        """Record that a step is done, and refresh the live line."""
        now = time.monotonic()
        self._marks = [*self._marks[-49:], (now, step)]
        if self._live is not None:
            from rich.text import Text

            self._live.update(Text(self.line(step)))

    def log(self, step: int, values: dict[str, float]) -> None:
        """Show new means; print a line if nothing is live."""
        self._values = values
        if self._active and self._live is None:
            say(self.line(step))
        elif self._live is not None:
            self.tick(step)

    def seconds_per_step(self) -> float:
        """Return the mean over the last steps; nan until there are two."""
        if len(self._marks) < 2:
            return math.nan
        (t0, s0), (t1, s1) = self._marks[0], self._marks[-1]
        return (t1 - t0) / max(s1 - s0, 1)

    def line(self, step: int) -> str:
        """Format stage, step, chosen metrics and time left as one line."""
        parts = [f"{self.stage} {step}/{self.steps}"]
        for name, form in SHOWN.items():
            if name in self._values and math.isfinite(self._values[name]):
                parts.append(form.format(self._values[name]))
        parts += [self._times()] * any(k in self._values for k in TIMES)
        left = (self.steps - step) * self.seconds_per_step()
        if math.isfinite(left) and step < self.steps:
            parts.append(f"{duration(left)} left")
        return "  ".join(parts)

    def _times(self) -> str:
        """Format where the time went, `step 97% data 2% checkpoint 1%`."""
        shares = {name: self._values.get(key, 0.0) for key, name in TIMES.items()}
        return " ".join(f"{n} {x:.0%}" for n, x in shares.items() if round(x, 2) > 0)
