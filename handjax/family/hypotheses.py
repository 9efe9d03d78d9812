"""Several hands of one picture, with confidences, and how far they are apart.

A model that samples gives another hand for another key. It offers them by a method

    def hypotheses(self, image, key, count: int) -> Hypotheses:
        seen = ...  # of the image, once for all of them
        return hypotheses.draw(lambda key: self.sampled_hand(seen, key), key, count)

which `predictor` finds by its name. The hands are samples; the one that `__call__`
returns, usually the most probable, need not be among them.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from handjax.errors import UserError
from handjax.types import AnyArray, HandOutput


class Hypotheses(NamedTuple):
    """Hands of each image, the most confident first; frames as in `HandOutput`."""

    vertices: Float[AnyArray, "batch hypothesis vertex 3"]
    """Metres, crop camera axes, relative to the root joint."""
    joints3d: Float[AnyArray, "batch hypothesis joint 3"]
    """Same frame."""
    confidence: Float[AnyArray, "batch hypothesis"]
    """0..1, falling: mean probability of the chosen codes."""
    weights: Float[AnyArray, "batch hypothesis"]
    """confidence / sum of the confidences of the image's hypotheses."""
    joints2d: Float[AnyArray, "batch hypothesis joint 2"] | None = None
    """Pixels of the network crop."""
    indices: Int[AnyArray, "batch hypothesis token"] | None = None
    """Chosen codes."""


def draw(one: Callable[[Array], HandOutput], key: Array, count: int) -> Hypotheses:
    """Draw hands from different keys and rank them; runs inside jit, all at once.

    Args:
        one: Key to the hands of a batch, with `confidence`.
        key: Split into one for each hypothesis.
        count: How many.

    Raises:
        UserError: No hypothesis, or hands without a confidence.
    """
    if count < 1:
        raise UserError(f"hypotheses: count={count!r} must be 1 or more.")

    # Logits of all hypotheses would be much, and nobody asks for them.
    def lean(key: Array) -> HandOutput:
        return one(key)._replace(logits=None)

    return ranked(jax.vmap(lean)(jax.random.split(key, count)))


def ranked(outputs: HandOutput) -> Hypotheses:
    """Sort by confidence; each array of `outputs` is [hypothesis, batch, ...].

    Raises:
        UserError: The hands have no confidence.
    """
    if outputs.confidence is None:
        raise UserError(
            "hypotheses are ranked by confidence: HandOutput.confidence must not be "
            "None; sampling families fill it with the mean probability of the codes."
        )
    order = jnp.argsort(-outputs.confidence, axis=0, stable=True).T

    def sort(x):
        x = jnp.swapaxes(x, 0, 1)
        return jnp.take_along_axis(
            x, order.reshape(*order.shape, *[1] * (x.ndim - 2)), 1
        )

    confidence = sort(outputs.confidence)
    outputs = jax.tree.map(sort, outputs._replace(logits=None))
    return Hypotheses(
        vertices=outputs.vertices,
        joints3d=outputs.joints3d,
        confidence=confidence,
        weights=confidence / jnp.sum(confidence, axis=1, keepdims=True),
        joints2d=outputs.joints2d,
        indices=outputs.indices,
    )


def joint_uncertainty_mm(
    joints3d: Float[AnyArray, "*batch hypothesis joint 3"],
    weights: Float[AnyArray, "*batch hypothesis"],
    *,
    root: int,
) -> Float[AnyArray, "*batch joint"]:
    """Compute each joint's spread over the hypotheses, millimetres.

    u_j = 1000 sqrt(sum_k w_k |p_kj - m_j|^2),  m_j = sum_k w_k p_kj,  where p_kj is
    joint j of hypothesis k minus its root joint: the weighted standard deviation over
    all three axes together. The root's is 0, and so is that of one hypothesis alone.

    Args:
        joints3d: Metres.
        weights: Of the hypotheses, adding up to 1.
        root: Joint that is subtracted.
    """
    xp = joints3d.__array_namespace__()
    rooted = joints3d - joints3d[..., root : root + 1, :]
    weight = weights[..., None, None]
    mean = xp.sum(weight * rooted, axis=-3, keepdims=True)
    far = xp.sum((rooted - mean) ** 2, axis=-1)
    return 1e3 * xp.sqrt(xp.sum(weights[..., None] * far, axis=-2))
