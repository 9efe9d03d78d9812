"""Errors of hand meshes as the benchmarks define them, in millimetres.

Inputs are metres. "PA" errors are measured after the similarity transform (rotation,
scale, translation) that best maps the prediction onto the target, found for joints and
for vertices separately. Benchmarks differ in one point, which `procrustes` names:

* "freihand": the rotation may be a reflection, and norms get + 1e-8, as in the official
  scripts of FreiHAND, HO3D and DexYCB. A mirrored hand scores 0.
* "proper": det = +1, as most papers on DexYCB measure. "hamer" and "metro" are the same
  maths under the names of the code whose numbers one wants to compare with.

`procrustes_align` and `point_errors_mm` take numpy arrays (float64 for reports) or JAX
arrays (inside jit, for training logs); everything else is numpy.
"""

import numpy as np
from jaxtyping import Float
from scipy.spatial import cKDTree

from handjax.types import AnyArray, Batch, HandOutput

PROTOCOLS = {
    "freihand": "procrustes=freihand (reflections allowed)",
    "proper": "procrustes=proper (rotations only, det = +1)",
    "hamer": "procrustes=hamer (rotations only, det = +1)",
    "metro": "procrustes=metro (rotations only, det = +1)",
}
"""What each `procrustes` is called in evaluation files and tables."""

METRICS: tuple[str, ...] = (
    "pa_mpjpe_mm",
    "pa_mpvpe_mm",
    "mpjpe_mm",
    "mpvpe_mm",
    "f5",
    "f15",
    "auc_joints",
    "auc_vertices",
)
"""Keys of an evaluation. F-scores and areas under the curve are of aligned points."""

GENERATION_METRICS: tuple[str, ...] = ("hausdorff_m", "chamfer_m2", "pa_mpvpe_mm")
"""Keys of the evaluation of generated hands, as the paper of MMHMR reports them."""

AUC_THRESHOLDS_MM = np.linspace(0.0, 50.0, 100)
F_THRESHOLDS_MM = (5.0, 15.0)

_NORM_EPS = 1e-8
_TINY = float(np.finfo(np.float32).tiny)


# --- alignment ----------------------------------------------------------------------


def procrustes_align(
    target: Float[AnyArray, "*batch point 3"],
    prediction: Float[AnyArray, "*batch point 3"],
    *,
    procrustes: str = "freihand",
) -> Float[AnyArray, "*batch point 3"]:
    """Move `prediction` to `target` by the nearest similarity, set by set.

    A prediction whose points all coincide has no rotation or scale; it is moved to the
    target's centre (the code of HaMeR and METRO divides 0 by 0 there).

    Raises:
        ValueError: `procrustes` is not a key of `PROTOCOLS`.
    """
    if procrustes not in PROTOCOLS:
        raise ValueError(
            f"procrustes={procrustes!r} is not one of 'freihand' (reflections allowed) "
            "or 'proper', 'hamer', 'metro' (rotations only)."
        )
    reflections = procrustes == "freihand"
    eps = _NORM_EPS if reflections else _TINY
    xp = target.__array_namespace__()
    target_mean = xp.mean(target, axis=-2, keepdims=True)
    target = target - target_mean
    prediction = prediction - xp.mean(prediction, axis=-2, keepdims=True)
    target_norm = _frobenius_norm(target) + eps
    target = target / target_norm
    prediction = prediction / (_frobenius_norm(prediction) + eps)

    # R maximises trace(R^T C), C = prediction^T target; then scale = trace(R^T C).
    covariance = xp.einsum("...pi,...pj->...ij", prediction, target)
    u, singular, vt = xp.linalg.svd(covariance)
    if not reflections:
        # Flipping the direction of least overlap turns a reflection into the best
        # rotation (Kabsch, Umeyama).
        sign = xp.sign(xp.linalg.det(u) * xp.linalg.det(vt))[..., None]
        ones = xp.ones_like(singular[..., :2])
        flip = xp.concatenate([ones, sign], axis=-1)
        singular = singular * flip
        u = u * flip[..., None, :]
    scale = xp.sum(singular, axis=-1)[..., None, None]
    return (prediction @ (u @ vt)) * (scale * target_norm) + target_mean


def _frobenius_norm(points):
    xp = points.__array_namespace__()
    return xp.sqrt(xp.sum(points**2, axis=(-2, -1), keepdims=True))


# --- errors of one hand -------------------------------------------------------------


def point_errors_mm(
    target: Float[AnyArray, "*batch point 3"],
    prediction: Float[AnyArray, "*batch point 3"],
) -> Float[AnyArray, "*batch point"]:
    """Compute the distance of corresponding points (metres) in millimetres."""
    xp = target.__array_namespace__()
    return 1e3 * xp.sqrt(xp.sum((target - prediction) ** 2, axis=-1))


