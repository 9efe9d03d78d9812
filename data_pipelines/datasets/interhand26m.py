"""InterHand2.6M, version 1.0 at 5 frames a second: one or two hands, many cameras.

    images/train/Capture0/<sequence>/cam400002/image13648.jpg   512 x 334 or 334 x 512
    annotations/train/InterHand2.6M_train_data.json             pictures, valid joints
                                         _camera.json, _joint_3d.json
                                         _MANO_NeuralAnnot.json

Joints are triangulated, in world coordinates and millimetres, those of the right hand
before those of the left; joints that are not valid hold ones. MANO was fitted to some
of the frames, in world coordinates and metres, poses relative to the mean. Cameras
whose names begin with 41 are grey.
"""

from collections import Counter
from typing import Any

import numpy as np

from data_pipelines.sources import conventions, pictures
from data_pipelines.sources.conventions import HandModels
from data_pipelines.sources.description import (
    Archive,
    Builder,
    DroppedError,
    Index,
    text,
)
from data_pipelines.sources.reading import WRONG_VALUES, DownloadedFiles
from handjax.errors import UserError

_NAME = "interhand26m"
BUILDER = Builder(
    name=_NAME,
    title="InterHand2.6M v1.0, 5 frames a second",
    url="https://mks0601.github.io/InterHand2.6M",
    licence="CC BY-NC 4.0; cite Moon et al., ECCV 2020",
    download="""\
1. Download the pictures (5 fps, v1.0) and the annotations, MANO's among them, from the
   page above, and verify them with its script.
2. Join and unpack them into a directory, DIR, so that there are DIR/images/train and
   DIR/annotations/train, and the same for val and test.
3. python -m data_pipelines.prepare interhand26m --source DIR --out OUT --hand MANO""",
    archives=(
        Archive("the annotations of v1.0", ("annotations*",)),
        Archive("InterHand2.6M.images.5.fps.v1.0.tar", ("images*",)),
    ),
    splits={"train": 1_424_632, "val": 0, "test": 0},
)

_SIDES = {"right": (True,), "left": (False,), "interacting": (True, False)}
_IMAGE = ("file_name", "width", "height", "capture", "frame_idx", "camera")
_WRIST = 20
"""Index of each hand's wrist among its 21 joints, in the data set's order."""


def index(source: DownloadedFiles, split: str) -> Index:
    """Collect the hands of all pictures whose wrist is valid."""
    stem = f"annotations/{split}/InterHand2.6M_{split}"
    cameras = _Cameras(source, f"{stem}_camera.json")
    frames = _Frames(source, f"{stem}_joint_3d.json")
    fits = _Fits(source, f"{stem}_MANO_NeuralAnnot.json")
    data = f"{stem}_data.json"
    images: dict[int, tuple[Any, ...]] = {}
    for image in source.json_elements(data, "images", "pictures"):
        try:
            images[image["id"]] = tuple(image[field] for field in _IMAGE)
        except (KeyError, TypeError) as error:
            what = f"pictures with {', '.join(_IMAGE)}"
            raise source.damaged(data, what, f"{error!r}") from None
    dropped: Counter[str] = Counter()
    names, rows, valid = [], [], []
    for annotation in source.json_elements(data, "annotations", "hands"):
        try:
            name, width, height, *where, camera = images[annotation["image_id"]]
            sides = _SIDES[annotation["hand_type"]]
            seen = np.array(annotation["joint_valid"], bool).reshape(2, 21)
            capture, frame = map(str, where)
            number = cameras.number(capture, str(camera))
            row = width, height, number, frames.number(capture, frame)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise source.damaged(
                data, "annotations that fit the other files", f"{error!r}"
            ) from None
        for is_right in sides:
            joints = seen[0 if is_right else 1]
            if not joints[_WRIST]:
                dropped["wrist not valid"] += 1
                continue
            names.append(name)
            rows.append((*row, is_right, fits.number(capture, frame, is_right)))
            valid.append(joints)
    columns = {
        "name": text(names),
        "row": np.array(rows, np.int32).reshape(-1, 6),
        "valid": np.array(valid, bool).reshape(-1, 21),
        **cameras.columns(),
        **frames.columns(),
        **fits.columns(),
    }
    return Index(split, len(names), columns, dict(dropped))


