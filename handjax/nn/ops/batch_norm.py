"""Batch normalisation whose moments can be given instead of measured.

Networks with parallel branches normalise the same array, or a known multiple of it,
several times over. Measuring its moments once and writing every branch as `a * x + b`
turns many passes over memory into one.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Moments(NamedTuple):
    """Mean and (biased) variance of each channel, in float32."""

    mean: Float[Array, " dim"]
    variance: Float[Array, " dim"]
    count: int
    """How many values each channel had."""

    def scaled(self, factor: Float[Array, " dim"]) -> "Moments":
        """Return the moments of the same values times `factor`."""
        factor = factor.astype(jnp.float32)
        return Moments(factor * self.mean, factor**2 * self.variance, self.count)


def moments(x: Float[Array, "batch height width dim"]) -> Moments:
    """Measure the moments over batch and space, in float32 and in two passes."""
    return Moments(*_mean_and_variance(x), x.size // x.shape[-1])


class Covariance(NamedTuple):
    """Mean and covariance of the channels, in float32."""

    mean: Float[Array, " dim"]
    covariance: Float[Array, "dim dim"]
    count: int

    def through(self, matrix: Float[Array, "dim dim_out"]) -> Moments:
        """Return the moments of the values times a matrix, without the product."""
        matrix = matrix.astype(jnp.float32)
        variance = jnp.sum(matrix * jnp.dot(self.covariance, matrix), axis=0)
        return Moments(jnp.dot(self.mean, matrix), variance, self.count)


def covariance(x: Float[Array, "batch height width dim"]) -> Covariance:
    """Measure the covariance of the channels over batch and space, in two passes."""
    flat = x.astype(jnp.float32).reshape(-1, x.shape[-1])
    mean = jnp.mean(flat, axis=0)
    centred = flat - mean[None]
    product = jnp.dot(centred.T, centred, precision=jax.lax.Precision.HIGHEST)
    return Covariance(mean, product / len(flat), len(flat))


@jax.custom_vjp
def _mean_and_variance(x):
    x = x.astype(jnp.float32)
    mean = jnp.mean(x, axis=(0, 1, 2))
    centred = x - mean[None, None, None]
    return mean, jnp.mean(jnp.square(centred), axis=(0, 1, 2))


def _forward(x):
    mean, variance = _mean_and_variance(x)
    return (mean, variance), (x, mean)


def _backward(residuals, grads):
    """Leave out the variance's dependence on the mean, whose derivative is zero."""
    x, mean = residuals
    factor, count = 2 * grads[1], x.size // x.shape[-1]
    offset = grads[0] - factor * mean
    grad = x * factor[None, None, None] + offset[None, None, None]
    return ((grad / count).astype(x.dtype),)


_mean_and_variance.defvjp(_forward, _backward)


def apply_affine(
    x: Float[Array, "batch height width dim"],
    factor: Float[Array, " dim"],
    offset: Float[Array, " dim"],
) -> Float[Array, "batch height width dim"]:
    """Compute `x * factor + offset` by channel, in float32, in the dtype of x."""
    out = x * factor[None, None, None] + offset[None, None, None]
    return out.astype(x.dtype)


class BatchNorm(nn.Module):
    """Batch normalisation after torch: running variances are unbiased estimates."""

    features: int
    momentum: float = 0.9
    epsilon: float = 1e-5

    def setup(self):
        """Create the affine parameters and the running statistics."""
        shape = (self.features,)
        self.scale = self.param("scale", nn.initializers.ones, shape)
        self.bias = self.param("bias", nn.initializers.zeros, shape)
        self.mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        self.var = self.variable("batch_stats", "var", jnp.ones, shape)

    def affine(
        self, batch: Moments | None
    ) -> tuple[Float[Array, " dim"], Float[Array, " dim"]]:
        """Return the factor and offset that normalise.

        Args:
            batch: Moments of the batch, which also update the running statistics; None
                to use the running statistics.
        """
        mean, variance = self.mean.value, self.var.value
        if batch is not None:
            mean, variance = batch.mean, batch.variance
            self._update(batch)
        factor = self.scale / jnp.sqrt(variance + self.epsilon)
        return factor, self.bias - mean * factor

    def __call__(
        self, x: Float[Array, "batch height width dim"], *, train: bool
    ) -> Float[Array, "batch height width dim"]:
        """Normalise with the statistics of the batch or the running ones."""
        factor, offset = self.affine(moments(x) if train else None)
        return apply_affine(x, factor, offset)

    def _update(self, batch):
        if self.is_initializing():
            return
        unbiased = batch.variance * (batch.count / max(batch.count - 1, 1))
        keep = self.momentum
        self.mean.value = keep * self.mean.value + (1 - keep) * batch.mean
        self.var.value = keep * self.var.value + (1 - keep) * unbiased
