"""Sparse, non-negative joint regressor that follows mean and shape space."""

import numpy as np
from scipy.optimize import nnls
from skinning import PARENTS

CANDIDATES = 70
ROW_SUM_WEIGHT = 30.0
SPREAD = 1e-3
"""Small penalty on large coefficients: several vertices share the load."""


def fit(vertices, fields, joints, joint_fields, weights, wrist_ring):
    """Solve for one row per joint.

    Args:
        vertices: (778, 3).
        fields: (10, 778, 3) what each beta adds.
        joints: (16, 3) where they should be.
        joint_fields: (10, 16, 3) how they should move.
        weights: (778, 16).
        wrist_ring: Rows of the vertices around the wrist; joint 0 uses only these.

    Returns:
        (16, 778), rows sum to one.
    """
    regressor = np.zeros((16, len(vertices)))
    targets = np.concatenate([vertices[None], fields])
    for j in range(16):
        goal = np.concatenate([joints[None, j], joint_fields[:, j]]).ravel()
        nearest = np.argsort(np.linalg.norm(vertices - joints[j], axis=1))
        nearest = nearest[weights[nearest][:, [j, PARENTS[j]]].sum(1) > 0.5]
        nearest = np.sort(nearest[:CANDIDATES]) if j else wrist_ring
        columns = targets[:, nearest].transpose(0, 2, 1).reshape(-1, len(nearest))
        centre = np.concatenate([joints[j], np.zeros(3 * len(fields))])
        system = np.concatenate(
            [
                100 * (columns - centre[:, None]),
                np.full((1, len(nearest)), ROW_SUM_WEIGHT),
                SPREAD * np.eye(len(nearest)),
            ]
        )
        right = np.concatenate(
            [100 * (goal - centre), [ROW_SUM_WEIGHT], np.zeros(len(nearest))]
        )
        row, _ = nnls(system, right)
        regressor[j, nearest] = row / row.sum()
    return regressor
