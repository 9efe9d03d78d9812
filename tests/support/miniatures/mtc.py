"""A miniature of a4_release: annotation.pkl, camera_data.pkl, hdImgs.

Two cameras whose lenses distort; centimetres; t is a column. Of the first frame the
right hand is occluded in the second camera; of the second frame there is only a left
hand, and it overlaps another person in the first camera.
"""

import pickle
from pathlib import Path

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from . import hands

WIDTH, HEIGHT = 1920, 1080
CAMERAS = {
    0: ([0.05, -0.3, 0.02], [10.0, 5, 40], [-0.25, 0.2, 0.001, -0.0008, 0.01]),
    7: ([-0.1, 0.4, 0.1], [-60.0, 12, 50], [-0.2, 0.1, -0.002, 0.001, 0.0]),
}
"""Rotation vector, t in centimetres, distortion of each."""
SEQUENCES = {"training_data": "171026_pose1", "testing_data": "171204_pose5"}


def make(root: Path):
    """Write the files; returns {(sequence, frame, is_right): hand in the world}."""
    made, annotations, cameras = {}, {}, {}
    for group, sequence in SEQUENCES.items():
        annotations[group] = []
        cameras[sequence] = {view: _camera(view) for view in CAMERAS}
        for number in range(2):
            frame = f"{2977 + 100 * number:08d}"
            sample = {"seqName": sequence, "frame_str": frame, "id": number}
            sample["body"] = {"landmarks": [0.0] * 57, "2D": {}}
            for is_right in (False, True):
                if number and is_right:
                    continue
                x = -0.2 if is_right else 0.25
                hand = hands.posed(number, is_right=is_right, place=(x, 0.12, 0.7))
                made[sequence, frame, is_right] = hand
                sample["right_hand" if is_right else "left_hand"] = {
                    "landmarks": (hand.joints3d * 100).ravel().tolist(),
                    "2D": _views(number, is_right),
                }
            annotations[group].append(sample)
            shown = [h for (s, f, _), h in made.items() if (s, f) == (sequence, frame)]
            for view in CAMERAS:
                path = root / f"hdImgs/{sequence}/{frame}/00_{view:02d}_{frame}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(hands.encoded(_photo(view, shown)))
    (root / "annotation.pkl").write_bytes(pickle.dumps(annotations, 2))
    (root / "camera_data.pkl").write_bytes(pickle.dumps(cameras, 2))
    (root / "a4_hands_annotated.txt").write_text("\n".join(SEQUENCES.values()))
    return made


def _views(number: int, is_right: bool) -> dict[int, dict[str, bool]]:
    views = {
        view: {"insideImg": True, "occluded": False, "overlap": False}
        for view in CAMERAS
    }
    if is_right:
        views[7]["occluded"] = True
    if number:
        views[0]["overlap"] = True
    views[12] = {"insideImg": False, "occluded": False, "overlap": False}
    return views


def _camera(view: int) -> dict[str, np.ndarray]:
    R, t = extrinsics(view)
    return {
        "K": intrinsics(),
        "R": R,
        "t": t[:, None] * 100,
        "distCoef": np.array(CAMERAS[view][2]),
    }


def extrinsics(view: int) -> tuple[np.ndarray, np.ndarray]:
    """R and t, metres."""
    turn, t, _ = CAMERAS[view]
    return Rotation.from_rotvec(turn).as_matrix(), np.array(t) / 100


def intrinsics() -> np.ndarray:
    return hands.camera(WIDTH, HEIGHT, 1400.0)


def seen_from(view: int, points: np.ndarray) -> np.ndarray:
    R, t = extrinsics(view)
    return points @ R.T + t


def photographed(view: int, points: np.ndarray) -> np.ndarray:
    """Pixels of the distorted photo, by OpenCV."""
    R, t = extrinsics(view)
    pixels, _ = cv2.projectPoints(
        points, cv2.Rodrigues(R)[0], t, intrinsics(), np.array(CAMERAS[view][2])
    )
    return pixels[:, 0]


def _photo(view: int, shown: list[hands.Posed]) -> np.ndarray:
    """A pinhole's picture, seen through the lens; a white dot on every middle tip."""
    K, distortion = intrinsics(), np.array(CAMERAS[view][2])
    moved = [h._replace(vertices=seen_from(view, h.vertices)) for h in shown]
    straight = hands.picture(moved, K, WIDTH, HEIGHT)
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    pixels = np.stack([x, y], -1).reshape(-1, 1, 2)
    ideal = cv2.undistortPoints(pixels, K, distortion, P=K)
    ideal = ideal.reshape(HEIGHT, WIDTH, 2).astype(np.float32)
    bent = cv2.remap(straight, ideal[..., 0], ideal[..., 1], cv2.INTER_LINEAR)
    for hand in shown:
        tip = photographed(view, hand.joints3d[[12]])[0]
        center = (tip * 16).round().astype(int).tolist()
        cv2.circle(bent, center, 8 * 16, (255, 0, 255), -1, cv2.LINE_AA, shift=4)
    return bent
