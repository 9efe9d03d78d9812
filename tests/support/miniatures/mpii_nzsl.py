"""A miniature of CMU's hand_labels and hand_labels_synth.

One photo with both hands, as _l and as _r; a point that is not known; a hand without
any known point; rendered pictures without a suffix.
"""

import json
from pathlib import Path

import numpy as np

from . import hands

WIDTH, HEIGHT = 640, 360


def make(root: Path):
    """Write the files; returns {picture path: its hand}."""
    made = {}
    K = hands.camera(WIDTH, HEIGHT, 600.0)
    for number, folder in enumerate(("manual_train", "manual_test")):
        right = hands.posed(number, place=(-0.1, 0, 0.8))
        left = hands.posed(number, is_right=False, place=(0.1, 0, 0.8))
        photo = hands.encoded(hands.picture([right, left], K, WIDTH, HEIGHT))
        for hand, suffix in ((right, "r"), (left, "l")):
            path = root / f"hand_labels/{folder}/000015774_01_{suffix}.jpg"
            made[str(path.relative_to(root))] = hand
            _pair(path, photo, _points(hand, K), hand.is_right, mpii=True)
    nothing = root / "hand_labels/manual_train/Berry_roof_story.flv_000053_r.jpg"
    _pair(nothing, photo, np.zeros((21, 3)), True, mpii=False)
    for number in (1, 2, 3, 4):
        hand = hands.posed(number + 5, is_right=number % 2 == 0, place=(0, 0, 0.6))
        image = hands.encoded(hands.picture([hand], K, WIDTH, HEIGHT))
        path = root / f"hand_labels_synth/synth{number}/0001.jpg"
        made[str(path.relative_to(root))] = hand
        _pair(path, image, _points(hand, K), hand.is_right, mpii=False)
    return made


def _points(hand: hands.Posed, K: np.ndarray) -> np.ndarray:
    points = np.column_stack([hands.project(hand.joints3d, K), np.ones(21)])
    points[7] = 0
    return points


def _pair(path: Path, image: bytes, points: np.ndarray, is_right: bool, *, mpii: bool):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image)
    content = {
        "hand_pts": points.tolist(),
        "hand_box_center": points[:, :2].mean(0).tolist(),
        "is_left": float(not is_right),
        "is_mpii": float(mpii),
        "mpii_image": "000015774.jpg" if mpii else "",
        "mpii_annorect_idx": 1.0,
        "head_box": [[1.0, 2.0], [30.0, 40.0]],
        "body_pts": [[0.0, 0.0, 0.0]] * 15,
        "head_size": 46.0,
    }
    path.with_suffix(".json").write_text(json.dumps(content))
