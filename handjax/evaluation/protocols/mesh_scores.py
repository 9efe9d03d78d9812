"""Compute the scores.txt of the official scripts of FreiHAND and HO3D.

The two scripts do the same, and HO3D's a little more. Per sample, in metres:

    e_k    = |target_k - prediction_k|                    of 21 joints, of 778 vertices
    mean3d = mean over samples and points of e, in cm
    auc3d  = area of the share of e <= t under t = 0..5 cm (100 thresholds) / 5 cm
    f_t    = harmonic mean of the shares of vertices whose nearest neighbour in the
             other mesh is nearer than t = 5, 15 mm, both ways; mean over samples

as predicted, and aligned ("al") by a similarity transform (`mesh_errors`), joints and
vertices each by their own. HO3D's "scale_trans" scales the prediction so that wrist and
base of the middle finger are as far apart as in the target, and puts wrist on wrist.

As in the script, the first sample decides what a mesh is: if it does not have the
target's number of vertices, its errors are -1 (-100 cm, since the script converts that,
too), and it is aligned by the joints' transform. The script forgets to divide that by
the prediction's size, so the aligned F-scores of such meshes mean little.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from handjax.errors import UserError
from handjax.evaluation.protocols import Score
from handjax.evaluation.protocols.point_errors import PointErrors, aligned, similarity
from handjax.metrics import mesh_errors

_CM = 100.0
_AUC_UP_TO_M = 0.05
_AT_ONCE = 256
"""Samples whose errors are in memory together."""


class Meshes(NamedTuple):
    """Joints and vertices of a benchmark's samples, metres, in its axes and order."""

    joints3d: Float[np.ndarray, "sample joint 3"]
    vertices: Sequence[np.ndarray]
    """(sample, vertex, 3), or a list of meshes whose sizes differ."""

    @property
    def count(self) -> int:
        """Number of samples."""
        return len(self.joints3d)


class Names(NamedTuple):
    """Names that only one script has."""

    aligned: str
    """Prefix of the aligned joints' keys."""
    scale_trans: tuple[int, int] | None = None
    """Joints whose distance gives the scale, the second of them the wrist; None where
    the script has no such alignment."""


