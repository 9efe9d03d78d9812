"""A trace of some updates of a stage: what each device and thread did when."""

from pathlib import Path

import jax

from handjax.training.run import Run

AFTER, UPDATES = 3, 5
"""Updates that are let go by, for queues to fill, and updates in the trace."""


class Profile:
    """Writes `<workdir>/profile/<stage>` if the run asks for it.

    TensorBoard (with xprof) reads the directory; the `perfetto_trace.json.gz` in it is
    for ui.perfetto.dev.
    """

    def __init__(self, run: Run, stage: str, begin: int):
        self._run = run
        self._directory = Path(run.workdir) / "profile" / stage
        self._first, self._last = begin + AFTER + 1, begin + AFTER + UPDATES
        self._running = False

    def before(self, step: int) -> None:
        """Begin with the first update of the trace; every update tells its number."""
        if self._run.profile and step == self._first:
            jax.profiler.start_trace(
                self._directory, create_perfetto_trace=self._run.first
            )
            self._running = True

    def after(self, step: int, state: object) -> None:
        """End the trace after its last update, once `state` is computed."""
        if self._running and step >= self._last:
            jax.block_until_ready(state)
            self.close()

    def close(self) -> None:
        """End the trace early, if the stage ends before it."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
            self._run.say(f"trace of {UPDATES} updates: {self._directory}")
