"""Close the hand around a thing until it touches; things never cut into the hand.

Frame: the hand's rest frame with the wrist joint at the origin (palm towards -y).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from data_pipelines.synthetic import hand as hands
from data_pipelines.synthetic import objects
from data_pipelines.synthetic.poses import random_rotation
from handjax.mano import numpy_skinning

CONTACT = 0.0
"""Signed distance at which a finger stops, metres."""
DEEPEST = -0.0015
"""Least signed distance of a vertex that is accepted (skin yields a little)."""
_STEPS = 10
_PALM = (0, 1, 4, 7, 10)


class Placed(NamedTuple):
    """A thing and where it is."""

    shape: objects.Shape
    turn: Float[np.ndarray, "3 3"]
    centre: Float[np.ndarray, "3"]

    def distance(
        self, points: Float[np.ndarray, "point 3"]
    ) -> Float[np.ndarray, "point"]:
        """Return the signed distance of points, metres; negative inside."""
        return objects.signed_distance(self.shape, (points - self.centre) @ self.turn)


def grasp(
    rng: np.random.Generator,
    hand: hands.RenderHand,
    betas: Float[np.ndarray, "10"],
) -> tuple[Placed, Float[np.ndarray, "15 3"]] | None:
    """Draw a thing in the hand and the joint angles that hold it.

    Returns:
        None when the drawn thing does not fit; the caller draws again.
    """
    shape = objects.sample(rng, str(rng.choice(objects.KINDS)))
    opened, closed = _open_hand(rng), _closed_hand(rng)
    fingers = _finger_of_vertex(hand)
    turn = _orientation(rng, shape)
    joints, posed = _simple_pose(hand, betas, opened)
    anchor = joints[[1, 4, 7, 10]].mean(0) * rng.uniform(0.72, 1.0)
    anchor[2] += rng.normal(0, 0.006)
    placed = _rest_on_palm(Placed(shape, turn, anchor), posed)
    share = _closing(rng, hand, betas, (opened, closed), placed, fingers)
    for _ in range(4):
        angles = opened + share[:, None] * (closed - opened)
        angles = np.clip(angles, hand.limits[..., 0], hand.limits[..., 1])
        final = hands.pose(hand, angles, betas, np.eye(3), np.eye(3))
        if placed.distance(final.drawn).min() >= DEEPEST:
            return placed, angles
        share = np.maximum(share - 0.03, 0)
    return None


def stand_in_the_way(
    rng: np.random.Generator,
    points: Float[np.ndarray, "point 3"],
    around: Float[np.ndarray, "3"],
    reach: float,
) -> Placed | None:
    """Draw a thing near the hand that does not touch it.

    Args:
        rng: Random generator.
        points: Vertices to keep away from, camera axes, metres.
        around: Middle of the hand.
        reach: How far from there the thing may be, metres.
    """
    for _ in range(8):
        shape = objects.sample(rng, str(rng.choice(objects.KINDS)))
        offset = rng.normal(0, 1, 3) * reach * np.array([0.8, 0.8, 0.9])
        turn = random_rotation(rng).as_matrix()
        placed = Placed(shape, turn, around + offset)
        if placed.distance(points).min() > 0.001:
            return placed
    return None


def _orientation(rng: np.random.Generator, shape: objects.Shape) -> np.ndarray:
    """Draw an orientation with the long axis across the palm; flat things lie on it."""
    across = Rotation.from_euler("x", 90, degrees=True)  # y to z
    if shape.kind == "card" or (shape.kind == "box" and rng.random() < 0.6):
        # Thin side (z of a card) towards the palm, long side along the fingers or not.
        flat = Rotation.from_euler("yx", [rng.choice([0, 90]), 90], degrees=True)
        base = Rotation.from_euler("y", rng.choice([0, 90]), degrees=True) * flat
    elif shape.kind == "ball":
        base = random_rotation(rng)
    else:
        base = across
        if rng.random() < 0.5:
            base = base * Rotation.from_euler("x", 180, degrees=True)
    tilt = Rotation.from_euler("yxz", rng.normal(0, [14, 7, 7]), degrees=True)
    return (tilt * base).as_matrix()


def _rest_on_palm(placed: Placed, posed: np.ndarray) -> Placed:
    """Move along the palm's normal until the thing just touches the open hand."""
    low, high = 0.0, 0.16
    for _ in range(12):
        middle = (low + high) / 2
        moved = placed._replace(centre=placed.centre - [0, middle, 0])
        low, high = (
            (low, middle) if moved.distance(posed).min() > 0.0005 else (middle, high)
        )
    return placed._replace(centre=placed.centre - [0, high, 0])


