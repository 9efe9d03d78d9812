"""Fit the hand model to 21 points: anyone's, in pixels, in metres, or both.

    fitted = fit(hand, points2d=pixels, intrinsics=K)
    fitted.vertices, fitted.mano_pose, fitted.residual_px

Levenberg-Marquardt over global orientation, finger pose, shape and position, a fixed
number of iterations, compiled, all hands of a batch at once. The fingers are whitened
coordinates of the built-in hand's pose space (`PosePrior`), so that the prior is a unit
normal and directions in which hands do not bend cost most; angles beyond the limits of
the joints cost more on top.

Conventions: metres; radians; OpenCV camera axes; joints in `skeleton.JOINTS` order.
The hand model is a right hand. A left hand is fitted in the mirror (`is_right`):
`vertices`, `joints3d` and `translation` come back on its own side, `mano_pose` stays
that of the right hand whose mirror image it is.

Points of other projects are not the joints of this hand model. MediaPipe's knuckles lie
6 to 9 % of the hand nearer to the wrist, so `convention="mediapipe"` maps joints to its
points (`Convention`) before it compares them.
"""

import functools
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from handjax.errors import UserError
from handjax.geometry import rotations
from handjax.geometry.crop import rotation_z
from handjax.geometry.skeleton import MIDDLE_MCP, NUM_JOINTS
from handjax.mano.hand_model import HandModel
from handjax.mano.model_files import OPEN_HAND
from handjax.types import AnyArray

LANDMARKS = Path(__file__).parents[1] / "assets" / "landmark_pairs.npz"
ITERATIONS = 15
_PALM = (0, 5, 9, 13, 17)
"""Wrist and knuckles: nearly rigid, so they tell the orientation of the hand."""
_FIRST_DEPTH = 0.5
_LARGEST_BETA = 2.5  # standard deviations; beyond it meshes are no hands
_VARIANCE_FLOOR = 1e-4  # rad^2: no direction of the pose space is quite stiff


class PosePrior(NamedTuple):
    """Poses of fingers that hands take: a normal distribution, and limits of angles."""

    mean: Float[AnyArray, "angle"]
    """Axis-angle of joints 1..15, radians."""
    components: Float[AnyArray, "angle angle"]
    """Orthonormal, one a row."""
    deviation: Float[AnyArray, "angle"]
    """Standard deviation along each, radians."""
    axes: Float[AnyArray, "local 3 3"]
    """Unit axes of flexion, abduction and twist of each joint."""
    limits: Float[AnyArray, "local 3 2"]
    """Smallest and largest angle about each, radians."""

    @classmethod
    def load(cls) -> "PosePrior":
        """Read the built-in hand's."""
        with np.load(OPEN_HAND) as arrays:
            return cls(
                arrays["hands_mean"],
                arrays["hands_components"],
                np.sqrt(arrays["hands_variance"] + _VARIANCE_FLOOR),
                arrays["axes"],
                np.radians(arrays["limits_deg"]),
            )


class Convention(NamedTuple):
    """What a project's 21 points are, in terms of the joints of the hand model."""

    screen: Float[AnyArray, "joint joint"]
    """Its 2-D points are `screen @ joints`, before projection."""
    world: Float[AnyArray, "joint joint"]
    """Its 3-D points are `world @ joints`; rows of both sum to 1."""
    metric: bool
    """Whether the size of its 3-D points is the size of the hand."""


def convention(name: str) -> Convention:
    """Return the convention of a name: "joints" (ours, FreiHAND's) or "mediapipe".

    Raises:
        UserError: There is none of this name.
    """
    if name == "joints":
        same = np.eye(NUM_JOINTS, dtype=np.float32)
        return Convention(same, same, True)
    if name == "mediapipe":
        with np.load(LANDMARKS) as arrays:
            return Convention(
                arrays["screen_convention"], arrays["world_convention"], False
            )
    raise UserError(f"convention={name!r} is not one of {', '.join(CONVENTIONS)}.")


CONVENTIONS = ("joints", "mediapipe")


