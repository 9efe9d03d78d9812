"""Halpe-FullBody: hands of people in photos of HICO-DET and COCO, in 2-D.

    halpe_train_v1.json     over hico_20160224_det/images/train2015/HICO_train2015_*.jpg
    halpe_val_v1.json       over val2017/*.jpg of COCO 2017

136 points a person: 94 to 114 are the left hand, 115 to 135 the right one, each with 0
(not annotated), 1 (hidden) or 2 (seen). Some people have no points, and some are there
more than once; the first of equal hands is kept.
"""

from collections import Counter
from typing import Any

import numpy as np

from data_pipelines.sources import conventions, pictures
from data_pipelines.sources.conventions import HandModels
from data_pipelines.sources.description import Archive, Builder, Index, text
from data_pipelines.sources.reading import WRONG_VALUES, DownloadedFiles, SourceError
from data_pipelines.storage import schema

BUILDER = Builder(
    name="halpe",
    title="Halpe-FullBody v1",
    url="https://github.com/Fang-Haoshu/Halpe-FullBody",
    licence="no commercial use; photos under the terms of HICO-DET and COCO; cite Li "
    "et al., CVPR 2020",
    download="""\
1. Download halpe_train_v1.json and halpe_val_v1.json by the links of the page above,
   the pictures of HICO-DET (hico_20160224_det.tar.gz) by the same page, and val2017.zip
   from https://cocodataset.org.
2. Put all into one directory, DIR, unpacked, so that there are DIR/halpe_train_v1.json,
   DIR/hico_20160224_det and DIR/val2017.
3. python -m data_pipelines.prepare halpe --source DIR --out OUT""",
    archives=(
        Archive("hico_20160224_det.tar.gz", ("hico_20160224_det*",)),
        Archive("val2017.zip", ("val2017*",), "https://cocodataset.org"),
        Archive("the annotations of Halpe", ("halpe_*.json",)),
    ),
    splits={"train": 34_289, "val": 0},
)

_PHOTOS = {"train": "hico_20160224_det/images/train2015", "val": "val2017"}
_HANDS = {False: slice(94, 115), True: slice(115, 136)}
"""Points of each hand, by `is_right`."""
_HIDDEN = 1


def index(source: DownloadedFiles, split: str) -> Index:
    """Collect the hands that are annotated, each once."""
    path = f"halpe_{split}_v1.json"
    dropped: Counter[str] = Counter()
    known: set[tuple[str, bytes]] = set()
    photos, hands, rows = [], [], []
    try:
        names = {
            image["id"]: image["file_name"]
            for image in source.json_elements(path, "images", "photos")
        }
        for person in source.json_elements(path, "annotations", "people"):
            if not person.get("keypoints"):
                dropped["no points"] += len(_HANDS)
                continue
            points = np.array(person["keypoints"], np.float64).reshape(136, 3)
            photo = names[person["image_id"]]
            for is_right, part in _HANDS.items():
                hand = points[part]
                same = photo, hand.tobytes()
                if not (hand[:, 2] > 0).any():
                    dropped["not annotated"] += 1
                elif same in known:
                    dropped["there already"] += 1
                else:
                    known.add(same)
                    photos.append(photo)
                    hands.append(hand)
                    rows.append((person["id"], is_right))
    except SourceError:
        raise
    except WRONG_VALUES as error:
        what = "people with 136 keypoints"
        raise source.damaged(path, what, f"{error!r}") from None
    columns = {
        "photo": text(photos),
        "points": np.array(hands).reshape(-1, 21, 3),
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
    points = conventions.to_joints("halpe", columns["points"][row])
    pixels = conventions.to_pixels("halpe", points[:, :2])
    annotated = points[:, 2] > 0
    joints2d = np.column_stack([pixels, annotated])
    box = pictures.tight_box(joints2d)
    name = f"{_PHOTOS[index.split]}/{columns['photo'][row].decode()}"
    hidden = np.where(annotated, points[:, 2] == _HIDDEN, schema.UNKNOWN)
    placed = pictures.fields(source.picture(name, box), joints2d=joints2d, box=box)
    return {
        "key": f"{name}#{person} {'right' if is_right else 'left'}",
        "is_right": bool(is_right),
        "occluded": hidden,
        **placed,
    }
