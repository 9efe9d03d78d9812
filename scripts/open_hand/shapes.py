"""The shape space: ten directions that each change something a person can name.

Two come from the principal components of sampled adults (`size`, `build`). The others
are proportions which that population hardly varies: length and width of the palm,
thickness of the fingers, and the length of each finger by itself. All are linear
fields over the flat rest hand, defined for vertices and joints alike, so that a joint
regressor exists that follows them.
"""

import numpy as np
from rest import flattening_rotations
from skinning import FINGERS, skin, unit
from topology import rigid_fit

MIDDLE_TIP = 1
HAND_LENGTH_M = 0.184
"""Mean adult: the rig's wrist joint to the tip of the middle finger."""
DEVIATION = {
    "size": 0.6,
    "build": 1.4,
    "palm_length": 0.045,
    "palm_width": 0.05,
    "finger_thickness": 0.08,
    "index_length": 0.05,
    "middle_length": 0.05,
    "pinky_length": 0.065,
    "ring_length": 0.05,
    "thumb_length": 0.065,
}
"""What beta = 1 does: a fraction of the length named, or of the standard deviation of
the sampled adults (`size`, `build`)."""
WRIST_WIDENING = 0.6
"""Width of wrist and forearm changes by this fraction of the palm's."""


def population(source, vertices, joints):
    """Align sampled adults and straighten their fingers.

    Args:
        source: `source.Source`.
        vertices: (sample, n, 3), as the body model has them.
        joints: (sample, 16, 3).

    Returns:
        The same arrays flat, scaled to `HAND_LENGTH_M` on average, each aligned to
        the mean palm.
    """
    rotations, hand = flattening_rotations(source), slice(source.num_hand)
    palm = np.square(source.weights[hand, 0])
    vertices, joints = vertices.astype(float), joints.astype(float)
    for i in range(len(vertices)):
        turn, shift = rigid_fit(vertices[i, hand], source.vertices[hand], palm)
        placed, heads = vertices[i] @ turn.T + shift, joints[i] @ turn.T + shift
        vertices[i] = skin(placed, heads, source.weights, rotations)
        joints[i] = skin(heads, heads, np.eye(16), rotations)
    reach = vertices[:, source.tips[MIDDLE_TIP]] - joints[:, 0]
    scale = HAND_LENGTH_M / np.linalg.norm(reach, axis=-1).mean()
    vertices, joints = vertices * scale, joints * scale
    for _ in range(2):
        mean = vertices[:, hand].mean(0)
        for i in range(len(vertices)):
            turn, shift = rigid_fit(vertices[i, hand], mean, palm)
            vertices[i] = vertices[i] @ turn.T + shift
            joints[i] = joints[i] @ turn.T + shift
    return vertices, joints


def principal_fields(points, used, count=2):
    """First principal components of samples, as fields over all their points.

    Args:
        points: (sample, point, 3).
        used: Points that the components are computed from.
        count: How many components.

    Returns:
        (count, point, 3), each the change at one standard deviation, signed so that
        it makes the hand larger; and the share of variance of every component.
    """
    centred = points - points.mean(0)
    centred -= centred[:, used].mean(1, keepdims=True)
    scores, values, _ = np.linalg.svd(
        centred[:, used].reshape(len(points), -1), full_matrices=False
    )
    scores = scores[:, :count] * np.sqrt(len(points) - 1)
    fields = np.einsum("nk,npc->kpc", scores, centred) / (len(points) - 1)
    outward = points.mean(0) - points.mean(0)[used].mean(0)
    sign = np.sign((fields * outward)[:, used].sum((1, 2)))
    return fields * sign[:, None, None], values**2 / np.square(values).sum()


def proportion_fields(points, weights, joints, tips):
    """The fields that change one proportion, for a change of 100 %.

    Args:
        points: (point, 3) flat rest.
        weights: (point, 16).
        joints: (16, 3).
        tips: (5, 3) finger-tip positions.
    """
    wrist = joints[0]
    bases = joints[1::3]
    on_finger = weights[:, 1:].reshape(-1, 5, 3).sum(-1)
    forward = np.clip(wrist[0] - points[:, 0], 0, None)
    length = np.zeros_like(points)
    length[:, 0] = -weights[:, 0] * forward + on_finger @ (bases - wrist)[:, 0]
    palm = np.clip(forward / (wrist - bases[MIDDLE_TIP])[0], 0, 1)
    factor = WRIST_WIDENING + (1 - WRIST_WIDENING) * palm
    axis = bases[MIDDLE_TIP] * [0, 1, 1]
    width = (weights[:, 0] * factor)[:, None] * (points - axis) * [0, 0.5, 1]
    width[:, 2] += on_finger @ (bases - axis)[:, 2]
    fields = {"palm_length": length, "palm_width": width}
    fields["finger_thickness"] = _thickness(points, weights, joints, tips)
    for f, finger in enumerate(FINGERS):
        chain = np.concatenate([joints[1 + 3 * f : 4 + 3 * f], tips[f : f + 1]])
        stretch = _stretch(points, chain)
        fields[f"{finger}_length"] = stretch * on_finger[:, f, None]
    return fields


def _stretch(points, chain):
    """Displacement that doubles each bone of a chain (4, 3) beyond its base."""
    moved = np.zeros_like(points)
    for i in range(3):
        bone = chain[i + 1] - chain[i]
        limit = np.linalg.norm(bone) if i < 2 else np.inf
        along = (points - chain[i]) @ unit(bone)
        moved += np.clip(along, 0, limit)[:, None] * unit(bone)
    return moved


def _thickness(points, weights, joints, tips):
    """Displacement away from the fingers' bones, half as much at the thumb's base."""
    moved = np.zeros_like(points)
    for j in range(1, 16):
        end = tips[(j - 1) // 3] if j % 3 == 0 else joints[j + 1]
        bone, arm = unit(end - joints[j]), points - joints[j]
        radial = arm - (arm @ bone)[:, None] * bone
        moved += weights[:, j : j + 1] * radial * (0.5 if j == 13 else 1.0)
    return moved


def shape_space(source, vertices, joints):
    """Mean hand and the ten fields of beta = 1, largest first.

    Args:
        source: `source.Source`.
        vertices: (sample, n, 3) of `population`.
        joints: (sample, 16, 3) of `population`.

    Returns:
        Mean points (n + 16, 3) (vertices, then joints), fields (10, n + 16, 3),
        their names, and the variance shares of the sampled adults.
    """
    joints = joints.copy()
    joints[:, 0] = vertices[:, source.wrist_ring].mean(1)
    points = np.concatenate([vertices, joints], 1)
    mean, num = points.mean(0), len(source.vertices)
    (size, build), shares = principal_fields(points, np.arange(source.num_hand))
    fields = {"size": size, "build": build} | proportion_fields(
        mean,
        np.concatenate([source.weights, np.eye(16)]),
        mean[num:],
        mean[source.tips],
    )
    hand = slice(source.num_hand)
    scaled = {}
    for name, field in fields.items():
        # Vertices move about their common mean, as in the principal components.
        scaled[name] = DEVIATION[name] * (field - field[hand].mean(0))
        # The regressor puts the wrist at the mean of its ring, whatever the shape.
        scaled[name][num] = scaled[name][source.wrist_ring].mean(0)
    names = sorted(scaled, key=lambda n: -np.square(scaled[n][hand]).sum())
    return mean, np.stack([scaled[n] for n in names]), names, shares
