"""Edges, boundary loops, rings and normals of triangle meshes."""

import numpy as np


def edges(faces):
    """Unique undirected edges (edge, 2) and how many faces share each."""
    pairs = np.sort(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    return np.unique(pairs, axis=0, return_counts=True)


def boundary_loop(faces):
    """Vertices of the only boundary loop, in order around it.

    Raises:
        ValueError: There is no boundary, or more than one loop.
    """
    directed = {
        (int(a), int(b)) for f in faces for a, b in zip(f, np.roll(f, -1), strict=True)
    }
    follow = {b: a for a, b in directed if (b, a) not in directed}
    if not follow:
        raise ValueError("the mesh has no boundary; give an open mesh")
    loop = [min(follow)]
    while (after := follow[loop[-1]]) != loop[0]:
        loop.append(after)
    if len(loop) != len(follow):
        raise ValueError(
            f"the boundary has {len(follow)} vertices but one loop holds {len(loop)}; "
            "give a mesh with one hole"
        )
    return np.array(loop)


def grow(faces, seed, steps):
    """`seed` and all vertices within `steps` edges of it, sorted."""
    region = np.asarray(seed)
    for _ in range(steps):
        region = np.unique(faces[np.isin(faces, region).any(1)])
    return region


def vertex_normals(vertices, faces):
    """Area-weighted outward unit normals (vertex, 3)."""
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    normals = np.zeros_like(vertices)
    for k in range(3):
        np.add.at(normals, faces[:, k], np.cross(b - a, c - a))
    return normals / (np.linalg.norm(normals, axis=1, keepdims=True) + 1e-12)


def rigid_fit(source, target, weights):
    """Rotation and offset that map source (n, 3) onto target, weights (n,).

    Least squares by the singular value decomposition; never a reflection.
    """
    w = weights[:, None] / weights.sum()
    mean_source, mean_target = (w * source).sum(0), (w * target).sum(0)
    u, _, vt = np.linalg.svd(((source - mean_source) * w).T @ (target - mean_target))
    sign = np.diag([1, 1, np.sign(np.linalg.det(u @ vt))])
    rotation = (u @ sign @ vt).T
    return rotation, mean_target - rotation @ mean_source
