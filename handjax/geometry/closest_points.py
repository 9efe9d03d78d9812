"""Nearest points of a surface: in which face, and where in it.

Sums are written out, so that the result is the same on every platform, bit for bit.
numpy only.
"""

import numpy as np
from jaxtyping import Float, Int

_CHUNK = 256
"""Points at a time; what is kept of each is its distance to all faces."""


def on_surface(
    points: Float[np.ndarray, "point 3"],
    vertices: Float[np.ndarray, "vertex 3"],
    faces: Int[np.ndarray, "face 3"],
) -> tuple[Int[np.ndarray, "point 3"], Float[np.ndarray, "point 3"]]:
    """Find the nearest point of a surface to each point.

    Returns:
        The corners of its face, and its barycentric coordinates there: not negative,
        of sum one. Of equally near ones the first face's.
    """
    triangles = vertices[faces]
    centres = (triangles[:, 0] + triangles[:, 1] + triangles[:, 2]) / 3
    radii = _length(triangles - centres[:, None]).max(axis=1)
    corners = np.empty((len(points), 3), faces.dtype)
    weights = np.empty((len(points), 3))
    for start in range(0, len(points), _CHUNK):
        some = points[start : start + _CHUNK]
        # The centre is on its face, so that no face farther than the nearest centre,
        # even at its nearest corner, can be the nearest. Only few are left to look at.
        apart = _length(some[:, None] - centres)
        reach = apart * (1 - 1e-9) - radii
        point, face = np.nonzero(reach <= apart.min(axis=1, keepdims=True))
        found, squares = _on_triangle(some[point], triangles[face])
        best = np.lexsort((face, squares, point))
        best = best[np.searchsorted(point[best], np.arange(len(some)))]
        rows = slice(start, start + len(some))
        corners[rows], weights[rows] = faces[face[best]], found[best]
    return corners, weights


def _on_triangle(
    points: np.ndarray, triangles: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Find triangle i's nearest point to point i: barycentric, squared distance.

    It is the nearest of four: the point below, if it is inside, and those on the edges.
    """
    a, b, c = (triangles[:, k] for k in range(3))
    u, v, p = b - a, c - a, points - a
    uu, uv, vv, up, vp = _dot(u, u), _dot(u, v), _dot(v, v), _dot(u, p), _dot(v, p)
    area = uu * vv - uv * uv
    safe = np.where(area > 0, area, 1.0)
    beta, gamma = (vv * up - uv * vp) / safe, (uu * vp - uv * up) / safe
    alpha = 1 - beta - gamma
    inside = (area > 0) & (alpha >= 0) & (beta >= 0) & (gamma >= 0)
    candidates = [np.stack([alpha, beta, gamma], axis=1)]
    for k in range(3):
        end = (k + 1) % 3
        along = triangles[:, end] - triangles[:, k]
        square = _dot(along, along)
        t = _dot(along, points - triangles[:, k]) / np.where(square > 0, square, 1.0)
        edge = np.zeros((len(points), 3))
        edge[:, end] = np.clip(t, 0, 1)
        edge[:, k] = 1 - edge[:, end]
        candidates.append(edge)
    weights = np.stack(candidates)
    x = (
        weights[..., 0, None] * a
        + weights[..., 1, None] * b
        + weights[..., 2, None] * c
    )
    squares = _dot(points - x, points - x)
    squares[0] = np.where(inside, squares[0], np.inf)
    best = squares.argmin(axis=0), np.arange(len(points))
    return weights[best], squares[best]


def _dot(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return x[..., 0] * y[..., 0] + x[..., 1] * y[..., 1] + x[..., 2] * y[..., 2]


def _length(x: np.ndarray) -> np.ndarray:
    return np.sqrt(_dot(x, x))
