"""A miniature of FreiHAND v2: its files, names, shapes and units; open hands.

training/rgb/%08d.jpg        224 x 224, frames x 4 backgrounds, number = frame + v * N
training/mask/%08d.jpg       of the first N only
training_{K,xyz,verts,scale,mano}.json     lists of N; mano is N x 1 x 61:
                             48 pose relative to the mean, 10 shape, 2 pixels of the
                             root (joint 9), scale of a weak perspective
evaluation/rgb, evaluation_{K,scale}.json, and in the later archive
evaluation_{xyz,verts,mano}.json
"""

import json
from pathlib import Path

import numpy as np

from . import hands

SIZE = 224
ROOT = 9


def make(root: Path, *, frames: int = 3, test: int = 2, ground_truth: bool = True):
    """Write the files; returns the hands of the training and of the test frames."""
    made = {}
    for folder, count, seed in (("training", frames, 0), ("evaluation", test, 100)):
        (root / folder / "rgb").mkdir(parents=True)
        posed = [hands.posed(seed + i, place=(0.01, -0.02, 0.6)) for i in range(count)]
        cameras = [hands.camera(SIZE, SIZE, 480.0 + i) for i in range(count)]
        versions = 4 if folder == "training" else 1
        for version in range(versions):
            for i, (hand, K) in enumerate(zip(posed, cameras, strict=True)):
                image = hands.picture([hand], K, SIZE, SIZE, seed=10 * version + i)
                path = root / folder / "rgb" / f"{version * count + i:08d}.jpg"
                path.write_bytes(hands.encoded(image))
        if folder == "training":
            (root / folder / "mask").mkdir()
            for i in range(count):
                mask = hands.encoded(np.zeros((SIZE, SIZE), np.uint8))
                (root / folder / "mask" / f"{i:08d}.jpg").write_bytes(mask)
        lists = {
            "K": [K.tolist() for K in cameras],
            "scale": [
                float(np.linalg.norm(h.joints3d[9] - h.joints3d[10])) for h in posed
            ],
        }
        if ground_truth or folder == "training":
            lists |= {
                "xyz": [h.joints3d.tolist() for h in posed],
                "verts": [h.vertices.tolist() for h in posed],
                "mano": [[mano_row(h, K)] for h, K in zip(posed, cameras, strict=True)],
            }
        for kind, values in lists.items():
            (root / f"{folder}_{kind}.json").write_text(json.dumps(values))
        made[folder] = posed
    return made["training"], made["evaluation"]


def mano_row(hand: hands.Posed, K: np.ndarray) -> list[float]:
    pose = hand.pose.copy()
    pose[3:] -= hands.FILES[True].hands_mean
    x, y, z = hand.joints3d[ROOT]
    scale = (K[0, 0] + K[1, 1]) / 2 / z
    uv = K[:2, 2] + scale * np.array([x, y])
    return [*pose.tolist(), *hand.betas.tolist(), *uv.tolist(), float(scale)]
