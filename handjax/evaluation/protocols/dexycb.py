"""DexYCB's hand pose estimation: 21 joints in every frame that shows the hand.

Definition: the HPE evaluator of the data set's authors (Chao et al., CVPR 2021): errors
of the joints as predicted, relative to the wrist, and aligned, in millimetres, and the
area under the curve of correct joints up to 50 mm. OpenCV axes, joints in the order of
`skeleton.JOINTS`.

Frames are numbered over the split, those without a hand included: subjects, sequences,
cameras, frames, each in order. Results are text, one line a frame: its number, then 63
numbers, comma-separated.
"""

from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import yaml
from jaxtyping import Float, Int

from handjax.errors import MissingFileError, UserError
from handjax.evaluation.protocols import (
    Benchmark,
    Column,
    Count,
    PhotoHands,
    Score,
    check_order,
    mesh_files,
    plausible,
)
from handjax.evaluation.protocols.point_errors import PointErrors, aligned
from handjax.geometry.skeleton import NUM_JOINTS, WRIST
from handjax.io import array_files
from handjax.io.folders import visible
from handjax.metrics.mesh_errors import PROTOCOLS

SERIALS = (
    *("836212060125", "839512060362", "840412060917", "841412060263"),
    *("932122060857", "932122060861", "932122061900", "932122062010"),
)
"""Cameras, in the toolkit's order."""
SEQUENCES = 100
"""Number of sequences of each subject."""

_ALL = range(10), range(8), tuple(range(SEQUENCES))
_FIFTH = tuple(i for i in range(SEQUENCES) if i % 5 == 4)


