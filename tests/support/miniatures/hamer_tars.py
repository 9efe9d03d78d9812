"""A miniature of HaMeR's training tars: two tars, three samples, jpg and png.

The first sample has two hands and masks; the second is a PNG whose hand has a bad fit;
the third has 2-D points alone. Poses are absolute; there are no cameras.
"""

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np

from . import hands

WIDTH, HEIGHT = 320, 240


def make(root: Path, *, left: bool = True):
    """Write the tars; returns {key of a record: (hand, dict as stored)}."""
    root.mkdir(parents=True, exist_ok=True)
    K = hands.camera(WIDTH, HEIGHT, 400.0)
    right = hands.posed(1, place=(-0.08, 0, 0.7))
    other = hands.posed(2, is_right=not left, place=(0.09, 0, 0.7))
    single = hands.posed(3, is_right=not left, place=(0, 0, 0.6))
    flat = hands.posed(4, place=(0, 0, 0.6))
    samples = [
        ("000000.tar", "00000000", "jpg", [_hand(right, K), _hand(other, K)]),
        ("000000.tar", "00000001", "png", [_hand(single, K, loss=40000.0)]),
        ("000001.tar", "00001000", "jpg", [_hand(flat, K, only_2d=True)]),
    ]
    shown = [[right, other], [single], [flat]]
    made = {}
    members: dict[str, list[tuple[str, bytes]]] = {}
    for (name, key, kind, stored), posed in zip(samples, shown, strict=True):
        image = hands.picture(posed, K, WIDTH, HEIGHT, seed=len(members))
        data = hands.encoded(image, "PNG" if kind == "png" else "JPEG")
        files = members.setdefault(name, [])
        files.append((f"{key}.{kind}", data))
        files.append((f"{key}.data.pyd", pickle.dumps(stored)))
        if len(stored) > 1:
            buffer = io.BytesIO()
            np.savez_compressed(buffer, masks=np.ones((2, HEIGHT, WIDTH), bool))
            files.append((f"{key}.detection.npz", buffer.getvalue()))
        for i, hand in enumerate(posed):
            made[f"{name}/{key}#{i}"] = hand, stored[i]
    for name, files in members.items():
        with tarfile.open(root / name, "w") as tar:
            for member, data in files:
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return made


def _hand(
    hand: hands.Posed, K: np.ndarray, *, loss: float = 12.5, only_2d: bool = False
) -> dict:
    pixels = hands.project(hand.joints3d, K)
    confidence = np.full(21, 0.9)
    confidence[5] = 0.2
    low, high = pixels.min(0), pixels.max(0)
    known = np.zeros(21) if only_2d else np.ones(21)
    return {
        "keypoints_2d": np.column_stack([pixels, confidence]).astype(np.float32),
        "keypoints_3d": np.column_stack([hand.joints3d, known]).astype(np.float32),
        "center": (low + high) / 2,
        "scale": np.full(2, 2 * (high - low).max() / 200),
        "hand_pose": hand.pose.astype(np.float32) * (not only_2d),
        "betas": hand.betas.astype(np.float32) * (not only_2d),
        "right": np.float32(hand.is_right),
        "has_hand_pose": np.array([float(not only_2d)]),
        "has_betas": float(not only_2d),
        "personid": 0,
        "extra_info": {
            "fitting_loss": {} if only_2d else {"reprojection_loss": np.float64(loss)},
            "detection_npz_idx": 0,
        },
    }
