"""The losses of HaMeR and Hamba: what HMR's descendants ask of MANO parameters.

Pavlakos et al., HaMeR, CVPR 2024, https://arxiv.org/abs/2312.05251. 2-D is in units of
the crop from its middle, 3-D in metres relative to the wrist, rotations are matrices.

Reductions. "sum" is the released one: a loss is the sum over joints, coordinates and
the examples of one device, and devices are averaged. Here it is the mean over examples
times the number that one device had, so that neither the number of devices nor the size
of the batch changes what a weight means. "mean" is the mean over all of these. Either
way what a flag hides counts as zero. The adversarial terms are means over examples, as
released, whatever the reduction.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from handjax.errors import UserError
from handjax.geometry import rotations
from handjax.geometry.skeleton import WRIST
from handjax.nn.mano_head import ManoParameters, Posed
from handjax.types import AnyArray, Batch, Variables

KEYS = ("joints2d", "joints3d", "global_orient", "hand_pose", "betas")
"""Of what `terms` returns."""
REDUCTIONS = ("sum", "mean")
PER_DEVICE = 8
"""Examples of one device in HaMeR's recipe."""


def terms(
    parameters: ManoParameters,
    posed: Posed,
    batch: Batch,
    *,
    crop_size: int,
    reduction: str = "sum",
    per_device: int = PER_DEVICE,
) -> dict[str, Float[Array, ""]]:
    """Compare a prediction with the annotations there are.

    L1 of the joints, in the crop and relative to the wrist; squared error of the
    rotation matrices and of the betas.

    Args:
        parameters: Prediction.
        posed: The hand that they stand for.
        batch: With any root, for the wrist is subtracted.
        crop_size: Side of the crop that `batch.joints2d` refers to, pixels.
        reduction: One of `REDUCTIONS`.
        per_device: Examples that "sum" sums over.

    Raises:
        UserError: Another reduction.
    """
    if reduction not in REDUCTIONS:
        raise UserError(
            f"config.model.reduction={reduction!r} is not one of "
            f"{', '.join(REDUCTIONS)}."
        )
    confidence = jnp.asarray(batch.joints2d_weights)[..., None]
    known3d = jnp.asarray(batch.known_joints3d)
    known3d = (known3d & known3d[:, WRIST, None])[..., None]
    known = jnp.asarray(batch.mano_valid)[:, None, None, None]
    target2d = jnp.asarray(batch.joints2d) / crop_size - 0.5
    target3d = _from_wrist(jnp.asarray(batch.joints3d))
    matrices = rotations.axis_angle_to_matrix(batch.mano_pose)
    betas = parameters.betas - jnp.asarray(batch.betas)
    errors = {
        "joints2d": (
            jnp.abs(posed.joints2d - target2d) * confidence,
            confidence > 0,
        ),
        "joints3d": (jnp.abs(_from_wrist(posed.joints3d) - target3d), known3d),
        "global_orient": (
            jnp.square(parameters.global_orient - matrices[:, :1]),
            known,
        ),
        "hand_pose": (jnp.square(parameters.hand_pose - matrices[:, 1:]), known),
        "betas": (jnp.square(betas), jnp.asarray(batch.known_betas)[:, None]),
    }
    return {
        name: _reduced(jnp.where(valid, error, 0.0), reduction, per_device)
        for name, (error, valid) in errors.items()
    }


def adversarial_terms(
    model: Any,
    variables: Variables,
    parameters: ManoParameters,
    real_pose: Float[AnyArray, "real bone 3"] | None,
    real_betas: Float[AnyArray, "real beta"] | None,
) -> dict[str, Float[Array, ""]]:
    """Compute both sides' terms, so that one backward pass trains each by its own.

    `adversarial` moves the prediction only, `discriminator` the discriminator only.

    Args:
        model: Its method `discriminate(hand_pose, betas)` returns scores.
        variables: Of the model.
        parameters: Prediction.
        real_pose: Hands as they are, absolute axis-angle, the wrist first (which is not
            judged).
        real_betas: Their shapes.

    Raises:
        UserError: There are no real poses.
    """
    if real_pose is None or real_betas is None:
        raise UserError(
            "The batch has no real poses for the discriminator; a stage that uses it "
            "must have Stage.real_poses of at least 1."
        )

    def scores(variables: Variables, hand_pose: Array, betas: Array) -> Array:
        return model.apply(variables, hand_pose, betas, method="discriminate")

    fixed = {**variables, "params": jax.lax.stop_gradient(variables["params"])}
    made = parameters.hand_pose, parameters.betas
    real = rotations.axis_angle_to_matrix(real_pose)[:, 1:]
    return {
        "adversarial": generator_loss(scores(fixed, *made)),
        "discriminator": discriminator_loss(
            scores(variables, *jax.lax.stop_gradient(made)),
            scores(variables, real, jnp.asarray(real_betas)),
        ),
    }


def generator_loss(scores: Float[AnyArray, "batch score"]) -> Float[Array, ""]:
    """Compute the scores' squared distance to 1, summed, averaged over examples."""
    return jnp.sum(jnp.square(scores - 1)) / len(scores)


def discriminator_loss(
    made: Float[AnyArray, "batch score"], real: Float[AnyArray, "real score"]
) -> Float[Array, ""]:
    """Return squared scores of predictions, plus the real ones' distance to 1.

    Both are sums divided by the number of predictions, as released: with two real poses
    for each prediction, the real ones weigh twice.
    """
    return (jnp.sum(jnp.square(made)) + jnp.sum(jnp.square(real - 1))) / len(made)


def _from_wrist(
    joints: Float[Array, "batch joint 3"],
) -> Float[Array, "batch joint 3"]:
    return joints - joints[:, WRIST][:, None]


def _reduced(
    errors: Float[Array, "batch *rest"], reduction: str, per_device: int
) -> Float[Array, ""]:
    if reduction == "mean":
        return jnp.mean(errors)
    return jnp.sum(errors) * (per_device / len(errors))