def _objects(*groups: int) -> tuple[int, ...]:
    """Return sequences of some of the 20 objects, five in a row of each."""
    return tuple(i for i in range(SEQUENCES) if i // 5 in groups)


SPLITS = {
    ("s0", "val"): ((0, 1), _ALL[1], _FIFTH),
    ("s0", "test"): (range(2, 10), _ALL[1], _FIFTH),
    ("s1", "val"): ((6,), _ALL[1], _ALL[2]),
    ("s1", "test"): ((7, 8), _ALL[1], _ALL[2]),
    ("s2", "val"): (_ALL[0], (6,), _ALL[2]),
    ("s2", "test"): (_ALL[0], (7,), _ALL[2]),
    ("s3", "val"): (_ALL[0], _ALL[1], _objects(3, 19)),
    ("s3", "test"): (_ALL[0], _ALL[1], _objects(7, 11, 15)),
}
"""Setup and split -> numbers of its subjects, cameras and sequences."""

_UP_TO_MM = 50.0
_NO_HAND = -1


class Frames(NamedTuple):
    """Joints of numbered frames, millimetres."""

    ids: Int[np.ndarray, "frame"]
    joints3d: Float[np.ndarray, "frame 21 3"]


class DexYcb(Benchmark):
    """The test and validation splits of the four setups."""

    name = "dexycb"
    about: ClassVar[str] = "DexYCB's HPE evaluator"
    truth = (
        "DexYCB's own folder (20200709-subject-01 and so on, with meta.yml and "
        "labels_*.npz) has it; pass that."
    )
    file_name: ClassVar[str] = "pred.txt"
    alignments: ClassVar[tuple[str, ...]] = tuple(PROTOCOLS)
    settings: ClassVar[dict[str, tuple[str, ...]]] = {
        "setup": ("s0", "s1", "s2", "s3"),
        "split": ("test", "val"),
    }
    columns: ClassVar[tuple[Column, ...]] = (
        Column("PA-MPJPE", "procrustes_mpjpe"),
        Column("MPJPE", "root_relative_mpjpe"),
        Column("AUC", "root_relative_auc", digits=3),
        Column("MPJPE (absolute)", "absolute_mpjpe"),
    )

    def read_truth(
        self, source: Path, setup: str = "s0", split: str = "test", **settings: str
    ) -> Frames:
        """Read the joints of the labels; frames without a hand are left out."""
        del settings
        ids, joints3d = [], []
        for number, path in enumerate(label_files(source, setup, split)):
            joints = _labelled(path)
            if joints is not None:
                ids.append(number)
                joints3d.append(joints)
        if not ids:
            raise UserError(f"{source}: no frame of {setup}, {split} shows a hand.")
        return Frames(np.array(ids), np.stack(joints3d))

    def read_predictions(self, path: Path) -> Frames:
        """Read text, or a zip with one text file at its root."""
        text = mesh_files.member_text(path, self.file_name, ".txt")
        rows = [_row(line, path, i) for i, line in enumerate(text.splitlines(), 1)]
        if not rows:
            raise UserError(f"{path}: holds no line. {_FORMAT}")
        ids, joints3d = zip(*rows, strict=True)
        numbers, counts = np.unique(np.array(ids), return_counts=True)
        if (counts > 1).any():
            raise UserError(
                f"{path}: frame {numbers[counts > 1][0]} occurs more than once "
                f"({(counts > 1).sum():,} such frames); each frame needs one line."
            )
        return Frames(np.array(ids), np.stack(joints3d))

    def check(self, predictions: Frames) -> list[str]:
        """Return hints at another unit, other axes or another joint order."""
        return plausible.findings(
            predictions.joints3d, order="openpose", unit_m=1e-3, opengl=False
        )

    def scores(
        self, truth: Frames, predictions: Frames, *, procrustes: str
    ) -> dict[str, Score]:
        """Return the evaluator's three rows, named by its words."""
        guess = _of_frames(truth.ids, predictions)
        target = truth.joints3d
        pairs = {
            "absolute": (target, guess, "as predicted"),
            "root_relative": (
                target - target[:, WRIST, None],
                guess - guess[:, WRIST, None],
                "relative to the wrist",
            ),
            "procrustes": (
                target,
                aligned(target, guess, procrustes),
                f"procrustes={procrustes}",
            ),
        }
        found = {}
        for name, (one, other, protocol) in pairs.items():
            errors = PointErrors(_UP_TO_MM)
            errors.add(one, other)
            found[f"{name}_mpjpe"] = Score(errors.mean, "mm", protocol)
            found[f"{name}_auc"] = Score(errors.auc, "", protocol)
        return found

    def count(self, truth: Frames, predictions: Frames) -> Count:
        """Return the number of frames with a hand."""
        del predictions
        return Count(len(truth.ids), len(truth.ids))

    def metrics(self, scores: dict[str, Score]) -> dict[str, float | None]:
        """Return the joint errors; the evaluator sees no mesh."""
        return {
            "pa_mpjpe_mm": scores["procrustes_mpjpe"].value,
            "mpjpe_mm": scores["root_relative_mpjpe"].value,
            "auc_joints": scores["procrustes_auc"].value,
        }

    def from_hands(self, hands: PhotoHands, truth: Frames | None) -> Frames:
        """Convert to millimetres under the frames' numbers of the truth."""
        if truth is None:
            raise UserError(
                f"dexycb numbers its frames over the split; pass --truth. {self.truth}"
            )
        check_order(hands, truth.joints3d / 1e3, self.name)
        return Frames(truth.ids, 1e3 * hands.joints3d)

    def write(self, path: Path, predictions: Frames) -> None:
        """Write one line a frame, to a tenth of a micrometre."""
        lines = [
            ",".join([str(i), *(f"{x:.4f}" for x in joints.ravel())]) + "\n"
            for i, joints in zip(*predictions, strict=True)
        ]
        mesh_files.write_text(path, self.file_name, "".join(lines))


_FORMAT = (
    "A line has 64 numbers, comma-separated: the frame's, then x, y, z of 21 joints in "
    "millimetres."
)


def _row(line: str, path: Path, number: int) -> tuple[int, np.ndarray]:
    values = line.split(",")
    if len(values) != 1 + 3 * NUM_JOINTS:
        raise UserError(
            f"{path}, line {number}: {len(values)} comma-separated values. {_FORMAT}"
        )
    try:
        frame, joints = int(values[0]), np.array(values[1:], np.float64)
    except ValueError as error:
        raise UserError(f"{path}, line {number}: {error}. {_FORMAT}") from None
    if not np.isfinite(joints).all():
        raise UserError(
            f"{path}, line {number}: holds NaN or infinity; every frame needs numbers."
        )
    return frame, joints.reshape(NUM_JOINTS, 3)


def _of_frames(ids: np.ndarray, predictions: Frames) -> np.ndarray:
    """Return predictions of the scored frames; others are ignored.

    Raises:
        UserError: A frame has none.
    """
    place = {int(frame): row for row, frame in enumerate(predictions.ids)}
    missing = [int(frame) for frame in ids if int(frame) not in place]
    if missing:
        raise UserError(
            f"{len(missing):,} of {len(ids):,} frames with a hand have no prediction, "
            f"first frame {missing[0]}."
        )
    return predictions.joints3d[[place[int(frame)] for frame in ids]]


# --- labels -------------------------------------------------------------------------


def label_files(source: Path, setup: str, split: str) -> list[Path]:
    """Return label files of a split; a frame's number is its place in the list.

    Raises:
        MissingFileError: A subject or a meta.yml is missing.
        UserError: A subject has another number of sequences, which would number
            frames differently.
    """
    subjects, cameras, sequences = SPLITS[setup, split]
    found = []
    for subject in (_subject(source, i + 1) for i in subjects):
        folders = [p for p in visible(subject) if p.is_dir()]
        if len(folders) != SEQUENCES:
            raise UserError(
                f"{subject}: {len(folders)} sequences; a subject of DexYCB has "
                f"{SEQUENCES}, and without all of them frames get other numbers. "
                f"Unpack {subject.name}.tar.gz again."
            )
        for folder in (folders[i] for i in sequences):
            frames = _num_frames(folder / "meta.yml")
            found += [
                folder / SERIALS[camera] / f"labels_{frame:06d}.npz"
                for camera in cameras
                for frame in range(frames)
            ]
    return found


def _subject(source: Path, number: int) -> Path:
    """Return the folder of a subject, counted from 1; its name begins with a date."""
    name = f"*-subject-{number:02d}"
    found = [path for path in visible(source, name) if path.is_dir()]
    if len(found) != 1:
        raise MissingFileError(
            f"{str(source)!r} has {len(found)} folders {name}, not one. {DexYcb.truth}"
        )
    return found[0]


def _num_frames(path: Path) -> int:
    try:
        meta: Any = yaml.safe_load(path.read_bytes())
        return int(meta["num_frames"])
    except FileNotFoundError:
        raise MissingFileError(f"{path} is missing. {DexYcb.truth}") from None
    except (yaml.YAMLError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: no num_frames in it ({error}). Unpack it again."
        ) from error


def _labelled(path: Path) -> np.ndarray | None:
    """Return joints in millimetres; None where there is no hand."""
    try:
        label = array_files.load_npz(path, names=["joint_3d"])
        joints = label["joint_3d"].reshape(NUM_JOINTS, 3)
    except FileNotFoundError:
        raise MissingFileError(
            f"{path} is missing; unpack its subject again."
        ) from None
    except Exception as error:  # a damaged archive raises what it likes
        raise UserError(
            f"{path}: no joint_3d in it ({error}). Unpack it again."
        ) from error
    if (joints == _NO_HAND).all():
        return None
    # Before float64, as the evaluator rounds.
    return (joints * 1000).astype(np.float64)


BENCHMARKS = {"dexycb": DexYcb()}
