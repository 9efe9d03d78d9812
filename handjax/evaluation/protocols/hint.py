"""HInt: 2-D joints of hands in the wild; shares of correct ones (PCK).

Definition: HaMeR's eval.py (Pavlakos et al., CVPR 2024). A joint is correct at t if it
is not farther from the annotated one than t times the longer side of the tight box, in
pixels of the original picture; t = .05, .1, .15. The share is taken over the pictures
for each joint, then the plain mean over the joints. It is measured for all joints, for
the visible and for the occluded ones, of each source of pictures.

HaMeR's evaluation files (TEST_*_{all,vis,occ}.npz) choose joints by confidences above
.5; the data set itself says which are occluded. Either is read. Where a joint of a kind
is annotated in no picture, HaMeR divides 0 by 0; here it is left out of the mean.

Predictions are JSON: {"TEST_newdays_img/<name of the picture>": 21 rows of x, y}, in
the order of `skeleton.JOINTS`; the suffix of the picture may stand there or not.
"""

import json
import re
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from handjax.errors import MissingFileError, UserError
from handjax.evaluation.protocols import (
    Benchmark,
    Column,
    Count,
    PhotoHands,
    Score,
    mesh_files,
    plausible,
)
from handjax.geometry.skeleton import NUM_JOINTS
from handjax.io import array_files, safe_pickle
from handjax.io.folders import visible

THRESHOLDS = (0.05, 0.1, 0.15)
SOURCES = {
    "newdays_img": "newdays",
    "epick_img": "visor",
    "ego4d_img": "ego4d",
    "ego4d_seq": "ego4d_seq",
}
"""End of a folder's name -> what papers call the pictures."""
KINDS = {"all": "all", "vis": "visible", "occ": "occluded"}
"""End of an evaluation file's name -> which joints it counts."""

_MIN_CONFIDENCE = 0.5
_SUFFIX = re.compile(r"\.(jpe?g|png|json)$", re.IGNORECASE)
_NAME = re.compile(r"((?:TRAIN|VAL|TEST)_(?:newdays|epick|ego4d)_(?:img|seq))/([^/]+)")


class Annotated(NamedTuple):
    """The joints of one kind in the pictures of one source."""

    names: tuple[str, ...]
    joints2d: Float[np.ndarray, "picture 21 2"]
    """Pixels of the original picture."""
    side_px: Float[np.ndarray, "picture"]
    """Longer side of the tight box."""
    counted: Bool[np.ndarray, "picture 21"]
    has_picture: Bool[np.ndarray, "picture"]
    """False for frames of Ego4D that nobody has cut out."""


Truth = dict[tuple[str, str], Annotated]
"""By source and kind."""
Predictions = dict[str, np.ndarray]
"""Name of a picture, without suffix -> (21, 2) pixels."""


