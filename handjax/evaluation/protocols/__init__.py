"""Score predictions as each benchmark does, from the files that it takes.

One benchmark, one file (HO3D's two versions share theirs). Each has a `Benchmark`,
found by its name, which reads the ground truth in the published layout, reads and
checks a file of predictions whoever made it, scores it as the authors' script does, and
writes such a file from hands in handjax's own frame. All of it is numpy in float64.
"""

import abc
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from handjax.errors import UserError

_FILES = {
    "freihand": "freihand",
    "ho3d_v2": "ho3d",
    "ho3d_v3": "ho3d",
    "dexycb": "dexycb",
    "hint": "hint",
    "interhand26m": "interhand26m",
}
"""Benchmark -> file of this folder."""


_SAME_M = 2e-3
"""Metres below which joints are the same; records are float32."""


class Score(NamedTuple):
    """One number, with the unit and protocol needed to compare it."""

    value: float | None
    """None where nothing was annotated."""
    unit: str
    """"cm", "mm", or "" for shares (0..1)."""
    protocol: str
    """Protocol of the measurement; printed beside the value."""


class Column(NamedTuple):
    """A column of the papers' tables."""

    header: str
    key: str
    """Key of `Benchmark.scores`."""
    factor: float = 1.0
    """Factor from the script's unit to the papers'."""
    digits: int = 1
    group: str = ""
    """Columns of one group make a table of their own."""


class Count(NamedTuple):
    """Samples of a benchmark."""

    scored: int
    annotated: int


class PhotoHands(NamedTuple):
    """Predicted hands of the pictures of a split, in the split's order."""

    keys: tuple[str, ...]
    """Keys of their records: path in the source, and number of the hand."""
    joints3d: Float[np.ndarray, "hand joint 3"]
    """Metres, OpenCV axes of the photo's camera, `skeleton.JOINTS` order; left hands
    as they are."""
    vertices: Float[np.ndarray, "hand vertex 3"]
    """Same frame."""
    joints2d: Float[np.ndarray, "hand joint 2"] | None
    """Pixels of the source's picture; None for families that predict none."""
    is_right: Bool[np.ndarray, "hand"]
    truth3d: Float[np.ndarray, "hand joint 3"]
    """Joints of the records, in the frame of `joints3d`; NaN where unknown. They show
    whether a split is in the order of the benchmark."""


class Benchmark(abc.ABC):
    """Interface of a benchmark.

    Truth and predictions are the benchmark's own: what its `read_truth` and
    `read_predictions` return, its `scores` takes.
    """

    name: str
    about: ClassVar[str]
    """One line: whose definition it is."""
    truth: str
    """Content of `--truth`, and where to get it."""
    file_name: ClassVar[str]
    """Name of the file of predictions that `write` makes."""
    alignments: ClassVar[tuple[str, ...]] = ()
    """Possible keys of `mesh_errors.PROTOCOLS`, the benchmark's own first."""
    settings: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Option of `read_truth` -> what it may be, the default first."""
    columns: ClassVar[tuple[Column, ...]]
    """How papers print it."""

    @abc.abstractmethod
    def read_truth(self, source: Path, **settings: str) -> Any:
        """Read the ground truth as published.

        Raises:
            UserError: Something in it is damaged, or not what the layout says.
            MissingFileError: A file is missing; says which, and where it comes from.
        """

    @abc.abstractmethod
    def read_predictions(self, path: Path) -> Any:
        """Read a file of predictions and check every number.

        Raises:
            UserError: It is not in the benchmark's format, or holds numbers that are
                not finite; says where.
            OSError: It cannot be read.
        """

    @abc.abstractmethod
    def check(self, predictions: Any) -> list[str]:
        """Return what looks wrong about readable predictions, without the truth."""

    @abc.abstractmethod
    def scores(
        self, truth: Any, predictions: Any, *, procrustes: str
    ) -> dict[str, Score]:
        """Return the official script's numbers under its names.

        Args:
            truth: What `read_truth` returned.
            predictions: What `read_predictions` returned.
            procrustes: One of `alignments`, or "" where there are none.

        Raises:
            UserError: A sample has no prediction, or a count differs.
        """

    @abc.abstractmethod
    def count(self, truth: Any, predictions: Any) -> Count:
        """Return how many samples are scored, and how many there are."""

    @abc.abstractmethod
    def metrics(self, scores: dict[str, Score]) -> dict[str, float | None]:
        """Return the scores that are a key of `mesh_errors.METRICS`, in its unit."""

    @abc.abstractmethod
    def from_hands(self, hands: PhotoHands, truth: Any | None) -> Any:
        """Convert hands to the benchmark's axes, units and joint order.

        Args:
            hands: In the order of the benchmark's samples.
            truth: What `read_truth` returned, where it is at hand.

        Raises:
            UserError: The hands are not the benchmark's samples in their order, or
                the benchmark cannot name its samples without the truth.
        """

    @abc.abstractmethod
    def write(self, path: Path, predictions: Any) -> None:
        """Write a file that `read_predictions` and the official script can read."""


def check_order(
    hands: PhotoHands, joints3d: Float[np.ndarray, "sample joint 3"], name: str
) -> None:
    """Refuse hands that are not the samples of a benchmark in their order.

    Args:
        hands: Of a split.
        joints3d: The samples' true joints in the frame of `hands`; NaN where unknown.
        name: Of the benchmark.

    Raises:
        UserError: The counts differ, or the joints do.
    """
    if len(hands.keys) != len(joints3d):
        raise UserError(
            f"the split has {len(hands.keys):,} hands, the ground truth of {name} "
            f"{len(joints3d):,} samples; evaluate on the whole split that was made of "
            "the same release (without --config.eval.num)."
        )
    apart_m = np.nan_to_num(np.linalg.norm(hands.truth3d - joints3d, axis=-1))
    apart_m = apart_m.max(axis=-1)
    wrong = np.flatnonzero(apart_m > _SAME_M)
    if len(wrong):
        raise UserError(
            f"{len(wrong):,} of {len(joints3d):,} hands of the split are not where the "
            f"ground truth of {name} has them, first {hands.keys[wrong[0]]!r}: "
            f"{1e3 * apart_m[wrong[0]]:.1f} mm apart. The split is in another order, "
            "or of another release or setup; prepare it again from the same files."
        )


def names() -> tuple[str, ...]:
    """Return the names of the benchmarks."""
    return tuple(_FILES)


def load(name: str) -> Benchmark:
    """Return the benchmark of a name.

    Raises:
        UserError: There is none; lists those there are.
    """
    if name not in _FILES:
        raise UserError(
            f"benchmark={name!r} is not known; there are {', '.join(_FILES)}."
        )
    module = importlib.import_module(f"{__name__}.{_FILES[name]}")
    return module.BENCHMARKS[name]
