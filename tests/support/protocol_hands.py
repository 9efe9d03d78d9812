"""Hands in front of a camera and guesses at them, for tests of benchmarks."""

import json

import numpy as np
from scipy.spatial.transform import Rotation

from handjax.mano import model_files


def hands(count, seed=0):
    """Joints (count, 21, 3) and vertices (count, 778, 3): metres, OpenCV axes."""
    rng, file = np.random.default_rng(seed), model_files.load()
    betas = rng.normal(0, 1, (count, file.shapedirs.shape[-1]))
    shaped = file.v_template + np.einsum("vxb,nb->nvx", file.shapedirs, betas)
    turned = shaped @ Rotation.random(count, random_state=seed).as_matrix()
    away = rng.uniform([-0.1, -0.1, 0.5], [0.1, 0.1, 0.9], (count, 1, 3))
    joints3d = np.einsum("jv,nvx->njx", model_files.joint_regressor(file), turned)
    return joints3d + away, turned + away


def guesses(points, seed=1, noise=0.006):
    """Points off by some millimetres each, hands by centimetres, turned and scaled."""
    rng = np.random.default_rng(seed)
    count = len(points)
    R = Rotation.from_rotvec(rng.normal(0, 0.1, (count, 3))).as_matrix()
    middle = points.mean(axis=1, keepdims=True)
    moved = (points - middle) @ R * rng.uniform(0.9, 1.1, (count, 1, 1)) + middle
    moved = moved + rng.normal(0, 0.01, (count, 1, 3))
    return moved + rng.normal(0, noise, points.shape)


def write_lists(folder, joints3d, vertices):
    """Ground truth as FreiHAND and HO3D publish it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, points in (("xyz", joints3d), ("verts", vertices)):
        text = json.dumps(np.asarray(points).tolist())
        (folder / f"evaluation_{name}.json").write_text(text)


def write_pred(path, joints3d, vertices):
    """pred.json, every digit of it."""
    lists = [[np.asarray(x).tolist() for x in part] for part in (joints3d, vertices)]
    path.write_text(json.dumps(lists))
    return path
