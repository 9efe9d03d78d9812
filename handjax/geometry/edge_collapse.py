"""Quadric edge collapse that keeps vertices in place (Garland and Heckbert 1997).

A vertex has the sum, over its faces, of the squared distance to the face's plane. An
edge costs what this sum, taken for both ends together, is at the cheaper end, which
stays; the other end is merged into it. The cheapest edge goes first. So were the coarse
meshes of COMA and METRO made. Two rules are added here. An edge whose collapse would
change the topology is passed over, so that the result is as manifold as the mesh given.
And a boundary edge adds the plane that stands upright on it (their section 6): without
it the opening of the wrist walks up the hand, for nothing holds it where it is.

Numbers come from single operations of IEEE arithmetic in a written order (no matrix
products, whose sums each processor orders as it likes), and equal costs go to the lower
vertices: every platform makes the same mesh.
"""

import heapq

import numpy as np
from jaxtyping import Float, Int

_GHOST = -1
"""A vertex that closes every boundary: with it one rule holds for all edges."""

Edge = tuple[int, int]
"""Two vertices, the lower first."""


def collapse(
    vertices: Float[np.ndarray, "vertex 3"],
    faces: Int[np.ndarray, "face 3"],
    count: int,
) -> tuple[Int[np.ndarray, "kept"], Int[np.ndarray, "kept_face 3"]]:
    """Collapse edges until `count` vertices are left.

    Args:
        vertices: Float64; only distances in proportion to each other matter.
        faces: Of a manifold mesh (`check_manifold`).
        count: How many to keep.

    Returns:
        The kept vertices, sorted, and the faces between them, numbered anew.

    Raises:
        ValueError: The surface cannot be made of so few vertices.
    """
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    vertices = vertices - (low + (high - low) / 2)  # the sums lose fewer digits
    quadrics, surface = _quadrics(vertices, faces), _Surface(faces, len(vertices))
    offers: dict[Edge, tuple[float, int]] = {}  # what it costs, and which end stays
    queue: list[tuple[float, Edge, int]] = []
    blocked: set[Edge] = set()

    def offer(edges: np.ndarray) -> None:
        both = quadrics[edges[:, 0]] + quadrics[edges[:, 1]]
        ends = np.stack([_at(both, vertices[edges[:, k]]) for k in range(2)], axis=1)
        stays = ends.argmin(axis=1)  # the first, which is the lower, of equal ones
        rows = np.arange(len(edges))
        for (a, b), cost, kept in zip(
            edges.tolist(),
            ends[rows, stays].tolist(),
            edges[rows, stays].tolist(),
            strict=True,
        ):
            offers[a, b] = cost, kept
            heapq.heappush(queue, (cost, (a, b), kept))

    offer(np.unique(np.sort(_sides(faces), axis=1), axis=0))
    left = len(vertices)
    while left > count:
        if not queue:
            raise ValueError(
                f"{count} vertices are too few for this mesh: with {left} left, every "
                "further edge would close a hole or flatten a part (a closed part needs"
                " four vertices, an open one three). Ask for fewer levels, or a smaller"
                " factor."
            )
        cost, edge, kept = heapq.heappop(queue)
        if offers.get(edge) != (cost, kept):
            continue  # it is gone, or stands elsewhere in the queue with another cost
        if not surface.may_collapse(*edge):
            blocked.add(edge)
            continue
        gone = edge[0] + edge[1] - kept
        for other in surface.ring(gone):
            offers.pop((min(gone, other), max(gone, other)), None)
        surface.merge(gone, kept)
        quadrics[kept] += quadrics[gone]
        left -= 1
        near = surface.ring(kept)
        beside = np.array(sorted(near - {_GHOST}))
        offer(np.sort(np.stack([np.full_like(beside, kept), beside], 1), axis=1))
        # What blocked an edge may be gone where the rings of its ends have changed.
        freed = sorted(e for e in blocked if not near.isdisjoint(e))
        blocked.difference_update(freed)
        for edge in freed:
            if edge in offers:
                cost, kept = offers[edge]
                heapq.heappush(queue, (cost, edge, kept))
    return surface.numbered()


def check_manifold(faces: Int[np.ndarray, "face 3"], num_vertices: int) -> None:
    """Refuse faces that are no surface, or turned against each other.

    Raises:
        ValueError: Says which face, edge or vertex is wrong.
    """
    if not len(faces):
        raise ValueError("the mesh has no faces; a hierarchy needs triangles.")
    if not 0 <= faces.min() <= faces.max() < num_vertices:
        raise ValueError(
            f"faces refer to vertices {faces.min()} to {faces.max()}, but there are "
            f"{num_vertices}."
        )
    sides = _sides(faces)
    if (same := sides[:, 0] == sides[:, 1]).any():
        wrong = int(same.argmax()) % len(faces)
        raise ValueError(
            f"face {wrong} is {faces[wrong].tolist()}: three different vertices are "
            "needed."
        )
    order = np.lexsort((sides[:, 1], sides[:, 0]))
    twice = (sides[order[1:]] == sides[order[:-1]]).all(axis=1)
    if twice.any():
        pair = order[int(twice.argmax()) :][:2]
        first, second = sorted((pair % len(faces)).tolist())
        a, b = sides[pair[0]].tolist()
        raise ValueError(
            f"faces {first} and {second} both go from vertex {a} to {b}: the mesh is "
            "not manifold there (three faces at an edge, or a face given twice), or "
            "one of the two has to be turned."
        )
    surface = _Surface(faces, num_vertices)
    for v in range(num_vertices):
        around = surface.around(v)
        if not around:
            raise ValueError(f"vertex {v} is in no face; take it out of the mesh.")
        follow = {b: c for _, b, c in around}
        after, steps = follow[around[0][1]], 1
        while after != around[0][1] and steps < len(around):
            after, steps = follow[after], steps + 1
        if after != around[0][1] or steps < len(around):
            raise ValueError(
                f"vertex {v} joins parts of the mesh that share no edge: the mesh is "
                "not manifold there; give each part a vertex of its own."
            )


