"""Miniatures of HO-3D v2, v3 and H2O-3D: their files, fields, types and axes.

Python 2 pickles of numpy arrays, texts and None; OpenGL axes; MANO's joint order; the
second training frame of each sequence is not annotated; evaluation frames have the
wrist and boxes.
"""

import json
from pathlib import Path

import numpy as np
import python2_pickle

from handjax.geometry import skeleton
from handjax.mano.numpy_skinning import axis_angle_to_matrix

from . import hands

WIDTH, HEIGHT = 640, 480
SEQUENCES = {"train": ("ABF10", "SMu1"), "evaluation": ("AP10",)}
OPENGL = np.diag([1.0, -1.0, -1.0])
TO_MANO = np.argsort(skeleton.MANO_TO_JOINTS)


def make(root: Path, *, suffix: str, two_hands: bool, ground_truth: bool = False):
    """Write the files.

    Returns:
        {"train": [...], "evaluation": [...]}: of each frame its hands, [] where it is
        not annotated.
    """
    made: dict[str, list[list[hands.Posed]]] = {"train": [], "evaluation": []}
    for folder, sequences in SEQUENCES.items():
        lines = []
        for number, sequence in enumerate(sequences):
            for kind in ("rgb", "depth", "seg", "meta"):
                (root / folder / sequence / kind).mkdir(parents=True)
            for frame in range(2):
                lines.append(f"{sequence}/{frame:04d}")
                seed = 10 * number + frame + (100 if folder == "evaluation" else 0)
                posed = _hands(seed, two_hands)
                K = hands.camera(WIDTH, HEIGHT, 610.0)
                image = hands.picture(posed, K, WIDTH, HEIGHT, seed=seed)
                annotated = folder == "evaluation" or frame == 0
                meta = _meta(posed, K, annotated, folder, two_hands)
                stem = root / folder / sequence
                picture = hands.encoded(image, "PNG" if suffix == ".png" else "JPEG")
                (stem / "rgb" / f"{frame:04d}{suffix}").write_bytes(picture)
                content = python2_pickle.dumps(meta)
                (stem / "meta" / f"{frame:04d}.pkl").write_bytes(content)
                made[folder].append(posed if annotated else [])
        (root / f"{folder}.txt").write_text("\n".join(lines) + "\n")
    if ground_truth:
        posed = [frame[0] for frame in made["evaluation"]]
        xyz = [(h.joints3d[TO_MANO] @ OPENGL).tolist() for h in posed]
        verts = [(h.vertices @ OPENGL).tolist() for h in posed]
        (root / "evaluation_xyz.json").write_text(json.dumps(xyz))
        (root / "evaluation_verts.json").write_text(json.dumps(verts))
    return made


def _hands(seed: int, two_hands: bool) -> list[hands.Posed]:
    right = hands.posed(seed, place=(-0.06, 0.02, 0.5))
    if not two_hands:
        return [right]
    left = hands.posed(seed, is_right=False, place=(0.09, -0.01, 0.55))
    # Both hands of a person have one shape.
    return [right, hands.reshaped(left, right.betas)]


def _meta(posed, K, annotated, folder, two_hands) -> dict:
    meta = {
        "objRot": np.zeros((3, 1)),
        "objTrans": np.zeros(3),
        "objName": "021_bleach_cleanser",
        "objLabel": 12,
        "objCorners3D": np.zeros((8, 3)),
        "objCorners3DRest": np.zeros((8, 3)),
        "camMat": K,
        "handBeta": posed[0].betas,
    }
    for hand in posed:
        prefix = "hand"
        if two_hands:
            prefix = "rightHand" if hand.is_right else "leftHand"
        joints = (hand.joints3d @ OPENGL)[TO_MANO]
        if folder == "train":
            pose, transl = opengl_parameters(hand)
            meta |= {
                f"{prefix}Joints3D": joints,
                f"{prefix}Pose": pose,
                f"{prefix}Trans": transl,
            }
        else:
            pixels = hands.project(hand.joints3d, K)
            box = [*(pixels.min(0) - 5).tolist(), *(pixels.max(0) + 5).tolist()]
            meta |= {f"{prefix}Joints3D": joints[0], f"{prefix}BoundingBox": box}
    if not annotated:
        given = ("camMat", "objName", "objLabel")
        meta = {key: value if key in given else None for key, value in meta.items()}
    return meta


def opengl_parameters(hand: hands.Posed) -> tuple[np.ndarray, np.ndarray]:
    """Pose and translation that make the same hand in OpenGL axes.

    The annotated hand is x = R (p - w) + w + t, with the rest wrist w.
    """
    from scipy.spatial.transform import Rotation

    file = hands.FILES[hand.is_right]
    wrist = (file.J_regressor @ (file.v_template + file.shapedirs @ hand.betas))[0]
    pose = hand.pose.copy()
    R = axis_angle_to_matrix(hand.pose[:3])
    pose[:3] = Rotation.from_matrix(OPENGL @ R).as_rotvec()
    return pose, OPENGL @ (wrist + hand.transl) - wrist
