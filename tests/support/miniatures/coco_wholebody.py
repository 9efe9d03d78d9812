"""A miniature of COCO-WholeBody v1.0: its JSON and photos of 2017.

Three people: both hands; a left hand whose scores are fractions (some low) and a right
one that is not valid (zeros); a hand that is valid without any known joint.
"""

import json
from pathlib import Path

import numpy as np

from . import hands

WIDTH, HEIGHT = 640, 427
SCORES = np.array([0.9, 0.05, 0.29, 0.31, 0.0, *([0.8] * 16)])


def make(root: Path):
    """Write the files; returns {(person, is_right): 21 x 3 as annotated}."""
    made = {}
    for number, split in enumerate(("train", "val")):
        (root / f"{split}2017").mkdir(parents=True)
        images, people = [], []
        for i in range(2):
            left = hands.posed(number * 10 + i, is_right=False, place=(0.1, 0, 0.9))
            right = hands.posed(number * 10 + i, place=(-0.15, 0.05, 0.9))
            K = hands.camera(WIDTH, HEIGHT, 700.0)
            name = f"{139 + 100 * i + number:012d}.jpg"
            photo = hands.picture([left, right], K, WIDTH, HEIGHT)
            (root / f"{split}2017" / name).write_bytes(hands.encoded(photo))
            size = {"width": WIDTH, "height": HEIGHT}
            images.append({"id": 139 + i, "file_name": name, **size})
            person = {
                "id": 1000 + 100 * number + i,
                "image_id": 139 + i,
                "bbox": [0.0, 0.0, float(WIDTH), float(HEIGHT)],
                "keypoints": [0] * 51,
                "foot_kpts": [0.0] * 18,
                "face_kpts": [0.0] * 204,
                "iscrowd": 0,
            }
            scores = np.full(21, 2.0) if i == 0 else SCORES
            person |= _hand("lefthand", left, K, scores)
            made[person["id"], False] = np.array(person["lefthand_kpts"]).reshape(21, 3)
            if i == 0:
                person |= _hand("righthand", right, K, np.ones(21))
                made[person["id"], True] = np.array(person["righthand_kpts"]).reshape(
                    21, 3
                )
            else:
                person |= _nothing("righthand", valid=False)
            people.append(person)
        people.append(
            people[0]
            | {"id": 1050 + 100 * number}
            | _nothing("lefthand", valid=True)
            | _nothing("righthand", valid=False)
        )
        content = {"info": {}, "images": images, "annotations": people}
        path = root / f"coco_wholebody_{split}_v1.0.json"
        path.write_text(json.dumps(content))
    return made


def _hand(name: str, hand: hands.Posed, K: np.ndarray, scores: np.ndarray) -> dict:
    pixels = hands.project(hand.joints3d, K)
    points = np.column_stack([pixels, scores])
    points[scores == 0] = 0
    low, high = pixels.min(0), pixels.max(0)
    return {
        f"{name}_kpts": points.ravel().tolist(),
        f"{name}_box": [*low.tolist(), *(high - low).tolist()],
        f"{name}_valid": True,
    }


def _nothing(name: str, *, valid: bool) -> dict:
    return {
        f"{name}_kpts": [0.0] * 63,
        f"{name}_box": [0.0] * 4,
        f"{name}_valid": valid,
    }
