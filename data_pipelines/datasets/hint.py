"""HInt: hands in the wild with their hidden joints, in 2-D.

    TEST_newdays_img/ND_<name>_r.jpg and .json      of New Days (100DOH)
    TEST_epick_img/EK_..., of VISOR (EPIC-KITCHENS)
    TEST_ego4d_img/..., TEST_ego4d_seq/..., of Ego4D: the frames are the user's to cut
    and the same for TRAIN_ and VAL_ (no TRAIN_ego4d_seq)

A JSON file is a list of one dict: keypoints (21 x 2), occlusion (1 where a joint is
hidden), bbox ([[x1, y1, x2, y2]]). Records keep the flags, so that "all", "visible" and
"occluded" are the scorer's choice of joints.
"""

from typing import Any

import numpy as np

from data_pipelines.sources import conventions, pictures
from data_pipelines.sources.conventions import HandModels
from data_pipelines.sources.description import Archive, Builder, Index, text
from data_pipelines.sources.reading import DownloadedFiles

_COUNTS = {
    **{"train_newdays": 9_666, "train_visor": 2_780, "train_ego4d": 11_652},
    **{"val_newdays": 550, "val_visor": 625, "val_ego4d": 514},
    **{"val_ego4d_seq": 2_320, "test_newdays": 1_754, "test_visor": 1_906},
    **{"test_ego4d": 1_714, "test_ego4d_seq": 6_953},
}
BUILDER = Builder(
    name="hint",
    title="HInt",
    url="https://github.com/ddshan/hint",
    licence="annotations MIT; pictures no commercial use, Ego4D's under its own "
    "licence; cite Pavlakos et al., CVPR 2024",
    download="""\
1. Download HInt_annotation_partial.zip (New Days and VISOR with pictures, Ego4D
   without) by the link of the page above.
2. Unpack it; DIR is the directory with TRAIN_newdays_img, TEST_epick_img and so on.
3. For Ego4D: get its videos under its licence, cut the frames as the page says, and put
   them beside their JSON files.
4. python -m data_pipelines.prepare hint --source DIR --out OUT
   and with Ego4D's frames --split test_ego4d and so on.""",
    archives=(Archive("HInt_annotation_partial.zip", ("T*", "VAL*")),),
    splits=_COUNTS,
    default_splits=tuple(name for name in _COUNTS if "ego4d" not in name),
)

_SUBSETS = {"newdays": "newdays_img", "visor": "epick_img", "ego4d": "ego4d_img"}


def folder(split: str) -> str:
    """Return the folder of a split."""
    part, subset = split.split("_", 1)
    return f"{part.upper()}_{_SUBSETS.get(subset, subset)}"


def index(source: DownloadedFiles, split: str) -> Index:
    """List the annotations that have a picture."""
    names = source.names(folder(split), "*.json", "pairs of .jpg and .json")
    stems = [f"{folder(split)}/{name.removesuffix('.json')}" for name in names]
    there = [stem for stem in stems if source.has(f"{stem}.jpg")]
    missing = len(stems) - len(there)
    if missing and "ego4d" not in split:
        first = next(stem for stem in stems if not source.has(f"{stem}.jpg"))
        raise source.missing(f"{first}.jpg", "the picture of an annotation")
    dropped = {"no picture: cut it from Ego4D's video": missing} if missing else {}
    return Index(split, len(there), {"stem": text(there)}, dropped)


def example(
    source: DownloadedFiles, index: Index, row: int, models: HandModels
) -> dict[str, Any]:
    """Return the hand of one file."""
    del models  # there is no MANO
    stem = index.columns["stem"][row].decode()
    path, what = f"{stem}.json", "a list of {keypoints, occlusion, bbox}"
    content = source.json(path, what)
    try:
        (content,) = content
        points = np.array(content["keypoints"], np.float64).reshape(21, 2)
        hidden = np.array(content["occlusion"], np.int64).reshape(21)
        low, high = np.array(content["bbox"], np.float64).reshape(2, 2)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise source.damaged(path, what, f"{error!r}") from None
    if stem[-2:] not in ("_l", "_r"):
        raise source.damaged(path, "a name that ends with _l or _r", "it does not")
    points = conventions.to_pixels("hint", conventions.to_joints("hint", points))
    joints2d = np.column_stack([points, np.ones(21)])
    box, name = ((low + high) / 2, high - low), f"{stem}.jpg"
    placed = pictures.fields(source.picture(name, box), joints2d=joints2d, box=box)
    return {
        "key": name,
        "is_right": stem.endswith("_r"),
        "occluded": conventions.to_joints("hint", hidden > 0),
        **placed,
    }