class _Cameras:
    """Rotation, position and projection of every camera of every capture."""

    def __init__(self, source: DownloadedFiles, path: str):
        what = "campos, camrot, focal and princpt of each camera"
        self._numbers: dict[tuple[str, str], int] = {}
        self._values: list[np.ndarray] = []
        content = source.json(path, what)
        try:
            for capture, cameras in content.items():
                for camera in cameras["campos"]:
                    of = {kind: np.array(cameras[kind][camera]) for kind in cameras}
                    K = np.diag([*of["focal"], 1.0])
                    K[:2, 2] = of["princpt"]
                    parts = (of["camrot"].reshape(9), of["campos"], K.reshape(9))
                    self._numbers[capture, camera] = len(self._values)
                    self._values.append(np.concatenate(parts).astype(np.float64))
        except WRONG_VALUES as error:
            raise source.damaged(path, what, f"{error!r}") from None

    def number(self, capture: str, camera: str) -> int:
        return self._numbers[capture, camera]

    def columns(self) -> dict[str, np.ndarray]:
        values = np.array(self._values).reshape(-1, 21)
        return {
            "camrot": values[:, :9].reshape(-1, 3, 3),
            "campos": values[:, 9:12],
            "K": values[:, 12:].reshape(-1, 3, 3),
        }


class _Frames:
    """Joints of both hands at each time of each capture."""

    def __init__(self, source: DownloadedFiles, path: str):
        what = "world_coord (42 x 3, millimetres) of each frame"
        self._numbers: dict[tuple[str, str], int] = {}
        self._joints: list[np.ndarray] = []
        content = source.json(path, what)
        try:
            for capture, frames in content.items():
                for frame, value in frames.items():
                    joints = np.array(value["world_coord"], np.float64)
                    self._numbers[capture, frame] = len(self._joints)
                    self._joints.append(joints.reshape(2, 21, 3))
        except WRONG_VALUES as error:
            raise source.damaged(path, what, f"{error!r}") from None

    def number(self, capture: str, frame: str) -> int:
        return self._numbers[capture, frame]

    def columns(self) -> dict[str, np.ndarray]:
        return {"world": np.array(self._joints).reshape(-1, 2, 21, 3)}


class _Fits:
    """MANO of the frames that have it."""

    def __init__(self, source: DownloadedFiles, path: str):
        what = "pose, shape and trans of each frame and hand, or null"
        self._numbers: dict[tuple[str, str, bool], int] = {}
        self._fits: list[np.ndarray] = []
        content = source.json(path, what)
        try:
            for capture, frames in content.items():
                for frame, sides in frames.items():
                    for side, fit in sides.items():
                        if fit is None:
                            continue
                        numbers = [*fit["pose"], *fit["shape"], *fit["trans"]]
                        if len(numbers) != 61:
                            raise UserError(f"{len(numbers)} numbers in {frame}")
                        key = capture, frame, side == "right"
                        self._numbers[key] = len(self._fits)
                        self._fits.append(np.array(numbers, np.float64))
        except WRONG_VALUES as error:
            raise source.damaged(path, what, f"{error!r}") from None

    def number(self, capture: str, frame: str, is_right: bool) -> int:
        """Return a number of the row; -1 where there is none."""
        return self._numbers.get((capture, frame, is_right), -1)

    def columns(self) -> dict[str, np.ndarray]:
        return {"fit": np.array(self._fits).reshape(-1, 61)}


def example(
    source: DownloadedFiles, index: Index, row: int, models: HandModels
) -> dict[str, Any]:
    """Return one hand of one picture."""
    columns = index.columns
    width, height, camera, frame, side, fit = columns["row"][row].tolist()
    is_right, name = bool(side), columns["name"][row].decode()
    R, campos = columns["camrot"][camera], columns["campos"][camera]
    K = columns["K"][camera]
    world = columns["world"][frame, 0 if is_right else 1]
    # X_camera = R (X_world - campos), both in millimetres.
    points = np.einsum("ab,jb->ja", R, world - campos)
    points = conventions.to_camera(_NAME, conventions.to_joints(_NAME, points))
    valid = conventions.to_joints(_NAME, columns["valid"][row])
    joints3d = np.column_stack([np.where(valid[:, None], points, 0.0), valid])
    joints2d = pictures.projected(joints3d, K)
    inside = (joints2d[:, :2] >= 0) & (joints2d[:, :2] < [width, height])
    if not (inside.all(axis=1) & valid).any():
        raise DroppedError("outside of the picture")
    box = pictures.tight_box(joints2d)
    path = f"images/{index.split}/{name}"
    picture = source.picture(path, box)
    if (picture.source_width, picture.source_height) != (width, height):
        raise source.damaged(
            path,
            f"a picture of {width} x {height} pixels",
            f"it has {picture.source_width} x {picture.source_height}",
        )
    fields: dict[str, Any] = {
        "key": f"{path}#{'right' if is_right else 'left'}",
        "is_right": is_right,
        "joints3d": joints3d,
    }
    if fit >= 0:
        numbers = columns["fit"][fit]
        fields |= conventions.parameters(
            _NAME,
            models.of(is_right),
            is_right=is_right,
            pose=numbers[:48],
            betas=numbers[48:58],
            transl=numbers[58:],
            R=R,
            t=-np.einsum("ab,b->a", R, campos) * conventions.ROWS[_NAME].unit,
        )
    return fields | pictures.fields(picture, joints2d=joints2d, box=box, K=K)
