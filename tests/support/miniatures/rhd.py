"""A miniature of the Rendered Handpose Dataset: PNG pictures, masks, a pickle.

Left hand before right one, each finger from its tip. In the second picture of each set
the right hand is all but hidden.
"""

from pathlib import Path

import numpy as np
import python2_pickle

from handjax.geometry.skeleton import ORDERS

from . import hands

SIZE = 320
FROM_JOINTS = np.argsort(ORDERS["rhd"])


def make(root: Path, *, count: int = 2):
    """Write the files; returns {picture path: (left hand, right hand)}."""
    made = {}
    for folder, seed in (("training", 0), ("evaluation", 50)):
        annotations = {}
        for kind in ("color", "mask", "depth"):
            (root / folder / kind).mkdir(parents=True)
        for number in range(count):
            left = hands.posed(seed + number, is_right=False, place=(0.06, 0, 0.6))
            right = hands.posed(seed + number, place=(-0.07, 0.01, 0.6))
            K = hands.camera(SIZE, SIZE, 300.0)
            joints = np.concatenate(
                [left.joints3d[FROM_JOINTS], right.joints3d[FROM_JOINTS]]
            ).astype(np.float32)
            visible = np.ones(42)
            hidden = number == 1
            visible[21 if hidden else 40 : 38 if hidden else 42] = 0
            pixels = hands.project(joints, K)
            annotations[number] = {
                "uv_vis": np.column_stack([pixels, visible]).astype(np.float32),
                "xyz": joints,
                "K": K.astype(np.float32),
            }
            color = hands.picture([left] if hidden else [left, right], K, SIZE, SIZE)
            mask = _mask(pixels, hidden)
            name = f"{number:05d}.png"
            (root / folder / "color" / name).write_bytes(hands.encoded(color, "PNG"))
            (root / folder / "mask" / name).write_bytes(hands.encoded(mask, "PNG"))
            depth = np.stack([mask * 0 + 1, mask * 0 + 60, mask * 0], -1)
            (root / folder / "depth" / name).write_bytes(hands.encoded(depth, "PNG"))
            made[f"{folder}/color/{name}"] = (left, right)
        path = root / folder / f"anno_{folder}.pickle"
        path.write_bytes(python2_pickle.dumps(annotations))
    return made


def _mask(pixels: np.ndarray, hidden: bool) -> np.ndarray:
    """1 for the person; 2 to 17 around the left joints, 18 to 33 the right ones."""
    mask = np.ones((SIZE, SIZE), np.uint8)
    mask[:10] = 0
    for joint, (x, y) in enumerate(pixels.round().astype(int).tolist()):
        # The right hand is drawn larger, so that it wins where it is seen.
        half = 2 if joint < 21 else 3
        if joint < 21 or not (hidden and joint > 24):
            rows, columns = slice(y - half, y + half), slice(x - half, x + half)
            mask[rows, columns] = (2 if joint < 21 else 18) + joint % 21 % 16
    return mask
