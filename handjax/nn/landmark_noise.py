"""What MediaPipe's landmark network makes of hands: pairs, and noise drawn from them.

A pair is a rendered hand and the 21 points that the network read in its picture
(`scripts/make_landmark_pairs.py` makes them, `load_pairs` reads them). From pairs come

* the convention: linear maps from our joints to the network's points, which lie
  elsewhere on the hand (its knuckles nearer to the wrist);
* the noise: what the maps leave over, kept pair by pair. A hand without a picture gets
  the left-over of a pair whose hand looks alike, because the network errs most where
  fingers hide each other.

So a model of landmarks can train on any number of poses and render none of them. The
noise turns with the hand: `draw` of a hand turned in the picture is the turned `draw`
of the hand. (A noise model that did not, fitted on palms, made models that put the
backs of hands upside down.)

Conventions: "upright" is turned so that the wrist is below the knuckles, as in the
detector's regions. Screen points are relative to their mean and divided by their root
mean square radius; world points are metres relative to their mean.
"""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from handjax.geometry.skeleton import NUM_JOINTS
from handjax.types import AnyArray

PAIRS = Path(__file__).parents[1] / "assets" / "landmark_pairs.npz"
WIDTH = 1.2
"""Squared radii, summed over joints, by which a pair has to be less like a hand to lend
its noise e times less often. So about 24 pairs share a hand, in the mean."""
_RIDGE = 1e-3
_VERY_SURE = 0.95
_SURE = 0.5  # presence from which a pair says where the network's points lie
_DEPTH_IN_LIKENESS = 0.7  # depth tells less about what hides what than the picture


class Landmarks(NamedTuple):
    """What the network says about hands in upright regions."""

    screen: Float[AnyArray, "*batch joint 3"]
    """x, y and depth in one unit (pixels of a crop, or radii); any origin."""
    world: Float[AnyArray, "*batch joint 3"]
    """Metres; any origin."""
    presence: Float[AnyArray, "*batch"]
    """Probability that there is a hand."""


class Pairs(NamedTuple):
    """Rendered hands and what the network read."""

    mano_pose: Float[np.ndarray, "pair bone 3"]
    """Axis-angle, axes of the upright region."""
    betas: Float[np.ndarray, "pair beta"]
    joints3d: Float[np.ndarray, "pair joint 3"]
    """Of the built-in hand in that pose, metres."""
    landmarks: Landmarks


class Noise(NamedTuple):
    """Maps from joints to points, and what they leave over of each pair."""

    screen_map: Float[AnyArray, "joint joint"]
    """Screen x and y are `screen_map @ joints`; rows sum to 1."""
    depth_map: Float[AnyArray, "joint joint"]
    """The same for screen z."""
    world_map: Float[AnyArray, "joint joint"]
    screen_rest: Float[AnyArray, "pair joint 3"]
    """Radii."""
    world_rest: Float[AnyArray, "pair joint 3"]
    """Metres."""
    presence: Float[AnyArray, "pair"]
    likeness: Float[AnyArray, "pair joint 3"]
    """What hands are compared by: their upright joints, in radii."""


def load_pairs() -> Pairs:
    """Read the pairs that come with handjax."""
    with np.load(PAIRS) as arrays:
        found = {key: arrays[key].astype(np.float32) for key in _ARRAYS}
    return Pairs(
        found["mano_pose"],
        found["betas"],
        found["joints3d"],
        Landmarks(found["screen"], found["world"], found["presence"]),
    )


_ARRAYS = ("mano_pose", "betas", "joints3d", "screen", "world", "presence")


def save_pairs(path: Path, pairs: Pairs) -> None:
    """Write pairs, in float16, and their convention."""
    landmarks = pairs.landmarks
    values = (*pairs[:3], landmarks.screen, landmarks.world, landmarks.presence)
    small = {k: np.float16(v) for k, v in zip(_ARRAYS, values, strict=True)}
    convention = convention_of(pairs)
    np.savez_compressed(
        path,
        **small,
        screen_convention=convention.screen,
        world_convention=convention.world,
    )


# --- the noise of pairs -------------------------------------------------------------


