"""Find what looks wrong about predicted hands, without the truth.

Every function takes joints of many hands and returns sentences, none if all is well.
Scripts score hands in the wrong unit, axes or joint order silently; these functions
look at all hands together, so that one strange hand does not matter.
"""

import numpy as np
from jaxtyping import Float

from handjax.geometry.skeleton import BONES, ORDERS

HAND_SIZE_M = (0.05, 0.5)
"""Largest extent of a hand along an axis: a fist of a child to more than a hand."""

_CLEARLY_SHORTER = 0.85
"""Factor by which bones are shorter in the right order than in other known ones."""

Hands = Float[np.ndarray, "hand 21 axis"]
"""3-D, or 2-D where depth does not matter."""


def findings(
    joints3d: Hands,
    *,
    order: str,
    unit_m: float = 1.0,
    opengl: bool = False,
) -> list[str]:
    """Return all that looks wrong.

    Args:
        joints3d: In the benchmark's unit, axes and order.
        order: A key of `skeleton.ORDERS`.
        unit_m: Metres that the unit stands for.
        opengl: Whether z points backwards.
    """
    if not len(joints3d):
        return ["it has no hands"]
    same = constant(joints3d)
    if same:
        return same
    found = size(joints3d, unit_m) + axes(joints3d, opengl=opengl)
    return found + joint_order(joints3d, order)


def constant(joints3d: Hands) -> list[str]:
    """Find hands with all joints in one place, or the same hand again and again."""
    collapsed = int((np.ptp(joints3d, axis=1).max(axis=-1) == 0).sum())
    if collapsed:
        return [
            f"{collapsed:,} of {len(joints3d):,} hands have all joints in one place"
        ]
    if len(joints3d) > 1 and (joints3d == joints3d[0]).all():
        return [f"all {len(joints3d):,} hands are the same"]
    return []


def size(joints3d: Hands, unit_m: float) -> list[str]:
    """Find hands too large or too small for the unit."""
    extent_m = float(np.median(np.ptp(joints3d, axis=1).max(axis=-1))) * unit_m
    low, high = HAND_SIZE_M
    if low <= extent_m <= high:
        return []
    unit = "metres" if unit_m == 1 else "millimetres"
    return [
        f"the median hand is {extent_m:.3g} m large, if the numbers are {unit}, as "
        f"they have to be; a hand has {low} to {high} m"
    ]


def axes(joints3d: Hands, *, opengl: bool) -> list[str]:
    """Find hands behind the camera; root-relative joints tell nothing."""
    depth = -joints3d[..., 2] if opengl else joints3d[..., 2]
    behind = int((depth < 0).all(axis=-1).sum())
    if 2 * behind <= len(joints3d):
        return []
    wanted, given = ("OpenGL", "OpenCV") if opengl else ("OpenCV", "OpenGL")
    return [
        f"{behind:,} of {len(joints3d):,} hands are behind the camera, whose axes have "
        f"to be {wanted}'s; if they are {given}'s, negate y and z"
    ]


def joint_order(joints3d: Hands, order: str) -> list[str]:
    """Find joints whose bones are clearly shorter in another known order.

    A hand's tree of bones is close to the shortest one through its joints.
    """
    lengths = {name: _bones(joints3d[:, gather]) for name, gather in ORDERS.items()}
    best = min(lengths, key=lambda name: lengths[name])
    if lengths[best] >= _CLEARLY_SHORTER * lengths[order]:
        return []
    return [
        f"the joints look as if they were in the order {best!r}; they have to be in "
        f"{order!r} (handjax.geometry.skeleton.ORDERS)"
    ]


def _bones(joints3d: Hands) -> float:
    """Return the median over hands of the length of all bones together."""
    ends = joints3d[:, np.array(BONES)]
    return float(
        np.median(np.linalg.norm(ends[:, :, 1] - ends[:, :, 0], axis=-1).sum(-1))
    )