def _closing(rng, hand, betas, between, placed, fingers) -> np.ndarray:
    """Return how far each joint's finger closes until it touches, 0..1."""
    opened, closed = between
    steps = np.linspace(0, 1, _STEPS)
    gap = np.empty((_STEPS, 5))
    for i, step in enumerate(steps):
        _, posed = _simple_pose(hand, betas, opened + step * (closed - opened))
        distance = placed.distance(posed)
        gap[i] = [distance[fingers == finger].min() for finger in range(5)]
    share = np.ones(5)
    for finger in range(5):
        touching = np.flatnonzero(gap[:, finger] < CONTACT)
        if len(touching):
            i = touching[0]
            if i == 0:
                share[finger] = 0
                continue
            before, after = gap[i - 1, finger], gap[i, finger]
            fraction = (before - CONTACT) / max(before - after, 1e-9)
            share[finger] = steps[i - 1] + fraction * (steps[i] - steps[i - 1])
    lazy = rng.random(5) < 0.12  # a finger now and then stays out
    share = np.where(lazy, share * rng.uniform(0.2, 0.9, 5), share)
    return np.repeat(share, 3)


def _simple_pose(hand: hands.RenderHand, betas: np.ndarray, angles: np.ndarray):
    """Return joints and vertices of the annotated mesh without pose correctives."""
    shaped = hand.file.v_template + hand.file.shapedirs @ betas
    joints = hand.file.J_regressor @ shaped
    rotations = np.concatenate([np.eye(3)[None], hands.joint_rotations(hand, angles)])
    turn, shift = numpy_skinning.joint_transforms(rotations, joints)
    posed = numpy_skinning.skin(shaped, hand.file.weights, turn, shift)
    moved = (turn @ joints[..., None])[..., 0] + shift
    return moved - joints[0], posed - joints[0]


def _finger_of_vertex(hand: hands.RenderHand) -> np.ndarray:
    """Return each vertex's finger, 0..4 in MANO's order; -1 on the palm."""
    owner = hand.file.weights.argmax(1)
    return np.where(owner == 0, -1, (owner - 1) // 3)


def _open_hand(rng: np.random.Generator) -> np.ndarray:
    angles = np.zeros((15, 3))
    for finger in range(4):
        base = 3 * finger
        angles[base : base + 3, 0] = np.radians(rng.uniform(-6, 10, 3))
    angles[[0, 3, 6, 9], 1] = np.radians(
        rng.normal(0, 3, 4) + rng.uniform(0, 1) * np.array([8, 1, -13, -6])
    )
    angles[12] = np.radians(
        [rng.uniform(-15, 0), rng.uniform(5, 40), rng.uniform(0, 25)]
    )
    angles[13, 0], angles[14, 0] = np.radians(rng.uniform(-5, 10, 2))
    return angles


def _closed_hand(rng: np.random.Generator) -> np.ndarray:
    angles = np.zeros((15, 3))
    for finger in range(4):
        base = 3 * finger
        curl = rng.normal(0, 6, 3)
        angles[base : base + 3, 0] = np.radians(np.array([80, 98, 62]) + curl)
    angles[[0, 3, 6, 9], 1] = np.radians(rng.normal(0, 2, 4))
    angles[12] = np.radians([rng.uniform(20, 45), rng.uniform(20, 42), 30])
    angles[13, 0], angles[14, 0] = np.radians(
        [rng.uniform(25, 55), rng.uniform(20, 70)]
    )
    return angles
