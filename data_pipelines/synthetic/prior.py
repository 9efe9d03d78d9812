"""Draw plausible finger poses: named ones, blends and synergies, inside joint limits.

A proposal whose finger capsules overlap is discarded. All numbers are set by hand, not
learned from captured poses.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from data_pipelines.synthetic import hand as hands
from handjax.mano import numpy_skinning

_FINGERS = ("index", "middle", "little", "ring", "thumb")
"""Order of MANO's finger joints, three each."""
_PALM_RADIUS = 0.0085
_TOLERANCE_PALM, _TOLERANCE_FINGERS = 0.010, 0.0065
"""Metres that capsules may overlap in the palm, or between fingers. Flesh gives way
where a closed fist or a pinch touches: all named poses stay inside."""


class Capsules(NamedTuple):
    """Bones as capsules in the rest pose: 4 of the palm, then 3 of each finger."""

    start: Float[np.ndarray, "19 3"]
    end: Float[np.ndarray, "19 3"]
    radius: Float[np.ndarray, "19"]
    joint: Int[np.ndarray, "19"]
    """Joint that carries the capsule."""
    pairs: Int[np.ndarray, "pair 2"]
    """Pairs that are not neighbours, so that an overlap means a collision."""


class PosePrior:
    """Draws joint angles (15, 3), radians; see `sample`."""

    def __init__(self, hand: hands.RenderHand):
        self.hand = hand
        with np.load(hands.ASSETS / "pose_prior.npz") as arrays:
            self.named = arrays["named_angles"].astype(float)
            self.names = [str(name) for name in arrays["named_names"]]
        self.capsules = _capsules(hand)
        self.tolerance = np.where(
            self.capsules.pairs[:, 0] < 4, _TOLERANCE_PALM, _TOLERANCE_FINGERS
        )

    def sample(self, rng: np.random.Generator) -> Float[np.ndarray, "15 3"]:
        """Draw until a pose is free of collisions (three in four are)."""
        while True:
            angles = self._propose(rng)
            if (self.overlap(angles) < self.tolerance).all():
                return angles

    def overlap(self, angles: Float[np.ndarray, "15 3"]) -> np.ndarray:
        """Return how deep each of `capsules.pairs` overlaps, metres; < 0: apart."""
        rotations = np.concatenate(
            [np.eye(3)[None], hands.joint_rotations(self.hand, angles)]
        )
        turn, shift = numpy_skinning.joint_transforms(rotations, self.hand.rest_joints)
        turn, shift = turn[self.capsules.joint], shift[self.capsules.joint]
        start = (turn @ self.capsules.start[..., None])[..., 0] + shift
        end = (turn @ self.capsules.end[..., None])[..., 0] + shift
        a, b = self.capsules.pairs.T
        distance = segment_distance(start[a], end[a], start[b], end[b])
        return self.capsules.radius[a] + self.capsules.radius[b] - distance

    def _propose(self, rng: np.random.Generator) -> np.ndarray:
        kind, count = rng.random(), len(self.named)
        if kind < 0.35:
            angles = self.named[rng.integers(count)]
        elif kind < 0.60:
            first, second = self.named[rng.integers(count, size=2)]
            angles = first + rng.random() * (second - first)
        elif kind < 0.80:
            each = rng.integers(count, size=5)
            angles = np.concatenate(
                [self.named[each[i], 3 * i : 3 * i + 3] for i in range(5)]
            )
        else:
            angles = _synergy(rng)
        spread = np.radians(abs(rng.normal(0, 6))) * np.array([1.0, 0.5, 0.3])
        noise = rng.normal(0, 1, (15, 3)) * spread
        hinges = [joint for joint in range(12) if joint % 3]  # bend one way only
        noise[hinges, 1:] *= 0.1
        return np.clip(
            angles + noise, self.hand.limits[..., 0], self.hand.limits[..., 1]
        )


