"""The record by which a family tells the trainer what to do.

Families import this file, never the trainer; the trainer reads the records and knows
nothing else about a family.
"""

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:  # jax stays out of `--help`, which reads the configs' schema
    from handjax.types import Batch, HandOutput, Variables

FEATURES = "features"
"""A value of `config.stages.<name>.data`: features of a frozen network, which are
computed once (`data.frozen_features`) for the pictures that "images" would read."""
LABELLED_POSES = "labelled_poses"
"""A value of `config.stages.<name>.data`, of which families of texts have to know."""


Losses = dict[str, Any]
"""Unweighted scalars, by the keys of `config.stages.<name>.losses`."""
Metrics = dict[str, Any]
"""Scalars for the log."""
Updates = dict[str, Any]
"""New value of each collection that the stage changes, e.g. {"codebook": ...}."""


@runtime_checkable
class LossFn(Protocol):
    """The loss of a stage; runs inside jit and is differentiated."""

    def __call__(
        self,
        model: Any,
        variables: "Variables",
        batch: "Batch",
        rngs: dict[str, Any],
        /,
    ) -> tuple[Losses, Metrics, Updates]:
        """Return losses, metrics and updates of a batch.

        Args:
            model: Of the family.
            variables: Of the model.
            batch: Unannotated fields are zero.
            rngs: A key for each of `training.step.RNG_STREAMS`.
        """
        ...


@runtime_checkable
class PredictFn(Protocol):
    """What evaluation measures of a stage."""

    def __call__(
        self, model: Any, variables: "Variables", batch: "Batch", /
    ) -> "HandOutput":
        """Return the hands of a batch."""
        ...


@runtime_checkable
class CheckFn(Protocol):
    """A check before a stage starts."""

    def __call__(
        self, config: Any, model: Any, variables: "Variables", info: dict[str, Any], /
    ) -> None:
        """Raise one clear UserError if the stage must not start.

        Args:
            config: Of the run.
            model: Of the family.
            variables: That the stage starts from.
            info: Metadata of the checkpoint that they come from, {} if freshly made.
        """
        ...


class Stage(NamedTuple):
    """One training stage of a family: data, not a class to override.

    Made with keywords: a regular expression and a boolean in a row say nothing.
    """

    name: str
    """Names `config.stages.<name>`, `checkpoints/<name>` and the log lines."""
    loss_fn: LossFn
    """Losses, metrics and updates of a batch."""
    predict_fn: PredictFn
    """What evaluation measures here."""
    trainable: str
    """Regular expression searched (`re.search`) in parameter paths such as
    `tokenizer/encoder/Dense_0/kernel`; no gradient is computed for the others."""
    needs_image: bool
    """Whether the loader has to decode and warp images for this stage."""
    check: CheckFn | None = None
    """Refuses to start, e.g. on a tokenizer that does not fit."""
    real_poses: int = 0
    """How many poses of the prior or of `config.data.poses` come with each example, as
    `Batch.real_pose` and `Batch.real_betas`: what a discriminator takes for real."""
