"""Filter training records and their annotations: HaMeR's filters, with their numbers.

Records keep all that their source says; whether to trust it is up to the reader. In
order:

1. 2-D joints less sure than `min_confidence` are not annotated.
2. A pose without betas, or betas without a pose, are not used. Neither are both if a
   beta is beyond `max_beta`, since no hand looks like that. Nor is the mesh, if the
   joints of the pose are more than `max_repose_mm` from the annotated ones (mean, wrist
   on wrist; as `data_pipelines.prepare --hand` measured it).
3. Records with fewer than `min_joints` 2-D joints are left out.
4. So are those whose fit to the picture has a loss of `max_fit_loss` or more.

Known 2-D joints are those that training uses (`annotations.annotated2d`). Evaluation
takes every record as it is.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.loading.annotations import annotated2d, flags, stacked
from data_pipelines.loading.recipes import Filters
from handjax.errors import UserError

FIELDS = (
    "fit_loss",
    "has_K",
    "has_betas",
    "has_joints3d",
    "has_pose",
    "joints2d",
    "joints3d",
    "mano_betas",
    "repose_mm",
)
"""Fields of a record that `judge` needs."""


def from_config(values: dict[str, Any]) -> Filters:
    """Return the filters of `config.data.filters`.

    Raises:
        UserError: Names a key with a value that makes no sense.
    """
    for name, value in values.items():
        if not 0 <= value < float("inf"):
            raise UserError(
                f"config.data.filters.{name}={value!r} must be a number of at least 0, "
                "where 0 switches it off."
            )
    return Filters(**values)


def counted(record: dict[str, Any], filters: Filters) -> dict[str, Any]:
    """Return the record with filtered annotations marked as absent."""
    changes: dict[str, Any] = {}
    confidence = record["joints2d"][:, 2]
    unsure = (confidence > 0) & (confidence < filters.min_confidence)
    if unsure.any():
        joints2d = np.array(record["joints2d"])
        joints2d[unsure, 2] = 0
        changes["joints2d"] = joints2d
    if record["has_pose"] or record["has_betas"]:
        known = record["has_pose"] and record["has_betas"]
        if filters.max_beta:
            known = known and bool(
                (np.abs(record["mano_betas"]) <= filters.max_beta).all()
            )
        if _contradicts(record, filters):
            # The mesh is mostly made of the pose.
            known = changes["has_vertices"] = False
        changes["has_pose"] = changes["has_betas"] = known
    return record | changes


def _contradicts(record: dict[str, Any], filters: Filters) -> bool:
    return bool(filters.max_repose_mm and record["repose_mm"] > filters.max_repose_mm)


class Judged(NamedTuple):
    """Effect of the filters on records."""

    left_out: dict[str, np.ndarray]
    """Reason -> which of the records, each in one of them at most."""
    changed: dict[str, np.ndarray]
    """Removed annotation -> which of the remaining records lose it."""


def judge(records: Sequence[dict[str, Any]], filters: Filters) -> Judged:
    """Return which records are left out, and what is changed of the others."""
    after = [counted(record, filters) for record in records]
    known = annotated2d(after).sum(axis=1)
    few = known < filters.min_joints
    loss = stacked(records, "fit_loss")
    # Written so that a loss of NaN leaves the record out.
    bad_fit = ~few & ~(loss < filters.max_fit_loss) & (filters.max_fit_loss > 0)
    stays = ~(few | bad_fit)
    pose, betas = flags(records, "has_pose"), flags(records, "has_betas")
    kept = flags(after, "has_pose")
    contradicts = np.array([_contradicts(record, filters) for record in records], bool)
    unsure = np.array(
        [
            a["joints2d"] is not r["joints2d"]
            for a, r in zip(after, records, strict=True)
        ]
    )
    return Judged(
        left_out={
            f"fewer than {filters.min_joints} known joints": few,
            f"fit loss of {filters.max_fit_loss:,g} or more": bad_fit,
        },
        changed={
            f"joints under confidence {filters.min_confidence:g}": stays & unsure,
            "a pose or betas alone": stays & (pose ^ betas),
            f"a pose {filters.max_repose_mm:g} mm or more off its joints": stays
            & contradicts,
            f"a beta beyond {filters.max_beta:g}": stays
            & pose
            & betas
            & ~kept
            & ~contradicts,
        },
    )
