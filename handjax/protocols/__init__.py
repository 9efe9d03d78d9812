"""How each benchmark scores predictions, and the files that it takes them in.

One benchmark, one file (HO3D's two versions share theirs). Each has a `Benchmark`,
found by its name, which reads the ground truth in the layout that its authors publish,
reads and checks a file of predictions by whoever made it, scores it as the authors'
script does, and writes such a file from hands in handjax's own frame. numpy throughout,
in float64.
"""

import abc
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

_FILES = {
    "freihand": "freihand",
    "ho3d_v2": "ho3d",
    "ho3d_v3": "ho3d",
}
"""Benchmark -> file of this folder."""


class Score(NamedTuple):
    """One number, and what it takes to compare it with another."""

    value: float | None
    """None where nothing was annotated."""
    unit: str
    """"cm", "mm", or "" for shares (0..1)."""
    protocol: str
    """What was done before measuring; printed beside the value."""


class Column(NamedTuple):
    """A column of the papers' tables."""

    header: str
    key: str
    """Of `Benchmark.scores`."""
    factor: float = 1.0
    """From the script's unit to the papers'."""
    digits: int = 1


class PhotoHands(NamedTuple):
    """Hands that a model found in the pictures of a split, in the split's order."""

    keys: tuple[str, ...]
    """Of their records: path in the source, and number of the hand."""
    joints3d: Float[np.ndarray, "hand joint 3"]
    """Metres, OpenCV axes of the photo's camera, `skeleton.JOINTS` order; left hands
    as they are."""
    vertices: Float[np.ndarray, "hand vertex 3"]
    """Same frame."""
    joints2d: Float[np.ndarray, "hand joint 2"] | None
    """Pixels of the source's picture; None for families that predict none."""
    is_right: Bool[np.ndarray, "hand"]
    index: Int[np.ndarray, "hand"]
    """Position in the split."""


class Benchmark(abc.ABC):
    """What evaluation asks of a benchmark.

    Truth and predictions are the benchmark's own: what its `read_truth` and
    `read_predictions` return, its `scores` takes.
    """

    name: str
    about: ClassVar[str]
    """Whose definition it is, in a line."""
    truth: str
    """What `--truth` has to hold, and where it comes from."""
    file_name: ClassVar[str]
    """Of the file of predictions that `write` makes."""
    alignments: ClassVar[tuple[str, ...]] = ()
    """Names of `metrics.PROTOCOLS` that make sense, the benchmark's own one first."""
    settings: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Option of `read_truth` -> what it may be, the default first."""
    columns: ClassVar[tuple[Column, ...]]
    """How papers print it."""

    @abc.abstractmethod
    def read_truth(self, source: Path, **settings: str) -> Any:
        """Ground truth as published.

        Raises:
            ValueError: Something in it is damaged, or not what the layout says.
            FileNotFoundError: A file is missing; says which, and where it comes from.
        """

    @abc.abstractmethod
    def read_predictions(self, path: Path) -> Any:
        """A file of predictions, every number of it looked at.

        Raises:
            ValueError: It is not in the benchmark's format, or holds numbers that are
                not finite; says where.
            OSError: It cannot be read.
        """

    @abc.abstractmethod
    def check(self, predictions: Any) -> list[str]:
        """What looks wrong about predictions that can be read, without the truth."""

    @abc.abstractmethod
    def scores(
        self, truth: Any, predictions: Any, *, procrustes: str
    ) -> dict[str, Score]:
        """The script's numbers under the script's names.

        Args:
            truth: What `read_truth` returned.
            predictions: What `read_predictions` returned.
            procrustes: One of `alignments`, or "" where there are none.

        Raises:
            ValueError: A sample has no prediction, or a count differs.
        """

    @abc.abstractmethod
    def count(self, truth: Any) -> int:
        """Samples that are scored."""

    @abc.abstractmethod
    def metrics(self, scores: dict[str, Score]) -> dict[str, float | None]:
        """Those scores that are a key of `metrics.METRICS`, in its unit."""

    @abc.abstractmethod
    def from_hands(self, hands: PhotoHands) -> Any:
        """Predictions in the benchmark's axes, units and joint order."""

    @abc.abstractmethod
    def write(self, path: Path, predictions: Any) -> None:
        """A file that `read_predictions`, and the authors' script, can read."""


def names() -> tuple[str, ...]:
    """Benchmarks that can be scored."""
    return tuple(_FILES)


def load(name: str) -> Benchmark:
    """The benchmark of a name.

    Raises:
        ValueError: There is none; lists those there are.
    """
    if name not in _FILES:
        raise ValueError(
            f"benchmark={name!r} is not known; there are {', '.join(_FILES)}."
        )
    module = importlib.import_module(f"{__name__}.{_FILES[name]}")
    return module.BENCHMARKS[name]