def scores(
    truth: Meshes, predictions: Meshes, *, names: Names, procrustes: str
) -> dict[str, Score]:
    """Return every key of scores.txt, in its order.

    Args:
        truth: In the benchmark's order.
        predictions: As many, in the same order.
        names: Names that only the script has.
        procrustes: "freihand" is the script's; see `mesh_errors.procrustes_align`.

    Raises:
        UserError: The counts differ, a mesh has another number of vertices than the
            first one, or another alignment is asked for where meshes do not correspond.
    """
    _check(truth, predictions, procrustes)
    corresponding = _correspond(truth, predictions)
    joints, joints_al, scaled, mesh, mesh_al = (
        PointErrors(_AUC_UP_TO_M) for _ in range(5)
    )
    f_raw, f_al = [], []
    for start in range(0, truth.count, _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        target, guess = truth.joints3d[part], predictions.joints3d[part]
        joints.add(target, guess)
        joints_al.add(target, aligned(target, guess, procrustes))
        if names.scale_trans:
            scaled.add(target, scaled_and_moved(target, guess, *names.scale_trans))
        targets, guesses = truth.vertices[part], predictions.vertices[part]
        if corresponding:
            targets, guesses = np.asarray(targets), np.asarray(guesses)
            moved = aligned(targets, guesses, procrustes)
            mesh.add(targets, guesses)
            mesh_al.add(targets, moved)
        else:
            moved = [
                by_joints(*hand) for hand in zip(target, guess, guesses, strict=True)
            ]
        f_raw += [_f_scores(*pair) for pair in zip(targets, guesses, strict=True)]
        f_al += [_f_scores(*pair) for pair in zip(targets, moved, strict=True)]
    plain, al = "as predicted", f"procrustes={procrustes}"
    found = _named("xyz", joints, plain) | _named(names.aligned, joints_al, al)
    if names.scale_trans:
        found |= _named("xyz_scale_trans_al", scaled, "scaled, wrist on wrist")
    found |= _named("mesh", mesh, plain) | _named("mesh_al", mesh_al, al)
    for i, mm in enumerate(mesh_errors.F_THRESHOLDS_MM):
        raw, fitted = np.mean(f_raw, axis=0)[i], np.mean(f_al, axis=0)[i]
        found[f"f_score_{mm:.0f}"] = Score(float(raw), "", plain)
        found[f"f_al_score_{mm:.0f}"] = Score(float(fitted), "", al)
    return found


def _named(name: str, errors: PointErrors, protocol: str) -> dict[str, Score]:
    mean_m, auc = (errors.mean, errors.auc) if errors.count else (-1.0, -1.0)
    return {
        f"{name}_mean3d": Score(_CM * mean_m, "cm", protocol),
        f"{name}_auc3d": Score(auc, "", protocol),
    }


def _f_scores(target: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    if not len(prediction):
        return np.zeros(len(mesh_errors.F_THRESHOLDS_MM))
    return mesh_errors.f_scores(target, prediction)


# --- alignments of the scripts' own -------------------------------------------------


def scaled_and_moved(
    target: Float[np.ndarray, "sample joint 3"],
    prediction: Float[np.ndarray, "sample joint 3"],
    tip: int,
    wrist: int,
) -> Float[np.ndarray, "sample joint 3"]:
    """Apply HO3D's scale-translation alignment.

    A prediction whose two joints coincide has no scale: as in the script, it is not
    divided by its own scale, but still multiplied by the target's.
    """
    size, wanted = (
        np.sqrt(np.sum((points[:, tip] - points[:, wrist]) ** 2, axis=-1))
        for points in (prediction, target)
    )
    scaled = prediction / np.where(size > 0, size, 1.0)[:, None, None]
    scaled = scaled * wanted[:, None, None]
    return scaled - scaled[:, wrist, None] + target[:, wrist, None]


def by_joints(
    target: Float[np.ndarray, "joint 3"],
    prediction: Float[np.ndarray, "joint 3"],
    vertices: Float[np.ndarray, "vertex 3"],
) -> Float[np.ndarray, "vertex 3"]:
    """Move a mesh without correspondence by its joints' transform, as the script.

    s R^T |target| of the normalised joints acts on vertices of the prediction's size.
    """
    if not len(vertices):
        return vertices
    found = similarity(target, prediction)
    shift = target.mean(axis=0) - prediction.mean(axis=0)
    middle = vertices.mean(axis=0)
    turned = np.dot(vertices - middle, found.R.T)
    return turned * found.scale * found.target_size + shift + middle


# --- checks -------------------------------------------------------------------------


def _check(truth: Meshes, predictions: Meshes, procrustes: str) -> None:
    if truth.count != predictions.count:
        raise UserError(
            f"{predictions.count:,} predictions for {truth.count:,} samples; every "
            "sample needs one, in the order of the benchmark."
        )
    if not truth.count:
        raise UserError("the ground truth has no samples.")
    if procrustes != "freihand" and not _correspond(truth, predictions):
        raise UserError(
            f"procrustes={procrustes!r} aligns vertex by vertex, and the predicted "
            f"mesh has {len(predictions.vertices[0]):,} vertices, not "
            f"{len(truth.vertices[0]):,}; only 'freihand' has a rule for that."
        )


def _correspond(truth: Meshes, predictions: Meshes) -> bool:
    """Return whether the first mesh has the target's vertices; then all must."""
    number = len(truth.vertices[0])
    if len(predictions.vertices[0]) != number:
        return False
    for i, mesh in enumerate(predictions.vertices):
        if len(mesh) != number:
            raise UserError(
                f"prediction {i} has {len(mesh):,} vertices and prediction 0 has "
                f"{number:,}; all of them need {number:,}."
            )
    return True
