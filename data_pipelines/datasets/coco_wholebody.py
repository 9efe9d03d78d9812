"""COCO-WholeBody: hands in everyday photos, in 2-D.

    coco_wholebody_{train,val}_v1.0.json        here or in annotations/
    {train,val}2017/000000000139.jpg            of COCO 2017

Annotations of COCO's people have for each hand a box, 21 points and whether the hand is
annotated at all. The third number of a point is a score between 0 and 1 more often than
COCO's 0, 1, 2; it is kept as confidence, and thresholds are the reader's.
"""

from collections import Counter
from typing import Any

import numpy as np

from data_pipelines.sources import conventions, pictures
from data_pipelines.sources.conventions import HandModels
from data_pipelines.sources.description import Archive, Builder, Index, text
from data_pipelines.sources.reading import DownloadedFiles, SourceError

BUILDER = Builder(
    name="coco_wholebody",
    title="COCO-WholeBody v1.0",
    url="https://github.com/jin-s13/COCO-WholeBody",
    licence="CC BY-NC 4.0 (annotations), photos under the terms of Flickr; cite Jin et "
    "al., ECCV 2020",
    download="""\
1. Download coco_wholebody_train_v1.0.json and coco_wholebody_val_v1.0.json by the links
   of the page above, and train2017.zip and val2017.zip from https://cocodataset.org.
2. Put all into one directory, DIR, unpacked, so that there are DIR/train2017 and
   DIR/coco_wholebody_train_v1.0.json.
3. python -m data_pipelines.prepare coco_wholebody --source DIR --out OUT""",
    archives=(
        Archive("train2017.zip", ("train2017*",), "https://cocodataset.org"),
        Archive("val2017.zip", ("val2017*",), "https://cocodataset.org"),
        Archive("the annotations of COCO-WholeBody", ("*coco_wholebody_*.json",)),
    ),
    splits={"train": 78_666, "val": 0},
)

_SIDES = {True: "righthand", False: "lefthand"}


def index(source: DownloadedFiles, split: str) -> Index:
    """Collect the hands that are annotated."""
    file = f"coco_wholebody_{split}_v1.0.json"
    path = source.first(file, f"annotations/{file}")
    dropped: Counter[str] = Counter()
    photos, points, boxes, rows = [], [], [], []
    try:
        names = {
            image["id"]: image["file_name"]
            for image in source.json_elements(path, "images", "photos")
        }
        for person in source.json_elements(path, "annotations", "people"):
            for is_right, hand in _SIDES.items():
                joints = np.array(person[f"{hand}_kpts"], np.float64).reshape(21, 3)
                if not person[f"{hand}_valid"]:
                    dropped["not annotated"] += 1
                elif not (joints[:, 2] > 0).any():
                    dropped["no joint is known"] += 1
                else:
                    photos.append(names[person["image_id"]])
                    points.append(joints)
                    boxes.append(np.array(person[f"{hand}_box"], np.float64))
                    rows.append((person["id"], is_right))
    except SourceError:
        raise
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        what = "people with lefthand_kpts, lefthand_box, lefthand_valid"
        raise source.damaged(path, what, f"{error!r}") from None
    columns = {
        "photo": text(photos),
        "points": np.array(points).reshape(-1, 21, 3),
        "box": np.array(boxes).reshape(-1, 4),
        "row": np.array(rows, np.int64).reshape(-1, 2),
    }
    return Index(split, len(photos), columns, dict(dropped))


def example(
    source: DownloadedFiles, index: Index, row: int, models: HandModels
) -> dict[str, Any]:
    """Return one hand of one person."""
    del models  # there is no MANO
    columns = index.columns
    person, is_right = columns["row"][row].tolist()
    points = conventions.to_joints("coco_wholebody", columns["points"][row])
    pixels = conventions.to_pixels("coco_wholebody", points[:, :2])
    joints2d = np.column_stack([pixels, points[:, 2].clip(0, 1)])
    x, y, width, height = columns["box"][row].tolist()
    if width > 0 and height > 0:
        size = np.array([width, height])
        box = np.array([x, y]) + (size - 1) / 2, size
    else:
        box = pictures.tight_box(joints2d)
    name = f"{index.split}2017/{columns['photo'][row].decode()}"
    placed = pictures.fields(source.picture(name, box), joints2d=joints2d, box=box)
    side = "right" if is_right else "left"
    return {"key": f"{name}#{person} {side}", "is_right": bool(is_right), **placed}
