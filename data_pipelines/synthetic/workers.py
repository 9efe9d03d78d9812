"""Renders examples in several processes, in order."""

import collections
import contextlib
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

CHUNK = 4
"""Examples that a process makes before it reports back."""
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_generator: Any = None


def _start(settings: dict[str, Any]) -> None:
    """Set up a worker process."""
    global _generator
    import cv2

    from data_pipelines.synthetic import records

    cv2.setNumThreads(1)
    _generator = records.Generator(**settings)


def _render(split: str, indices: list[int]) -> list[bytes]:
    from data_pipelines import schema

    return [schema.encode(_generator(split, index)) for index in indices]


class Workers:
    """A pool of rendering processes; use as a context manager.

    There is no path without processes: a BLAS with several threads rounds otherwise
    than one with a single thread, and the data must not depend on the machine's cores.
    """

    def __init__(self, count: int, settings: dict[str, Any]):
        self.count, self._settings = count, settings

    def __enter__(self):
        with single_threaded():
            self._pool = ProcessPoolExecutor(
                self.count, get_context("spawn"), _start, (self._settings,)
            )
            # The processes start with the first tasks: start them all here.
            ready = [self._pool.submit(os.getpid) for _ in range(self.count)]
            for future in ready:
                future.result()
        return self

    def __exit__(self, *error):
        self._pool.shutdown(cancel_futures=True)

    def examples(self, split: str, first: int, last: int) -> Iterator[bytes]:
        """Yield the encoded examples from `first` up to, not including, `last`."""
        pending = collections.deque()
        starts = iter(range(first, last, CHUNK))
        while True:
            while len(pending) < 3 * self.count:
                start = next(starts, None)
                if start is None:
                    break
                indices = list(range(start, min(start + CHUNK, last)))
                pending.append(self._pool.submit(_render, split, indices))
            if not pending:
                return
            yield from pending.popleft().result()


@contextlib.contextmanager
def single_threaded():
    """Environment of the workers: one thread each, the cores are shared out already."""
    before = {name: os.environ.get(name) for name in _ONE_THREAD}
    os.environ.update(dict.fromkeys(_ONE_THREAD, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
