"""The record by which a family tells the trainer what to do.

Families import this file, never the trainer; the trainer reads the records and knows
nothing else about a family.
"""

from collections.abc import Callable
from typing import NamedTuple

LABELLED_POSES = "labelled_poses"
"""A value of `config.stages.<name>.data`, of which families of texts have to know."""


class Stage(NamedTuple):
    """One training stage of a family: data, not a class to override."""

    name: str
    """Names `config.stages.<name>`, `checkpoints/<name>` and the log lines."""
    loss_fn: Callable
    """(model, variables, batch, rngs) -> (losses, metrics, updates): unweighted scalar
    losses (the keys of `config.stages.<name>.losses`), scalar metrics, and the new
    value of each collection the stage changes, e.g. {"codebook": ...}."""
    predict_fn: Callable
    """(model, variables, batch) -> HandOutput: what evaluation measures here."""
    trainable: str
    """Regular expression searched (`re.search`) in parameter paths such as
    `tokenizer/encoder/Dense_0/kernel`; no gradient is computed for the others."""
    needs_image: bool
    """Whether the loader has to decode and warp images for this stage."""
    check: Callable | None = None
    """(config, model, variables, info) -> None: raises one clear ValueError when the
    stage must not start, e.g. on a tokenizer that does not fit. `info` is the metadata
    of the checkpoint that the variables come from ({} for freshly made ones)."""
    real_poses: int = 0
    """How many poses of the prior or of `config.data.poses` come with each example, as
    `Batch.real_pose` and `Batch.real_betas`: what a discriminator takes for real."""
