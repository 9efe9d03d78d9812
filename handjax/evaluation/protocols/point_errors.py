"""Measure errors of points as the scripts of FreiHAND, HO3D and DexYCB do.

The three scripts use the same code, the first two in metres, DexYCB's in millimetres.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.linalg import orthogonal_procrustes

from handjax.metrics import mesh_errors

_NORM_EPS = 1e-8


class PointErrors:
    """Mean error, and area under the curve, of one kind of errors.

    Means over samples, then over points, are means over all where every point counts.

    Args:
        up_to: End of the curve, which has 100 thresholds from 0 and counts errors that
            are not larger; in the unit of the points.
    """

    def __init__(self, up_to: float):
        self._thresholds = np.linspace(0.0, up_to, 100)
        self._sum, self._area, self.count = 0.0, 0.0, 0

    def add(
        self,
        target: Float[np.ndarray, "sample point 3"],
        prediction: Float[np.ndarray, "sample point 3"],
    ) -> None:
        """Count some samples."""
        errors = np.sqrt(np.sum((target - prediction) ** 2, axis=-1))
        self._sum += float(errors.mean(axis=-1).sum())
        self._area += float(mesh_errors.auc(errors, self._thresholds).sum())
        self.count += len(errors)

    @property
    def mean(self) -> float:
        """Mean error, in the unit of the points."""
        return self._sum / self.count

    @property
    def auc(self) -> float:
        """Area under the curve, 0..1."""
        return self._area / self.count


def aligned(
    targets: Float[np.ndarray, "sample point 3"],
    predictions: Float[np.ndarray, "sample point 3"],
    procrustes: str,
) -> Float[np.ndarray, "sample point 3"]:
    """Return predictions moved onto targets; `procrustes` as in `mesh_errors`."""
    if procrustes != "freihand":
        return mesh_errors.procrustes_align(targets, predictions, procrustes=procrustes)
    pairs = zip(targets, predictions, strict=True)
    return np.stack([similarity(*pair).applied for pair in pairs])


class Similarity(NamedTuple):
    """The scripts' alignment of one hand."""

    R: Float[np.ndarray, "3 3"]
    scale: float
    """Scale of the prediction, after division by its size."""
    target_size: float
    applied: Float[np.ndarray, "point 3"]
    """The prediction, aligned."""


def similarity(
    target: Float[np.ndarray, "point 3"], prediction: Float[np.ndarray, "point 3"]
) -> Similarity:
    """Apply the scripts' alignment, with their rounding.

    `mesh_errors.procrustes_align` is the same maths for a batch, but its errors of
    1e-17 for a perfect prediction differ, and the first threshold of the curve is 0.
    """
    middle = target.mean(axis=0)
    target, prediction = target - middle, prediction - prediction.mean(axis=0)
    size = np.linalg.norm(target) + _NORM_EPS
    prediction = prediction / (np.linalg.norm(prediction) + _NORM_EPS)
    R, scale = orthogonal_procrustes(target / size, prediction)
    applied = np.dot(prediction, R.T) * scale * size + middle
    return Similarity(R, float(scale), float(size), applied)
