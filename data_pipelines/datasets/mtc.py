"""Monocular Total Capture (Panoptic studio, "a4_release"): hands in 31 HD views.

    annotation.pkl      {training_data, testing_data}: lists of {seqName, frame_str, id,
                        left_hand, right_hand}; a hand, where there is one, has
                        landmarks (63 numbers, 21 joints) and
                        2D {camera: {insideImg, occluded, overlap}}
    camera_data.pkl     {seqName: {camera: {K, R, t 3 x 1, distCoef}}}
    hdImgs/<seqName>/<frame>/00_<camera>_<frame>.jpg      1920 x 1080

Landmarks and t are centimetres, in world coordinates: X_camera = R X + t. Lenses
distort by up to some pixels; records hold undistorted pictures, so that their camera
matrix is all that projection needs.
"""

from collections import Counter
from typing import Any

import numpy as np

from data_pipelines.sources import conventions, pictures
from data_pipelines.sources.conventions import HandModels
from data_pipelines.sources.description import Archive, Builder, Index, text
from data_pipelines.sources.reading import WRONG_VALUES, DownloadedFiles

BUILDER = Builder(
    name="mtc",
    title="Monocular Total Capture data set (a4_release)",
    url="http://domedb.perception.cs.cmu.edu/mtc.html",
    licence="research only, no commercial use; cite Xiang et al., CVPR 2019",
    download="""\
1. Download mtc_dataset.tar.gz (about 280 GB) from the page above.
2. Unpack it; DIR is a4_release, with DIR/annotation.pkl, DIR/camera_data.pkl and
   DIR/hdImgs.
3. python -m data_pipelines.prepare mtc --source DIR --out OUT""",
    archives=(
        Archive("mtc_dataset.tar.gz", ("annotation.pkl", "camera_data.pkl", "hdImgs*")),
    ),
    splits={"train": 363_947, "test": 0},
)

_SAMPLES = {"train": "training_data", "test": "testing_data"}
_WHY_NOT = (("overlap", "overlaps another person"), ("occluded", "occluded"))
_CAMERA = {"K": (3, 3), "R": (3, 3), "t": (3,), "distCoef": (5,)}


def index(source: DownloadedFiles, split: str) -> Index:
    """Collect the views in which a hand is inside, alone and not occluded."""
    path, what = "annotation.pkl", "lists of frames with left_hand and right_hand"
    content = source.pickle(path, what)
    cameras = _Cameras(source)
    dropped: Counter[str] = Counter()
    frames, landmarks, rows = [], [], []
    try:
        for sample in content[_SAMPLES[split]]:
            sequence, frame = str(sample["seqName"]), str(sample["frame_str"])
            for is_right in (False, True):
                hand = sample.get("right_hand" if is_right else "left_hand")
                if hand is None:
                    continue
                for view, seen in sorted(hand["2D"].items()):
                    reason = _reason(seen)
                    if reason:
                        dropped[reason] += 1
                        continue
                    row = len(frames), cameras.number(sequence, view), view, is_right
                    rows.append((*row, len(landmarks)))
                points = np.asarray(hand["landmarks"], np.float64)
                landmarks.append(points.reshape(21, 3))
            frames.append(f"{sequence}/{frame}")
    except WRONG_VALUES as error:
        raise source.damaged(path, what, f"{error!r}") from None
    columns = {
        "frame": text(frames),
        "row": np.array(rows, np.int32).reshape(-1, 5),
        "landmarks": np.array(landmarks).reshape(-1, 21, 3),
        **cameras.columns(),
    }
    return Index(split, len(rows), columns, dict(dropped))


def _reason(seen: dict[str, Any]) -> str:
    """Return why a view is left out, or ""."""
    if not seen["insideImg"]:
        return "not inside the picture"
    return next((reason for flag, reason in _WHY_NOT if seen.get(flag)), "")


class _Cameras:
    """The cameras that are used, each once."""

    def __init__(self, source: DownloadedFiles):
        self._source, self._path = source, "camera_data.pkl"
        self._what = "{sequence: {camera: {K, R, t, distCoef}}}"
        self._content = source.pickle(self._path, self._what)
        self._numbers: dict[tuple[str, int], int] = {}
        self._values: dict[str, list[np.ndarray]] = {name: [] for name in _CAMERA}

    def number(self, sequence: str, view: int) -> int:
        key = sequence, int(view)
        if key not in self._numbers:
            try:
                camera = self._content[sequence][view]
                values = {
                    name: np.asarray(camera[name], np.float64).reshape(shape)
                    for name, shape in _CAMERA.items()
                }
            except (
                KeyError,
                IndexError,
                TypeError,
                ValueError,
                OverflowError,
            ) as error:
                reason = f"camera {view} of {sequence!r}: {error!r}"
                raise self._source.damaged(self._path, self._what, reason) from None
            for name, value in values.items():
                self._values[name].append(value)
            self._numbers[key] = len(self._numbers)
        return self._numbers[key]

    def columns(self) -> dict[str, np.ndarray]:
        return {
            name: np.array(values).reshape(-1, *_CAMERA[name])
            for name, values in self._values.items()
        }


def example(
    source: DownloadedFiles, index: Index, row: int, models: HandModels
) -> dict[str, Any]:
    """Return a hand in one view."""
    del models  # there is no MANO
    columns = index.columns
    frame, camera, view, side, hand = columns["row"][row].tolist()
    sequence, time = columns["frame"][frame].decode().split("/")
    R, t, K = (columns[name][camera] for name in ("R", "t", "K"))
    points = np.einsum("ab,jb->ja", R, columns["landmarks"][hand]) + t
    points = conventions.to_camera("mtc", conventions.to_joints("mtc", points))
    joints3d = np.column_stack([points, np.ones(21)])
    # Without distortion, in an undistorted picture.
    joints2d = pictures.projected(joints3d, K)
    box = pictures.tight_box(joints2d)
    name = f"hdImgs/{sequence}/{time}/00_{view:02d}_{time}.jpg"
    lens = pictures.Lens(K, columns["distCoef"][camera])
    placed = pictures.fields(
        source.picture(name, box, lens), joints2d=joints2d, box=box, K=K
    )
    is_right = bool(side)
    return {
        "key": f"{name}#{'right' if is_right else 'left'}",
        "is_right": is_right,
        "joints3d": joints3d,
        **placed,
    }
