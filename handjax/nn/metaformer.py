"""MetaFormer block, and the mesh regressor built of it.

After SimpleHand, in PyTorch's numerics: LayerNorm eps 1e-5, exact GELU, packed qkv with
bias, dropout on the attention probabilities, drop path per example.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float

from handjax.errors import UserError
from handjax.geometry.skeleton import NUM_VERTICES
from handjax.nn.ops.convolutions import gelu

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
        self,
        x: Float[Array, "batch token dim"],
        *,
        train: bool,
        bias: Float[Array, "head token token"] | None = None,
    ) -> Float[Array, "batch token dim"]:
        """Compute softmax(q k / sqrt(d) + bias) v per head, then a linear map."""
        dim = x.shape[-1]
        qkv_init = nn.initializers.xavier_uniform()
        qkv = nn.Dense(3 * dim, dtype=self.dtype, kernel_init=qkv_init, name="qkv")(x)
        q, k, v = rearrange(
            qkv,
            "b token (qkv head d) -> qkv b token head d",
            qkv=3,
            head=self.num_heads,
        )
        scores = jnp.einsum("bqhd,bkhd->bhqk", q * q.shape[-1] ** -0.5, k)
        scores = scores.astype(jnp.float32)
        if bias is not None:
            scores = scores + bias.astype(jnp.float32)[None]
        probs = jax.nn.softmax(scores, axis=-1).astype(self.dtype)
        probs = nn.Dropout(self.dropout, deterministic=not train)(probs)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", probs, v)
        mixed = rearrange(mixed, "b token head d -> b token (head d)")
        return nn.Dense(
            dim, dtype=self.dtype, kernel_init=torch_linear_init, name="out"
        )(mixed)


class CrossAttention(nn.Module):
    """Multi-head attention of queries to a context of any width."""

    num_heads: int = 4
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch query dim"],
        context: Float[Array, "batch token context_dim"],
        valid: Bool[Array, "batch token"] | None = None,
        *,
        train: bool,
    ) -> Float[Array, "batch query dim"]:
        """Compute softmax(q k / sqrt(d)) v in each head, then a linear map.

        Args:
            x: What the queries are made of.
            context: What keys and values are made of.
            valid: False for tokens that are not looked at; None for no such tokens.
            train: Drop probabilities.
        """
        dim = x.shape[-1]
        init = nn.initializers.xavier_uniform()
        options: dict[str, Any] = dict(dtype=self.dtype, kernel_init=init)
        q = nn.Dense(dim, **options, name="q")(x)
        q = rearrange(q, "b query (head d) -> b query head d", head=self.num_heads)
        kv = nn.Dense(2 * dim, **options, name="kv")(context)
        k, v = rearrange(
            kv, "b token (kv head d) -> kv b token head d", kv=2, head=self.num_heads
        )
        scores = jnp.einsum("bqhd,bkhd->bhqk", q * q.shape[-1] ** -0.5, k)
        scores = scores.astype(jnp.float32)
        if valid is not None:
            # Not infinite: an example may have nothing to look at.
            scores = jnp.where(valid[:, None, None], scores, -1e9)
        probs = jax.nn.softmax(scores, axis=-1).astype(self.dtype)
        probs = nn.Dropout(self.dropout, deterministic=not train)(probs)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", probs, v)
        mixed = rearrange(mixed, "b query head d -> b query (head d)")
        return linear(dim, self.dtype, "out")(mixed)


class SeparableConv(nn.Module):
    """Mix each token with its neighbours in the list: linear, depthwise 7, linear.

    Between the first two stands StarReLU, scale relu(x)^2 + bias (MetaFormer).
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch token dim"]
    ) -> Float[Array, "batch token dim"]:
        """Mix neighbouring tokens; beyond both ends of the list are zeros."""
        dim, num_tokens, taps = x.shape[-1], x.shape[1], 7
        options: dict[str, Any] = dict(
            use_bias=False, dtype=self.dtype, kernel_init=torch_linear_init
        )
        x = nn.Dense(2 * dim, **options, name="widen")(x)
        scale = self.param("scale", nn.initializers.ones, (1,)).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (1,)).astype(self.dtype)
        x = scale * jnp.square(nn.relu(x)) + bias
        kernel = self.param("kernel", torch_linear_init, (taps, 2 * dim))
        padded = jnp.pad(x, ((0, 0), (taps // 2, taps // 2), (0, 0)))
        shifted = (
            padded[:, i : i + num_tokens] * kernel[i].astype(self.dtype)
            for i in range(taps)
        )
        return nn.Dense(dim, **options, name="narrow")(sum(shifted))


MIXERS = ("attention", "identity", "conv")
"""How a block mixes tokens; with "identity" it does not and has the MLP alone."""


class MetaFormerBlock(nn.Module):
    """x += mixer(norm(x)); x += mlp(norm(x))."""

    mixer: str = "attention"
    """One of `MIXERS`."""
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
        if self.mixer not in MIXERS:
            raise UserError(
                f"config.model.mixer={self.mixer!r} is not one of {', '.join(MIXERS)}."
            )
        if self.mixer != "identity":
            y = self._mixed(layer_norm(self.dtype, "norm1")(x), train)
            x = x + DropPath(self.drop_path)(y, train=train)
        y = layer_norm(self.dtype, "norm2")(x)
        y = linear(self.mlp_ratio * dim, self.dtype, "mlp_in")(y)
        y = linear(dim, self.dtype, "mlp_out")(gelu(y))
        return x + DropPath(self.drop_path)(y, train=train)

    def _mixed(self, x: Array, train: bool) -> Array:
        if self.mixer == "conv":
            return SeparableConv(self.dtype, name="conv")(x)
        attention = SelfAttention(
            self.num_heads, self.dropout, self.dtype, name="attention"
        )
        return attention(x, train=train)


class TokenLinear(nn.Module):
    """Linear map over the token axis, from any number of tokens to `num_tokens`."""

    num_tokens: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch token dim"]
    ) -> Float[Array, "batch new_token dim"]:
        """Apply the same map along the tokens of every channel."""
        y = linear(self.num_tokens, self.dtype, "over_tokens")(x.swapaxes(1, 2))
        return y.swapaxes(1, 2)


class MeshRegressor(nn.Module):
    """Tokens to mesh by layers, H_k ... H_0 (SimpleHand Eq. 1).

    A layer adds a learned code, X = X + emb (SimpleHand Eq. 3), narrows the channels,
    mixes and multiplies the tokens: U(MetaFormer(P(X))) (SimpleHand Eq. 2). The code
    comes before P, as in SimpleHand's released network; its paper says "before each
    MetaFormer block".
    """

    tokens: tuple[int, ...]
    """Tokens that enter each layer; the last one leaves `num_vertices`."""
    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    """MetaFormer blocks of each layer."""
    mixer: str = "attention"
    position_codes: bool = True
    """Whether the learned codes are there."""
    dropout: float = 0.0
    drop_path: float = 0.0
    num_vertices: int = NUM_VERTICES
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch token dim"], *, train: bool
    ) -> Float[Array, "batch vertex 3"]:
        """Compute the coordinates of the vertices, float32.

        Raises:
            UserError: `x` has another number of tokens than the first layer takes.
        """
        if x.shape[1] != self.tokens[0]:
            raise UserError(
                f"The mesh regressor's layers take {self.tokens} tokens, but "
                f"{x.shape[1]} come in; let its token list begin with {x.shape[1]}."
            )
        x = x.astype(self.dtype)
        targets = (*self.tokens[1:], self.num_vertices)
        layers = zip(self.widths, self.blocks, targets, strict=True)
        for i, (width, blocks, target) in enumerate(layers):
            if self.position_codes:
                code = self.param(f"layer{i}_code", code_init, (1, *x.shape[1:]))
                x = x + code.astype(self.dtype)
            x = linear(width, self.dtype, f"layer{i}_reduce")(x)
            for j in range(blocks):
                x = MetaFormerBlock(
                    mixer=self.mixer,
                    dropout=self.dropout,
                    drop_path=self.drop_path,
                    dtype=self.dtype,
                    name=f"layer{i}_block{j}",
                )(x, train=train)
            x = TokenLinear(target, self.dtype, name=f"layer{i}_upsample")(x)
        # In bfloat16 a hand would be rounded to half millimetres.
        return linear(3, jnp.float32, "coordinates")(x.astype(jnp.float32))


def linear(features: int, dtype: Any, name: str) -> nn.Dense:
    """Return a linear layer initialised as in PyTorch."""
    return nn.Dense(features, dtype=dtype, kernel_init=torch_linear_init, name=name)


def layer_norm(dtype: Any, name: str) -> nn.LayerNorm:
    """Return a LayerNorm with PyTorch's epsilon."""
    return nn.LayerNorm(epsilon=LAYER_NORM_EPS, dtype=dtype, name=name)
