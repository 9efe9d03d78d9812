"""Refines the named poses: contacts closed, nothing inside anything, limits kept."""

import numpy as np
from named_poses import CONTACTS, LIMITS_DEG, POSES
from scipy.optimize import least_squares

SKIN_GIVES_M = 0.001
"""Depth that soft skin gives way; only what is deeper counts."""
CONTACT_GAP_M = 0.001
DEPTH_WEIGHT = 400.0
CONTACT_WEIGHT = 300.0
STARTS = 4
OPEN, STEPS = 0.7, 15
"""Fingers close from this share of their flexion in so many steps."""
_THUMB = slice(12, 15)
_THUMB_AWAY = np.radians([[-20, -5, -5], [0, 0, 0], [0, 0, 0]])


def _close(hand, goal):
    """Bend the four fingers towards their goal until each joint meets resistance."""
    angles = goal.copy()
    angles[_THUMB] = _THUMB_AWAY
    flexion = goal[:12, 0]
    step = np.clip(flexion, 0, None) * (1 - OPEN) / STEPS
    angles[:12, 0] = flexion - STEPS * step
    deepest = hand.depths(hand.vertices(angles)).max()
    for _ in range(STEPS):
        for j in np.flatnonzero(step):
            before = angles[j, 0]
            angles[j, 0] = min(before + step[j], goal[j, 0])
            now = hand.depths(hand.vertices(angles)).max()
            if now > max(SKIN_GIVES_M, deepest):
                angles[j, 0] = before
            else:
                deepest = min(deepest, now)
    angles[_THUMB] = goal[_THUMB]
    return angles


def _free_angles(hand, contacts):
    """(15, 3) which angles may move, and how strongly each is held.

    The thumb moves, and fingers whose pad should touch something.
    """
    free, hold = np.zeros((15, 3), bool), np.full((15, 3), 0.4)
    free[12], free[13:, 0] = True, True
    hold[12], hold[13:, 0] = 0.1, (0.3, 0.5)
    touching = {v for pair in contacts for v in pair} & set(hand.pads.tolist())
    for finger, pad in enumerate(hand.pads[:4].tolist()):
        if pad in touching:
            free[3 * finger : 3 * finger + 3, 0] = True
            free[3 * finger, 1] = True
    return free, hold


def _refine(hand, start, contacts, low, high):
    free, hold = _free_angles(hand, contacts)

    def residuals(x):
        angles = start.copy()
        angles[free] = x
        vertices = hand.vertices(angles)
        depth = np.maximum(hand.depths(vertices) - SKIN_GIVES_M, 0)
        gaps = [np.linalg.norm(vertices[a] - vertices[b]) for a, b in contacts]
        open_by = np.maximum(np.array(gaps) - CONTACT_GAP_M, 0)
        return np.concatenate(
            [
                DEPTH_WEIGHT * depth,
                hold[free] * (x - start[free]),
                CONTACT_WEIGHT * open_by,
            ]
        )

    best = None
    for seed in range(STARTS if contacts else 1):
        first = start.copy()
        if seed:
            noise = np.random.default_rng(seed).normal(0, 0.25, (3, 3))
            first[_THUMB] += noise
        first = np.clip(first, low + 1e-3, high - 1e-3)
        found = least_squares(
            residuals,
            first[free],
            bounds=(low[free], high[free]),
            max_nfev=30,
            x_scale=0.1,
        )
        if best is None or found.cost < best.cost:
            best = found
    angles = start.copy()
    angles[free] = best.x
    return angles


def named_angles(hand, report=print):
    """Refine every named pose.

    Args:
        hand: `collisions.PosedModel`.
        report: Called with one line per pose.

    Returns:
        Names, and angles (pose, 15, 3) in radians.
    """
    low, high = np.radians(LIMITS_DEG[..., 0]), np.radians(LIMITS_DEG[..., 1])
    refined = {}
    for name, start in POSES.items():
        contacts = [
            tuple(hand.place(spec) for spec in pair.split())
            for pair in CONTACTS.get(name, ())
        ]
        start = np.clip(start, low + 1e-4, high - 1e-4)
        angles = _refine(hand, _close(hand, start), contacts, low, high)
        vertices = hand.vertices(angles)
        gaps = [1e3 * np.linalg.norm(vertices[a] - vertices[b]) for a, b in contacts]
        depth = 1e3 * hand.depths(vertices).max()
        report(f"{name:10s} depth {depth:.1f} mm, contact gaps {np.round(gaps, 1)} mm")
        refined[name] = angles
    return np.array(list(refined)), np.array(list(refined.values()))
