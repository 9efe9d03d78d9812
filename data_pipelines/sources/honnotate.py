"""Read the files of HO-3D and H2O-3D, which one method (HOnnotate) annotated.

    {train,evaluation}/SEQ/rgb/0000.jpg or .png     640 x 480
    {train,evaluation}/SEQ/meta/0000.pkl            Python 2 pickle of a dict
    train.txt, evaluation.txt                       lines SEQ/0000, in official order
    evaluation_xyz.json, evaluation_verts.json      ground truth, published in 2024

OpenGL camera axes, metres, joints in MANO's order with the tips behind them. A field of
a meta file is None where a frame is not annotated. In the evaluation set it has the
wrist alone, and a box for each hand.
"""

from typing import Any

import numpy as np

from data_pipelines.sources import conventions, pictures
from data_pipelines.sources.conventions import HandModels
from data_pipelines.sources.description import DroppedError, Index, text
from data_pipelines.sources.reading import DownloadedFiles

FOLDERS = {"train": "train", "test": "evaluation"}
_PREFIX = {True: "rightHand", False: "leftHand"}


def read_index(source: DownloadedFiles, split: str, suffix: str) -> Index:
    """Read the frames in official order, and the test split's truth if it exists.

    Args:
        source: Directory with the files.
        split: "train" or "test".
        suffix: Suffix of pictures, ".png" or ".jpg".
    """
    folder = FOLDERS[split]
    listed = f"{folder}.txt"
    lines = source.read(listed, "a list of frames").decode(errors="replace").split()
    wrong = [line for line in lines if line.count("/") != 1]
    if wrong:
        raise source.damaged(listed, "lines SEQ/0000", f"it has {wrong[0]!r}")
    for line in (lines[:1], lines[-1:]):
        for path in (_picture(split, *line, suffix), _meta(split, *line)):
            source.path(path, f"a frame of {listed}")
    columns = {"frame": text(lines), "suffix": text([suffix])}
    if split == "test":
        kinds = {"xyz": (21, 3), "verts": (778, 3)}
        for kind, shape in kinds.items():
            name = f"evaluation_{kind}.json"
            if not source.has(name):
                continue
            columns[kind] = source.json_arrays(name, shape, "the ground truth")
            if len(columns[kind]) != len(lines):
                raise source.damaged(
                    name,
                    f"{len(lines)} elements, as in {listed}",
                    f"it has {len(columns[kind])}",
                )
    return Index(split, len(lines), columns)


def _picture(split: str, line: str, suffix: str) -> str:
    sequence, frame = line.split("/")
    return f"{FOLDERS[split]}/{sequence}/rgb/{frame}{suffix}"


def _meta(split: str, line: str) -> str:
    sequence, frame = line.split("/")
    return f"{FOLDERS[split]}/{sequence}/meta/{frame}.pkl"


def hand(
    source: DownloadedFiles,
    index: Index,
    frame: int,
    models: HandModels,
    *,
    is_right: bool,
    two_hands: bool = False,
) -> dict[str, Any]:
    """Return one hand of a frame.

    Args:
        source: Directory with the files.
        index: As `read_index` gave it.
        frame: Number of the frame.
        models: Hand models of both sides.
        is_right: Which hand.
        two_hands: Whether fields are named by side (H2O-3D).

    Raises:
        DroppedError: The hand is not annotated in this frame.
        SourceError: Something is missing or damaged.
    """
    line = index.columns["frame"][frame].decode()
    suffix = index.columns["suffix"][0].decode()
    name, path = source.builder.name, _meta(index.split, line)
    meta = _Meta(source, path)
    prefix = _PREFIX[is_right] if two_hands else "hand"
    joints = meta.get(f"{prefix}Joints3D")
    if joints is None:
        raise DroppedError("not annotated")
    K = meta.array("camMat", (3, 3))
    key = _picture(index.split, line, suffix)
    fields: dict[str, Any] = {"key": key, "is_right": is_right}
    if two_hands:
        fields["key"] += "#right" if is_right else "#left"
    joints3d = np.zeros((21, 4))
    if "xyz" in index.columns:
        joints = index.columns["xyz"][frame]
    if np.shape(joints) == (3,):
        joints3d[0] = *conventions.to_camera(name, joints), 1
    elif np.shape(joints) == (21, 3):
        ordered = conventions.to_joints(name, joints)
        joints3d[:] = np.column_stack(
            [conventions.to_camera(name, ordered), np.ones(21)]
        )
    else:
        raise meta.wrong(f"{prefix}Joints3D has shape {np.shape(joints)}")
    if "verts" in index.columns:
        mesh = index.columns["verts"][frame]
        fields["vertices"] = conventions.to_camera(name, mesh)
    if index.split == "train":
        fields |= conventions.parameters(
            name,
            models.of(is_right),
            is_right=is_right,
            pose=meta.array(f"{prefix}Pose", (48,)),
            betas=meta.array("handBeta", (10,)),
            transl=meta.array(f"{prefix}Trans", (3,)),
        )
    joints2d = pictures.projected(joints3d, K)
    box = pictures.tight_box(joints2d)
    if index.split == "test":
        low, high = meta.array(f"{prefix}BoundingBox", (4,)).reshape(2, 2)
        box = (low + high) / 2, high - low
    picture = source.picture(key, box)
    fields["joints3d"] = joints3d
    return fields | pictures.fields(picture, joints2d=joints2d, box=box, K=K)


class _Meta:
    """Annotations of one frame."""

    def __init__(self, source: DownloadedFiles, path: str):
        self._source, self._path = source, path
        self._what = "a dict with the annotations of a frame"
        self._fields = source.pickle(path, self._what)
        if not isinstance(self._fields, dict):
            raise self.wrong(f"it holds {type(self._fields)}")

    def get(self, field: str) -> Any:
        if field not in self._fields:
            known = sorted(map(str, self._fields))
            raise self.wrong(f"it has no {field!r}, but {known}")
        return self._fields[field]

    def array(self, field: str, shape: tuple[int, ...]) -> np.ndarray:
        value = np.asarray(self.get(field), dtype=object)
        if value.shape != shape:
            raise self.wrong(f"{field} has shape {value.shape}, not {shape}")
        return value.astype(np.float64)

    def wrong(self, reason: str):
        return self._source.damaged(self._path, self._what, reason)
