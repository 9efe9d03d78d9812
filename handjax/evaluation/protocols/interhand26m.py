"""InterHand2.6M: both hands' joints, and where one hand is from the other.

Definition: the evaluation of the data set's authors (Moon et al., ECCV 2020), in
millimetres:

    MPJPE  error of each joint relative to its hand's wrist, averaged over the samples
           in which it is valid, then over the 42 joints (wrists, whose error is 0, are
           two of them); of all samples, of single and of interacting hands
    MRRPE  error of the left wrist relative to the right one, over samples of
           interacting hands whose wrists are both valid
    accuracy of the side, where predictions have it: a hand is there above .5

A hand whose wrist is not valid is not valid. Joints are those of the data set: 21 of
the right hand, then 21 of the left, each from the tip of the thumb to the wrist.

There is no official file. Predictions are an npz or JSON of `annotation_id` (sample),
`joints` (sample, 42, 3), in millimetres and OpenCV axes of the camera, NaN (null) for
joints that are not predicted, and, if wanted, `hand_type` (sample, 2), how sure it is
that there is a right and a left hand.
"""

import io
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

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
from handjax.geometry.skeleton import NUM_JOINTS, ORDERS
from handjax.io import array_files
from handjax.io.atomic_files import write_bytes

RIGHT, LEFT = slice(0, NUM_JOINTS), slice(NUM_JOINTS, 2 * NUM_JOINTS)
WRISTS = {"right": NUM_JOINTS - 1, "left": 2 * NUM_JOINTS - 1}
_JOINTS = 2 * NUM_JOINTS
_FOLDERS = (
    "",
    "annotations",
    "annotations/{split}",
    "annotations/all",
    "all",
    "{split}",
)
"""Folders of a split's files in releases 0.0 and 1.0."""
_SIDES = {"right": (1, 0), "left": (0, 1), "interacting": (1, 1)}


class Truth(NamedTuple):
    """Annotations of a split."""

    ids: Int[np.ndarray, "sample"]
    file_names: tuple[str, ...]
    joints3d: Float[np.ndarray, "sample 42 3"]
    """Millimetres, OpenCV axes of the camera."""
    valid: Bool[np.ndarray, "sample 42"]
    sides: Bool[np.ndarray, "sample 2"]
    """Whether the right and the left hand are there."""
    sides_valid: Bool[np.ndarray, "sample"]


class Predictions(NamedTuple):
    """Predictions of any samples, in any order."""

    ids: Int[np.ndarray, "sample"]
    joints3d: Float[np.ndarray, "sample 42 3"]
    """As in `Truth`; NaN where nothing is predicted."""
    sides: Float[np.ndarray, "sample 2"] | None