class HInt(Benchmark):
    """NewDays, VISOR and Ego4D."""

    name = "hint"
    about: ClassVar[str] = "HaMeR's PCK"
    truth = (
        "HInt's own folders (TEST_newdays_img and so on) have it, and HaMeR's "
        "evaluation files TEST_*_{all,vis,occ}.npz; pass the folder that they stand in."
    )
    file_name: ClassVar[str] = "pred.json"
    settings: ClassVar[dict[str, tuple[str, ...]]] = {"split": ("test", "val")}
    columns: ClassVar[tuple[Column, ...]] = tuple(
        Column(f"{source} @{t:g}", f"{source}_{kind}_pck_{t:g}", 100.0, group=kind)
        for kind in KINDS.values()
        for source in ("newdays", "visor", "ego4d")
        for t in THRESHOLDS
    )

    def read_truth(self, source: Path, split: str = "test", **settings: str) -> Truth:
        """Read HaMeR's evaluation files where they exist, else HInt's folders."""
        del settings
        found = _evaluation_files(source, split.upper())
        found = found or _folders(source, split.upper())
        if not found:
            raise MissingFileError(
                f"{str(source)!r} has no folder {split.upper()}_*_img. {self.truth}"
            )
        return found

    def read_predictions(self, path: Path) -> Predictions:
        """Read JSON, or a zip with one JSON file at its root."""
        text = mesh_files.member_text(path, self.file_name, ".json")
        value = mesh_files.parsed(text, path)
        if not isinstance(value, dict) or not value:
            raise UserError(
                f"{path}: holds no pictures; an object is needed, from the name of "
                'each picture ("TEST_newdays_img/...") to 21 rows of x, y in pixels.'
            )
        found: Predictions = {}
        for key, rows in value.items():
            name = _SUFFIX.sub("", key)
            if name in found:
                raise UserError(f"{path}: {name!r} occurs more than once.")
            found[name] = _joints2d(rows, path, key)
        return found

    def check(self, predictions: Predictions) -> list[str]:
        """Return hints at fractions instead of pixels, or another joint order."""
        joints2d = np.stack(list(predictions.values()))
        same = plausible.constant(joints2d)
        if same:
            return same
        if np.median(np.ptp(joints2d, axis=1).max(axis=-1)) < 2:
            return [
                "the median hand is smaller than 2; pixels of the picture are needed"
            ]
        return plausible.joint_order(joints2d, "openpose")

    def scores(
        self, truth: Truth, predictions: Predictions, *, procrustes: str
    ) -> dict[str, Score]:
        """Return `<source>_<kind>_pck_<threshold>`, fractions."""
        del procrustes
        chosen = _with_predictions(truth, predictions)
        found = {}
        for (source, kind), annotated in chosen.items():
            rows = [i for i, n in enumerate(annotated.names) if n in predictions]
            guess = np.array([predictions[annotated.names[i]] for i in rows])
            guess = guess.reshape(-1, NUM_JOINTS, 2)
            for threshold in THRESHOLDS:
                share = pck(
                    annotated.joints2d[rows],
                    guess,
                    annotated.side_px[rows],
                    annotated.counted[rows],
                    threshold,
                )
                found[f"{source}_{kind}_pck_{threshold:g}"] = Score(
                    share, "", f"of the box's longer side, {kind} joints"
                )
        return found

    def count(self, truth: Truth, predictions: Predictions) -> Count:
        """Return the number of pictures; unpublished ones of the truth are left out."""
        names = {name for annotated in truth.values() for name in annotated.names}
        return Count(len(names & predictions.keys()), len(names))

    def metrics(self, scores: dict[str, Score]) -> dict[str, float | None]:
        """Return nothing: handjax's own metrics are of 3-D."""
        del scores
        return {}

    def from_hands(self, hands: PhotoHands, truth: Truth | None) -> Predictions:
        """Convert to pixels under the names of the pictures, from the records' keys."""
        del truth
        if hands.joints2d is None:
            raise UserError("hint scores 2-D joints, and this model predicts none.")
        found: Predictions = {}
        for key, joints2d in zip(hands.keys, hands.joints2d, strict=True):
            match = _NAME.search(key)
            if not match:
                raise UserError(
                    f"record {key!r} names no picture of HInt; prepare the data from "
                    "HInt's own folders."
                )
            found["/".join([match[1], re.split(r"\.\w+", match[2])[0]])] = joints2d
        return found

    def write(self, path: Path, predictions: Predictions) -> None:
        """Write JSON, to a thousandth of a pixel."""
        value = {k: np.round(v, 3).tolist() for k, v in sorted(predictions.items())}
        text = json.dumps(value, separators=(",", ":"), allow_nan=False)
        mesh_files.write_text(path, self.file_name, text)


def pck(
    target: Float[np.ndarray, "picture 21 2"],
    prediction: Float[np.ndarray, "picture 21 2"],
    side_px: Float[np.ndarray, "picture"],
    counted: Bool[np.ndarray, "picture 21"],
    threshold: float,
) -> float | None:
    """Share of correct joints, joint by joint, then averaged; None if none counts."""
    apart_px = np.sqrt(np.sum((prediction - target) ** 2, axis=-1))
    correct = (apart_px <= threshold * side_px[:, None]) & counted
    total = counted.sum(axis=0)
    seen = total > 0
    if not seen.any():
        return None
    return float(np.mean(correct.sum(axis=0)[seen] / total[seen]))


def _with_predictions(truth: Truth, predictions: Predictions) -> Truth:
    """Return the sources with predictions; each is scored by itself.

    Raises:
        UserError: A picture of such a source has no prediction, or a source is unknown.
    """
    chosen = {
        source
        for (source, _), annotated in truth.items()
        if predictions.keys() & set(annotated.names)
    }
    wanted = {
        name
        for (source, _), annotated in truth.items()
        for name, there in zip(annotated.names, annotated.has_picture, strict=True)
        if there and (source in chosen or not chosen)
    }
    missing = sorted(wanted - predictions.keys())
    if missing:
        raise UserError(
            f"{len(missing):,} pictures have no prediction, first {missing[0]!r}; "
            "every picture of a source (NewDays, VISOR, Ego4D) needs one, or none has."
        )
    return {key: annotated for key, annotated in truth.items() if key[0] in chosen}


