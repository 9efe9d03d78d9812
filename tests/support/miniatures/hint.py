"""A miniature of HInt: a right and a left hand in each folder; Ego4D without frames,
but for one in TEST_ego4d_seq."""

import json
from pathlib import Path

import numpy as np

from . import hands

WIDTH, HEIGHT = 456, 256
FOLDERS = (
    *(
        f"{part}_{kind}_img"
        for part in ("TRAIN", "VAL", "TEST")
        for kind in ("newdays", "epick", "ego4d")
    ),
    *("VAL_ego4d_seq", "TEST_ego4d_seq"),
)
_PREFIX = {"newdays": "ND_", "epick": "EK_", "ego4d": "9d6a1b2c_"}


def make(root: Path):
    """Write the files; returns {picture path: (hand, occlusion flags)}."""
    made = {}
    K = hands.camera(WIDTH, HEIGHT, 500.0)
    for number, folder in enumerate(FOLDERS):
        (root / folder).mkdir(parents=True)
        for is_right in (True, False):
            hand = hands.posed(number, is_right=is_right, place=(0.02, 0, 0.7))
            prefix = _PREFIX[folder.split("_")[1]]
            path = root / folder / f"{prefix}{number:04d}_{'r' if is_right else 'l'}"
            pixels = hands.project(hand.joints3d, K)
            low, high = pixels.min(0) - 4, pixels.max(0) + 4
            hidden = (np.arange(21) % 5 == number % 5).astype(int)
            content = [
                {
                    "keypoints": pixels.tolist(),
                    "occlusion": hidden.tolist(),
                    "bbox": [[*low.tolist(), *high.tolist()]],
                }
            ]
            path.with_suffix(".json").write_text(json.dumps(content))
            if "ego4d" not in folder or (folder == "TEST_ego4d_seq" and is_right):
                photo = hands.picture([hand], K, WIDTH, HEIGHT)
                path.with_suffix(".jpg").write_bytes(hands.encoded(photo))
                made[f"{folder}/{path.name}.jpg"] = hand, hidden
    return made
