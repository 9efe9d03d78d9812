"""Run tasks in several processes; results come in order."""

import collections
import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any

from handjax.errors import HandjaxError

_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_AHEAD = 3
"""Tasks submitted ahead per process, so that none waits for the slowest."""


class Workers:
    """A pool of processes with one thread each; use as a context manager.

    Args:
        count: Number of processes.
        start: Function that runs once in each of them; None for none.
        arguments: Arguments of `start`.
    """

    def __init__(
        self, count: int, start: Callable[..., None] | None = None, *arguments: Any
    ):
        self.count, self._start, self._arguments = count, start, arguments

    def __enter__(self):
        with single_threaded():
            self._pool = ProcessPoolExecutor(
                self.count, get_context("spawn"), self._start, self._arguments
            )
            # A pool starts its processes with the first tasks: start them here, while
            # the environment is set.
            ready = [self._pool.submit(os.getpid) for _ in range(self.count)]
            for future in ready:
                future.result()
        return self

    def __exit__(self, *error):
        self._pool.shutdown(cancel_futures=True)

    def run(
        self, function: Callable[..., Any], tasks: Iterable[tuple[Any, ...]]
    ) -> Iterator[Any]:
        """Yield the result of `function` for each task, a tuple of its arguments.

        Raises:
            RuntimeError: A process was killed.
        """
        pending = collections.deque()
        left = iter(tasks)
        try:
            while True:
                while len(pending) < _AHEAD * self.count:
                    task = next(left, None)
                    if task is None:
                        break
                    pending.append(self._pool.submit(function, *task))
                if not pending:
                    return
                yield pending.popleft().result()
        except BrokenProcessPool as error:
            raise HandjaxError(
                f"One of {self.count} worker processes was killed, probably because "
                "memory ran out. The same command goes on from here; give it fewer "
                "--workers."
            ) from error


@contextlib.contextmanager
def single_threaded():
    """Set the environment of workers to one thread each; they share the cores."""
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
