"""Render examples in several processes, in order."""

from collections.abc import Iterator
from typing import Any

from data_pipelines.storage import workers

CHUNK = 4
"""Examples that a process makes per task."""
_generator: Any = None


def _start(settings: dict[str, Any]) -> None:
    """Set up a worker process."""
    global _generator
    import cv2

    from data_pipelines.synthetic import records

    cv2.setNumThreads(1)
    _generator = records.Generator(**settings)


def _render(split: str, first: int, last: int) -> list[bytes]:
    from data_pipelines.storage import schema

    return [schema.encode(_generator(split, index)) for index in range(first, last)]


class Workers(workers.Workers):
    """A pool of rendering processes; use as a context manager.

    Even a single worker is a process of its own: rounding in BLAS depends on its number
    of threads, and the data must not depend on the machine's cores.
    """

    def __init__(self, count: int, settings: dict[str, Any]):
        super().__init__(count, _start, settings)

    def examples(self, split: str, first: int, last: int) -> Iterator[bytes]:
        """Yield the encoded examples from `first` up to, not including, `last`."""
        starts = range(first, last, CHUNK)
        tasks = ((split, start, min(start + CHUNK, last)) for start in starts)
        for chunk in self.run(_render, tasks):
            yield from chunk
