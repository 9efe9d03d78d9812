"""DexYCB: one hand of either side that grasps an object, seen by eight cameras.

    20200709-subject-01/20200709_141754/meta.yml
                                       /836212060125/color_000000.jpg  640 x 480
                                                    /labels_000000.npz
    calibration/intrinsics/836212060125_640x480.yml
    calibration/mano_20200709-subject-01_right/mano.yml

Four set-ups divide the frames: s0 by sequence (the one of papers; its splits are
called train, val and test), s1 by subject, s2 by camera, s3 by object. The key of a
record ends with the frame's number in its split, hands or not: the `image_id` of
submissions.
"""

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
from data_pipelines.sources.reading import DownloadedFiles

BUILDER = Builder(
    name="dexycb",
    title="DexYCB",
    url="https://dex-ycb.github.io",
    licence="CC BY-NC 4.0; cite Chao et al., CVPR 2021",
    download="""\
1. Download dex-ycb-20210415.tar.gz (119 GB), or the archive of each subject and the
   calibration, from the page above.
2. Unpack all into one directory, DIR, so that there are DIR/calibration and
   DIR/20200709-subject-01 to DIR/20201022-subject-10.
3. python -m data_pipelines.prepare dexycb --source DIR --out OUT --hand MANO
   With --split s1_train, --split s2_test and so on it makes the other set-ups.""",
    archives=(
        Archive("calibration.tar.gz", ("calibration*",)),
        Archive("dex-ycb-20210415.tar.gz", ("*-subject-*",)),
    ),
    splits={
        **{"train": 406_888, "val": 0, "test": 78_768},
        **{
            f"{setup}_{part}": 0
            for setup in ("s1", "s2", "s3")
            for part in ("train", "val", "test")
        },
    },
    default_splits=("train", "val", "test"),
)

SUBJECTS, SEQUENCES, CAMERAS = 10, 100, 8
SERIALS = (
    *("836212060125", "839512060362", "840412060917", "841412060263"),
    *("932122060857", "932122060861", "932122061900", "932122062010"),
)
"""Cameras in the order of the tool kit."""
_SUBJECT = "[0-9]*-subject-[0-9][0-9]"


def part_of(setup: str, subject: int, sequence: int, camera: int) -> str:
    """Return the split that a frame belongs to: "train", "val" or "test".

    Args:
        setup: "s0" to "s3".
        subject: 0 to 9.
        sequence: Of the subject, 0 to 99; each object has five in a row.
        camera: 0 to 7.
    """
    if setup == "s0":
        if sequence % 5 != 4:
            return "train"
        return "val" if subject < 2 else "test"
    if setup == "s1":
        return {6: "val", 7: "test", 8: "test"}.get(subject, "train")
    if setup == "s2":
        return {6: "val", 7: "test"}.get(camera, "train")
    thing = sequence // 5
    if thing in (3, 19):
        return "val"
    return "test" if thing in (7, 11, 15) else "train"


def index(source: DownloadedFiles, split: str) -> Index:
    """List the frames of a split: by sequence, then camera, then time."""
    setup, _, part = split.rpartition("_")
    folders = source.names(".", _SUBJECT, "a folder for each subject")
    rows, sequences, sides, betas = [], [], [], []
    for subject, folder in enumerate(sorted(folders, key=lambda name: name[-2:])):
        names = source.names(folder, "[0-9]*_[0-9]*", "a folder for each sequence")
        for number, name in enumerate(names):
            cameras = [
                camera
                for camera in range(CAMERAS)
                if part_of(setup or "s0", subject, number, camera) == part
            ]
            if not cameras:
                continue
            path = f"{folder}/{name}"
            meta = _Yaml(source, f"{path}/meta.yml")
            there = [str(serial) for serial in meta.get("serials", list)]
            for camera in cameras:
                if SERIALS[camera] in there:
                    frames = np.arange(meta.get("num_frames", int))
                    row = np.array([len(sequences), camera, 0])
                    rows.append(row + frames[:, None] * [0, 0, 1])
            sequences.append(path)
            sides.append(meta.get("mano_sides", list)[0] == "right")
            betas.append(_betas(source, meta.get("mano_calib", list)[0]))
    if not rows:
        return Index(split, 0, {})
    frames = np.concatenate(rows).astype(np.int32)
    columns = {
        "frame": frames,
        "sequence": text(sequences),
        "is_right": np.array(sides),
        "betas": np.array(betas),
        "K": np.stack([_intrinsics(source, serial) for serial in SERIALS]),
    }
    return Index(split, len(frames), columns)


