"""A skinned body of capsules in SMPL's file format, made from a page of numbers.

For tests, demonstrations and users without a licence for a body model: one closed
capsule around each of the 24 bones of SMPL's tree, with proportions of our own. Rest
pose: arms out, y up, the body's left +x, facing +z; metres, the pelvis at the origin.
"""

import io
import os
from typing import Any, NamedTuple

import numpy as np

from handjax.errors import UserError
from handjax.geometry.skeleton import SMPL_JOINTS, SMPL_PARENTS
from handjax.io import atomic_files

_JOINTS = {
    "pelvis": (0.0, 0.0, 0.0),
    "spine1": (0.0, 0.11, 0.0),
    "spine2": (0.0, 0.24, 0.0),
    "spine3": (0.0, 0.35, 0.0),
    "neck": (0.0, 0.53, 0.0),
    "head": (0.0, 0.61, 0.02),
    "head_top": (0.0, 0.73, 0.02),
    "hip": (0.09, -0.05, 0.0),
    "knee": (0.10, -0.45, 0.01),
    "ankle": (0.10, -0.86, -0.02),
    "foot": (0.11, -0.92, 0.11),
    "toes": (0.11, -0.92, 0.19),
    "collar": (0.07, 0.47, 0.0),
    "shoulder": (0.18, 0.48, 0.0),
    "elbow": (0.45, 0.48, -0.01),
    "wrist": (0.70, 0.48, 0.0),
    "hand": (0.78, 0.47, 0.0),
    "fingers": (0.87, 0.47, 0.0),
}
"""Positions, metres; of limbs the left ones."""

_CAPSULES = {
    "pelvis": ("spine1", 0.15, 0.13),
    "spine1": ("spine2", 0.13, 0.13),
    "spine2": ("spine3", 0.13, 0.14),
    "spine3": ("neck", 0.14, 0.06),
    "neck": ("head", 0.055, 0.055),
    "head": ("head_top", 0.075, 0.09),
    "hip": ("knee", 0.085, 0.06),
    "knee": ("ankle", 0.055, 0.04),
    "ankle": ("foot", 0.045, 0.04),
    "foot": ("toes", 0.04, 0.03),
    "collar": ("shoulder", 0.06, 0.06),
    "shoulder": ("elbow", 0.05, 0.04),
    "elbow": ("wrist", 0.04, 0.03),
    "wrist": ("hand", 0.035, 0.04),
    "hand": ("fingers", 0.04, 0.02),
}
"""Bone: where its capsule ends, and the radii at both ends, metres."""

_TRUNK = ("pelvis", "spine1", "spine2", "spine3", "neck", "head")
_ENDS = ("head_top", "left_toes", "right_toes", "left_fingers", "right_fingers")
_BLEND = 0.3
"""Share of a bone's length over which its skin belongs to the next bone as well."""


class _Surface(NamedTuple):
    """Vertices of all capsules."""

    points: np.ndarray
    radial: np.ndarray
    """Offset from the bone's axis."""
    along: np.ndarray
    """0 at the bone's joint, 1 at its end."""
    bone: np.ndarray


def arrays(*, sides: int = 6, rings: int = 4) -> dict[str, Any]:
    """Return the arrays of an SMPL file, and five end points `tips` with `tip_names`.

    Args:
        sides: Corners of a capsule's section.
        rings: Sections of a capsule. There are 24 (sides rings + 2) vertices.
    """
    if sides < 3 or rings < 2:
        raise UserError(f"sides={sides}, rings={rings}: at least 3 and 2.")
    surface, faces = _surface(sides, rings)
    size = sides * rings + 2
    regressor = np.zeros((24, len(surface.points)))
    for bone in range(24):
        regressor[bone, bone * size : bone * size + sides] = 1 / sides
    table = np.array([SMPL_PARENTS, range(24)])
    table[0, 0] = 2**32 - 1  # as in the published files
    owners = [SMPL_JOINTS.index(_owner(end)) for end in _ENDS]
    return {
        "v_template": surface.points,
        "shapedirs": _shapedirs(surface),
        "posedirs": np.zeros((len(surface.points), 3, 9 * 23)),
        "J_regressor": regressor,
        "weights": _weights(surface),
        "f": faces.astype(np.uint32),
        "kintree_table": table,
        "tips": np.array([bone * size + size - 1 for bone in owners]),
        "tip_names": np.array(_ENDS),
    }