def auc(
    errors: Float[np.ndarray, "*batch point"],
    thresholds: Float[np.ndarray, "threshold"] = AUC_THRESHOLDS_MM,
) -> Float[np.ndarray, "*batch"]:
    """Compute the area under the curve of correct points, 0..1 (default to 50 mm).

    A point is correct at t if its error is <= t, and the curve is integrated by
    trapezoids. The area is linear in the points, so averages of it over hands are the
    area under the average curve, as the official scripts compute it.

    Args:
        errors: In the unit of the thresholds.
        thresholds: From 0, evenly spaced.
    """
    weights = np.full(len(thresholds), thresholds[1])
    weights[[0, -1]] /= 2
    # Area that a point contributes once it is correct from threshold k on.
    area_from = np.append(np.cumsum(weights[::-1])[::-1], 0.0) / thresholds[-1]
    first_correct = np.searchsorted(thresholds, errors, side="left")
    return area_from[first_correct].mean(axis=-1)


def f_scores(
    target: Float[np.ndarray, "point 3"], prediction: Float[np.ndarray, "other 3"]
) -> Float[np.ndarray, "2"]:
    """Compute the F-scores of two point clouds at 5 and 15 mm.

    Harmonic mean of the shares of points whose nearest neighbour in the other cloud is
    nearer than the threshold; 0 when both shares are 0 (or a point is not finite).
    """
    if not (np.isfinite(target).all() and np.isfinite(prediction).all()):
        return np.zeros(2)
    to_prediction, to_target = nearest_distances(target, prediction)
    scores = []
    for threshold_mm in F_THRESHOLDS_MM:
        # In metres, as the official scripts compare, so that ties fall alike.
        recall = np.mean(to_prediction < threshold_mm / 1e3)
        precision = np.mean(to_target < threshold_mm / 1e3)
        total = precision + recall
        scores.append(2 * precision * recall / total if total > 0 else 0.0)
    return np.array(scores)


def nearest_distances(
    target: Float[np.ndarray, "point 3"], prediction: Float[np.ndarray, "other 3"]
) -> tuple[Float[np.ndarray, "point"], Float[np.ndarray, "other"]]:
    """Return the metres from each point to the nearest one of the other cloud."""
    to_prediction, _ = cKDTree(prediction).query(target)
    to_target, _ = cKDTree(target).query(prediction)
    return to_prediction, to_target


def hausdorff(
    target: Float[np.ndarray, "point 3"], prediction: Float[np.ndarray, "other 3"]
) -> float:
    """Compute the symmetric Hausdorff distance of two point clouds, metres.

    The largest distance from a point of either to the nearest of the other. Of meshes
    it is that of their vertices, not of the surfaces between them.
    """
    return float(max(map(np.max, nearest_distances(target, prediction))))


def chamfer(
    target: Float[np.ndarray, "point 3"], prediction: Float[np.ndarray, "other 3"]
) -> float:
    """Compute the symmetric squared Chamfer distance of clouds, square metres.

    Mean over the points of one of the squared distance to the nearest of the other,
    plus the same the other way (the sum of both, not their mean).
    """
    return float(sum(np.mean(d**2) for d in nearest_distances(target, prediction)))


def errors_by_confidence(
    confidence: Float[np.ndarray, "hand"],
    errors_mm: Float[np.ndarray, "hand"],
    *,
    share: float = 0.1,
) -> tuple[float, float]:
    """Compute the mean errors of the most and of the least confident hands.

    A confidence that says something gives a first number below the second.

    Args:
        confidence: Of each hand; of equal ones the first count as surer.
        errors_mm: Of each hand.
        share: Of the hands on each side, rounded down, one hand at least.

    Raises:
        ValueError: No hand.
    """
    if not len(confidence):
        raise ValueError("errors by confidence take one hand at least.")
    order = np.argsort(-np.asarray(confidence), kind="stable")
    count = max(1, int(share * len(order) + 1e-9))
    sorted_mm = np.asarray(errors_mm)[order]
    return float(sorted_mm[:count].mean()), float(sorted_mm[-count:].mean())


# --- errors of a split --------------------------------------------------------------