class _Yaml:
    """A file of named values."""

    def __init__(self, source: DownloadedFiles, path: str):
        self._source, self._path = source, path
        self._values = source.yaml(path, "named values")

    def get(self, name: str, kind: type) -> Any:
        value = self._values.get(name)
        if not isinstance(value, kind) or value == []:
            what = f"{name!r}, which is a {kind.__name__}"
            raise self._source.damaged(self._path, what, f"{name} is {value!r}")
        return value


def _betas(source: DownloadedFiles, calibration: str) -> np.ndarray:
    path = f"calibration/mano_{calibration}/mano.yml"
    betas = np.array(_Yaml(source, path).get("betas", list), np.float64)
    if betas.shape != (10,):
        raise source.damaged(path, "ten betas", f"they have shape {betas.shape}")
    return betas


def _intrinsics(source: DownloadedFiles, serial: str) -> np.ndarray:
    path = f"calibration/intrinsics/{serial}_640x480.yml"
    color = _Yaml(source, path).get("color", dict)
    try:
        fx, fy, x, y = (float(color[key]) for key in ("fx", "fy", "ppx", "ppy"))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        what = "fx, fy, ppx, ppy of the color camera"
        raise source.damaged(path, what, f"{error!r}") from None
    return np.array([[fx, 0, x], [0, fy, y], [0, 0, 1]])


def example(
    source: DownloadedFiles, index: Index, row: int, models: HandModels
) -> dict[str, Any]:
    """Return the hand of one frame."""
    columns = index.columns
    sequence, camera, frame = columns["frame"][row].tolist()
    folder = f"{columns['sequence'][sequence].decode()}/{SERIALS[camera]}"
    name, labels = f"{folder}/color_{frame:06d}.jpg", f"{folder}/labels_{frame:06d}.npz"
    if not source.has(labels) and source.has(name):
        raise DroppedError("no label file")
    annotation = source.arrays(labels, "labels of a frame")
    pose = _label(source, labels, annotation, "pose_m", (1, 51))
    joints = _label(source, labels, annotation, "joint_3d", (1, 21, 3))
    points = _label(source, labels, annotation, "joint_2d", (1, 21, 2))
    if not pose.any() or (joints == -1).all():
        raise DroppedError("no hand")
    is_right = bool(columns["is_right"][sequence])
    joints2d = np.column_stack([conventions.to_pixels("dexycb", points), np.ones(21)])
    joints3d = np.column_stack([conventions.to_camera("dexycb", joints), np.ones(21)])
    box = pictures.tight_box(joints2d)
    placed = pictures.fields(
        source.picture(name, box), joints2d=joints2d, box=box, K=columns["K"][camera]
    )
    parameters = conventions.parameters(
        "dexycb",
        models.of(is_right),
        is_right=is_right,
        pose=pose[:48],
        betas=columns["betas"][sequence],
        transl=pose[48:],
    )
    key = f"{name}#{row}"
    return {"key": key, "is_right": is_right, "joints3d": joints3d, **placed} | (
        parameters
    )


def _label(
    source: DownloadedFiles,
    path: str,
    annotation: dict[str, Any],
    name: str,
    shape: tuple[int, ...],
) -> np.ndarray:
    value = np.asarray(annotation.get(name))
    if value.shape != shape:
        expected = f"{name} of shape {shape}"
        raise source.damaged(path, expected, f"it has {sorted(annotation)}")
    return value[0].astype(np.float64)
