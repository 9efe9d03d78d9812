"""MetaFormer block with self-attention, and the mesh regressor built of it.

After SimpleHand, in PyTorch's numerics: LayerNorm eps 1e-5, exact GELU, packed qkv with
bias, dropout on the attention probabilities, drop path per example.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from handjax.skeleton import NUM_VERTICES

LAYER_NORM_EPS = 1e-5
torch_linear_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""Uniform in +-1/sqrt(fan_in), PyTorch's default for linear layers."""
code_init = nn.initializers.truncated_normal(0.02)
"""Of learned position codes."""


class DropPath(nn.Module):
    """Drop a residual branch of whole examples, scaling the others up."""

    rate: float

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch *rest"], *, train: bool
    ) -> Float[Array, "batch *rest"]:
        """Return `x`, or zeros for a random share `rate` of the examples."""
        if not train or self.rate == 0:
            return x
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        keep = jax.random.bernoulli(self.make_rng("drop_path"), 1 - self.rate, shape)
        return jnp.where(keep, x / (1 - self.rate), jnp.zeros_like(x))


class SelfAttention(nn.Module):
    """Multi-head self-attention over tokens."""

    num_heads: int = 4
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch token dim"], *, train: bool
    ) -> Float[Array, "batch token dim"]:
        """Softmax(q k / sqrt(d)) v in each head, then a linear map."""
        batch, token, dim = x.shape
        qkv_init = nn.initializers.xavier_uniform()
        qkv = nn.Dense(3 * dim, dtype=self.dtype, kernel_init=qkv_init, name="qkv")(x)
        q, k, v = jnp.moveaxis(
            qkv.reshape(batch, token, 3, self.num_heads, dim // self.num_heads), 2, 0
        )
        scores = jnp.einsum("bqhd,bkhd->bhqk", q * q.shape[-1] ** -0.5, k)
        probs = jax.nn.softmax(scores.astype(jnp.float32), axis=-1).astype(self.dtype)
        probs = nn.Dropout(self.dropout, deterministic=not train)(probs)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", probs, v).reshape(batch, token, dim)
        return nn.Dense(
            dim, dtype=self.dtype, kernel_init=torch_linear_init, name="out"
        )(mixed)


class MetaFormerBlock(nn.Module):
    """x += attention(norm(x)); x += mlp(norm(x))."""

    num_heads: int = 4
    mlp_ratio: int = 4
    dropout: float = 0.0
    """Of the attention probabilities."""
    drop_path: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch token dim"], *, train: bool
    ) -> Float[Array, "batch token dim"]:
        """Mix tokens, then channels."""
        dim = x.shape[-1]
        y = layer_norm(self.dtype, "norm1")(x)
        y = SelfAttention(self.num_heads, self.dropout, self.dtype, name="attention")(
            y, train=train
        )
        x = x + DropPath(self.drop_path)(y, train=train)
        y = layer_norm(self.dtype, "norm2")(x)
        y = linear(self.mlp_ratio * dim, self.dtype, "mlp_in")(y)
        y = linear(dim, self.dtype, "mlp_out")(jax.nn.gelu(y, approximate=False))
        return x + DropPath(self.drop_path)(y, train=train)


class TokenLinear(nn.Module):
    """Linear map over the token axis, from any number of tokens to `num_tokens`."""

    num_tokens: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch token dim"]
    ) -> Float[Array, "batch new_token dim"]:
        """The same map for every channel."""
        y = linear(self.num_tokens, self.dtype, "over_tokens")(x.swapaxes(1, 2))
        return y.swapaxes(1, 2)


class MeshRegressor(nn.Module):
    """Tokens to mesh: each layer narrows the channels and multiplies the tokens.

    A layer is a learned code, a linear map, attention blocks, a linear map over tokens.
    """

    tokens: tuple[int, ...] = (48, 97, 194, 389)
    """Tokens that enter each layer; the last one leaves `num_vertices`."""
    widths: tuple[int, ...] = (256, 128, 64, 32)
    blocks: int = 1
    dropout: float = 0.0
    drop_path: float = 0.0
    num_vertices: int = NUM_VERTICES
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch token dim"], *, train: bool
    ) -> Float[Array, "batch vertex 3"]:
        """Coordinates of the vertices, float32."""
        x = x.astype(self.dtype)
        targets = (*self.tokens[1:], self.num_vertices)
        for i, (width, target) in enumerate(zip(self.widths, targets, strict=True)):
            code = self.param(f"layer{i}_code", code_init, (1, *x.shape[1:]))
            x = x + code.astype(self.dtype)
            x = linear(width, self.dtype, f"layer{i}_reduce")(x)
            for j in range(self.blocks):
                x = MetaFormerBlock(
                    dropout=self.dropout,
                    drop_path=self.drop_path,
                    dtype=self.dtype,
                    name=f"layer{i}_block{j}",
                )(x, train=train)
            x = TokenLinear(target, self.dtype, name=f"layer{i}_upsample")(x)
        # In bfloat16 a hand would be rounded to half millimetres.
        return linear(3, jnp.float32, "coordinates")(x.astype(jnp.float32))


def linear(features: int, dtype: Any, name: str) -> nn.Dense:
    """Linear layer that starts as PyTorch's."""
    return nn.Dense(features, dtype=dtype, kernel_init=torch_linear_init, name=name)


def layer_norm(dtype: Any, name: str) -> nn.LayerNorm:
    """LayerNorm with PyTorch's epsilon."""
    return nn.LayerNorm(epsilon=LAYER_NORM_EPS, dtype=dtype, name=name)
