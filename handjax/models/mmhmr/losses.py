"""Losses and predictions of MMHMR's stages."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from handjax.family import frozen_tokenizer
from handjax.family.hand_constants import joints_from_vertices
from handjax.geometry import rotations, skeleton
from handjax.losses import elementwise, hmr, supervision
from handjax.models.mmhmr.model import Joints2D, Model, Seen2D
from handjax.models.mmhmr.tokenizer import TOKENIZER_FIELDS, Matrices
from handjax.nn import mano_head, masked_tokens
from handjax.types import AnyArray, Batch, HandOutput, Variables


def tokenizer_loss(
    model: Model, variables: Variables, batch: Batch, rngs: dict[str, Array]
) -> tuple[dict[str, Array], dict[str, Array], dict[str, Any]]:
    """Compute reconstruction and commitment (MMHMR Eq. tokenizer loss).

    The term that draws codes to tokens is not there, for codes are averages of tokens;
    so its weight of 0.02, the only one printed, is taken for the commitment's. Poses
    are turned as a whole to any side; those of the built-in prior are turned already,
    and are none the worse for it.
    """
    valid = jnp.asarray(batch.mano_valid) & jnp.asarray(batch.vertices_valid)
    matrices = rotations.axis_angle_to_matrix(batch.mano_pose)
    vertices = jnp.asarray(batch.vertices)
    if model.turned:
        turn = rotations.random_rotation(rngs["mask"], valid.shape)
        matrices = matrices.at[:, 0].set(_turned(turn, matrices[:, 0]))
        vertices = jnp.einsum("bij,bvj->bvi", turn, vertices, precision="highest")
    (found, tokens, quantized), updates = model.apply(
        variables,
        matrices,
        valid,
        train=True,
        method="reconstruct",
        mutable=["codebook"],
        rngs=rngs,
    )
    made = model.apply(variables, found, batch.betas, method="vertices")
    far = elementwise.commitment(tokens, quantized.codes, reduction=model.commitment)
    terms = reconstruction_terms(
        variables["constants"]["hand"]["joint_regressor"],
        (found, made),
        (matrices, vertices),
        valid,
        root=skeleton.root_joint(model.root),
        reduction=model.codec_reduction,
    )
    terms["commitment"] = jnp.mean(jnp.where(valid, far, 0.0))
    angle = jnp.where(valid[:, None], rotations.geodesic_angle(found, matrices), 0.0)
    metrics = {**quantized.metrics, "degrees": jnp.degrees(jnp.mean(angle))}
    return terms, metrics, supervision.updates_if_any_valid(updates, variables, valid)


def _turned(
    turn: Float[Array, "batch 3 3"], matrices: Float[Array, "batch 3 3"]
) -> Float[Array, "batch 3 3"]:
    return jnp.einsum("bij,bjk->bik", turn, matrices, precision="highest")


def reconstruction_terms(
    joint_regressor: Float[AnyArray, "joint vertex"],
    found: tuple[Matrices, Float[Array, "batch vertex 3"]],
    true: tuple[Matrices, Float[Array, "batch vertex 3"]],
    valid: Bool[Array, "batch"],
    *,
    root: int,
    reduction: str,
) -> dict[str, Float[Array, ""]]:
    """Compute L1 of rotations, vertices, joints (MMHMR Eq. reconstruction loss).

    Rotations are compared as matrices, whatever the tokenizer writes, so that
    representations compare and no sign or turn of one is punished. Meshes are in metres
    relative to the root; joints are those of the meshes on both sides.

    Args:
        joint_regressor: Of the hand model.
        found: Matrices and vertices of the reconstruction.
        true: What they should be, vertices relative to any point.
        valid: Examples that count; others are zero.
        root: Joint that meshes are relative to.
        reduction: One of `REDUCTIONS`.
    """
    matrices, vertices = found
    rooted = [_rooted(joint_regressor, mesh, root) for mesh in (vertices, true[1])]
    errors = {
        "rotations": matrices - true[0],
        "vertices": rooted[0][0] - rooted[1][0],
        "joints3d": rooted[0][1] - rooted[1][1],
    }
    reduce = jnp.mean if reduction == "mean" else jnp.sum
    return {
        name: jnp.mean(
            jnp.where(valid, reduce(jnp.abs(error).reshape(len(valid), -1), axis=1), 0)
        )
        for name, error in errors.items()
    }


def _rooted(
    joint_regressor: Float[AnyArray, "joint vertex"],
    vertices: Float[Array, "batch vertex 3"],
    root: int,
) -> tuple[Float[Array, "batch vertex 3"], Float[Array, "batch joint 3"]]:
    joints = joints_from_vertices(joint_regressor, vertices)
    place = joints[:, root][:, None]
    return vertices - place, joints - place


def predict_pose(model: Model, variables: Variables, batch: Batch) -> HandOutput:
    """Reconstruct the true pose by the tokenizer, in the true shape.

    It is the floor of what tokens can say of a hand. Hands without known MANO
    parameters come out flat.
    """
    return model.apply(variables, batch.mano_pose, batch.betas, method="autoencode")


def mesh_loss(
    model: Model, variables: Variables, batch: Batch, rngs: dict[str, Array]
) -> tuple[dict[str, Array], dict[str, Array], dict[str, Any]]:
    """Compute terms of masked tokens and the expected hand (MMHMR Eq. total loss).

    The hand is decoded from the mean codes of all tokens, hidden or not, and compared
    as HaMeR does: `hmr_losses`. The detector has a term of its own.
    """
    mask_key, joints_key = jax.random.split(rngs["mask"])
    hidden = mask_tokens(model, variables, batch, mask_key)
    found, updates = model.apply(
        variables,
        batch.image,
        hidden.labels,
        hidden.masked,
        *condition_joints2d(model, batch, joints_key),
        train=True,
        method="predict_masked",
        mutable=["batch_stats"],
        rngs=rngs,
    )
    size_px = jnp.asarray(batch.image).shape[1]
    terms = hmr.terms(
        found.parameters,
        found.posed,
        batch,
        crop_size=size_px,
        reduction=model.reduction,
        per_device=model.per_device,
    )
    terms["tokens"] = mask_term(model, found.logits, hidden)
    if found.detected is not None:
        error = elementwise.point_l1(found.detected, batch.joints2d) / size_px
        terms["detector"] = elementwise.reduce_points(
            error, confidence=batch.joints2d_weights
        )
    output = mano_head.hand_output(
        found.posed, root=skeleton.root_joint(model.root), size_px=size_px
    )
    error = elementwise.mean_distance(
        output.vertices, batch.vertices, example_valid=jnp.asarray(batch.vertices_valid)
    )
    metrics = {"mm": 1000 * error, **mask_metrics(found.logits, hidden)}
    return terms, metrics, dict(updates)


TEXT_TERMS = ("global_orient", "hand_pose", "joints3d")
"""Of `hmr_losses.KEYS`, those that a text can be asked for."""


def text_loss(
    model: Model, variables: Variables, batch: Batch, rngs: dict[str, Array]
) -> tuple[dict[str, Array], dict[str, Array], dict[str, Any]]:
    """Compute the terms of a text's masked tokens and of the expected pose.

    Poses are compared in the true shape, of which a text says nothing.
    """
    hidden = mask_tokens(model, variables, batch, rngs["mask"])
    found = model.apply(
        variables,
        batch.text,
        hidden.labels,
        hidden.masked,
        None,
        None,
        train=True,
        method="predict_masked",
        rngs=rngs,
    )
    parameters = found.parameters._replace(betas=jnp.asarray(batch.betas))
    terms = hmr.terms(
        parameters,
        model.apply(variables, parameters, method="_posed"),
        batch,
        crop_size=1,  # of a term that is left out
        reduction=model.reduction,
        per_device=model.per_device,
    )
    terms = {name: terms[name] for name in TEXT_TERMS}
    terms["tokens"] = mask_term(model, found.logits, hidden)
    return terms, mask_metrics(found.logits, hidden), {}


def predict_text(model: Model, variables: Variables, batch: Batch) -> HandOutput:
    """Draw one hand for each text, different ones in each batch of a split."""
    key = jax.random.fold_in(jax.random.key(0), jnp.asarray(batch.index)[0])
    drawn = model.apply(variables, batch.text, key, 1, method="hypotheses")
    return HandOutput(
        vertices=drawn.vertices[:, 0],
        joints3d=drawn.joints3d[:, 0],
        indices=drawn.indices[:, 0],
        confidence=drawn.confidence[:, 0],
    )


def condition_joints2d(
    model: Model, batch: Batch, key: Array
) -> tuple[Joints2D | None, Seen2D | None]:
    """Return 2-D joints and confidences, as the synthesizer gets them in training.

    Annotated joints are moved by normal noise, each alone; some examples have none, so
    that there may be none at inference.
    """
    noise_key, drop_key = jax.random.split(key)
    size_px = jnp.asarray(batch.image).shape[1]
    joints2d = jnp.asarray(batch.joints2d)
    kept = jax.random.uniform(drop_key, (len(joints2d), 1)) >= model.joints2d_drop
    if model.joints2d_train == "none":
        return None, None
    if model.joints2d_train == "predicted":
        seen = jnp.broadcast_to(kept, joints2d.shape[:2])
        return None, seen.astype(jnp.float32)
    noise = jax.random.normal(noise_key, joints2d.shape)
    seen = jnp.asarray(batch.joints2d_valid) & kept
    return (
        joints2d + model.joints2d_noise * size_px * noise,
        seen.astype(jnp.float32),
    )


class MaskedTokens(NamedTuple):
    """Tokens of true poses, and which of them the model is not told."""

    labels: Int[Array, "batch token"]
    masked: Bool[Array, "batch token"]
    known: Bool[Array, "batch"]
    """Whether the pose is annotated; of others all tokens are hidden."""


def mask_tokens(
    model: Model, variables: Variables, batch: Batch, key: Array
) -> MaskedTokens:
    """Mask tokens of the true poses, as many as `model.tau_range` says."""
    labels = model.apply(variables, batch.mano_pose, method="encode")
    known = jnp.asarray(batch.mano_valid)
    masked = masked_tokens.training_mask(
        key, *labels.shape, tau_range=model.tau_range, schedule=model.schedule
    )
    # What is not known must not be told.
    return MaskedTokens(labels, masked | ~known[:, None], known)


def mask_metrics(
    logits: Float[Array, "batch token code"], hidden: MaskedTokens
) -> dict[str, Float[Array, ""]]:
    """Share of the hidden tokens that is named rightly, and share that is hidden.

    Tokens of poses that nobody knows are hidden, but there is no right name for them.
    """
    right = jnp.argmax(logits, axis=-1) == hidden.labels
    asked = hidden.masked & hidden.known[:, None]
    count = jnp.maximum(jnp.sum(asked), 1)
    return {
        "token_accuracy": jnp.sum(right & asked) / count,
        "masked": jnp.mean(hidden.masked.astype(jnp.float32)),
    }


def mask_term(
    model: Model, logits: Float[Array, "batch token code"], hidden: MaskedTokens
) -> Float[Array, ""]:
    """Compute the cross-entropy of the tokens, nats (MMHMR Eq. mask loss).

    The sum runs over all tokens as printed, which the code of its relative MMM does,
    too, and is divided by their number, as the codes of all relatives do.
    """
    error = elementwise.cross_entropy(logits, hidden.labels)
    every = jnp.ones_like(hidden.masked)
    counted = hidden.masked if model.mask_loss == "masked" else every
    counted = counted & hidden.known[:, None]
    total = jnp.sum(jnp.where(counted, error, 0.0), axis=1)
    if model.mask_reduction == "mean":
        total = total / jnp.maximum(jnp.sum(counted, axis=1), 1)
    return jnp.mean(total)


def predict_image(model: Model, variables: Variables, batch: Batch) -> HandOutput:
    """Predict the hand from the image."""
    given = batch.joints2d if model.joints2d_test == "given" else None
    return model.apply(variables, batch.image, joints2d=given)


def check_mesh(
    config: Any, model: Model, variables: Variables, info: dict[str, Any]
) -> None:
    """Refuse to start stage "mesh" on a tokenizer that does not fit the config."""
    frozen_tokenizer.check(config, model, variables, info, fields=TOKENIZER_FIELDS)
