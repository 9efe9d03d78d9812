"""Hands of MPII and of New Zealand Sign Language, by hand and rendered, in 2-D.

    hand_labels/manual_train/<name>_l.jpg and .json     1,912 pairs
    hand_labels/manual_test/...                         846
    hand_labels_synth/synth1/ ... synth4/               14,261, without _l and _r

A JSON file has hand_pts (21 x 3: x, y, whether the point is known) and is_left; a photo
with two hands is there twice, as _l and as _r.
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
    name="mpii_nzsl",
    title="MPII+NZSL hands (CMU hand_labels)",
    url="http://domedb.perception.cs.cmu.edu/handdb.html",
    licence="no commercial use; cite Simon et al., CVPR 2017",
    download="""\
1. Download hand_labels.zip, and hand_labels_synth.zip for the split "synth", from the
   page above.
2. Unpack them into one directory, DIR, so that there are DIR/hand_labels and
   DIR/hand_labels_synth.
3. python -m data_pipelines.prepare mpii_nzsl --source DIR --out OUT
   HaMeR trained on both kinds: --split train --split synth --split test.""",
    archives=(
        Archive("hand_labels_synth.zip", ("hand_labels_synth*",)),
        Archive("hand_labels.zip", ("hand_labels/*",)),
    ),
    splits={"train": 1_912, "synth": 14_261, "test": 846},
    default_splits=("train", "test"),
)

_FOLDERS = {
    "train": ("hand_labels/manual_train",),
    "test": ("hand_labels/manual_test",),
    "synth": tuple(f"hand_labels_synth/synth{number}" for number in (1, 2, 3, 4)),
}


def index(source: DownloadedFiles, split: str) -> Index:
    """List the annotation files."""
    names = [
        f"{folder}/{name}"
        for folder in _FOLDERS[split]
        for name in source.names(folder, "*.json", "pairs of .jpg and .json")
    ]
    return Index(split, len(names), {"name": text(names)})


def example(
    source: DownloadedFiles, index: Index, row: int, models: HandModels
) -> dict[str, Any]:
    """Return the hand of one file."""
    del models  # there is no MANO
    path = index.columns["name"][row].decode()
    content, what = source.json(path, "hand_pts and is_left"), "hand_pts (21 x 3)"
    try:
        points = np.array(content["hand_pts"], np.float64).reshape(21, 3)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise source.damaged(path, what, f"{error!r}") from None
    stem = path.removesuffix(".json")
    if "is_left" in content:
        is_right = not content["is_left"]
    elif stem[-2:] in ("_l", "_r"):
        is_right = stem.endswith("_r")
    else:
        raise source.damaged(path, "is_left, or a name with _l or _r", "it has none")
    points = conventions.to_joints("mpii_nzsl", points)
    pixels = conventions.to_pixels("mpii_nzsl", points[:, :2])
    joints2d = np.column_stack([pixels, points[:, 2] > 0])
    if not joints2d[:, 2].any():
        raise DroppedError("no joint is known")
    box, name = pictures.tight_box(joints2d), f"{stem}.jpg"
    placed = pictures.fields(source.picture(name, box), joints2d=joints2d, box=box)
    return {"key": name, "is_right": is_right, **placed}