def _synergy(rng: np.random.Generator) -> np.ndarray:
    """Draw a closing movement of the hand, graded from index to little finger."""
    angles = np.zeros((15, 3))
    gradient = rng.normal(0, 0.22) * np.array([1, 0.3, -1, -0.6])
    closed = np.clip(rng.beta(0.8, 1.0) + gradient + rng.normal(0, 0.12, 4), 0, 1)
    for finger in range(4):
        base = 3 * finger
        near, far = np.clip(closed[finger] + rng.normal(0, 0.12, 2), 0, 1)
        angles[base, 0] = np.radians(-8 + 88 * near)
        angles[base + 1, 0] = np.radians(3 + 97 * far)
        angles[base + 2, 0] = angles[base + 1, 0] * rng.normal(0.6, 0.1)
    fan = rng.normal(0, 1) * (1 - closed.mean()) * np.array([8, 1, -13, -6])
    angles[[0, 3, 6, 9], 1] = np.radians(fan + rng.normal(0, 3, 4))
    opposed = rng.random()
    beside, across = np.array([-18, 0, -8]), np.array([22, 30, 25])
    thumb = beside + opposed * (across - beside) + rng.normal(0, 8, 3)
    angles[12] = np.radians(thumb)
    angles[13, 0] = np.radians(rng.normal(5 + 25 * opposed, 10))
    angles[14, 0] = np.radians(rng.normal(5 + 30 * opposed, 15))
    return angles


def _capsules(hand: hands.RenderHand) -> Capsules:
    joints, weights = hand.rest_joints, hand.file.weights
    vertices = hand.file.v_template
    tips = vertices[hand.file.tip_ids[[1, 2, 4, 3, 0]]]  # order of _FINGERS
    starts, ends, radii, owners = [], [], [], []
    for base in (1, 4, 7, 10):
        starts.append(joints[0])
        ends.append(joints[base])
        radii.append(_PALM_RADIUS)
        owners.append(0)
    for finger, tip in enumerate(tips):
        for owner in range(3 * finger + 1, 3 * finger + 4):
            last = owner % 3 == 0
            start, end = joints[owner], tip if last else joints[owner + 1]
            root_of_thumb = owner == 13
            offset, radius = _fit_capsule(vertices[weights[:, owner] > 0.6], start, end)
            # The ball of the thumb is not a tube; a thinner bone inside stands for it.
            offset, radius = (
                (0 * offset, 0.6 * radius) if root_of_thumb else (offset, 0.95 * radius)
            )
            start, end = start + offset, end + offset
            if last:
                end = end - (end - start) / np.linalg.norm(end - start) * radius
            starts.append(start)
            ends.append(end)
            radii.append(radius)
            owners.append(owner)
    return Capsules(
        np.array(starts), np.array(ends), np.array(radii), np.array(owners), _pairs()
    )


def _fit_capsule(points: np.ndarray, start: np.ndarray, end: np.ndarray):
    """Fit sideways offset and radius of the tube of `points` around a bone."""
    length = np.linalg.norm(end - start)
    axis = (end - start) / length
    along = (points - start) @ axis
    across = points - start - along[:, None] * axis
    across = across[(along > 0.15 * length) & (along < 0.9 * length)]
    offset = (across.max(0) + across.min(0)) / 2
    offset = offset - axis * (offset @ axis)
    return offset, float(np.median(np.linalg.norm(across - offset, axis=1)))


def _pairs() -> np.ndarray:
    palm, first = range(4), (4, 7, 10, 13, 16)
    finger = [-1] * 4 + [i // 3 for i in range(15)]
    pairs = []
    for a in range(19):
        for b in range(a + 1, 19):
            beside_palm = a in palm and b in first
            knuckles = a in first[:4] and b in first
            thumb_web = (a, b) == (0, 17)
            if finger[a] != finger[b] and not (beside_palm or knuckles or thumb_web):
                pairs.append((a, b))
    return np.array(pairs)


def segment_distance(
    p1: Float[np.ndarray, "pair 3"],
    q1: Float[np.ndarray, "pair 3"],
    p2: Float[np.ndarray, "pair 3"],
    q2: Float[np.ndarray, "pair 3"],
) -> Float[np.ndarray, "pair"]:
    """Return the shortest distance between segments p1 q1 and p2 q2."""
    d1, d2, r = q1 - p1, q2 - p2, p1 - p2
    a, e, f = (d1 * d1).sum(-1), (d2 * d2).sum(-1), (d2 * r).sum(-1)
    b, c = (d1 * d2).sum(-1), (d1 * r).sum(-1)
    denominator = a * e - b * b  # zero when they are parallel
    s = np.clip((b * f - c * e) / np.maximum(denominator, 1e-12), 0, 1)
    s = np.where(denominator > 1e-12, s, 0)
    t = (b * s + f) / e
    s = np.where(t < 0, np.clip(-c / a, 0, 1), s)
    s = np.where(t > 1, np.clip((b - c) / a, 0, 1), s)
    t = np.clip(t, 0, 1)
    gap = p1 + s[..., None] * d1 - p2 - t[..., None] * d2
    return np.linalg.norm(gap, axis=-1)