class Weights(NamedTuple):
    """How much each residual counts; all are free of units."""

    points2d: float = 1.0
    """Distance in the picture, relative to the hand's radius there."""
    points3d: float = 0.3
    """Distance in space, relative to 8 cm."""
    pose: float = 0.05
    """Deviations from the mean pose, of `PosePrior`."""
    shape: float = 0.05
    """Betas, as differences from the initial hand's (without one, from zero)."""
    initial: float = 0.3
    """Turns away from `initial`, relative to 0.3 radians; counts only where one is
    given."""
    limits: float = 1.0
    """Radians beyond the limits of the joints, and betas beyond 2.5."""
    outlier: float = 0.1
    """Distance in the picture from which a point counts linearly (Huber), relative to
    the hand's radius; 0: never."""


class Initial(NamedTuple):
    """Hands to start from, and to stay near."""

    rotations: Float[AnyArray, "batch bone 3 3"]
    """Local rotations, the wrist first; camera axes."""
    betas: Float[AnyArray, "batch beta"]


class Fit(NamedTuple):
    """Fitted hands."""

    vertices: Float[np.ndarray, "batch vertex 3"]
    """Metres, relative to the middle knuckle; camera axes (or those of `points3d`)."""
    joints3d: Float[np.ndarray, "batch joint 3"]
    """The same frame."""
    translation: Float[np.ndarray, "batch 3"]
    """The middle knuckle in the camera, metres; as good as the intrinsics and the size
    of the hand are. Zero without 2-D points."""
    joints2d: Float[np.ndarray, "batch joint 2"] | None
    """Joints of the fitted hand in the photo, pixels; None without 2-D points."""
    mano_pose: Float[np.ndarray, "batch bone 3"]
    """Absolute axis-angle, the wrist first, of the right hand."""
    betas: Float[np.ndarray, "batch beta"]
    residual_px: Float[np.ndarray, "batch"] | None
    """Mean distance of the points from where the fitted hand has them, pixels."""
    residual_mm: Float[np.ndarray, "batch"] | None
    """The same in space; None without 3-D points."""
    cost: Float[np.ndarray, "batch step"]
    """Sum of squared residuals before each iteration and after the last."""


def fit(
    hand: HandModel,
    *,
    points2d: Float[AnyArray, "batch joint 2"] | None = None,
    intrinsics: Float[AnyArray, "3 3"] | Float[AnyArray, "batch 3 3"] | None = None,
    points3d: Float[AnyArray, "batch joint 3"] | None = None,
    confidence: Float[AnyArray, "batch joint"] | None = None,
    is_right: Bool[AnyArray, "batch"] | None = None,
    initial: Initial | None = None,
    convention: str = "joints",
    weights: Weights = Weights(),  # noqa: B008 - a NamedTuple of numbers
    iterations: int = ITERATIONS,
) -> Fit:
    """Fit pose, shape and position of hands to their points.

    Args:
        hand: Right-hand model; its pose space is taken to be the built-in hand's.
        points2d: Pixels of the photo.
        intrinsics: Camera matrix of the photo, needed with `points2d`; where it is not
            known, `crop.assumed_intrinsics`.
        points3d: Metres, in any place; camera axes where there are `points2d`, too.
        confidence: Weight of each point, 0 (left out) to 1; all 1 by default.
        is_right: False for left hands; all right by default.
        initial: Where to start; without it, from several views of the mean pose, of
            which the best fit is kept. Of left hands, in the mirror as `mano_pose`.
        convention: One of `CONVENTIONS`: whose points they are.
        weights: Of the residuals.
        iterations: Of Levenberg-Marquardt.

    Raises:
        UserError: No points, points that are not finite or not (batch, 21, ...), 2-D
            points without a camera, or an unknown convention.
    """
    named = globals()["convention"](convention)
    points2d, points3d, weight, right, K = _checked(
        points2d, points3d, confidence, is_right, intrinsics
    )
    batch = len(weight)
    side = np.where(right, 1.0, -1.0)[:, None, None].astype(np.float32)
    rays = np.zeros((batch, NUM_JOINTS, 2), np.float32)
    if points2d is not None:
        rays = _rays(points2d, K)
        rays[..., :1] *= side
    space = np.zeros((batch, NUM_JOINTS, 3), np.float32)
    if points3d is not None:
        space = points3d - points3d[:, MIDDLE_MCP, None]
        space = space * np.concatenate([side, side**2, side**2], -1)
    used = weights._replace(
        points2d=weights.points2d * (points2d is not None),
        points3d=weights.points3d * (points3d is not None),
        initial=weights.initial * (initial is not None),
    )
    known = None if points3d is None else space
    starts = _starts(initial, batch, rays, known, named)
    target = _Target(rays, space, weight)
    maps = Convention(
        jnp.asarray(named.screen, jnp.float32),
        jnp.asarray(named.world, jnp.float32),
        named.metric,
    )
    prior = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), PosePrior.load())
    found = _fitted(
        hand,
        _only_joints(hand),
        prior,
        maps._replace(metric=jnp.asarray(named.metric)),
        target,
        starts,
        used,
        iterations=iterations,
    )
    # The rest is numpy: each of its few operations would be a program to compile.
    vertices, joints3d, transl, pose, betas, miss3d, cost = jax.device_get(found)
    flip = np.concatenate([side, side**2, side**2], -1)
    joints2d = residual_px = None
    if points2d is not None:
        placed = (joints3d + transl[:, None]) * flip
        joints2d = _projected(placed, K)
        mapped = named.screen @ joints3d + transl[:, None]
        miss = np.linalg.norm(_projected(mapped * flip, K) - points2d, axis=-1)
        residual_px = (miss * weight).sum(-1) / np.maximum(weight.sum(-1), 1e-6)
    return Fit(
        vertices=vertices * flip,
        joints3d=joints3d * flip,
        translation=transl * flip[:, 0] * (points2d is not None),
        joints2d=joints2d,
        mano_pose=pose,
        betas=betas,
        residual_px=residual_px,
        residual_mm=None if points3d is None else 1e3 * miss3d,
        cost=cost,
    )


