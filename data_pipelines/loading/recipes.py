"""Recipes of several data sets: which ones, their shares, and their filters.

Nothing heavy is imported here, since config files name recipes and have to load fast.
"""

from typing import NamedTuple


class Filters(NamedTuple):
    """`config.data.filters` (see `filters.py`).

    The defaults let everything pass but poses that contradict their joints.
    """

    min_confidence: float = 0.0
    max_beta: float = 0.0
    """0: any."""
    min_joints: int = 0
    max_fit_loss: float = 0.0
    """0: any."""
    neutral_betas: bool = False
    """Whether unknown betas are supervised as zero, the mean shape. It keeps the shapes
    of hands with 2-D annotations alone from running away."""
    max_repose_mm: float = 20.0
    """0: any. Published fits are within a few millimetres of their joints; a wrist
    that is half a radian off is 20."""

    def describe(self) -> str:
        """Return one line; "none" where everything passes."""
        said = (
            (
                self.min_confidence,
                f"joints under confidence {self.min_confidence:g} are unknown",
            ),
            (self.max_beta, f"no pose where a beta is beyond {self.max_beta:g}"),
            (self.min_joints, f"{self.min_joints} known joints or more"),
            (self.max_fit_loss, f"fit loss under {self.max_fit_loss:,g}"),
            (self.max_repose_mm, f"no pose {self.max_repose_mm:g} mm off its joints"),
            (self.neutral_betas, "unknown betas are zero"),
        )
        return ", ".join(words for value, words in said if value) or "none"


class Mixture(NamedTuple):
    """Data sets and how they are used."""

    shares: dict[str, float]
    """Data set -> its share of the training examples; they sum to 1."""
    filters: Filters


HAMER = Mixture(
    shares=dict(
        freihand=0.25,
        interhand26m=0.25,
        mtc=0.10,
        coco_wholebody=0.10,
        rhd=0.05,
        halpe=0.05,
        mpii_nzsl=0.05,
        ho3d_v3=0.05,
        h2o3d=0.05,
        dexycb=0.05,
    ),
    filters=Filters(
        min_confidence=0.3,
        max_beta=3.0,
        min_joints=5,
        max_fit_loss=31_000.0,
        neutral_betas=True,
    ),
)
"""HaMeR's mixture (Pavlakos et al., CVPR 2024), which Hamba and MMHMR train on, too.
From its released configuration; the default of its code is a fit loss of 10^4.5."""
