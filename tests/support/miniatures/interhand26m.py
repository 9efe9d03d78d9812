"""A miniature of InterHand2.6M v1.0: its JSON files and pictures, one capture.

Two cameras (one upright and grey), four times: a right hand, two hands, a left hand
without MANO, two hands of which the left one's wrist is not valid (its joints hold
ones). World coordinates, millimetres; MANO in world coordinates, metres, relative to
the mean.
"""

import json
from pathlib import Path

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from handjax.geometry.skeleton import ORDERS

from . import hands

CAPTURE, SEQUENCE = "0", "0390_dh_touchROM"
CAMERAS = {
    "400002": ((512, 334), [0.1, -0.2, 0.05]),
    "410001": ((334, 512), [-0.2, 0.3, 1.4]),
}
"""Size and rotation vector of each; both look at `TARGET` from `DISTANCE`."""
TARGET, DISTANCE = np.array([0.0, 0.02, 0.35]), 0.85
FRAMES = {
    "7753": ("right", True),
    "7756": ("interacting", True),
    "7759": ("left", True),
    "7762": ("interacting", False),
}
"""Type of hands, and whether the left wrist is valid."""
FROM_JOINTS = np.argsort(ORDERS["interhand"])


def make(root: Path, split: str = "train", *, copies: int = 1, noise: float = 0.0):
    """Write the files; returns {(frame, is_right): the hand in world coordinates}.

    Args:
        root: Where to.
        split: Of the data set.
        copies: Of the four times, under further frame numbers (for measurements).
        noise: Of the pictures.
    """
    times = {
        str(int(frame) + 12 * copy): what
        for copy in range(copies)
        for frame, what in FRAMES.items()
    }
    drawn: dict[tuple[int, str], bytes] = {}
    annotations = root / "annotations" / split
    annotations.mkdir(parents=True)
    posed, joints, fits = {}, {}, {}
    for number, (frame, (kind, valid)) in enumerate(times.items()):
        world = np.ones((42, 3))
        known = np.zeros((42, 1), int)
        fits[frame] = {"right": None, "left": None}
        for is_right in (True, False):
            if kind not in ("interacting", "right" if is_right else "left"):
                continue
            x = -0.06 if is_right else 0.08
            hand = hands.posed(number % 4, is_right=is_right, place=(x, 0.02, 0.35))
            rows = slice(0, 21) if is_right else slice(21, 42)
            if is_right or valid:
                posed[frame, is_right] = hand
                world[rows] = hand.joints3d[FROM_JOINTS] * 1000
                known[rows] = 1
            if number % 4 != 2:
                side = "right" if is_right else "left"
                fits[frame][side] = _fit(hand)
        joints[frame] = {
            "world_coord": world.tolist(),
            "joint_valid": known.tolist(),
            "hand_type": kind,
            "hand_type_valid": 1,
        }
    for frame in list(fits)[3::4]:  # most frames have no fit
        del fits[frame]
    images, entries = [], []
    for number, frame in enumerate(times):
        for camera in CAMERAS:
            sides = [side for side in (True, False) if (frame, side) in posed]
            shown = [posed[frame, side] for side in sides]
            name = f"Capture{CAPTURE}/{SEQUENCE}/cam{camera}/image{frame}.jpg"
            path = root / "images" / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if (number % 4, camera) not in drawn:
                drawn[number % 4, camera] = _picture(camera, shown, noise)
            path.write_bytes(drawn[number % 4, camera])
            width, height = CAMERAS[camera][0]
            images.append(
                {
                    "id": 100 + len(images),
                    "file_name": name,
                    "width": width,
                    "height": height,
                    "capture": int(CAPTURE),
                    "subject": 0,
                    "seq_name": SEQUENCE,
                    "camera": camera,
                    "frame_idx": int(frame),
                }
            )
            entries.append(
                {
                    "id": len(entries),
                    "image_id": images[-1]["id"],
                    "bbox": [1.0, 2.0, 300.0, 200.0],
                    "joint_valid": joints[frame]["joint_valid"],
                    "hand_type": times[frame][0],
                    "hand_type_valid": 1,
                }
            )
    cameras = {"campos": {}, "camrot": {}, "focal": {}, "princpt": {}}
    for camera in CAMERAS:
        (R, position), K = extrinsics(camera), intrinsics(camera)
        cameras["campos"][camera] = (position * 1000).tolist()
        cameras["camrot"][camera] = R.tolist()
        cameras["focal"][camera] = K[[0, 1], [0, 1]].tolist()
        cameras["princpt"][camera] = K[:2, 2].tolist()
    files = {
        # Annotations are not in the order of the pictures.
        "data": {"images": images, "annotations": entries[::-1]},
        "camera": {CAPTURE: cameras},
        "joint_3d": {CAPTURE: joints},
        "MANO_NeuralAnnot": {CAPTURE: fits},
    }
    for kind, content in files.items():
        path = annotations / f"InterHand2.6M_{split}_{kind}.json"
        path.write_text(json.dumps(content))
    return posed


def extrinsics(camera: str) -> tuple[np.ndarray, np.ndarray]:
    """Rotation, and position in metres."""
    R = Rotation.from_rotvec(CAMERAS[camera][1]).as_matrix()
    return R, TARGET - DISTANCE * R[2]


def intrinsics(camera: str) -> np.ndarray:
    return hands.camera(*CAMERAS[camera][0], 800.0)


def seen_from(camera: str, points: np.ndarray) -> np.ndarray:
    R, position = extrinsics(camera)
    return (points - position) @ R.T


def _picture(camera: str, shown: list[hands.Posed], noise: float) -> bytes:
    size = CAMERAS[camera][0]
    moved = [hand._replace(vertices=seen_from(camera, hand.vertices)) for hand in shown]
    image = hands.picture(moved, intrinsics(camera), *size, noise=noise)
    if camera.startswith("41"):
        image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return hands.encoded(image)


def _fit(hand: hands.Posed) -> dict[str, list[float]]:
    pose = hand.pose.copy()
    pose[3:] -= hands.FILES[hand.is_right].hands_mean
    return {
        "pose": pose.tolist(),
        "shape": hand.betas.tolist(),
        "trans": hand.transl.tolist(),
    }
