"""Losses: element-wise pure functions; the caller (or `reduce_points`) reduces.

Conventions: 3-D in metres, 2-D in units of the crop's side, everything in float32
whatever the model computes in. Where a mask is given, what it hides counts as zero and
the mean still runs over all elements, as SimpleHand's released code does: a batch with
few valid examples then makes a small step, not a noisy one.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from handjax.errors import UserError
from handjax.types import AnyArray

_SHORTEST_EDGE = 1e-5
"""Metres below which the edge of a predicted mesh has no direction."""


def point_l1(
    prediction: Float[AnyArray, "*batch point xyz"],
    target: Float[AnyArray, "*batch point xyz"],
) -> Float[Array, "*batch point"]:
    """Return the L1 distance of each point, the sum over its coordinates."""
    difference = jnp.asarray(prediction, jnp.float32) - jnp.asarray(target, jnp.float32)
    return jnp.sum(jnp.abs(difference), axis=-1)


def reduce_points(
    errors: Float[Array, "batch point"],
    *,
    example_valid: Bool[AnyArray, "batch"] | None = None,
    point_valid: Bool[AnyArray, "batch point"] | None = None,
    confidence: Float[AnyArray, "batch point"] | None = None,
) -> Float[Array, ""]:
    """Average over points, then over examples; invalid ones count as zero.

    Args:
        errors: Of each point.
        example_valid: Examples that count; all by default.
        point_valid: Points that count; all by default.
        confidence: Weight of each point, 0 of those that do not count.
    """
    if confidence is not None:
        errors, point_valid = errors * confidence, jnp.asarray(confidence) > 0
    if point_valid is not None:
        errors = jnp.where(point_valid, errors, 0.0)
    means = jnp.mean(errors, axis=-1)
    if example_valid is not None:
        means = jnp.where(example_valid, means, 0.0)
    return jnp.mean(means)


def edge_lengths(
    prediction: Float[AnyArray, "batch vertex 3"],
    target: Float[AnyArray, "batch vertex 3"],
    faces: Int[AnyArray, "face 3"],
) -> Float[Array, "batch face 3"]:
    """Return the absolute difference in length of each face's edges.

    With FastMETRO, sqrt(square + 1e-8) is the length, so that a point has a gradient.
    """
    ours, theirs = (
        jnp.sqrt(jnp.sum(jnp.square(_edges(vertices, faces)), axis=-1) + 1e-8)
        for vertices in (prediction, target)
    )
    return jnp.abs(ours - theirs)


def edge_normals(
    prediction: Float[AnyArray, "batch vertex 3"],
    target: Float[AnyArray, "batch vertex 3"],
    faces: Int[AnyArray, "face 3"],
) -> Float[Array, "batch face 3"]:
    """Return |cos| of each face's edges and the target face's normal."""
    edges = _edges(target, faces)
    # Lengths of normals are areas: of edges of 1 mm, 1e-6.
    normals = _unit(jnp.cross(edges[:, :, 0], edges[:, :, 1]), 1e-12)
    ours = _unit(_edges(prediction, faces), _SHORTEST_EDGE)
    return jnp.abs(jnp.sum(ours * normals[:, :, None], axis=-1))


def _edges(vertices: AnyArray, faces: AnyArray) -> Float[Array, "batch face 3 3"]:
    """Return the edges of each face, from each corner to the next."""
    corners = jnp.asarray(vertices, jnp.float32)[:, jnp.asarray(faces)]
    return jnp.roll(corners, -1, axis=2) - corners


def _unit(x: Float[Array, "*batch 3"], shortest: float) -> Float[Array, "*batch 3"]:
    """Scale to length 1; shorter vectors become zero, without a gradient."""
    squared = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    short = squared < shortest**2
    # A gradient is one over the length: of coinciding points it would be all there is.
    return jnp.where(short, 0.0, x * jax.lax.rsqrt(jnp.where(short, 1.0, squared)))


def commitment(
    tokens: Float[Array, "batch token dim"],
    codes: Float[Array, "batch token dim"],
    *,
    reduction: str = "mean",
) -> Float[Array, "batch"]:
    """Compute tokens' squared distance to their codes, which get no gradient.

    Args:
        tokens: What the encoder returns.
        codes: The nearest code of each token.
        reduction: "mean" over tokens and dimensions, or "sum" over both. TokenHand's
            formula is the sum, word for word that of its ancestor PCT, whose code takes
            the mean; with the paper's weight of 5 only the mean leaves the
            reconstruction any say.
    """
    squared = jnp.square(tokens.astype(jnp.float32) - jax.lax.stop_gradient(codes))
    if reduction == "mean":
        return jnp.mean(squared, axis=(-2, -1))
    if reduction == "sum":
        return jnp.sum(squared, axis=(-2, -1))
    raise UserError(f"reduction={reduction!r} is not one of 'mean', 'sum'.")


def cross_entropy(
    logits: Float[Array, "*batch code"],
    indices: Int[AnyArray, "*batch"],
    *,
    label_smoothing: float = 0.0,
) -> Float[Array, "*batch"]:
    """Compute CE(L^, L) of each token (TokenHand Eq. classification), nats.

    Args:
        logits: Scores of all codes, before the softmax.
        indices: The right code.
        label_smoothing: Share of the target spread evenly over all codes.
    """
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    chosen = jnp.take_along_axis(log_probs, indices[..., None], axis=-1)[..., 0]
    # -sum_k y_k log p_k with y = (1 - s) onehot + s / K
    return -(1 - label_smoothing) * chosen - label_smoothing * jnp.mean(log_probs, -1)


def accuracy(
    logits: Float[Array, "batch *token code"],
    indices: Int[AnyArray, "batch *token"],
    *,
    example_valid: Bool[AnyArray, "batch"] | None = None,
) -> Float[Array, ""]:
    """Share of tokens whose highest score is the right code, in valid examples."""
    right = jnp.argmax(logits, axis=-1) == indices
    if example_valid is None:
        return jnp.mean(right.astype(jnp.float32))
    valid = jnp.asarray(example_valid).reshape(-1, *[1] * (right.ndim - 1))
    counted = jnp.broadcast_to(valid, right.shape)
    return jnp.sum(right & counted) / jnp.maximum(jnp.sum(counted), 1)


def mean_distance(
    prediction: Float[AnyArray, "batch point xyz"],
    target: Float[AnyArray, "batch point xyz"],
    *,
    example_valid: Bool[AnyArray, "batch"],
) -> Float[Array, ""]:
    """Compute the mean point distance of the valid examples (for logs)."""
    difference = jnp.asarray(prediction, jnp.float32) - jnp.asarray(target, jnp.float32)
    distance = jnp.mean(jnp.linalg.norm(difference, axis=-1), axis=-1)
    total = jnp.sum(jnp.where(example_valid, distance, 0.0))
    return total / jnp.maximum(jnp.sum(example_valid), 1)
