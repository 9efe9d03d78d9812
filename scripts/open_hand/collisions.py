"""How deep fingers stand inside each other and the palm, on the mesh itself."""

import numba
import numpy as np
from skinning import FINGERS, angles_to_rotations, pose_features, skin
from topology import vertex_normals

REACH_M = 0.012
"""Vertices farther apart than this cannot touch."""


def _tested_parts():
    """(16, 16) pairs of joints whose skin may collide."""
    finger = np.array([-1] + [f for f in range(5) for _ in range(3)])
    phalanx = np.array([0] + [1, 2, 3] * 5)
    tested = finger[:, None] != finger
    # A finger's base belongs to the palm; bases share the skin of the webs.
    base = phalanx == 1
    tested &= ~(base[:, None] & (base | (finger == -1)))
    tested &= ~((finger == -1)[:, None] & base)
    tested[0, 14] = tested[14, 0] = False
    folded = (finger[:, None] == finger) & (phalanx[:, None] + phalanx == 4)
    return tested | (folded & (phalanx[:, None] != phalanx))


@numba.njit(cache=True)
def _depths(vertices, normals, part, tested, rows, first):
    """Per vertex, how far it lies behind the nearest vertex it may collide with.

    `rows[first[p] : first[p + 1]]` are the vertices of part p.
    """
    centre, radius = np.zeros((16, 3)), np.zeros(16)
    for p in range(16):
        members = rows[first[p] : first[p + 1]]
        for k in range(3):
            centre[p, k] = vertices[members, k].mean()
        for i in members:
            radius[p] = max(radius[p], np.sqrt(((vertices[i] - centre[p]) ** 2).sum()))
    depth = np.zeros(len(vertices))
    for a in range(len(vertices)):
        x, y, z = vertices[a]
        best, nearest = REACH_M**2, -1
        for p in range(16):
            if not tested[part[a], p]:
                continue
            cx, cy, cz = centre[p]
            reach = (radius[p] + REACH_M) ** 2
            if (x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2 > reach:
                continue
            for b in rows[first[p] : first[p + 1]]:
                dx, dy = x - vertices[b, 0], y - vertices[b, 1]
                dz = z - vertices[b, 2]
                distance = dx * dx + dy * dy + dz * dz
                if distance < best:
                    best, nearest = distance, b
        if nearest >= 0:
            for k in range(3):
                gap = vertices[a, k] - vertices[nearest, k]
                depth[a] -= gap * normals[nearest, k]
    return np.maximum(depth, 0.0)


class PosedModel:
    """The mean hand of `model.assemble`, posed and tested for collisions."""

    def __init__(self, model):
        get = {k: v.astype(float) for k, v in model.items() if v.dtype.kind == "f"}
        self.template, self.weights = get["v_template"], get["weights"]
        self.axes, self.faces, self.pads = get["axes"], model["f"], model["pads"]
        self.joints = get["J_regressor"] @ self.template
        self.posedirs = get["posedirs"].reshape(-1, 135)
        self.part = np.argmax(self.weights, axis=1)
        self.tested = _tested_parts()
        self.rows = np.argsort(self.part, kind="stable")
        self.first = np.searchsorted(self.part[self.rows], np.arange(17))

    def rotations(self, angles):
        """Local rotations (16, 3, 3) of angles (15, 3) in radians."""
        return angles_to_rotations(angles, self.axes)

    def vertices(self, angles):
        """Posed vertices (778, 3)."""
        rotations = self.rotations(angles)
        offsets = (self.posedirs @ pose_features(rotations)).reshape(-1, 3)
        return skin(self.template + offsets, self.joints, self.weights, rotations)

    def depths(self, vertices):
        """Metres that each posed vertex stands inside another part, (778,)."""
        normals = vertex_normals(vertices, self.faces)
        return _depths(vertices, normals, self.part, self.tested, self.rows, self.first)

    def place(self, spec):
        """Vertex of a place named as in `named_poses.CONTACTS`."""
        if spec in FINGERS:
            return self.pads[FINGERS.index(spec)]
        side = spec.endswith("side")
        finger, phalanx = spec.removesuffix("side")[:-1], spec.removesuffix("side")[-1]
        joint = 3 * FINGERS.index(finger) + int(phalanx)
        flexion, dorsal, bone = self.axes[joint - 1]
        direction = (
            flexion * np.sign(flexion[2]) if side else dorsal * np.sign(dorsal[1])
        )
        middle = (self.joints[joint] + self.joints[joint + 1]) / 2
        along = np.abs((self.template - middle) @ bone)
        length = np.linalg.norm(self.joints[joint + 1] - self.joints[joint])
        score = vertex_normals(self.template, self.faces) @ direction
        inner = (self.part == joint) & (along < 0.3 * length)
        return int(np.argmax(np.where(inner, score, -9)))