def save(path: str | os.PathLike, **options: int) -> None:
    """Write `arrays(**options)` as an npz, which `config.hand.source` may name."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays(**options))
    atomic_files.write_bytes(path, buffer.getvalue())


def _place(name: str) -> np.ndarray:
    side, _, part = name.partition("_")
    if name in _JOINTS:
        return np.array(_JOINTS[name])
    return np.array(_JOINTS[part]) * (1 if side == "left" else -1, 1, 1)


def _end(bone: str) -> str:
    """Return where the capsule of a bone ends: another joint or an end point."""
    if bone in _CAPSULES:
        return _CAPSULES[bone][0]
    side, _, part = bone.partition("_")
    return f"{side}_{_CAPSULES[part][0]}"


def _owner(end: str) -> str:
    return next(bone for bone in SMPL_JOINTS if _end(bone) == end)


def _surface(sides: int, rings: int) -> tuple[_Surface, np.ndarray]:
    """Return rings around each bone, in file order, then the poles of its capsule."""
    parts, faces, size = [], [], sides * rings + 2
    angle = 2 * np.pi * np.arange(sides) / sides
    share = np.linspace(0, 1, rings)
    for bone, name in enumerate(SMPL_JOINTS):
        start, end = _place(name), _place(_end(name))
        _, first, last = _CAPSULES.get(name) or _CAPSULES[name.partition("_")[2]]
        axis = (end - start) / np.linalg.norm(end - start)
        # The two directions across, right-handed with the axis.
        side = np.cross(axis, (0, 0, 1) if abs(axis[2]) < 0.9 else (1, 0, 0))
        side /= np.linalg.norm(side)
        circle = np.outer(np.cos(angle), side)
        circle += np.outer(np.sin(angle), np.cross(axis, side))
        radius = first + (last - first) * share
        radial = (radius[:, None, None] * circle).reshape(-1, 3)
        centre = np.repeat(start + share[:, None] * (end - start), sides, axis=0)
        poles = np.array([start - 0.7 * first * axis, end + 0.7 * last * axis])
        parts.append(
            _Surface(
                np.concatenate([centre + radial, poles]),
                np.concatenate([radial, np.zeros((2, 3))]),
                np.concatenate([np.repeat(share, sides), (0, 1)]),
                np.full(size, bone),
            )
        )
        faces.append(_capsule_faces(sides, rings) + bone * size)
    return _Surface(*map(np.concatenate, zip(*parts, strict=True))), np.concatenate(
        faces
    )


def _capsule_faces(sides: int, rings: int) -> np.ndarray:
    """Return triangles, counter-clockwise seen from outside."""
    ring = np.arange(sides * rings).reshape(rings, sides)
    a, d = ring[:-1], ring[1:]
    b, c = np.roll(a, -1, axis=1), np.roll(d, -1, axis=1)
    first, last = np.full(sides, sides * rings), np.full(sides, sides * rings + 1)
    return np.concatenate(
        [
            np.stack([a, b, c], -1).reshape(-1, 3),
            np.stack([a, c, d], -1).reshape(-1, 3),
            np.stack([first, np.roll(ring[0], -1), ring[0]], -1),
            np.stack([last, ring[-1], np.roll(ring[-1], -1)], -1),
        ]
    )


def _weights(surface: _Surface) -> np.ndarray:
    """Return skinning weights that blend smoothly with the next bone's at a joint."""
    weights = np.zeros((len(surface.points), 24))
    rows = np.arange(len(weights))
    names = {name: number for number, name in enumerate(SMPL_JOINTS)}
    behind = np.array([names.get(_end(name), -1) for name in SMPL_JOINTS])
    before = np.array(SMPL_PARENTS)
    for neighbour, distance in ((before, surface.along), (behind, 1 - surface.along)):
        near = np.clip(1 - distance / _BLEND, 0, 1)
        share = 0.5 * near * near * (3 - 2 * near)
        other = neighbour[surface.bone]
        has = other >= 0
        weights[rows[has], other[has]] += share[has]
    weights[rows, surface.bone] += 1 - weights.sum(axis=1)
    return weights


def _shapedirs(surface: _Surface) -> np.ndarray:
    """Return ten ways in which bodies differ; a step of one is a few per cent."""
    x, y, _ = (points := surface.points).T
    radial, bones = surface.radial, np.array(SMPL_JOINTS)[surface.bone]
    limb = ~np.isin(bones, _TRUNK)
    upper = limb & (y > 0.3)
    nothing = np.zeros_like(x)
    legs = np.minimum(y - _JOINTS["hip"][1], 0)
    trunk = np.clip(y - _JOINTS["hip"][1], 0, _JOINTS["neck"][1])
    beyond = np.sign(x) * np.maximum(np.abs(x) - _JOINTS["shoulder"][0], 0)
    within = np.clip(x, -_JOINTS["shoulder"][0], _JOINTS["shoulder"][0])
    high = np.clip(y / 0.4, 0, 1)
    front = np.isin(bones, ("spine1", "spine2")) * np.maximum(radial[:, 2], 0)
    directions = [
        0.05 * points,  # size
        0.15 * radial,  # girth
        np.stack([nothing, 0.06 * legs, nothing], -1),
        np.stack([0.06 * beyond * upper, nothing, nothing], -1),  # arms
        np.stack([nothing, 0.06 * trunk, nothing], -1),
        np.stack([0.1 * within * high, nothing, nothing], -1),  # shoulders
        0.08 * (points - _place("head")) * (bones == "head")[:, None],
        np.stack([nothing, nothing, 0.4 * front], -1),  # belly
        0.2 * radial * limb[:, None],
        _about(points, bones, "ankle", "foot") + _about(points, bones, "wrist", "hand"),
    ]
    return np.stack(directions, axis=-1)


def _about(points: np.ndarray, bones: np.ndarray, centre: str, tip: str) -> np.ndarray:
    """Return the growth of hands or feet."""
    grown = np.zeros_like(points)
    for side in ("left", "right"):
        part = np.isin(bones, (f"{side}_{centre}", f"{side}_{tip}"))
        grown[part] = 0.08 * (points[part] - _place(f"{side}_{centre}"))
    return grown
