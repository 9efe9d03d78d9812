"""The largest of some values, in forms that compilers do not spoil."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def largest(x: Float[Array, "..."], axis: int) -> Float[Array, "..."]:
    """Return the maximum along an axis; one largest value gets the gradient.

    The gradient of `jnp.max` asks once more which values equal the maximum. XLA may
    compute them anew for that, fused with other operations and so rounded otherwise;
    then none is equal, and the gradient is gone. Here the winner is known by its place.

    Args:
        x: values.
        axis: which goes away.
    """
    winner = jnp.argmax(jax.lax.stop_gradient(x), axis=axis, keepdims=True)
    places = jax.lax.broadcasted_iota(winner.dtype, x.shape, axis % x.ndim)
    # A sum with one summand; its gradient is a choice, where a gather's is a scatter.
    return jnp.sum(jnp.where(places == winner, x, 0), axis=axis)


def top_k(
    x: Float[Array, "*rows n"], k: int
) -> tuple[Float[Array, "*rows k"], Int[Array, "*rows k"]]:
    """Return each row's k largest values and their places, as `jax.lax.top_k`.

    Devices that share the rows keep their own here; for `jax.lax.top_k` XLA brings all
    rows to every device. It is the approximate search, asked to miss nothing.

    Args:
        x: values.
        k: how many of each row.
    """
    values, places = jax.lax.approx_max_k(x, k, recall_target=1.0)
    return values, places