class _Surface:
    """Faces by vertex; the boundary is closed by faces with the ghost."""

    def __init__(self, faces: np.ndarray, num_vertices: int):
        sides = _sides(faces)
        closed = [(_GHOST, b, a) for a, b in sides[_is_open(sides)].tolist()]
        self.faces = dict(enumerate([*map(tuple, faces.tolist()), *closed]))
        self.at: dict[int, set[int]] = {v: set() for v in range(_GHOST, num_vertices)}
        for i, face in self.faces.items():
            for v in face:
                self.at[v].add(i)

    def around(self, v: int) -> list[tuple[int, int, int]]:
        """Return the faces at a vertex, turned so that it comes first."""
        faces = (self.faces[i] for i in sorted(self.at[v]))
        return [f[f.index(v) :] + f[: f.index(v)] for f in faces]

    def ring(self, v: int) -> set[int]:
        """Return the vertices that share an edge with `v`."""
        return {other for i in self.at[v] for other in self.faces[i]} - {v}

    def may_collapse(self, a: int, b: int) -> bool:
        """Check the link condition, by which the surface stays one (Dey et al. 1999).

        The ends of an edge may share no neighbour but the two that make faces with it,
        and a tetrahedron cannot lose a vertex.
        """
        ring_a, ring_b = self.ring(a), self.ring(b)
        tetrahedron = len(ring_a) == len(ring_b) == 3
        return len(ring_a & ring_b) == 2 and not tetrahedron

    def merge(self, gone: int, kept: int) -> None:
        """Put `kept` in the place of `gone`; the faces at their edge vanish."""
        for i in self.at.pop(gone):
            face = self.faces[i]
            if kept in face:
                del self.faces[i]
                for v in set(face) - {gone}:
                    self.at[v].discard(i)
            else:
                a, b, c = (kept if v == gone else v for v in face)
                self.faces[i] = (a, b, c)
                self.at[kept].add(i)

    def numbered(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the sorted vertices, and the faces as indices into them."""
        kept = np.array(sorted(set(self.at) - {_GHOST}), np.int64)
        faces = [face for _, face in sorted(self.faces.items()) if _GHOST not in face]
        return kept, np.searchsorted(kept, np.array(faces, np.int64).reshape(-1, 3))


def _sides(faces: np.ndarray) -> np.ndarray:
    """Return all faces' directed edges: the first of each, the second, the third."""
    return np.concatenate([faces[:, [k, (k + 1) % 3]] for k in range(3)])


def _is_open(sides: np.ndarray) -> np.ndarray:
    """Return which directed edges have no face on their other side."""
    ids = np.array([sides.max(initial=0) + 1, 1])
    return ~np.isin(sides @ ids, sides @ ids[::-1])


# --- quadrics: squared distances to planes, as the ten numbers of a symmetric form ----


def _quadrics(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Sum each vertex's quadrics over its faces and its boundary edges."""
    a, b, c = (vertices[faces[:, k]].T for k in range(3))
    normal = _cross(b - a, c - a)
    sides = _sides(faces)
    is_open = _is_open(sides)
    start, end = vertices[sides[is_open]].transpose(1, 2, 0)
    upright = _cross(end - start, np.tile(normal, 3)[:, is_open])
    corners = np.concatenate([faces.ravel(), sides[is_open].ravel()])
    planes = np.concatenate(
        [
            np.repeat(_planes(normal, a), 3, axis=1),
            np.repeat(_planes(upright, start), 2, axis=1),
        ],
        axis=1,
    )
    # bincount adds one after the other, as they stand.
    return np.stack([np.bincount(corners, row, len(vertices)) for row in planes], 1)


def _planes(normal: np.ndarray, point: np.ndarray) -> np.ndarray:
    """Return the quadrics of planes through points, coefficients as first axis."""
    x, y, z = normal
    length = np.sqrt(x * x + y * y + z * z)
    # A face without area has no plane.
    x, y, z = normal / np.where(length > 0, length, 1.0)
    plane = x, y, z, -(x * point[0] + y * point[1] + z * point[2])
    return np.stack([p * q for i, p in enumerate(plane) for q in plane[i:]])


def _cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.stack(
        [
            u[1] * v[2] - u[2] * v[1],
            u[2] * v[0] - u[0] * v[2],
            u[0] * v[1] - u[1] * v[0],
        ]
    )


def _at(quadric: np.ndarray, point: np.ndarray) -> np.ndarray:
    """Return the cost of a vertex at each of several points."""
    xx, xy, xz, xd, yy, yz, yd, zz, zd, dd = quadric.T
    x, y, z = point.T
    squares = xx * x * x + yy * y * y + zz * z * z + dd
    return squares + 2 * (
        xy * x * y + xz * x * z + yz * y * z + xd * x + yd * y + zd * z
    )
