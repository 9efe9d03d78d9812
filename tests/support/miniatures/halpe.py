"""A miniature of Halpe-FullBody v1: its JSON, photos of HICO-DET and COCO.

People: both hands with hidden points; one without keypoints; one whose points are all
zeros; the first one again under another number.
"""

import json
from pathlib import Path

import numpy as np

from . import hands

WIDTH, HEIGHT = 500, 375
FOLDERS = {
    "train": ("hico_20160224_det/images/train2015", "HICO_train2015_00000007.jpg"),
    "val": ("val2017", "000000000785.jpg"),
}


def make(root: Path):
    """Write the files; returns {(split, is_right): 21 x 3 as annotated}."""
    made = {}
    for number, (split, (folder, name)) in enumerate(FOLDERS.items()):
        (root / folder).mkdir(parents=True)
        left = hands.posed(number, is_right=False, place=(0.1, 0, 0.9))
        right = hands.posed(number, place=(-0.12, 0.05, 0.9))
        K = hands.camera(WIDTH, HEIGHT, 600.0)
        photo = hands.picture([left, right], K, WIDTH, HEIGHT)
        (root / folder / name).write_bytes(hands.encoded(photo))
        points = np.zeros((136, 3))
        flags = np.full(21, 2.0)
        flags[3], flags[4] = 1, 0
        for hand, part in ((left, slice(94, 115)), (right, slice(115, 136))):
            annotated = np.column_stack([hands.project(hand.joints3d, K), flags])
            annotated[flags == 0] = 0
            points[part] = made[split, hand.is_right] = annotated
        person = {"image_id": 785, "bbox": [0, 0, 10, 10], "num_keypoints": 3}
        full = person | {"keypoints": points.ravel().tolist()}
        people = [
            full | {"id": 11},
            person | {"id": 12},
            person | {"id": 13, "keypoints": [0.0] * 408},
            full | {"id": 14},
        ]
        images = [{"id": 785, "file_name": name, "width": WIDTH, "height": HEIGHT}]
        content = {"images": images, "annotations": people}
        (root / f"halpe_{split}_v1.json").write_text(json.dumps(content))
    return made