# --- the problem --------------------------------------------------------------------


class _Target(NamedTuple):
    rays: Float[AnyArray, "*batch joint 2"]
    """2-D points as x / z and y / z of the camera, of a right hand."""
    space: Float[AnyArray, "*batch joint 3"]
    """3-D points relative to the middle knuckle, of a right hand."""
    weight: Float[AnyArray, "*batch joint"]


def _hand_of(x: Array, turn0: Array, prior: PosePrior) -> tuple[Array, Array, Array]:
    """Return local rotations, betas and position of an unknown vector.

    It is (turn from the initial orientation 3, whitened finger pose 45, betas 10,
    x / z, y / z, log z of the middle knuckle).
    """
    turn = rotations.axis_angle_to_matrix(x[:3]) @ turn0
    fingers = _fingers(x, prior)
    local = rotations.axis_angle_to_matrix(fingers.reshape(15, 3))
    depth = jnp.exp(x[-1])
    transl = jnp.concatenate([x[-3:-1], jnp.ones(1)]) * depth
    return jnp.concatenate([turn[None], local]), x[48:-3], transl


def _fingers(x: Array, prior: PosePrior) -> Float[Array, "angle"]:
    return prior.mean + (x[3:48] * prior.deviation) @ prior.components


def _joints(hand: HandModel, local: Array, betas: Array) -> Float[Array, "joint 3"]:
    posed = hand.with_shape(betas).with_pose(local[0], local[1:], form="matrix")
    return posed.joints3d - posed.joints3d[MIDDLE_MCP, None]


def _residuals(x, x0, turn0, hand, prior, maps, target, weights) -> Array:
    """Return all residuals of one hand, weighted; their squares are the cost."""
    local, betas, transl = _hand_of(x, turn0, prior)
    joints = _joints(hand, local, betas)
    seen = maps.screen @ joints + transl[None]
    centre = _mean(target.rays, target.weight[:, None], axis=0)
    off = jnp.sum((target.rays - centre[None]) ** 2, axis=-1)
    radius = jnp.sqrt(_mean(off, target.weight)) + 1e-6
    root = jnp.sqrt(target.weight)[:, None]
    flat = (seen[:, :2] / seen[:, 2:] - target.rays) / radius
    # Huber's loss as weights of least squares, which are not differentiated.
    miss = jnp.sqrt(jnp.sum(flat**2, axis=-1, keepdims=True) + 1e-12)
    limit = jnp.where(weights.outlier > 0, weights.outlier, jnp.inf)
    robust = jax.lax.stop_gradient(jnp.sqrt(jnp.minimum(1.0, limit / miss)))
    angles = jnp.einsum("jab,jb->ja", prior.axes, _fingers(x, prior).reshape(15, 3))
    parts = [
        weights.points2d * root * robust * flat,
        weights.points3d * root * _miss3d(joints, maps, target) / 0.08,
        weights.pose * x[3:48],
        weights.shape * (betas - x0[48:-3]),
        weights.initial / 0.3 * x[:3],
        weights.initial / 0.3 * (x[3:48] - x0[3:48]) * prior.deviation,
        weights.limits * jax.nn.relu(prior.limits[..., 0] - angles),
        weights.limits * jax.nn.relu(angles - prior.limits[..., 1]),
        weights.limits * jax.nn.relu(jnp.abs(betas) - _LARGEST_BETA),
    ]
    return jnp.concatenate([part.ravel() for part in parts])


