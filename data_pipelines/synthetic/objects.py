"""Things to hold or to stand in the way: meshes that know their signed distance."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

KINDS = ("box", "card", "ball", "can", "bottle", "stick", "cup")
_SIDES = 32
_ROUNDING = 0.12
"""Radius of a box's edges, relative to its smallest half size."""


class Shape(NamedTuple):
    """A solid about the origin of its own frame, long axis y, metres."""

    kind: str
    profile: Float[np.ndarray, "corner 2"] | None
    """Radius and height along the outline of a solid of revolution, bottom to top."""
    half_size: Float[np.ndarray, "3"]
    """Half extents along x, y, z."""


def sample(rng: np.random.Generator, kind: str) -> Shape:
    """Draw a shape of one of `KINDS` with everyday sizes."""
    radius, height = rng.uniform(0.018, 0.038), rng.uniform(0.04, 0.10)
    if kind == "box":
        half = rng.uniform([0.012, 0.03, 0.012], [0.035, 0.08, 0.035])
        return Shape(kind, None, half)
    if kind == "card":
        half = rng.uniform([0.025, 0.045, 0.002], [0.038, 0.08, 0.006])
        return Shape(kind, None, half)
    if kind == "ball":
        angle = np.linspace(-np.pi / 2, np.pi / 2, 17)
        radius = rng.uniform(0.018, 0.045)
        stretch = rng.choice([1.0, 1.0, rng.uniform(0.8, 1.4)])
        profile = np.stack([np.cos(angle), np.sin(angle) * stretch], -1) * radius
    elif kind == "can":
        lip = 0.06 * radius
        profile = np.array([[0, -1], [1, -1], [1, 1], [0, 1]], float) * [
            radius,
            height,
        ] + [[0, 0], [-lip, 0], [-lip, 0], [0, 0]]
        profile = np.insert(profile, 2, [[radius, -height + lip]], 0)
        profile = np.insert(profile, 3, [[radius, height - lip]], 0)
    elif kind == "bottle":
        shoulder, neck = rng.uniform(0.2, 0.5), rng.uniform(0.3, 0.5)
        profile = np.array(
            [[0, -1], [0.95, -1], [1, -0.95], [1, shoulder - 0.2], [0.9, shoulder]]
            + [[neck, shoulder + 0.2], [neck, 0.97], [0.9 * neck, 1], [0, 1]]
        ) * [radius, height * 1.2]
    elif kind == "cup":
        taper = rng.uniform(0.7, 0.95)
        profile = np.array(
            [[0, -1], [taper, -1], [1, 1], [0.93, 1], [taper - 0.05, -0.9], [0, -0.9]]
        ) * [radius * 1.15, height * 0.7]
    else:
        radius = rng.uniform(0.004, 0.014)
        profile = np.array(
            [[0, -1], [0.8, -1], [1, -0.98], [1, 0.98], [0.8, 1], [0, 1]]
        ) * [radius, rng.uniform(0.07, 0.14)]
    profile[:, 0] = np.maximum(profile[:, 0], 0)
    half = np.array([profile[:, 0].max(), np.abs(profile[:, 1]).max()])
    return Shape(kind, profile, half[[0, 1, 0]])


def scaled(shape: Shape, factor: float) -> Shape:
    """Return the same shape, larger or smaller."""
    profile = None if shape.profile is None else shape.profile * factor
    return Shape(shape.kind, profile, shape.half_size * factor)


def signed_distance(
    shape: Shape, points: Float[np.ndarray, "point 3"]
) -> Float[np.ndarray, "point"]:
    """Return the distance to the surface, metres, negative inside."""
    if shape.profile is None:
        rounding = _ROUNDING * shape.half_size.min()
        q = np.abs(points) - (shape.half_size - rounding)
        outside = np.linalg.norm(np.maximum(q, 0), axis=-1)
        return outside + np.minimum(q.max(-1), 0) - rounding
    flat = np.stack([np.hypot(points[:, 0], points[:, 2]), points[:, 1]], -1)
    return _polygon_distance(shape.profile, flat)