class InterHand(Benchmark):
    """The test and validation splits."""

    name = "interhand26m"
    about: ClassVar[str] = "InterHand2.6M's evaluation"
    truth = (
        "InterHand2.6M's annotations have it (InterHand2.6M_test_data.json, "
        "_camera.json and _joint_3d.json); pass their folder or the data set's."
    )
    file_name: ClassVar[str] = "pred.npz"
    settings: ClassVar[dict[str, tuple[str, ...]]] = {"split": ("test", "val")}
    columns: ClassVar[tuple[Column, ...]] = (
        Column("MPJPE single", "mpjpe_single", digits=2),
        Column("MPJPE interacting", "mpjpe_interacting", digits=2),
        Column("MPJPE all", "mpjpe_all", digits=2),
        Column("MRRPE", "mrrpe", digits=2),
    )

    def read_truth(self, source: Path, split: str = "test", **settings: str) -> Truth:
        """Read the three JSON files of a split."""
        del settings
        folder = _folder(source, split)
        data, cameras, world = (
            mesh_files.parsed(path.read_bytes(), path)
            for path in (
                folder / _file(split, n) for n in ("data", "camera", "joint_3d")
            )
        )
        try:
            return _truth(data, cameras, world)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UserError(
                f"{folder}: the annotations of {split} do not belong together, or are "
                f"not InterHand2.6M's ({error!r}). {self.truth}"
            ) from error

    def read_predictions(self, path: Path) -> Predictions:
        """Read npz, JSON, or a zip with one JSON file at its root."""
        arrays = _arrays(path)
        try:
            # null becomes NaN only in an array of floats.
            if isinstance(arrays.get("joints"), list):
                arrays["joints"] = _filled(arrays["joints"])
            ids = np.asarray(arrays["annotation_id"], np.int64)
            joints = np.asarray(arrays["joints"], np.float64)
            sides = arrays.get("hand_type")
            sides = None if sides is None else np.asarray(sides, np.float64)
            ids, joints = np.atleast_1d(ids), np.atleast_1d(joints)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{path}: {error!r}. {_FORMAT}") from error
        shapes_fit = joints.shape == (len(ids), _JOINTS, 3) and ids.ndim == 1
        if not shapes_fit or not (sides is None or sides.shape == (len(ids), 2)):
            raise UserError(
                f"{path}: annotation_id {ids.shape}, joints {joints.shape}, hand_type "
                f"{None if sides is None else sides.shape}. {_FORMAT}"
            )
        if len(np.unique(ids)) != len(ids):
            raise UserError(f"{path}: an annotation occurs more than once.")
        if np.isinf(joints).any():
            raise UserError(f"{path}: holds infinity.")
        return Predictions(ids, joints, sides)

    def check(self, predictions: Predictions) -> list[str]:
        """Return hints at another unit, other axes or another joint order."""
        hands = np.concatenate([predictions.joints3d[:, s] for s in (RIGHT, LEFT)])
        known = np.isfinite(hands).all(axis=(1, 2))
        return plausible.findings(hands[known], order="interhand", unit_m=1e-3)

    def scores(
        self, truth: Truth, predictions: Predictions, *, procrustes: str
    ) -> dict[str, Score]:
        """Return MPJPE, MRRPE and, if there are sides, their accuracy."""
        del procrustes
        rows = _rows(truth, predictions)
        guess = predictions.joints3d[rows]
        _check_predicted(truth, guess)
        target, relative = _from_wrists(truth.joints3d), _from_wrists(guess)
        errors = np.sqrt(np.sum((relative - target) ** 2, axis=-1))
        both = truth.sides.all(axis=-1)
        said = "relative to each wrist"
        found = {
            f"mpjpe_{name}": Score(
                _mean(errors[chosen], truth.valid[chosen]), "mm", said
            )
            for name, chosen in (
                ("all", np.ones_like(both)),
                ("single", ~both),
                ("interacting", both),
            )
        }
        found["mrrpe"] = Score(
            _mrrpe(truth, guess, both), "mm", "left from right wrist"
        )
        if predictions.sides is not None:
            right = (predictions.sides[rows] > 0.5) == truth.sides
            right = right.all(axis=-1)[truth.sides_valid]
            accuracy = float(right.mean()) if len(right) else None
            found["handedness_accuracy"] = Score(accuracy, "", "there above .5")
        return found

    def count(self, truth: Truth, predictions: Predictions) -> Count:
        """Return the number of all annotations."""
        del predictions
        return Count(len(truth.ids), len(truth.ids))

    def metrics(self, scores: dict[str, Score]) -> dict[str, float | None]:
        """Return the MPJPE of all samples."""
        return {"mpjpe_mm": scores["mpjpe_all"].value}

    def from_hands(self, hands: PhotoHands, truth: Truth | None) -> Predictions:
        """Combine both hands of a picture, in the data set's order."""
        if truth is None:
            raise UserError(
                "interhand26m names its samples by annotation; pass --truth. "
                + self.truth
            )
        place = {name: row for row, name in enumerate(truth.file_names)}
        joints3d = np.full(truth.joints3d.shape, np.nan)
        expected = np.full(hands.joints3d.shape, np.nan)
        gather = ORDERS["interhand"]
        for i, key in enumerate(hands.keys):
            row = place.get(_file_name(key, place))
            if row is None:
                raise UserError(f"record {key!r} is not a picture of the ground truth.")
            side = RIGHT if hands.is_right[i] else LEFT
            if np.isfinite(joints3d[row, side]).any():
                raise UserError(f"record {key!r}: that hand occurs more than once.")
            joints3d[row, side] = 1e3 * hands.joints3d[i, np.argsort(gather)]
            annotated = np.where(truth.valid[row], truth.joints3d[row].T, np.nan).T
            expected[i] = annotated[side][gather] / 1e3
        check_order(hands, expected, self.name)
        return Predictions(truth.ids, joints3d, None)

    def write(self, path: Path, predictions: Predictions) -> None:
        """Write npz with float32 joints, to a ten-thousandth of a millimetre."""
        arrays: dict[str, Any] = {
            "annotation_id": predictions.ids,
            "joints": predictions.joints3d.astype(np.float32),
        }
        if predictions.sides is not None:
            arrays["hand_type"] = predictions.sides.astype(np.float32)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        write_bytes(path, buffer.getvalue())


_FORMAT = (
    "Needed are annotation_id (sample), joints (sample, 42, 3) in millimetres and, if "
    "wanted, hand_type (sample, 2)."
)


def _arrays(path: Path) -> dict[str, Any]:
    if path.suffix != ".npz":
        value = mesh_files.parsed(
            mesh_files.member_text(path, "pred.json", ".json"), path
        )
        if not isinstance(value, dict):
            raise UserError(f"{path}: holds no object. {_FORMAT}")
        return value
    try:
        return array_files.load_npz(path)
    except UserError as error:
        raise UserError(f"{error} {_FORMAT}") from error


