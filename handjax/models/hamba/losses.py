"""Losses and predictions of Hamba's stages."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from handjax.losses import elementwise, hmr
from handjax.models.hamba.model import Hand, Model, output_of
from handjax.types import Batch, HandOutput, Variables


def regressor_loss(
    model: Model, variables: Variables, batch: Batch, rngs: dict[str, Array]
) -> tuple[dict[str, Array], dict[str, Array], dict[str, Any]]:
    """Compute the first hand's terms, without an adversary (as released)."""
    hand, updates = _trained(model, variables, batch, rngs, "regress")
    return _terms(model, hand, batch), _metrics(model, hand, batch), updates


def mesh_loss(
    model: Model, variables: Variables, batch: Batch, rngs: dict[str, Array]
) -> tuple[dict[str, Array], dict[str, Array], dict[str, Any]]:
    """Compute the hand's terms, to be weighted and summed (Hamba Eq. 9).

    The first hand has its own, "regressor_" and their name; how the release combines
    the two is not known, so the configs weigh them alike (a weight of 0 switches one
    off). Only the hand plays against the discriminator.
    """
    found, updates = _trained(model, variables, batch, rngs, "predict")
    terms = _terms(model, found.mesh, batch)
    for name, value in _terms(model, found.regressor, batch).items():
        terms[f"regressor_{name}"] = value
    if model.adversarial:
        terms |= hmr.adversarial_terms(
            model, variables, found.mesh.parameters, batch.real_pose, batch.real_betas
        )
    return terms, _metrics(model, found.mesh, batch), updates


def _trained(
    model: Model, variables: Variables, batch: Batch, rngs: Any, method: str
) -> tuple[Any, dict[str, Any]]:
    found, updates = model.apply(
        variables,
        batch.image,
        train=True,
        method=method,
        mutable=["batch_stats"],
        rngs=rngs,
    )
    return found, dict(updates)


def _terms(model: Model, hand: Hand, batch: Batch) -> dict[str, Float[Array, ""]]:
    """Compute L1 of joints (Hamba Eq. 10), squares of rotations, betas (Hamba Eq. 11).

    3-D joints are relative to the wrist; rotations are compared as matrices.
    """
    return hmr.terms(
        hand.parameters,
        hand.posed,
        batch,
        crop_size=jnp.asarray(batch.image).shape[1],
        reduction=model.reduction,
        per_device=model.per_device,
    )


def _metrics(model: Model, hand: Hand, batch: Batch) -> dict[str, Float[Array, ""]]:
    error = elementwise.mean_distance(
        output_of(model, hand, batch.image).vertices,
        batch.vertices,
        example_valid=jnp.asarray(batch.vertices_valid),
    )
    return {"mm": 1000 * error}


def predict_first(model: Model, variables: Variables, batch: Batch) -> HandOutput:
    """Predict the joints regressor's hand from the image."""
    hand = model.apply(variables, batch.image, method="regress")
    return output_of(model, hand, batch.image)


def predict_image(model: Model, variables: Variables, batch: Batch) -> HandOutput:
    """Predict the hand from the image."""
    return model.apply(variables, batch.image)
