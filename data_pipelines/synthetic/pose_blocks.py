"""Draw many poses of the prior at a time: tokenizers need thousands a second.

The distribution is that of `PosePrior.sample`, drawn in whole arrays; one pose at a
time takes ten times as long. Pictures keep the slower one, so that their poses do not
change.
"""

import numpy as np
from jaxtyping import Bool, Float

from data_pipelines.synthetic.prior import PosePrior, segment_distance
from handjax.geometry import skeleton
from handjax.mano import numpy_skinning

_HINGES = [joint for joint in range(12) if joint % 3]
"""Joints that bend one way only."""


def sample(
    prior: PosePrior, rng: np.random.Generator, count: int
) -> Float[np.ndarray, "count 15 3"]:
    """Draw joint angles, radians, free of collisions."""
    kept, missing = [], count
    while missing > 0:
        angles = propose(prior, rng, missing + missing // 2 + 8)
        free = angles[~collides(prior, angles)][:missing]
        kept.append(free)
        missing -= len(free)
    return np.concatenate(kept)


def propose(
    prior: PosePrior, rng: np.random.Generator, count: int
) -> Float[np.ndarray, "count 15 3"]:
    """Draw joint angles within their limits that may collide."""
    kind, named = rng.random(count), prior.named
    first, second = named[rng.integers(len(named), size=(2, count))]
    blend = first + rng.random((count, 1, 1)) * (second - first)
    each = np.repeat(rng.integers(len(named), size=(count, 5)), 3, axis=1)
    mixed = named[each, np.arange(15)]
    angles = np.select(
        [x[:, None, None] for x in (kind < 0.35, kind < 0.60, kind < 0.80)],
        [first, blend, mixed],
        synergies(rng, count),
    )
    return varied(prior, rng, angles)


def varied(
    prior: PosePrior, rng: np.random.Generator, angles: Float[np.ndarray, "count 15 3"]
) -> Float[np.ndarray, "count 15 3"]:
    """Draw poses around given ones, within the joint limits; they may collide.

    Some hands keep to the pose and some are loose: the spread of the angles is drawn
    for each, about 6 degrees of flexion, half of that sideways.
    """
    count = len(angles)
    spread = np.radians(np.abs(rng.normal(0, 6, (count, 1, 1)))) * (1.0, 0.5, 0.3)
    noise = rng.normal(0, 1, (count, 15, 3)) * spread
    noise[:, _HINGES, 1:] *= 0.1
    limits = prior.hand.limits
    return np.clip(angles + noise, limits[..., 0], limits[..., 1])


def synergies(rng: np.random.Generator, count: int) -> Float[np.ndarray, "count 15 3"]:
    """Draw closing movements of whole hands, graded from index to little finger."""
    angles = np.zeros((count, 15, 3))
    gradient = rng.normal(0, 0.22, (count, 1)) * (1, 0.3, -1, -0.6)
    closed = rng.beta(0.8, 1.0, (count, 1)) + gradient + rng.normal(0, 0.12, (count, 4))
    closed = np.clip(closed, 0, 1)
    near, far = np.clip(closed + rng.normal(0, 0.12, (2, count, 4)), 0, 1)
    angles[:, [0, 3, 6, 9], 0] = np.radians(-8 + 88 * near)
    middle = np.radians(3 + 97 * far)
    angles[:, [1, 4, 7, 10], 0] = middle
    angles[:, [2, 5, 8, 11], 0] = middle * rng.normal(0.6, 0.1, (count, 4))
    fan = rng.normal(0, 1, (count, 1)) * (1 - closed.mean(1, keepdims=True))
    fan = fan * (8, 1, -13, -6) + rng.normal(0, 3, (count, 4))
    angles[:, [0, 3, 6, 9], 1] = np.radians(fan)
    opposed = rng.random((count, 1))
    beside, across = np.array([-18, 0, -8]), np.array([22, 30, 25])
    thumb = beside + opposed * (across - beside) + rng.normal(0, 8, (count, 3))
    angles[:, 12] = np.radians(thumb)
    bend = 5 + opposed * (25, 30) + rng.normal(0, 1, (count, 2)) * (10, 15)
    angles[:, [13, 14], 0] = np.radians(bend)
    return angles


def rotations(
    prior: PosePrior, angles: Float[np.ndarray, "count 15 3"]
) -> Float[np.ndarray, "count 15 3 3"]:
    """Return local rotations of the finger joints, as `hand.joint_rotations`."""
    turns = numpy_skinning.axis_angle_to_matrix(angles[..., None] * prior.hand.axes)
    return turns[..., 0, :, :] @ turns[..., 1, :, :] @ turns[..., 2, :, :]


def collides(
    prior: PosePrior, angles: Float[np.ndarray, "count 15 3"]
) -> Bool[np.ndarray, "count"]:
    """Return whether finger capsules overlap more than flesh gives way."""
    depth = overlaps(prior, angles)
    return (depth >= prior.tolerance).any(axis=1)


def overlaps(
    prior: PosePrior, angles: Float[np.ndarray, "count 15 3"]
) -> Float[np.ndarray, "count pair"]:
    """Return `PosePrior.overlap` of each pose."""
    local, joints = rotations(prior, angles), prior.hand.rest_joints
    turn, origin = np.empty((len(angles), 16, 3, 3)), np.empty((len(angles), 16, 3))
    turn[:, 0], origin[:, 0] = np.eye(3), joints[0]
    for joint in range(1, 16):
        parent = skeleton.MANO_PARENTS[joint]
        turn[:, joint] = turn[:, parent] @ local[:, joint - 1]
        bone = turn[:, parent] @ (joints[joint] - joints[parent])
        origin[:, joint] = bone + origin[:, parent]
    shift = origin - (turn @ joints[:, :, None])[..., 0]
    capsules = prior.capsules
    turn, shift = turn[:, capsules.joint], shift[:, capsules.joint]
    start = (turn @ capsules.start[..., None])[..., 0] + shift
    end = (turn @ capsules.end[..., None])[..., 0] + shift
    a, b = capsules.pairs.T
    flat = [x.reshape(-1, 3) for x in (start[:, a], end[:, a], start[:, b], end[:, b])]
    distance = segment_distance(*flat).reshape(len(angles), -1)
    return capsules.radius[a] + capsules.radius[b] - distance
