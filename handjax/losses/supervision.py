"""Keep values without annotation out of losses, statistics and codebooks.

Losses count only values that the flags of a `Batch` call valid. That is not enough for
what uses a batch as a whole (its statistics, a codebook), nor where a target is NaN,
since 0 times NaN is NaN in a gradient.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from handjax.types import AnyArray, Batch, Variables


def zero_unannotated(batch: Batch) -> Batch:
    """Return the batch with zeros in place of everything that is not annotated.

    The trainer calls it before any loss function sees a batch.
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


def valid_replacements(example_valid: Bool[AnyArray, "batch"]) -> Int[Array, "batch"]:
    """Return for each example the index of a valid one: its own, or another's.

    For layers that use a whole batch, such as its statistics: an example without
    annotations must not be taken for a hand of zeros. All 0 if none is valid.
    """
    valid = jnp.asarray(example_valid)
    first = jnp.argsort(~valid, stable=True)  # the valid ones, then the others
    number = jnp.cumsum(~valid) - 1
    other = first[number % jnp.maximum(jnp.sum(valid), 1)]
    return jnp.where(valid, jnp.arange(len(valid)), other)


def updates_if_any_valid(
    updates: Variables, before: Variables, example_valid: Bool[AnyArray, "batch"]
) -> dict[str, Any]:
    """Return the updated collections; the old ones if no example is valid.

    Args:
        updates: Collections after the batch.
        before: Variables that it was applied to.
        example_valid: Examples that may cause an update.
    """
    some = jnp.any(jnp.asarray(example_valid))
    return {
        name: jax.tree.map(
            lambda new, old: jnp.where(some, new, old), updates[name], before[name]
        )
        for name in updates
    }
