"""Posing a hand or body in numpy, for processes that have no use for JAX.

The linear blend skinning of `handjax.mano.hand_model`, one hand at a time, float64.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from handjax.geometry import skeleton
from handjax.mano.model_files import ManoFile


def axis_angle_to_matrix(
    axis_angle: Float[np.ndarray, "*batch 3"],
) -> Float[np.ndarray, "*batch 3 3"]:
    """Compute rotations R = I + sin t K + (1 - cos t) K K (Rodrigues' formula)."""
    angle = np.linalg.norm(axis_angle, axis=-1)[..., None, None]
    x, y, z = np.moveaxis(axis_angle, -1, 0) / np.maximum(angle[..., 0, 0], 1e-12)
    zero = np.zeros_like(x)
    rows = [zero, -z, y, z, zero, -x, -y, x, zero]
    skew = np.stack(rows, -1).reshape(*x.shape, 3, 3)
    return np.eye(3) + np.sin(angle) * skew + (1 - np.cos(angle)) * skew @ skew


def joint_transforms(
    rotations: Float[np.ndarray, "bone 3 3"],
    joints: Float[np.ndarray, "bone 3"],
    parents: Sequence[int] = skeleton.MANO_PARENTS,
) -> tuple[Float[np.ndarray, "bone 3 3"], Float[np.ndarray, "bone 3"]]:
    """Return the rotation and translation that carry rest points with each joint."""
    turn, origin = np.empty(rotations.shape), np.empty(joints.shape)
    turn[0], origin[0] = rotations[0], joints[0]
    for joint in range(1, len(joints)):
        parent = parents[joint]
        turn[joint] = turn[parent] @ rotations[joint]
        origin[joint] = turn[parent] @ (joints[joint] - joints[parent]) + origin[parent]
    return turn, origin - np.einsum("jab,jb->ja", turn, joints)


def skin(
    points: Float[np.ndarray, "vertex 3"],
    weights: Float[np.ndarray, "vertex bone"],
    turn: Float[np.ndarray, "bone 3 3"],
    shift: Float[np.ndarray, "bone 3"],
) -> Float[np.ndarray, "vertex 3"]:
    """Blend linearly: each point follows the weighted mean of its joints."""
    mixed = (weights @ turn.reshape(-1, 9)).reshape(-1, 3, 3)
    return (mixed @ points[:, :, None])[..., 0] + weights @ shift


def posed(
    file: ManoFile,
    pose: Float[np.ndarray, "bone 3"],
    betas: Float[np.ndarray, "beta"],
) -> Float[np.ndarray, "vertex 3"]:
    """Return the mesh of an absolute axis-angle pose, metres, not translated."""
    rotations = axis_angle_to_matrix(pose)
    shaped = file.v_template + file.shapedirs @ betas
    joints = file.J_regressor @ shaped
    turn, shift = joint_transforms(rotations, joints, file.parents.tolist())
    bent = shaped + file.posedirs @ (rotations[1:] - np.eye(3)).ravel()
    return skin(bent, file.weights, turn, shift)