def _miss3d(joints: Array, maps: Convention, target: _Target) -> Array:
    """Return the differences of 3-D points, place (and size, if it is free) aside."""
    weight = target.weight[:, None]
    mapped = maps.world @ joints
    mapped = mapped - _mean(mapped, weight, axis=0)[None]
    space = target.space - _mean(target.space, weight, axis=0)[None]
    size = jnp.sum(weight * mapped * space) / (jnp.sum(weight * space**2) + 1e-12)
    return mapped - jnp.where(maps.metric, 1.0, jax.lax.stop_gradient(size)) * space


def _mean(x: AnyArray, weight: AnyArray, axis: int = -1) -> Array:
    total = jnp.maximum(jnp.sum(weight, axis=axis), 1e-6)
    return jnp.sum(x * weight, axis=axis) / total


# --- solving it ---------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames="iterations")
def _fitted(hand, small, prior, maps, target, starts, weights, *, iterations):
    """Fit every start of every hand, keep the best of each hand, and skin it."""

    def one(turn0, fingers, betas, target):
        x0 = _first(turn0, fingers, betas, small, prior, maps, target)
        solve = functools.partial(_residuals, x0=x0, turn0=turn0, hand=small)
        solve = functools.partial(
            solve, prior=prior, maps=maps, target=target, weights=weights
        )
        x, cost = _levenberg_marquardt(solve, x0, iterations)
        local, betas, transl = _hand_of(x, turn0, prior)
        return local, betas, transl, cost

    of_starts = jax.vmap(one, in_axes=(0, 0, 0, None))
    local, betas, transl, cost = jax.vmap(of_starts)(*starts, target)
    best = jnp.argmin(cost[..., -1], axis=1)

    def chosen(x):
        return jax.vmap(lambda each, i: each[i])(x, best)

    local, betas, transl, cost = map(chosen, (local, betas, transl, cost))
    posed = hand.with_shape(betas).with_pose(local[:, 0], local[:, 1:], form="matrix")
    root = posed.joints3d[:, MIDDLE_MCP, None]
    joints3d = posed.joints3d - root
    miss = jax.vmap(_miss3d, in_axes=(0, None, 0))(joints3d, maps, target)
    miss3d = _mean(jnp.linalg.norm(miss, axis=-1), target.weight)
    pose = rotations.matrix_to_axis_angle(local)
    return posed.vertices - root, joints3d, transl, pose, betas, miss3d, cost


def _first(turn0, fingers, betas, hand, prior, maps, target) -> Array:
    """Return the unknowns of a start: the hand as given, put onto its 2-D points."""
    local = rotations.axis_angle_to_matrix(fingers.reshape(15, 3))
    joints = maps.screen @ _joints(hand, jnp.concatenate([turn0[None], local]), betas)
    whitened = (fingers - prior.mean) @ prior.components.T / prior.deviation
    weight = target.weight[:, None]
    flat, rays = joints[:, :2], target.rays
    middle, seen = _mean(flat, weight, axis=0), _mean(rays, weight, axis=0)
    spread = jnp.sqrt(jnp.sum(weight * (flat - middle[None]) ** 2) + 1e-12)
    apparent = jnp.sqrt(jnp.sum(weight * (rays - seen[None]) ** 2))
    # Without 2-D points there is no size in the picture: any depth does.
    depth = jnp.where(apparent > 0, spread / jnp.maximum(apparent, 1e-6), _FIRST_DEPTH)
    place = seen - middle / depth
    return jnp.concatenate([jnp.zeros(3), whitened, betas, place, jnp.log(depth)[None]])


