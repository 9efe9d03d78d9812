"""Linear blend skinning and joint angles in MANO's joint order, numpy only."""

import numpy as np

FINGERS = ("index", "middle", "pinky", "ring", "thumb")
JOINT_NAMES = ("wrist",) + tuple(f"{f}{i}" for f in FINGERS for i in (1, 2, 3))
PARENTS = (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14)


def unit(x):
    """Scale vectors (..., 3) to length one."""
    return x / (np.linalg.norm(x, axis=-1, keepdims=True) + 1e-12)


def axis_angle_to_matrix(axis_angle):
    """Rodrigues' formula, (..., 3) -> (..., 3, 3)."""
    angle = np.linalg.norm(axis_angle, axis=-1, keepdims=True)
    x, y, z = np.moveaxis(axis_angle / np.maximum(angle, 1e-12), -1, 0)
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1)
    cross = cross.reshape(*axis_angle.shape[:-1], 3, 3)
    sine, cosine = np.sin(angle)[..., None], np.cos(angle)[..., None]
    return np.eye(3) + sine * cross + (1 - cosine) * cross @ cross


def angles_to_rotations(angles, axes):
    """Anatomical angles to local rotations of all 16 joints.

    Args:
        angles: (15, 3) radians: flexion, abduction, twist.
        axes: (15, 3, 3) unit axes of those angles at rest.

    Returns:
        (16, 3, 3); the wrist's is the identity.
    """
    flexion, abduction, twist = (
        axis_angle_to_matrix(angles[:, i : i + 1] * axes[:, i]) for i in range(3)
    )
    return np.concatenate([np.eye(3)[None], flexion @ abduction @ twist])


def joint_transforms(rotations, joints):
    """World transforms of the joints.

    Args:
        rotations: (16, 3, 3) local rotations.
        joints: (16, 3) rest positions.

    Returns:
        Matrices (16, 3, 3) and offsets (16, 3) that map rest points to posed points.
    """
    world = np.zeros((16, 3, 3))
    posed = np.zeros((16, 3))
    for j, parent in enumerate(PARENTS):
        if parent < 0:
            world[j], posed[j] = rotations[j], joints[j]
        else:
            world[j] = world[parent] @ rotations[j]
            posed[j] = posed[parent] + world[parent] @ (joints[j] - joints[parent])
    return world, posed - np.einsum("jab,jb->ja", world, joints)


def blend(weights, rotations, joints):
    """Per-vertex transforms (vertex, 3, 3) and (vertex, 3) of blend skinning."""
    world, offset = joint_transforms(rotations, joints)
    return np.tensordot(weights, world, 1), weights @ offset


def skin(vertices, joints, weights, rotations):
    """Pose vertices (vertex, 3) by linear blend skinning."""
    matrix, offset = blend(weights, rotations, joints)
    return np.einsum("vab,vb->va", matrix, vertices) + offset


def pose_features(rotations):
    """MANO's 135 inputs of the pose blend shapes, from (16, 3, 3)."""
    return (rotations[1:] - np.eye(3)).reshape(-1)
