"""Pose-aware half-edge collapse: fewer vertices, each one of the source's.

Because vertices are kept and never moved, skinning weights, shapes and masks of the
source carry over unchanged. Quadric errors are summed over several poses, so that
edges needed by bent fingers survive; the link condition keeps the topology.
"""

import heapq

import numpy as np
from topology import edges

EDGE_COST = 2e-3
"""Weight of edge length in the cost, which keeps triangles of even size."""
NAIL_WEIGHT = 0.6
"""By how much errors on the nail count less than elsewhere."""
MIN_NORMAL_COSINE = 0.35
MIN_QUALITY = 0.22
MAX_VALENCE = 11


def _face_planes(poses, faces):
    """Planes (pose, face, 4) and areas (pose, face)."""
    a, b, c = (poses[:, faces[:, k]] for k in range(3))
    normal = np.cross(b - a, c - a)
    length = np.linalg.norm(normal, axis=-1)
    normal = normal / (length[..., None] + 1e-15)
    return (
        np.concatenate([normal, -(normal * a).sum(-1, keepdims=True)], -1),
        length / 2,
    )


class Decimator:
    """Collapses the cheapest allowed edge until few enough vertices remain."""

    def __init__(self, poses, faces, keep, importance):
        """Set up quadrics and the queue.

        Args:
            poses: (pose, n, 3) positions in centimetres; the first is the rest pose.
            faces: (f, 3).
            keep: Vertices that must stay.
            importance: (n,) weight of the error at each vertex.
        """
        self.poses, self.keep = poses, set(map(int, keep))
        self.faces = {i: tuple(map(int, f)) for i, f in enumerate(faces)}
        self.around = [set() for _ in range(poses.shape[1])]
        for i, face in self.faces.items():
            for vertex in face:
                self.around[vertex].add(i)
        pairs, count = edges(faces)
        self.rim = {tuple(map(int, e)) for e in pairs[count == 1]}
        self.rim_vertices = {v for e in self.rim for v in e}
        self.alive = np.ones(poses.shape[1], bool)
        self.version = np.zeros(poses.shape[1], int)
        planes, areas = _face_planes(poses, faces)
        self.mean_area = areas[0].mean()
        self.quadrics = self._quadrics(faces, planes, areas, importance)

    def _quadrics(self, faces, planes, areas, importance):
        quadrics = np.zeros((*self.poses.shape[:2], 4, 4))
        outer = planes[..., :, None] * planes[..., None, :] * areas[..., None, None]
        for k in range(3):
            for i, vertex in enumerate(faces[:, k]):
                quadrics[:, vertex] += outer[:, i] * importance[vertex]
        for a, b in sorted(self.rim):
            (face,) = self.around[a] & self.around[b]
            edge = self.poses[:, b] - self.poses[:, a]
            normal = np.cross(edge, planes[:, face, :3])
            normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
            distance = -(normal * self.poses[:, a]).sum(-1, keepdims=True)
            plane = np.concatenate([normal, distance], -1)
            weight = 10 * (edge * edge).sum(-1)[:, None, None]
            fence = plane[:, :, None] * plane[:, None, :] * weight
            quadrics[:, a] += fence
            quadrics[:, b] += fence
        return quadrics

    def neighbours(self, vertex):
        """Vertices that share an edge with `vertex`."""
        return {x for i in self.around[vertex] for x in self.faces[i]} - {vertex}

    def _cost(self, gone, kept, num_rim):
        """Cost of replacing `gone` by `kept`."""
        difference = self.poses[:, gone] - self.poses[:, kept]
        if {gone, kept} <= self.rim_vertices and len(self.rim_vertices) > num_rim:
            return -1.0 / (1e-9 + np.square(difference[0]).sum())
        point = np.append(self.poses[:, kept], np.ones((len(self.poses), 1)), axis=1)
        quadric = self.quadrics[:, gone] + self.quadrics[:, kept]
        error = np.einsum("pa,pab,pb->", point, quadric, point) / len(self.poses)
        length2 = np.square(difference).sum() / len(self.poses)
        return error + EDGE_COST * length2 * (length2 + 1e-3 * self.mean_area)

    def _allowed(self, gone, kept, num_rim):
        """Whether the collapse keeps a disk of decent, unflipped triangles."""
        mine, other = self.neighbours(gone), self.neighbours(kept)
        shared = self.around[gone] & self.around[kept]
        opposite = {x for i in shared for x in self.faces[i]} - {gone, kept}
        if mine & other != opposite:
            return False
        if gone in self.rim_vertices:
            on_rim = (min(gone, kept), max(gone, kept)) in self.rim
            if not on_rim or len(self.rim_vertices) <= num_rim or len(shared) != 1:
                return False
        elif len(shared) != 2 or len(mine | other) - 2 > MAX_VALENCE:
            return False
        for x in opposite:
            if len(self.neighbours(x)) - 1 < (3 if x in self.rim_vertices else 4):
                return False
        return self._shapes_stay_good(gone, kept, self.around[gone] - shared)

    def _shapes_stay_good(self, gone, kept, touched):
        before = np.array([self.faces[i] for i in sorted(touched)]).reshape(-1, 3)
        after = np.where(before == gone, kept, before)
        old, _ = _face_planes(self.poses, before)
        new, areas = _face_planes(self.poses, after)
        if ((old[..., :3] * new[..., :3]).sum(-1) < MIN_NORMAL_COSINE).any():
            return False
        corners = self.poses[0][after]
        length2 = np.square(corners - np.roll(corners, 1, axis=1)).sum((1, 2))
        return (4 * np.sqrt(3) * areas[0] >= MIN_QUALITY * length2).all()

    def _collapse(self, gone, kept):
        for i in self.around[gone] & self.around[kept]:
            for vertex in self.faces.pop(i):
                self.around[vertex].discard(i)
        for i in self.around[gone]:
            self.faces[i] = tuple(kept if x == gone else x for x in self.faces[i])
            self.around[kept].add(i)
        self.around[gone] = set()
        if gone in self.rim_vertices:
            cut = {e for e in self.rim if gone in e}
            ends = {v for e in cut for v in e} - {gone, kept}
            self.rim = (self.rim - cut) | {(min(x, kept), max(x, kept)) for x in ends}
            self.rim_vertices.discard(gone)
        self.quadrics[:, kept] += self.quadrics[:, gone]
        self.alive[gone] = False

    def run(self, num_vertices, num_rim):
        """Collapse down to `num_vertices` with `num_rim` on the boundary.

        Returns:
            Kept source vertices (num_vertices,) and faces over them.

        Raises:
            RuntimeError: No allowed collapse is left before the target is reached.
        """
        queue = []

        def push(vertex):
            for other in sorted(self.neighbours(vertex)):
                for gone, kept in ((vertex, other), (other, vertex)):
                    if gone not in self.keep:
                        stamp = self.version[gone], self.version[kept]
                        cost = self._cost(gone, kept, num_rim)
                        heapq.heappush(queue, (cost, gone, kept, stamp))

        for vertex in range(len(self.alive)):
            push(vertex)
        while self.alive.sum() > num_vertices:
            if not queue:
                raise RuntimeError(
                    f"decimation stopped at {self.alive.sum()} vertices of "
                    f"{num_vertices}: loosen the quality limits"
                )
            _, gone, kept, stamp = heapq.heappop(queue)
            if not (self.alive[gone] and self.alive[kept]):
                continue
            if stamp != (self.version[gone], self.version[kept]):
                continue
            if kept not in self.neighbours(gone):
                continue
            if not self._allowed(gone, kept, num_rim):
                continue
            self._collapse(gone, kept)
            near = sorted(self.neighbours(kept) | {kept})
            self.version[near] += 1
            for vertex in near:
                push(vertex)
        return self._result()

    def _result(self):
        kept = np.flatnonzero(self.alive)
        row = np.full(len(self.alive), -1)
        row[kept] = np.arange(len(kept))
        return kept, row[np.array([self.faces[i] for i in sorted(self.faces)])]