def _levenberg_marquardt(residuals, x0: Array, iterations: int) -> tuple[Array, Array]:
    """Minimise the sum of squared residuals; the cost never grows.

    Damping is Marquardt's (relative to the diagonal): a third after a step that helped,
    five times as much after one that did not, which is not taken.
    """

    def step(state, _):
        x, damping, r = state
        jacobian = jax.jacfwd(residuals)(x)
        normal = jacobian.T @ jacobian
        damped = normal + damping * jnp.diag(jnp.diag(normal)) + 1e-6 * jnp.eye(len(x))
        trial = x - jax.scipy.linalg.solve(damped, jacobian.T @ r, assume_a="pos")
        after = residuals(trial)
        better = after @ after < r @ r  # False for nan, so that x stays finite
        damping = jnp.clip(jnp.where(better, damping / 3, damping * 5), 1e-6, 1e6)
        state = jnp.where(better, trial, x), damping, jnp.where(better, after, r)
        return state, r @ r

    start = residuals(x0)
    (x, _, r), cost = jax.lax.scan(step, (x0, 1e-2, start), None, length=iterations)
    return x, jnp.append(cost, r @ r)


# --- where to start -----------------------------------------------------------------


def _starts(initial, batch, rays, space, named):
    """Return orientations, finger poses and betas, (batch, start, ...)."""
    if initial is not None:
        turns = np.asarray(initial.rotations, np.float32)
        fingers = np.asarray(_axis_angle(turns[:, 1:])).reshape(batch, 1, 45)
        return turns[:, None, 0], fingers, np.asarray(initial.betas)[:, None]
    mean = PosePrior.load().mean.astype(np.float32)
    if space is None:
        turns = _turned_views(rays, named)
    else:
        turns = _turn_of_palm(space, named)[:, None]
    count = turns.shape[1]
    return (
        np.asarray(turns, np.float32),
        np.broadcast_to(mean, (batch, count, 45)),
        np.zeros((batch, count, 10), np.float32),
    )


_axis_angle = jax.jit(rotations.matrix_to_axis_angle)


def _views() -> np.ndarray:
    """Return orientations seen from all around, each of them to be turned in-plane."""
    facing = np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])  # fingers up, palm seen
    views = []
    for pitch in (-1.0, 0.0, 1.0):
        cos, sin = np.cos(pitch), np.sin(pitch)
        Rx = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
        for yaw in np.arange(4) * np.pi / 2:
            cos, sin = np.cos(yaw), np.sin(yaw)
            Ry = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
            views.append(Rx @ Ry @ facing)
    return np.stack(views)


_VIEWS = _views()


def _turned_views(rays: np.ndarray, named: Convention) -> np.ndarray:
    """Return `_VIEWS`, each turned in-plane so that its joints fit the points best.

    In complex numbers the best turn of a onto b is the argument of sum(conj(a) b).
    """
    joints = np.asarray(named.screen) @ _rest_joints()
    seen = np.einsum("vab,jb->vja", _VIEWS, joints)
    a = seen[..., 0] + 1j * seen[..., 1]
    b = rays[..., 0] + 1j * rays[..., 1]
    a = a - a.mean(-1, keepdims=True)
    b = b - b.mean(-1, keepdims=True)
    angle = np.angle(np.einsum("vj,nj->nv", a.conj(), b))
    return rotation_z(angle) @ _VIEWS


@functools.cache
def _rest_joints() -> Float[np.ndarray, "joint 3"]:
    """Return the 21 joints of the flat built-in hand, from the middle knuckle."""
    hand = HandModel.load("open")
    joints = np.asarray(hand.joint_regressor @ hand.v_template)
    return joints - joints[MIDDLE_MCP]


def _turn_of_palm(space: np.ndarray, named: Convention) -> np.ndarray:
    """Return the rotation that brings the flat hand's palm onto that of 3-D points."""
    rest = (np.asarray(named.world) @ _rest_joints())[list(_PALM)]
    palm = space[:, list(_PALM)]
    rest = rest - rest.mean(0)
    palm = palm - palm.mean(1, keepdims=True)
    u, _, vt = np.linalg.svd(np.einsum("npa,pb->nab", palm, rest))
    sign = np.sign(np.linalg.det(u @ vt))
    u[..., 2] *= sign[:, None]
    return u @ vt


# --- what is given ------------------------------------------------------------------


