"""What the stages of one training run share, and when the run has to stop."""

import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import ml_collections

from data_pipelines.loading.mixtures import Drawn
from handjax.distributed import processes
from handjax.family.capabilities import Family
from handjax.family.stage import Stage
from handjax.geometry.skeleton import HAND, Skeleton
from handjax.io import console
from handjax.types import Batch


@runtime_checkable
class RunData(Protocol):
    """Data of a run; `data.run_data.open_data` makes one from `config.data`."""

    def train(self, stage: Stage, batch_size: int, start_step: int) -> Iterator[Batch]:
        """Return endless batches of this process, from update `start_step` on."""
        ...

    def evaluation(self, stage: Stage) -> Iterator[Batch]:
        """Return the test split once, in order."""
        ...

    def train_split(self, stage: Stage) -> Iterator[Batch]:
        """Return the training split once, in order, without images."""
        ...

    def drawn(self, stage: Stage, examples: int) -> list[Drawn]:
        """Return how many of a stage's first examples are of each data set."""
        ...

    def fingerprint(self) -> str:
        """Return a hash of what the data sets say of themselves."""
        ...

    def describe(self) -> str:
        """Return one line: which data, where, how much."""
        ...

    def describe_filters(self, stages: Sequence[Stage]) -> list[str]:
        """Return a line for each filter of the stages' records."""
        ...

    def describe_poses(self) -> str:
        """Return where poses without images come from."""
        ...

    def describe_letters(self) -> str:
        """Return what labelled poses are, and how they are read."""
        ...


class Hooks(NamedTuple):
    """What happens at intervals besides training."""

    evaluate: Callable[["Run", Stage, Any, int], dict[str, Any]] | None = None
    """(run, stage, variables, step) -> scalars for the log; writes its own files."""
    draw: Callable[["Run", Stage, Any, int], dict[str, Any]] | None = None
    """(run, stage, variables, step) -> pictures by name; writes its own files."""


class Run(NamedTuple):
    """What the stages of one run share."""

    config: ml_collections.ConfigDict
    workdir: Path
    family: Family
    """Module of `handjax.models`."""
    model: Any
    hand: Any
    """`models.HandConstants`: what `init_all` needs of the hand model."""
    hand_info: dict[str, str]
    """Name and sha256 of the hand model, for the checkpoints."""
    example: Batch
    """A tiny batch to initialise the model with."""
    data: RunData
    mesh: jax.sharding.Mesh
    hooks: Hooks
    stop: "Stop"
    skeleton: Skeleton = HAND
    """The joints that are predicted, of the hand model."""
    profile: bool = False
    """Whether every stage writes a trace of some updates."""

    @property
    def first(self) -> bool:
        """Whether this process writes and talks."""
        return jax.process_index() == 0

    def say(self, text: str) -> None:
        """Print a line, on process 0."""
        if self.first:
            console.say(text)


class Stop:
    """Whether the run should save and end: after a signal or a number of steps."""

    def __init__(self, after: int | None = None):
        self.reason = ""
        self._left = after

    def listen(self) -> None:
        """Turn SIGTERM and the first Ctrl-C into a request; the second one is final."""
        signal.signal(signal.SIGTERM, self._signal)
        signal.signal(signal.SIGINT, self._signal)

    def _signal(self, number: int, frame: Any) -> None:
        del frame
        self.reason = signal.Signals(number).name
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def step(self, after: Any = None) -> bool:
        """Count a step; True if the run should end now, agreed by all processes.

        Args:
            after: arrays that the step computes.
        """
        if self._left is not None:
            self._left -= 1
            if self._left <= 0:
                self.reason = self.reason or "--stop_after"
        return self.asked(after)

    def asked(self, after: Any = None) -> bool:
        """Return whether the run should end, agreed by all processes.

        A signal that comes while they agree waits for the next time: only what was
        agreed on counts, or one process would stop and the others wait for it.
        """
        stopping = not processes.all_agree(not self.reason, after)
        if stopping:
            self.reason = self.reason or "another process, which was told to stop"
        return stopping