def noise_of(pairs: Pairs) -> Noise:
    """Fit the maps to the pairs that the network is sure of; keep what they leave."""
    sure = pairs.landmarks.presence > _SURE
    joints = _centred(pairs.joints3d[sure])
    screen, world, presence = (np.asarray(x)[sure] for x in pairs.landmarks)
    screen, world = in_radii(screen), _centred(world)
    flat = in_radii(joints)
    screen_map = _ridge(flat[..., :2], screen[..., :2])
    depth_map = _ridge(flat[..., 2:], screen[..., 2:])
    world_map = _ridge(joints, world)
    noise = Noise(
        screen_map,
        depth_map,
        world_map,
        screen_rest=np.zeros_like(screen),
        world_rest=world - np.einsum("jk,nkx->njx", world_map, joints),
        presence=presence,
        likeness=_likeness(flat),
    )
    rest = screen - np.asarray(_screen(noise, flat))
    return jax.tree.map(np.float32, noise._replace(screen_rest=rest))


def _ridge(joints: np.ndarray, points: np.ndarray) -> Float[np.ndarray, "joint joint"]:
    """Return the map nearest to the identity that takes joints to points.

    Ridge regression without an intercept, the coordinates of a point sharing one row:
    so the map commutes with every turn, and with shifts, as rows that sum to 1 do.
    """
    x = np.moveaxis(joints, 1, -1).reshape(-1, NUM_JOINTS).astype(np.float64)
    y = np.moveaxis(points, 1, -1).reshape(-1, NUM_JOINTS).astype(np.float64)
    gram = x.T @ x
    damped = gram + _RIDGE * np.trace(gram) / NUM_JOINTS * np.eye(NUM_JOINTS)
    found = np.eye(NUM_JOINTS) + np.linalg.solve(damped, x.T @ (y - x)).T
    # Points are compared up to a shift, which leaves the rows' sums open: make them 1.
    found += (1 - found.sum(axis=1, keepdims=True)) / NUM_JOINTS
    return found.astype(np.float32)


class Convention(NamedTuple):
    """Where the network's points lie on a hand that it sees well."""

    screen: Float[np.ndarray, "joint joint"]
    """2-D points are `screen @ joints`, before projection."""
    world: Float[np.ndarray, "joint joint"]
    """The same for 3-D points; rows of both sum to 1."""


def convention_of(pairs: Pairs) -> Convention:
    """Find where the network's points lie, free of its errors.

    The maps of `Noise` are no convention: where the network fails it answers with the
    mean, so that their finger tips are drawn into the hand. Here a point lies among its
    own joint, its neighbours on the finger and the wrist, the pairs are the half of the
    sure ones that the network read best, and what is left over counts linearly.
    """
    sure = pairs.landmarks.presence > _VERY_SURE
    joints = pairs.joints3d[sure]
    flat = in_radii(joints)[..., :2]
    screen = in_radii(pairs.landmarks.screen[sure])[..., :2]
    world = _centred(pairs.landmarks.world[sure])
    best = np.linalg.norm(screen - flat, axis=-1).mean(axis=-1)
    best = best <= np.median(best)
    return Convention(
        _convention(flat[best], screen[best]),
        _convention(_centred(joints)[best], world[best]),
    )


