"""Pose blend shapes: a linear fit, in MANO's form, to Delta Mush.

Delta Mush (smooth the posed mesh, then put the detail of the rest mesh back in local
frames) repairs the collapse of blend skinning at strongly bent joints. Its offsets,
taken back to the rest pose, are fitted per vertex by ridge regression on the nine
entries of `R - I` of the joints near that vertex.
"""

import numpy as np
import scipy.sparse as sp
from skinning import (
    PARENTS,
    angles_to_rotations,
    blend,
    pose_features,
    unit,
)
from topology import edges, vertex_normals

SMOOTHING_STEPS = 10
NUM_POSES = 700
RIDGE = 0.05
NEAR_WEIGHT = 0.05


class DeltaMush:
    """The corrected surface of a posed mesh."""

    def __init__(self, vertices, faces):
        pairs, count = edges(faces)
        num, rim = len(vertices), np.unique(pairs[count == 1])
        both = np.concatenate([pairs, pairs[:, ::-1]])
        links = sp.coo_matrix((np.ones(len(both)), both.T), (num, num)).tocsr()
        average = sp.diags(1 / np.asarray(links.sum(1)).ravel()) @ links
        smoother = (0.5 * sp.eye(num) + 0.5 * average).tolil()
        smoother[rim] = 0
        smoother[rim, rim] = 1
        self.smoother, self.faces = smoother.tocsr(), faces
        self.first = links.indices[links.indptr[:-1]]
        smooth = self._smooth(vertices)
        frames = self._frames(smooth)
        self.detail = np.einsum("vab,va->vb", frames, vertices - smooth)

    def _smooth(self, vertices):
        for _ in range(SMOOTHING_STEPS):
            vertices = self.smoother @ vertices
        return vertices

    def _frames(self, vertices):
        normal = vertex_normals(vertices, self.faces)
        tangent = vertices[self.first] - vertices
        tangent = unit(tangent - normal * (tangent * normal).sum(1, keepdims=True))
        return np.stack([tangent, np.cross(normal, tangent), normal], -1)

    def __call__(self, posed):
        """Corrected vertices (n, 3) of the posed ones."""
        smooth = self._smooth(posed)
        return smooth + np.einsum("vab,vb->va", self._frames(smooth), self.detail)


def _random_angles(rng):
    """Angles (15, 3) over the whole range of motion, joints bent independently."""
    angles = np.zeros((15, 3))
    flexion = rng.uniform([-10, -5, -5] * 5, [90, 105, 75] * 5)
    angles[:, 0] = np.radians(flexion) * (rng.random(15) < 0.8)
    angles[::3, 1] = np.radians(rng.uniform(-15, 15, 5))
    angles[12] = np.radians(rng.uniform([-20, -10, -15], [35, 35, 30]))
    angles[13, 0] = np.radians(rng.uniform(-5, 55))
    return angles


def _near_joints(weights):
    """(n, 15) which joints' rotations a vertex may depend on."""
    near = weights[:, 1:] > 0.01
    for j in range(1, 16):
        family = [j, PARENTS[j]] + [c for c in range(16) if PARENTS[c] == j]
        for k in (k for k in family if k > 0):
            near[:, j - 1] |= weights[:, k] > NEAR_WEIGHT
    return near


def fit(vertices, faces, weights, joints, axes, seed=0):
    """Fit the pose blend shapes.

    Args:
        vertices: (n, 3) rest positions.
        faces: (f, 3).
        weights: (n, 16).
        joints: (16, 3).
        axes: (15, 3, 3) of `rest.joint_axes`.
        seed: Of the random poses.

    Returns:
        (n, 3, 135).
    """
    rng, mush = np.random.default_rng(seed), DeltaMush(vertices, faces)
    features = np.zeros((NUM_POSES, 135))
    offsets = np.zeros((NUM_POSES, len(vertices), 3))
    for i in range(NUM_POSES):
        angles = _random_angles(rng) * (1.0 if i % 10 else 0.3)
        rotations = angles_to_rotations(angles, axes)
        matrix, shift = blend(weights, rotations, joints)
        posed = np.einsum("vab,vb->va", matrix, vertices) + shift
        wanted = (mush(posed) - posed)[..., None]
        offsets[i] = np.linalg.solve(matrix, wanted)[..., 0]
        features[i] = pose_features(rotations)
    result = np.zeros((len(vertices), 3, 135))
    for v, near in enumerate(_near_joints(weights)):
        if near.any():
            used = np.repeat(near, 9)
            x = features[:, used]
            gram = x.T @ x + RIDGE * np.eye(used.sum())
            result[v][:, used] = np.linalg.solve(gram, x.T @ offsets[:, v]).T
    return result