def _joints2d(rows: Any, path: Path, key: str) -> np.ndarray:
    try:
        joints2d = np.asarray(rows, np.float64)
    except (TypeError, ValueError, OverflowError):
        joints2d = np.zeros(0)
    if joints2d.shape != (NUM_JOINTS, 2):
        raise UserError(
            f"{path}: {key!r} has no {NUM_JOINTS} rows of x, y (its shape is "
            f"{joints2d.shape})."
        )
    if not np.isfinite(joints2d).all():
        raise UserError(f"{path}: {key!r} holds NaN or infinity.")
    return joints2d


# --- ground truth -------------------------------------------------------------------


def _folders(source: Path, split: str) -> Truth:
    """Read HInt's pairs of pictures and JSON files."""
    found: Truth = {}
    for end, source_name in SOURCES.items():
        folder = source / f"{split}_{end}"
        paths = visible(folder, "*.json")
        if not paths:
            continue
        labels = [_label(path) for path in paths]
        occluded = np.array([label["occlusion"] for label in labels], bool)
        corners = np.array([label["bbox"] for label in labels])
        whole = Annotated(
            names=tuple(f"{folder.name}/{path.stem}" for path in paths),
            joints2d=np.array([label["keypoints"] for label in labels]),
            side_px=(corners[:, 2:] - corners[:, :2]).max(axis=-1),
            counted=np.ones_like(occluded),
            has_picture=np.array([_has_picture(path) for path in paths]),
        )
        found[source_name, "all"] = whole
        found[source_name, "visible"] = whole._replace(counted=~occluded)
        found[source_name, "occluded"] = whole._replace(counted=occluded)
    return found


def _has_picture(label: Path) -> bool:
    return any(label.with_suffix(suffix).is_file() for suffix in (".jpg", ".png"))


def _label(path: Path) -> dict[str, np.ndarray]:
    value = mesh_files.parsed(path.read_bytes(), path)
    shapes = {"keypoints": (NUM_JOINTS, 2), "occlusion": (NUM_JOINTS,), "bbox": (4,)}
    try:
        (hand,) = value
        arrays = {
            name: np.asarray(hand[name], np.float64).reshape(shape)
            for name, shape in shapes.items()
        }
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(
            f"{path}: no list of one hand with keypoints (21 x 2), occlusion (21) and "
            f"bbox (1 x 4): {error!r}. Download it again."
        ) from error
    low, high = arrays["bbox"].reshape(2, 2)
    finite = all(np.isfinite(values).all() for values in arrays.values())
    if not (finite and (high > low).all()):
        raise UserError(
            f"{path}: bbox {arrays['bbox'].tolist()} is not x1, y1, x2, y2 of a box, "
            "or a value is not finite. Download it again."
        )
    return arrays


def _evaluation_files(source: Path, split: str) -> Truth:
    """Read HaMeR's npz files."""
    found: Truth = {}
    for end, source_name in SOURCES.items():
        for short, kind in KINDS.items():
            path = source / f"{split}_{end}_{short}.npz"
            if path.is_file():
                found[source_name, kind] = _evaluation_file(path, f"{split}_{end}")
    return found


def _evaluation_file(path: Path, folder: str) -> Annotated:
    arrays = _arrays(path, ("imgname", "scale", "hand_keypoints_2d"))
    stems = [Path(_text(name)).stem for name in arrays["imgname"]]
    joints = np.asarray(arrays["hand_keypoints_2d"], np.float64)
    scale = np.asarray(arrays["scale"], np.float64).reshape(len(joints), -1)
    names = tuple(f"{folder}/{stem}" for stem in stems)
    if len(set(names)) != len(names):
        raise UserError(f"{path}: a picture occurs more than once.")
    if not (np.isfinite(joints).all() and np.isfinite(scale).all() and scale.min() > 0):
        raise UserError(
            f"{path}: scale has to be above 0, and all values finite. Download it "
            "again."
        )
    return Annotated(
        names=names,
        joints2d=joints[..., :2],
        side_px=scale.max(axis=-1),
        counted=joints[..., 2] > _MIN_CONFIDENCE,
        has_picture=np.ones(len(names), bool),
    )


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def _arrays(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Read some arrays of an npz; pickled ones are read without running them."""
    try:
        return array_files.load_npz(path, safe_pickle.plain_globals(), names)
    except safe_pickle.RefusedPickleError:
        raise
    except UserError as error:
        raise UserError(f"{error} Is it HaMeR's evaluation file?") from None


BENCHMARKS = {"hint": HInt()}
