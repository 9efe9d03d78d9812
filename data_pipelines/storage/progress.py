"""Show progress of a long job: a bar on a terminal, occasional lines in a log."""

import sys
import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from handjax.io.console import duration

_EVERY = 10.0
"""Seconds between two lines of a log."""


class Report:
    """Counts finished pieces; use as a context manager."""

    def __init__(self, what: str, total: int, *, unit: str = "images"):
        self.what, self.total, self.unit, self.done = what, total, unit, 0
        console = Console(stderr=True)
        self._start = self._last = time.monotonic()
        self._bar = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                console=console,
            )
            self._task = self._bar.add_task(what, total=total, rate="")

    def __enter__(self):
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *error):
        if self._bar:
            self._bar.stop()
        elif error[0] is None:
            self._line()

    def add(self, count: int) -> None:
        """Report that `count` more are finished."""
        self.done += count
        if self._bar:
            rate = f"{self.rate():.1f} {self.unit}/s"
            self._bar.update(self._task, completed=self.done, rate=rate)
        elif time.monotonic() - self._last > _EVERY:
            self._line()

    def rate(self) -> float:
        """Return pieces per second so far."""
        return self.done / max(time.monotonic() - self._start, 1e-9)

    def _line(self) -> None:
        self._last = time.monotonic()
        left = (self.total - self.done) / max(self.rate(), 1e-9)
        print(
            f"{self.what}: {self.done:,} of {self.total:,}, "
            f"{self.rate():.1f} {self.unit}/s, {duration(left)} left",
            file=sys.stderr,
            flush=True,
        )
