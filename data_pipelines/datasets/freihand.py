"""FreiHAND v2: right hands of 32 people, each training frame with four backgrounds.

Training picture i shows annotation i modulo the number of annotations (32,560): the
green screen first, then three times with other backgrounds.
"""

from typing import Any

import numpy as np

from data_pipelines.sources import conventions, pictures
from data_pipelines.sources.conventions import HandModels
from data_pipelines.sources.description import Archive, Builder, Index
from data_pipelines.sources.reading import DownloadedFiles
from handjax.mano import numpy_skinning

BUILDER = Builder(
    name="freihand",
    title="FreiHAND v2",
    url="https://lmb.informatik.uni-freiburg.de/projects/freihand",
    licence="research only, no commercial use; cite Zimmermann et al., ICCV 2019",
    download="""\
1. Download FreiHAND_pub_v2.zip and FreiHAND_pub_v2_eval.zip from the page
   above.
2. Unpack both into one directory, DIR, so that there are DIR/training,
   DIR/evaluation, DIR/training_xyz.json and DIR/evaluation_xyz.json.
3. python -m data_pipelines.prepare freihand --source DIR --out OUT --hand MANO""",
    archives=(
        Archive(
            "FreiHAND_pub_v2_eval.zip",
            ("evaluation_xyz.json", "evaluation_verts.json", "evaluation_mano.json"),
        ),
        Archive(
            "FreiHAND_pub_v2.zip",
            ("training*", "evaluation*"),
        ),
    ),
    splits={"train": 130_240, "test": 3_960},
)

VERSIONS = 4
"""Pictures of each training frame: green screen, homogenized, sampled, automatic."""

_FOLDERS = {"train": "training", "test": "evaluation"}
_BOX_PX = 144.0
"""Side of the box where nothing is annotated: METRO's evaluation takes the middle 180
pixels, which is this at the default growth of 1.25."""
_SIZE = 224


def index(source: DownloadedFiles, split: str) -> Index:
    """Read the lists of annotations; of the test split those that are there."""
    folder = _FOLDERS[split]
    cameras = source.json_arrays(f"{folder}_K.json", (3, 3), "camera matrices")
    columns, frames = {"K": cameras}, len(cameras)
    kinds = {"xyz": (21, 3), "verts": (778, 3), "mano": (1, 61)}
    for kind, shape in kinds.items():
        name = f"{folder}_{kind}.json"
        # The ground truth of the test split came later, in an archive of its own.
        if split == "train" or source.has(name):
            what = f"{kind} of {frames} frames"
            columns[kind] = source.json_arrays(name, shape, what)
    for kind, column in columns.items():
        if len(column) != frames:
            raise source.damaged(
                f"{folder}_{kind}.json",
                f"{frames} elements, as in {folder}_K.json",
                f"it has {len(column)}",
            )
    count = frames * (VERSIONS if split == "train" else 1)
    for number in range(0, count, frames):
        for picture in (number, number + frames - 1):
            source.path(_picture(split, picture), f"the last of {count} pictures")
    if "xyz" in columns:
        _check(source, folder, columns)
    return Index(split, count, columns)


def _check(
    source: DownloadedFiles, folder: str, columns: dict[str, np.ndarray]
) -> None:
    """Check that the files belong together: mixed versions do not."""
    xyz, K = columns["xyz"], columns["K"]
    scale = source.json_arrays(f"{folder}_scale.json", (), "lengths of a bone, metres")
    if len(scale) == len(xyz):
        length = np.linalg.norm(xyz[:, 9] - xyz[:, 10], axis=-1)
        wrong = np.abs(length - scale) > 1e-3
    else:
        wrong = np.ones(1, bool)
    if wrong.any():
        raise source.damaged(
            f"{folder}_scale.json",
            f"the length of the middle finger's first bone in {folder}_xyz.json",
            f"{int(wrong.sum())} of {len(wrong)} values differ from it",
        )
    seen = np.einsum("nab,njb->nja", K, xyz)
    pixels = seen[..., :2] / np.maximum(seen[..., 2:], 1e-6)
    inside = ((pixels >= 0) & (pixels < _SIZE)).all(-1).mean()
    if inside < 0.5:
        raise source.damaged(
            f"{folder}_K.json",
            "cameras that see the joints",
            f"only {inside:.0%} of the joints fall into the pictures (version 1 of the "
            "data set had wrong cameras)",
        )


def _picture(split: str, number: int) -> str:
    return f"{_FOLDERS[split]}/rgb/{number:08d}.jpg"


def example(
    source: DownloadedFiles, index: Index, row: int, models: HandModels
) -> dict[str, Any]:
    """Return one picture with the annotation of its frame."""
    columns = index.columns
    frame = row % len(columns["K"])
    name = _picture(index.split, row)
    picture = source.picture(name)
    K = columns["K"][frame]
    fields: dict[str, Any] = {"key": name, "is_right": True}
    joints2d, box = (
        np.zeros((21, 3)),
        (np.full(2, (_SIZE - 1) / 2), np.full(2, _BOX_PX)),
    )
    if "xyz" in columns:
        joints3d = np.column_stack([columns["xyz"][frame], np.ones(21)])
        joints2d = pictures.projected(joints3d, K)
        box = pictures.tight_box(joints2d)
        fields["joints3d"] = joints3d
    if "verts" in columns:
        fields["vertices"] = columns["verts"][frame]
    if "mano" in columns:
        fields |= _mano(columns, frame, models)
    return fields | pictures.fields(picture, joints2d=joints2d, box=box, K=K)


def _mano(
    columns: dict[str, np.ndarray], frame: int, models: HandModels
) -> dict[str, Any]:
    """Return pose and shape; the place of the hand follows from the mesh.

    The file's own placement (two pixels and a scale) is a weak perspective, which is
    less exact.
    """
    numbers = columns["mano"][frame, 0]
    fields = conventions.parameters(
        "freihand",
        models.right,
        is_right=True,
        pose=numbers[:48],
        betas=numbers[48:58],
    )
    if models.right is not None and "verts" in columns:
        pose = fields["mano_pose"].reshape(16, 3)
        posed = numpy_skinning.posed(models.right, pose, fields["mano_betas"])
        fields["mano_transl"] = (columns["verts"][frame] - posed).mean(axis=0)
    return fields
