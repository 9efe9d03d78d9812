"""Re-pose a record's hand with the annotators' model, to compare it with its joints."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from data_pipelines.sources.conventions import HandModels
from handjax.mano import model_files, numpy_skinning

CONTRADICTS_MM = 20.0
"""Default of the filter, of `data check`, and of the count in the manifest."""
NOT_KNOWN_MM = -1.0
"""Where there is no hand model, no pose, or no 3-D joints."""


class Reposed(NamedTuple):
    """The hand that a record's pose and betas make, wrist on the record's wrist."""

    joints3d: Float[np.ndarray, "21 3"]
    vertices: Float[np.ndarray, "vertex 3"]
    wrist: Float[np.ndarray, "3"]
    """What was added to the model's hand to put it there, metres."""


def reposed(example: dict[str, Any], models: HandModels) -> Reposed | None:
    """Re-pose a record; None without a model of its side or without a pose.

    Args:
        example: Fields of a record; absent ones may be missing or flagged.
        models: Hand models of the data set's annotators.
    """
    model = models.of(example["is_right"])
    if model is None or not _has(example, "mano_pose", "has_pose"):
        return None
    pose = np.asarray(example["mano_pose"], np.float64).reshape(-1, 3)
    betas = np.asarray(example.get("mano_betas", np.zeros(10)), np.float64)
    mesh = numpy_skinning.posed(model, pose, betas)
    joints3d = model_files.joint_regressor(model) @ mesh
    wrist = np.zeros(3)
    if _has(example, "joints3d", "has_joints3d"):
        wrist = np.asarray(example["joints3d"], np.float64)[0, :3] - joints3d[0]
    return Reposed(joints3d + wrist, mesh + wrist, wrist)


def apart_mm(example: dict[str, Any], models: HandModels) -> float:
    """Return how far a record's joints are from those of its own pose.

    The mean over known joints, wrist on wrist, millimetres: what supervision by both
    would pull apart. `NOT_KNOWN_MM` where it cannot be told.
    """
    if not _has(example, "joints3d", "has_joints3d"):
        return NOT_KNOWN_MM
    points = np.asarray(example["joints3d"], np.float64)
    known = points[:, 3] > 0
    hand = reposed(example, models) if known[0] and known.sum() > 1 else None
    if hand is None:
        return NOT_KNOWN_MM
    away = np.linalg.norm(hand.joints3d - points[:, :3], axis=-1)[known]
    return 1000 * float(away.mean())


def _has(example: dict[str, Any], name: str, flag: str) -> bool:
    return bool(example.get(flag, name in example))
