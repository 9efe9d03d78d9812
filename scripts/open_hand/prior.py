"""Samples plausible hand poses around the named ones."""

import numpy as np
from named_poses import LIMITS_DEG
from scipy.spatial.transform import Rotation

MAX_DEPTH_M = 0.0025
"""Poses in which any part stands deeper inside another are rejected."""
NUM_SAMPLES = 4096
_SPREAD_DEG = np.array([8.0, 1, -13, -6])
"""Abduction of index, middle, pinky, ring in an open hand with spread fingers."""


def _synergy(rng):
    """A hand that closes as a whole, with a radial-ulnar gradient."""
    angles = np.zeros((15, 3))
    closed = rng.beta(0.8, 1.0) + rng.normal(0, 0.22) * np.array([1, 0.3, -0.6, -1])
    closed = np.clip(closed + rng.normal(0, 0.12, 4), 0, 1)[[0, 1, 3, 2]]
    for finger in range(4):
        mcp, pip = np.clip(closed[finger] + rng.normal(0, 0.12, 2), 0, 1)
        flexion = np.array([-8 + 92 * mcp, 3 + 100 * pip, 0])
        flexion[2] = flexion[1] * rng.normal(0.6, 0.1)
        angles[3 * finger : 3 * finger + 3, 0] = np.radians(flexion)
    spread = rng.normal(0, 1) * (1 - closed.mean()) * _SPREAD_DEG
    spread = spread + closed * np.array([-4, 0, 12, 4]) + rng.normal(0, 3, 4)
    angles[:12:3, 1] = np.radians(spread)
    opposed = rng.random()
    base = np.array([-18, 0, -8]) * (1 - opposed) + np.array([22, 30, 25]) * opposed
    angles[12] = np.radians(base + rng.normal(0, 8, 3))
    angles[13, 0] = np.radians(rng.normal(5 + 25 * opposed, 10))
    angles[14, 0] = np.radians(rng.normal(5 + 35 * opposed, 15))
    return angles


def _propose(rng, named):
    """A named pose, a blend of two, a mix by finger, or a synergy; with noise."""
    kind = rng.random()
    if kind < 0.35:
        angles = named[rng.integers(len(named))].copy()
    elif kind < 0.60:
        (i, j), share = rng.integers(len(named), size=2), rng.random()
        angles = (1 - share) * named[i] + share * named[j]
    elif kind < 0.80:
        picks = rng.integers(len(named), size=5)
        fingers = [named[p][3 * f : 3 * f + 3] for f, p in enumerate(picks)]
        angles = np.concatenate(fingers)
    else:
        angles = _synergy(rng)
    noise = rng.normal(0, 1, (15, 3)) * np.radians(np.abs(rng.normal(0, 6)))
    noise *= [1.0, 0.5, 0.3]
    hinges = np.setdiff1d(np.arange(12), np.arange(0, 12, 3))
    noise[hinges, 1:] *= 0.1
    return angles + noise


def samples(hand, named, seed=2024):
    """Draw accepted poses.

    Args:
        hand: `collisions.PosedModel`.
        named: (pose, 15, 3) radians.
        seed: Of the random numbers.

    Returns:
        (4096, 15, 3) radians, and the share of proposals accepted.
    """
    rng, accepted, tried = np.random.default_rng(seed), [], 0
    low, high = np.radians(LIMITS_DEG[..., 0]), np.radians(LIMITS_DEG[..., 1])
    while len(accepted) < NUM_SAMPLES:
        angles = np.clip(_propose(rng, named), low, high)
        tried += 1
        if hand.depths(hand.vertices(angles)).max() < MAX_DEPTH_M:
            accepted.append(angles)
    return np.array(accepted), len(accepted) / tried


def pose_components(hand, angles):
    """Principal components of poses as axis-angle: MANO's `hands_*` arrays."""
    vectors = np.array(
        [
            Rotation.from_matrix(hand.rotations(a)[1:]).as_rotvec().ravel()
            for a in angles
        ]
    )
    mean = vectors.mean(0)
    _, values, components = np.linalg.svd(vectors - mean, full_matrices=False)
    return {
        "hands_mean": mean.astype(np.float32),
        "hands_components": components.astype(np.float32),
        "hands_variance": (values**2 / (len(vectors) - 1)).astype(np.float32),
    }