def _polygon_distance(profile: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return the signed distance to the outline closed by the axis."""
    start, end = profile[:-1], profile[1:]
    edge, to_point = end - start, points[:, None] - start
    along = (to_point * edge).sum(-1) / np.maximum((edge**2).sum(-1), 1e-18)
    nearest = to_point - np.clip(along, 0, 1)[..., None] * edge
    distance = np.sqrt((nearest**2).sum(-1).min(-1))
    # Even-odd rule along a ray of growing radius.
    above = (start[:, 1] > points[:, None, 1]) != (end[:, 1] > points[:, None, 1])
    rise = np.where(edge[:, 1] == 0, 1, edge[:, 1])
    crossing = start[:, 0] + to_point[..., 1] / rise * edge[:, 0]
    inside = (above & (points[:, None, 0] < crossing)).sum(-1) % 2 == 1
    return np.where(inside, -distance, distance)


def mesh(
    shape: Shape,
) -> tuple[Float[np.ndarray, "vertex 3"], Int[np.ndarray, "face 3"]]:
    """Return triangles of a shape, counter-clockwise; sharp corners are doubled."""
    if shape.profile is None:
        return _rounded_box(shape.half_size)
    angle = np.arange(_SIDES) * 2 * np.pi / _SIDES
    rim = np.stack([np.cos(angle), np.sin(angle)], -1)
    vertices, faces = [], []
    ring = np.arange(_SIDES)
    for (r0, h0), (r1, h1) in zip(shape.profile[:-1], shape.profile[1:], strict=True):
        base = sum(len(v) for v in vertices)
        for r, h in ((r0, h0), (r1, h1)):
            vertices.append(
                np.stack([r * rim[:, 0], np.full(_SIDES, h), r * rim[:, 1]], -1)
            )
        low, high = base + ring, base + _SIDES + ring
        low_next, high_next = np.roll(low, -1), np.roll(high, -1)
        faces.append(np.stack([low, high, low_next], -1))
        faces.append(np.stack([low_next, high, high_next], -1))
    return _merge_smooth(shape, np.concatenate(vertices), np.concatenate(faces))


def _merge_smooth(shape: Shape, vertices: np.ndarray, faces: np.ndarray):
    """Share the rings of a ball, whose outline is smooth; keep other edges sharp."""
    if shape.kind != "ball":
        return vertices, faces
    number = np.arange(len(vertices))
    ring = number // _SIDES
    share = (ring + 1) // 2 * _SIDES + number % _SIDES
    merged = np.zeros((share.max() + 1, 3))
    merged[share] = vertices
    return merged, share[faces]


def _rounded_box(half_size: np.ndarray):
    """Return six faces of 4 x 4 points, pushed onto the rounded edges."""
    rounding = _ROUNDING * half_size.min()
    core = half_size - rounding
    vertices, faces = [], []
    for axis in range(3):
        for sign in (-1.0, 1.0):
            a, b = (axis + 1) % 3, (axis + 2) % 3
            steps = [
                np.array([-half_size[q], -core[q], core[q], half_size[q]])
                for q in (a, b)
            ]
            grid = np.zeros((4, 4, 3))
            grid[..., a], grid[..., b] = np.meshgrid(*steps, indexing="ij")
            grid[..., axis] = sign * half_size[axis]
            inner = np.clip(grid, -core, core)
            out = grid - inner
            out /= np.linalg.norm(out, axis=-1, keepdims=True)
            base = len(vertices) * 16
            vertices.append((inner + rounding * out).reshape(-1, 3))
            for i in range(3):
                for j in range(3):
                    p = base + 4 * i + j
                    quad = [[p, p + 4, p + 1], [p + 1, p + 4, p + 5]]
                    faces += [f if sign > 0 else f[::-1] for f in quad]
    return np.concatenate(vertices), np.array(faces)