def _convention(joints: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return `_local_map` for points of free size and place, found by turns."""
    found = np.eye(NUM_JOINTS, dtype=np.float32)
    for _ in range(3):
        mapped = _centred(np.einsum("jk,nkx->njx", found, joints))
        points = _centred(points)
        square = np.sum(points**2, axis=(1, 2), keepdims=True)
        size = np.sum(mapped * points, axis=(1, 2), keepdims=True) / square
        # Put them back where the joints are.
        shift = np.einsum("jk,nkx->njx", found, joints) - mapped
        points = size * points + shift
        found = _local_map(joints, points)
    return found


def _local_map(joints: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return each point as a sum of a few joints with weights that sum to 1.

    Least absolute distances, by reweighted least squares with a little damping towards
    the point's own joint.
    """
    found = np.eye(NUM_JOINTS)
    for point in range(1, NUM_JOINTS):
        finger = 4 * ((point - 1) // 4)
        others = {0, *range(finger + 1, finger + 5)} & {0, point - 1, point + 1}
        others = sorted(others - {point})
        along = joints[:, others] - joints[:, point, None]
        miss = points[:, point] - joints[:, point]
        x = np.moveaxis(along, 1, -1).reshape(-1, len(others))
        weight = np.ones(len(x))
        for _ in range(20):
            gram = (x * weight[:, None]).T @ x
            gram += 0.01 * np.trace(gram) * np.eye(len(others))
            mix = np.linalg.solve(gram, (x * weight[:, None]).T @ miss.ravel())
            rest = np.linalg.norm((miss.ravel() - x @ mix).reshape(miss.shape), axis=-1)
            weight = np.repeat(1 / np.maximum(rest, 1e-3 * joints.std()), miss.shape[1])
        found[point, others] += mix
        found[point, point] -= mix.sum()
    return found.astype(np.float32)


def _screen(noise: Noise, flat):
    """Return what the network would see of hands, in radii, without noise."""
    xp = flat.__array_namespace__()
    seen = xp.einsum("jk,nkx->njx", noise.screen_map, flat[..., :2])
    depth = xp.einsum("jk,nkx->njx", noise.depth_map, flat[..., 2:])
    return xp.concatenate([seen, depth], axis=-1)


def _likeness(flat):
    xp = flat.__array_namespace__()
    return xp.concatenate([flat[..., :2], _DEPTH_IN_LIKENESS * flat[..., 2:]], axis=-1)


# --- drawing ------------------------------------------------------------------------


def draw(
    key: Array,
    noise: Noise,
    joints3d: Float[AnyArray, "batch joint 3"],
    *,
    width: float = WIDTH,
) -> Landmarks:
    """Draw what the network might read of hands; runs inside jit.

    Every hand is made upright, takes the noise of a pair that looks alike, by a factor
    from 0 to 1 (few photos are as hard as the renders), and is turned back. World
    points also change in size, by 6 %: the network does not know how large a hand is.

    Args:
        key: Decides pair, factor and size; turning a hand changes none of them.
        noise: Of pairs.
        joints3d: Metres, camera axes, any origin.
        width: How unlike a hand the pairs are that lend it their noise.
    """
    chosen, factors, sizes = jax.random.split(key, 3)
    count = len(joints3d)
    turn = turn_upright(joints3d)
    joints = _centred(jnp.einsum("nab,njb->nja", turn, joints3d))
    flat = in_radii(joints)
    likeness = _likeness(flat).reshape(count, -1)
    pairs = jnp.asarray(noise.likeness).reshape(len(noise.likeness), -1)
    apart = (
        jnp.sum(pairs**2, axis=1)[None] - 2 * likeness @ pairs.T
    )  # less |likeness|^2
    pair = jax.random.categorical(chosen, -apart / width)
    factor = jnp.sqrt(jax.random.uniform(factors, (count, 1, 1)))
    size = jnp.exp(0.06 * jax.random.normal(sizes, (count, 1, 1)))
    screen = _screen(noise, flat) + factor * jnp.asarray(noise.screen_rest)[pair]
    world = size * jnp.einsum("jk,nkx->njx", jnp.asarray(noise.world_map), joints)
    world = world + factor * jnp.asarray(noise.world_rest)[pair]
    back = jnp.swapaxes(turn, 1, 2)
    return Landmarks(
        jnp.einsum("nab,njb->nja", back, screen),
        jnp.einsum("nab,njb->nja", back, world),
        jnp.asarray(noise.presence)[pair],
    )


def turn_upright(
    points: Float[AnyArray, "batch joint axis"],
) -> Float[Array, "batch 3 3"]:
    """Return the rotation about the optical axis that makes hands upright.

    As the detector's regions: upwards is from the wrist to the knuckles, of which the
    middle one counts twice.
    """
    points = jnp.asarray(points)
    up = ((points[:, 5] + points[:, 13]) / 2 + points[:, 9]) / 2 - points[:, 0]
    return turn_in_plane(-jnp.arctan2(up[:, 0], -up[:, 1]))


def turn_in_plane(angle: Float[Array, "batch"]) -> Float[Array, "batch 3 3"]:
    """Return rotations about the optical axis, x towards y."""
    cos, sin, zero = jnp.cos(angle), jnp.sin(angle), jnp.zeros_like(angle)
    rows = [[cos, -sin, zero], [sin, cos, zero], [zero, zero, zero + 1]]
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


def in_radii(points: Float[AnyArray, "*batch joint 3"]):
    """Return points relative to their mean, in units of their radius in the picture."""
    xp = points.__array_namespace__()
    points = _centred(points)
    square = xp.sum(points[..., :2] ** 2, axis=-1).mean(axis=-1)
    return points / xp.sqrt(square + 1e-12)[..., None, None]


def _centred(points):
    return points - points.mean(axis=-2, keepdims=True)