class MetricSums:
    """Adds up errors batch by batch; every metric is a mean over hands."""

    def __init__(self, *, root: int, procrustes: str = "freihand"):
        self.root = root
        """Joint that is subtracted before MPJPE and MPVPE."""
        self.procrustes = procrustes
        self.count = 0
        self._sums = dict.fromkeys(METRICS, 0.0)
        self._counts = dict.fromkeys(METRICS, 0)
        self._with_confidence: dict[str, list[np.ndarray]] = {}

    def add(self, batch: Batch, output: HandOutput) -> None:
        """Count the annotated hands of a batch; padding is left out."""
        example_valid = np.asarray(batch.example_valid)
        self.count += int(example_valid.sum())
        hands = [_float64(batch.joints3d), _float64(batch.vertices)]
        guesses = [_float64(output.joints3d), _float64(output.vertices)]
        joints_valid = example_valid & np.asarray(batch.joints3d_valid)
        vertices_valid = example_valid & np.asarray(batch.vertices_valid)
        roots = [
            points[:, self.root : self.root + 1] for points in (hands[0], guesses[0])
        ]
        for part, valid in (("joints", joints_valid), ("vertices", vertices_valid)):
            k = 0 if part == "joints" else 1
            errors_mm = self._add_part(
                part,
                (hands[k] - roots[0])[valid],
                (guesses[k] - roots[1])[valid],
            )
            if output.confidence is not None:
                sure = _float64(output.confidence)[valid]
                for name, values in errors_mm.items():
                    rows = self._with_confidence.setdefault(name, [])
                    rows.append(np.stack([sure, values]))

    def _add_part(self, part, target, prediction) -> dict[str, np.ndarray]:
        """Add joints or vertices, and return the mean errors of each hand, by name."""
        letter = "j" if part == "joints" else "v"
        aligned = procrustes_align(target, prediction, procrustes=self.procrustes)
        aligned_mm = point_errors_mm(target, aligned)
        errors_mm = {
            f"mp{letter}pe_mm": point_errors_mm(target, prediction).mean(axis=-1),
            f"pa_mp{letter}pe_mm": aligned_mm.mean(axis=-1),
        }
        for name, values in errors_mm.items():
            self._put(name, values)
        self._put(f"auc_{part}", auc(aligned_mm))
        if part == "vertices" and len(target):
            scores = np.stack(
                [f_scores(*pair) for pair in zip(target, aligned, strict=True)]
            )
            self._put("f5", scores[:, 0])
            self._put("f15", scores[:, 1])
        return errors_mm

    def _put(self, name: str, values: np.ndarray) -> None:
        self._sums[name] += float(np.sum(values))
        self._counts[name] += len(values)

    def means(self) -> dict[str, float | None]:
        """Return the metrics of all hands so far; None where none was annotated."""
        return {
            name: self._sums[name] / self._counts[name] if self._counts[name] else None
            for name in METRICS
        }

    def state(self) -> dict[str, np.ndarray]:
        """Return everything that was added up, for `merge`."""
        rows = {
            f"confidence/{name}": np.concatenate(rows, axis=1)
            for name, rows in self._with_confidence.items()
        }
        return {
            "count": np.array(self.count),
            "sums": np.array(list(self._sums.values())),
            "counts": np.array(list(self._counts.values())),
            **rows,
        }

    def merge(self, state: dict[str, np.ndarray]) -> None:
        """Add what another process added up."""
        self.count += int(state["count"])
        for i, name in enumerate(METRICS):
            self._sums[name] += float(state["sums"][i])
            self._counts[name] += int(state["counts"][i])
        for name, rows in state.items():
            if name.startswith("confidence/"):
                name = name.removeprefix("confidence/")
                self._with_confidence.setdefault(name, []).append(rows)

    def by_confidence(self, share: float = 0.1) -> dict[str, dict[str, float]] | None:
        """Return the most and least confident hands' errors; None without confidences.

        Returns:
            "most_confident" and "least_confident", each metric in millimetres -> mean
            over `share` of the annotated hands.
        """
        found = {"most_confident": {}, "least_confident": {}}
        for name, rows in self._with_confidence.items():
            confidence, errors_mm = np.concatenate(rows, axis=1)
            if len(confidence):
                most, least = errors_by_confidence(confidence, errors_mm, share=share)
                found["most_confident"][name] = most
                found["least_confident"][name] = least
        return found if found["most_confident"] else None


class GenerationSums:
    """Errors of hands made of a text: mean and standard deviation over hands.

    Hausdorff and Chamfer distance are of vertices relative to the root joint, neither
    turned nor scaled; which alignment the paper measures under is not known.
    """

    def __init__(self, *, root: int, procrustes: str = "freihand"):
        self.root, self.procrustes = root, procrustes
        self._values: dict[str, list[float]] = {k: [] for k in GENERATION_METRICS}

    def add(self, batch: Batch, output: HandOutput) -> None:
        """Count the annotated hands of a batch; padding is left out."""
        valid = np.asarray(batch.example_valid) & np.asarray(batch.vertices_valid)
        target, prediction = (
            (_float64(h.vertices) - _float64(h.joints3d)[:, self.root, None])[valid]
            for h in (batch, output)
        )
        aligned = procrustes_align(target, prediction, procrustes=self.procrustes)
        errors = point_errors_mm(target, aligned).mean(axis=-1)
        self._values["pa_mpvpe_mm"] += errors.tolist()
        for one, other in zip(target, prediction, strict=True):
            self._values["hausdorff_m"].append(hausdorff(one, other))
            self._values["chamfer_m2"].append(chamfer(one, other))

    def state(self) -> dict[str, np.ndarray]:
        """Return all values, for `merge`."""
        return {name: np.array(values) for name, values in self._values.items()}

    def merge(self, state: dict[str, np.ndarray]) -> None:
        """Add the values of another process."""
        for name, values in state.items():
            self._values[name] += values.tolist()

    def means(self) -> dict[str, dict[str, float] | None]:
        """Return `mean` and `std` of each metric; None where none was annotated."""
        return {
            name: {"mean": float(np.mean(x)), "std": float(np.std(x))} if x else None
            for name, x in self._values.items()
        }


def _float64(points) -> np.ndarray:
    return np.asarray(points, np.float64)