def _checked(points2d, points3d, confidence, is_right, intrinsics):
    """Return the arguments as arrays.

    Raises:
        UserError: They do not fit; see `fit`.
    """
    if points2d is None and points3d is None:
        raise UserError("fit needs points2d (pixels), points3d (metres), or both.")
    arrays = []
    for name, points, axes in (("points2d", points2d, 2), ("points3d", points3d, 3)):
        if points is not None:
            points = np.array(points, np.float32)
            if points.ndim != 3 or points.shape[1:] != (NUM_JOINTS, axes):
                raise UserError(
                    f"{name} has shape {points.shape}; it must be (batch, 21, {axes}), "
                    "in the order of skeleton.JOINTS."
                )
        arrays.append(points)
    points2d, points3d = arrays
    batch = len(points2d if points2d is not None else points3d)
    weight = np.ones((batch, NUM_JOINTS), np.float32)
    if confidence is not None:
        weight = np.array(confidence, np.float32)
        if (
            weight.shape != (batch, NUM_JOINTS)
            or not ((weight >= 0) & (weight <= 1)).all()
        ):
            raise UserError(
                f"confidence must be ({batch}, 21) numbers from 0 to 1; given shape "
                f"{weight.shape}."
            )
    for name, points in (("points2d", points2d), ("points3d", points3d)):
        # Points that do not count may be anything: they are moved to the others' mean.
        if points is not None:
            if not np.isfinite(points[weight > 0]).all():
                raise UserError(
                    f"{name} has numbers that are not finite; give those points "
                    "confidence 0."
                )
            points[weight == 0] = 0.0
    right = np.ones(batch, bool) if is_right is None else np.asarray(is_right, bool)
    K = None
    if points2d is not None:
        if intrinsics is None:
            raise UserError(
                "points2d needs intrinsics, the camera matrix in pixels. Where it is "
                "not known, use geometry.crop.assumed_intrinsics(width, height)."
            )
        K = np.broadcast_to(np.asarray(intrinsics, np.float64), (batch, 3, 3))
    return points2d, points3d, weight, right, K


def _rays(points2d: np.ndarray, K: np.ndarray) -> np.ndarray:
    """Return x / z and y / z of pixels."""
    ones = np.ones_like(points2d[..., :1])
    homogeneous = np.concatenate([points2d, ones], -1).astype(np.float64)
    rays = homogeneous @ np.swapaxes(np.linalg.inv(K), -1, -2)
    return (rays[..., :2] / rays[..., 2:]).astype(np.float32)


def _projected(points: np.ndarray, K: np.ndarray) -> np.ndarray:
    seen = points @ np.swapaxes(np.asarray(K, np.float32), -1, -2)
    return seen[..., :2] / seen[..., 2:]


def _only_joints(hand: HandModel) -> HandModel:
    """Return a hand of few vertices with the same joints, which costs a sixth.

    It keeps the vertices that joints are regressed from. The model's own joints are
    regressed from all vertices of the rest mesh, linearly in the betas: they become
    vertices of their own, which only `J_regressor` reads.
    """
    # In numpy: as single operations on the device they would be compiled for seconds.
    bones, regressor = hand.J_regressor.shape[0], np.asarray(hand.joint_regressor)
    kept = np.flatnonzero(np.abs(regressor).sum(axis=0))

    def joined(per_vertex, per_bone):
        per_vertex = np.asarray(per_vertex)
        return np.concatenate([per_vertex[kept], per_bone.astype(per_vertex.dtype)])

    J_regressor, posedirs = np.asarray(hand.J_regressor), np.asarray(hand.posedirs)
    moves = np.tensordot(J_regressor, np.asarray(hand.shapedirs), 1)
    small = hand._replace(
        v_template=joined(hand.v_template, J_regressor @ np.asarray(hand.v_template)),
        shapedirs=joined(hand.shapedirs, moves),
        posedirs=joined(posedirs, np.zeros((bones, *posedirs.shape[1:]))),
        weights=joined(hand.weights, np.eye(bones)),
        J_regressor=np.pad(np.eye(bones, dtype=np.float32), ((0, 0), (len(kept), 0))),
        joint_regressor=np.pad(regressor[:, kept], ((0, 0), (0, bones))),
    )
    return jax.tree.map(jnp.asarray, small)
