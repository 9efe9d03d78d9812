"""Anatomical joint axes and the flat rest pose."""

import numpy as np
from skinning import angles_to_rotations, unit
from topology import vertex_normals

REST_FLEXION = (8.0, 5.0, 3.0)
"""Degrees of flexion of the three finger joints that remain in the flat hand."""


def joint_axes(vertices, joints, weights, nail, faces, tips):
    """Flexion, abduction and twist axis of each joint from bones and nails.

    The back of a finger is where its nail looks. Positive flexion curls towards the
    palm, positive abduction moves a finger to the thumb side (the thumb: to the
    palm), the twist axis points to the tip.

    Returns:
        (15, 3, 3) unit vectors: joint, kind, xyz.
    """
    normals = vertex_normals(vertices, faces)
    axes = np.zeros((15, 3, 3))
    for finger in range(5):
        first = 1 + 3 * finger
        chain = [*joints[first : first + 3], vertices[tips[finger]]]
        on_nail = nail * (weights[:, first + 2] > 0.5)
        back = unit((normals * on_nail[:, None]).sum(0))
        thumb_side = np.array([0, -1.0, 0] if finger == 4 else [0, 0, 1.0])
        for i in range(3):
            bone = unit(chain[i + 1] - chain[i])
            dorsal = unit(back - bone * (back @ bone))
            flexion = np.cross(dorsal, bone)
            side = np.sign(np.cross(dorsal, bone) @ thumb_side)
            axes[first + i - 1] = flexion, dorsal * side, bone
    return axes


def _bend(before, after, axis):
    """Signed angle from one bone to the next about an axis, radians."""
    before = unit(before - axis * (before @ axis))
    after = unit(after - axis * (after @ axis))
    return np.arctan2(np.cross(before, after) @ axis, before @ after)


def flattening_rotations(source):
    """Local rotations (16, 3, 3) that straighten the four fingers of the source."""
    axes = joint_axes(
        source.vertices,
        source.joints,
        source.weights,
        source.nail,
        source.faces,
        source.tips,
    )
    joints, angles = source.joints, np.zeros((15, 3))
    for finger in range(4):
        first = 1 + 3 * finger
        tip = source.vertices[source.tips[finger]]
        chain = [joints[0], *joints[first : first + 3], tip]
        for i in range(3):
            now = _bend(
                chain[i + 1] - chain[i],
                chain[i + 2] - chain[i + 1],
                axes[first + i - 1, 0],
            )
            angles[first + i - 1, 0] = np.radians(REST_FLEXION[i]) - now
    return angles_to_rotations(angles, axes)
