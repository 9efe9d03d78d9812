"""A miniature of DexYCB: its folders, YAML files and labels.

Two subjects, the first right-handed, with five sequences each; two of the eight
cameras; two frames. PCA poses relative to the mean; the second frame of each first
sequence has no hand: zeros, and joints of -1.
"""

from pathlib import Path

import numpy as np
import yaml

from . import hands

WIDTH, HEIGHT = 640, 480
SUBJECTS = ("20200709-subject-01", "20200813-subject-02")
SERIALS = ("836212060125", "932122062010")
"""The first and the last of the eight."""
ALL_SERIALS = (
    *("836212060125", "839512060362", "840412060917", "841412060263"),
    *("932122060857", "932122060861", "932122061900", "932122062010"),
)


def make(root: Path, *, sequences: int = 5, frames: int = 2):
    """Write the files; returns {picture path: its hand, or None}."""
    made = {}
    for number, serial in enumerate(ALL_SERIALS):
        K = _camera(number)
        color = {"fx": K[0, 0], "fy": K[1, 1], "ppx": K[0, 2], "ppy": K[1, 2]}
        color = {key: float(value) for key, value in color.items()}
        path = root / f"calibration/intrinsics/{serial}_640x480.yml"
        _yaml(path, {"color": color, "depth": color})
    for subject, folder in enumerate(SUBJECTS):
        is_right = subject == 0
        side = "right" if is_right else "left"
        betas = np.random.default_rng(subject).normal(0, 1, 10).round(3)
        calibration = f"{folder}_{side}"
        _yaml(
            root / f"calibration/mano_{calibration}/mano.yml",
            {"betas": betas.tolist()},
        )
        for sequence in range(sequences):
            name = f"{folder[:8]}_{140000 + 11 * sequence}"
            meta = {
                "serials": list(SERIALS),
                "num_frames": frames,
                "ycb_ids": [1, 5],
                "ycb_grasp_ind": 0,
                "mano_sides": [side],
                "mano_calib": [calibration],
                "extrinsics": "20200702_151821",
            }
            _yaml(root / folder / name / "meta.yml", meta)
            np.savez(root / folder / name / "pose.npz", pose_y=0, pose_m=0)
            for camera, serial in enumerate(SERIALS):
                for frame in range(frames):
                    stem = root / folder / name / serial
                    stem.mkdir(exist_ok=True)
                    seed = 1000 * subject + 100 * sequence + 10 * camera + frame
                    hand = None
                    if sequence or not frame:
                        hand = hands.posed(
                            seed, is_right=is_right, place=(0, 0.05, 0.7)
                        )
                        hand = hands.reshaped(hand, betas)
                    K = _camera(ALL_SERIALS.index(serial))
                    image = hands.picture([hand] if hand else [], K, WIDTH, HEIGHT)
                    path = stem / f"color_{frame:06d}.jpg"
                    path.write_bytes(hands.encoded(image))
                    labels = _labels(hand, K)
                    np.savez_compressed(stem / f"labels_{frame:06d}.npz", **labels)
                    made[str(path.relative_to(root))] = hand
    return made


def _camera(number: int) -> np.ndarray:
    return hands.camera(WIDTH, HEIGHT, 600.0 + number)


def _yaml(path: Path, values: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(values))


def _labels(hand: hands.Posed | None, K: np.ndarray) -> dict[str, np.ndarray]:
    labels = {
        "seg": np.zeros((HEIGHT, WIDTH), np.uint8),
        "pose_y": np.zeros((2, 3, 4), np.float32),
        "pose_m": np.zeros((1, 51), np.float32),
        "joint_3d": np.full((1, 21, 3), -1, np.float32),
        "joint_2d": np.full((1, 21, 2), -1, np.float32),
    }
    if hand is not None:
        file = hands.FILES[hand.is_right]
        fingers = hand.pose[3:] - file.hands_mean
        coefficients = np.linalg.solve(file.hands_components.T, fingers)
        numbers = [*hand.pose[:3], *coefficients, *hand.transl]
        labels["pose_m"][0] = numbers
        labels["joint_3d"][0] = hand.joints3d
        labels["joint_2d"][0] = hands.project(hand.joints3d, K)
    return labels
