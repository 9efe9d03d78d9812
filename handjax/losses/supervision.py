"""What is not annotated must not matter: what the loss functions of families share.

Losses count only what the flags of a `Batch` call valid. That is not enough where a
batch is looked at as a whole (its statistics, a codebook), nor where a target is not a
number, for 0 times nan is nan in a gradient.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from handjax.types import AnyArray, Batch, Variables


def cleared(batch: Batch) -> Batch:
    """The batch with zeros wherever nothing is annotated, whatever stood there.

    The trainer does this before any loss function sees a batch.
    """
    joints3d = jnp.asarray(batch.known_joints3d)
    placed = jnp.any(joints3d, axis=1) | jnp.asarray(batch.vertices_valid)
    known = {
        "joints2d": batch.joints2d_valid,
        "joints2d_confidence": batch.joints2d_valid,
        "joints3d": joints3d,
        "root3d": placed,
        "vertices": batch.vertices_valid,
        "mano_pose": batch.mano_valid,
        "betas": batch.known_betas,
    }
    return batch._replace(
        **{
            name: _where(valid, getattr(batch, name))
            for name, valid in known.items()
            if getattr(batch, name) is not None
        }
    )


def _where(valid: Any, values: Any) -> Array:
    valid = jnp.asarray(valid)
    return jnp.where(
        valid.reshape(*valid.shape, *[1] * (values.ndim - valid.ndim)), values, 0
    )


def stand_ins(example_valid: Bool[AnyArray, "batch"]) -> Int[Array, "batch"]:
    """For each example a valid one: itself, or another; the first if there is none.

    For what layers do with a whole batch, such as its statistics: an example without
    annotations must not be seen as a hand of zeros.
    """
    valid = jnp.asarray(example_valid)
    first = jnp.argsort(~valid, stable=True)  # the valid ones, then the others
    number = jnp.cumsum(~valid) - 1
    other = first[number % jnp.maximum(jnp.sum(valid), 1)]
    return jnp.where(valid, jnp.arange(len(valid)), other)


def moved(
    updates: Variables, before: Variables, example_valid: Bool[AnyArray, "batch"]
) -> dict[str, Any]:
    """Collections after a batch; those before it if none of its examples is valid.

    Args:
        updates: Collections that the batch has moved.
        before: Variables that it was applied to.
        example_valid: Examples that may move anything.
    """
    some = jnp.any(jnp.asarray(example_valid))
    return {
        name: jax.tree.map(
            lambda new, old: jnp.where(some, new, old), updates[name], before[name]
        )
        for name in updates
    }