def _filled(samples: list) -> list:
    """Return rows, hands or samples that are null as NaN."""
    nothing = [float("nan")] * 3
    return [
        [nothing] * _JOINTS
        if sample is None
        else [nothing if row is None else row for row in sample]
        for sample in samples
    ]


# --- measuring ----------------------------------------------------------------------


def _rows(truth: Truth, predictions: Predictions) -> np.ndarray:
    place = {int(i): row for row, i in enumerate(predictions.ids)}
    missing = [int(i) for i in truth.ids if int(i) not in place]
    if missing:
        raise UserError(
            f"{len(missing):,} of {len(truth.ids):,} annotations have no prediction, "
            f"first annotation {missing[0]}."
        )
    return np.array([place[int(i)] for i in truth.ids])


def _check_predicted(truth: Truth, guess: np.ndarray) -> None:
    """Refuse valid joints, and wrists of valid hands, without a prediction."""
    absent = (truth.valid & np.isnan(guess).any(axis=-1)).any(axis=-1)
    if absent.any():
        first = truth.ids[absent.argmax()]
        raise UserError(
            f"{int(absent.sum()):,} annotations have valid joints without a prediction "
            f"(NaN), first annotation {first}; the official evaluation needs all."
        )


def _from_wrists(joints3d: np.ndarray) -> np.ndarray:
    return np.concatenate(
        [
            joints3d[:, hand] - joints3d[:, WRISTS[side], None]
            for side, hand in (("right", RIGHT), ("left", LEFT))
        ],
        axis=1,
    )


def _mean(errors: np.ndarray, valid: np.ndarray) -> float | None:
    """Average over samples for each joint, then over the joints that are ever valid."""
    total = valid.sum(axis=0)
    seen = total > 0
    if not seen.any():
        return None
    sums = np.where(valid, errors, 0.0).sum(axis=0)
    return float(np.mean(sums[seen] / total[seen]))


def _mrrpe(truth: Truth, guess: np.ndarray, both: np.ndarray) -> float | None:
    right, left = WRISTS["right"], WRISTS["left"]
    counted = both & truth.valid[:, right] & truth.valid[:, left]
    if not counted.any():
        return None
    target = (truth.joints3d[:, left] - truth.joints3d[:, right])[counted]
    relative = (guess[:, left] - guess[:, right])[counted]
    return float(np.sqrt(np.sum((relative - target) ** 2, axis=-1)).mean())


# --- ground truth -------------------------------------------------------------------


def _file(split: str, what: str) -> str:
    return f"InterHand2.6M_{split}_{what}.json"


def _folder(source: Path, split: str) -> Path:
    names = [_file(split, what) for what in ("data", "camera", "joint_3d")]
    for pattern in _FOLDERS:
        folder = source / pattern.format(split=split)
        if (folder / names[0]).is_file():
            missing = [name for name in names if not (folder / name).is_file()]
            if missing:
                raise MissingFileError(
                    f"{str(folder)!r} has no {missing[0]}. {InterHand.truth}"
                )
            return folder
    raise MissingFileError(f"{str(source)!r} has no {names[0]}. {InterHand.truth}")


def _truth(data: Any, cameras: Any, world: Any) -> Truth:
    images = {image["id"]: image for image in data["images"]}
    annotations = data["annotations"]
    joints3d = np.empty((len(annotations), _JOINTS, 3))
    valid = np.empty((len(annotations), _JOINTS), bool)
    names = []
    for row, annotation in enumerate(annotations):
        image = images[annotation["image_id"]]
        capture, camera = str(image["capture"]), str(image["camera"])
        points = world[capture][str(image["frame_idx"])]["world_coord"]
        R, position = (
            np.asarray(cameras[capture][key][camera], np.float64)
            for key in ("camrot", "campos")
        )
        joints3d[row] = (np.asarray(points, np.float64) - position) @ R.T
        valid[row] = np.asarray(annotation["joint_valid"]).reshape(_JOINTS) > 0
        names.append(image["file_name"])
    for side, hand in (("right", RIGHT), ("left", LEFT)):
        valid[:, hand] &= valid[:, WRISTS[side], None]
    return Truth(
        ids=np.array([a["id"] for a in annotations], np.int64),
        file_names=tuple(names),
        joints3d=joints3d,
        valid=valid,
        sides=np.array([_SIDES[a["hand_type"]] for a in annotations], bool),
        sides_valid=np.array([bool(a["hand_type_valid"]) for a in annotations]),
    )


def _file_name(key: str, known: dict[str, int]) -> str:
    """Return the picture's name in the annotations, from a record's key."""
    parts = key.split(".jpg")[0].split("/")
    for start in range(len(parts)):
        name = "/".join(parts[start:]) + ".jpg"
        if name in known:
            return name
    return ""


BENCHMARKS = {"interhand26m": InterHand()}
