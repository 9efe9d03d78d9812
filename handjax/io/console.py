"""Print lines, durations and the time that a step takes."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


def say(text: str, *, file: TextIO | None = None) -> None:
    """Print one line at once (pipes would buffer it)."""
    print(text, file=file or sys.stdout, flush=True)


def duration(seconds: float) -> str:
    """Return seconds as `42 s`, `3 min 10 s` or `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def first_line(error: BaseException, *, limit: int = 300) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:limit]


@contextmanager
def timed(what: str, *, active: bool = True) -> Iterator[None]:
    """Print what is done and how long it took: `compiling train step ... 12 s`."""
    start = time.monotonic()
    live = active and sys.stdout.isatty()
    done = threading.Event()

    def show() -> None:
        while not done.wait(0.5):
            print(
                f"\r{what} ... {duration(time.monotonic() - start)}", end="", flush=True
            )

    ticker = threading.Thread(target=show, daemon=True)
    if live:
        ticker.start()
    try:
        yield
    finally:
        done.set()
        if live:
            ticker.join()
        if active:
            say(
                f"{chr(13) if live else ''}{what} ... "
                f"{duration(time.monotonic() - start)}"
            )
