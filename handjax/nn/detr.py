"""DETR's transformer in pre-norm form, as FastMETRO uses it.

Carion et al., End-to-end object detection with transformers, ECCV 2020,
https://arxiv.org/abs/2005.12872; Cho et al., FastMETRO, ECCV 2022,
https://arxiv.org/abs/2207.13820. In PyTorch's numerics, with PyTorch's names: where a
state dict has `encoder.layers.0.self_attn.in_proj_weight`, this has
`encoder/layers_0/self_attn/in_proj_kernel`, transposed.

Positions are added to queries and keys of every attention, never to values. An array
whose first axis is 1 is the same for the whole batch; as long as it is, it is computed
once (the first self-attention among learned queries).
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float

from handjax.errors import UserError
from handjax.nn.metaformer import layer_norm

xavier = nn.initializers.xavier_uniform()

Tokens = Float[Array, "_ token dim"]
Queries = Float[Array, "_ query dim"]
Positions = Float[Array, "token dim"]
Mask = Bool[Array, "query query"]


class MultiheadAttention(nn.Module):
    """PyTorch's layer of this name: one packed projection, heads, one projection."""

    heads: int
    dropout: float
    """Of the probabilities."""
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        query: Float[Array, "_ query dim"],
        key: Float[Array, "_ token dim"],
        value: Float[Array, "_ token dim"],
        blocked: Bool[Array, "query token"] | None = None,
        *,
        train: bool,
    ) -> tuple[Float[Array, "_ query dim"], Float[Array, "_ head query token"]]:
        """Compute softmax(q k / sqrt(d)) v in each head, then a linear map.

        Args:
            query: What asks; it must be as wide as what is asked.
            key: What is compared with it.
            value: What is taken.
            blocked: True where a query must not look; no row may be all true.
            train: Drop probabilities.

        Returns:
            The result, and the probabilities (float32, before any are dropped).

        Raises:
            UserError: The heads do not divide the width.
        """
        dim = query.shape[-1]
        if dim % self.heads:
            raise UserError(
                f"Tokens of {dim} channels cannot be cut into config.model.heads="
                f"{self.heads}; choose a number of heads that divides every width."
            )
        kernel = self.param("in_proj_kernel", xavier, (dim, 3 * dim))
        bias = self.param("in_proj_bias", nn.initializers.zeros, (3 * dim,))

        def projected(x: Array, part: int) -> Array:
            own = slice(part * dim, (part + 1) * dim)
            y = jnp.dot(x.astype(self.dtype), kernel[:, own].astype(self.dtype))
            y = y + bias[own].astype(self.dtype)[None, None]
            return rearrange(y, "b token (head d) -> b token head d", head=self.heads)

        q, k, v = projected(query, 0), projected(key, 1), projected(value, 2)
        batch = max(len(q), len(k))
        q, k, v = (jnp.broadcast_to(x, (batch, *x.shape[1:])) for x in (q, k, v))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q * q.shape[-1] ** -0.5, k)
        scores = scores.astype(jnp.float32)
        if blocked is not None:
            lowest = jnp.finfo(jnp.float32).min
            scores = jnp.where(blocked[None, None], lowest, scores)
        probs = jax.nn.softmax(scores, axis=-1)
        kept = nn.Dropout(self.dropout, deterministic=not train)(probs)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", kept.astype(self.dtype), v)
        out = nn.Dense(dim, dtype=self.dtype, kernel_init=xavier, name="out_proj")
        return out(rearrange(mixed, "b query head d -> b query (head d)")), probs


class EncoderLayer(nn.Module):
    """Self-attention, then two linear layers, each on what is normalised."""

    heads: int
    ratio: int
    """How many times wider the tokens are between the linear layers."""
    dropout: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Tokens, positions: Positions, *, train: bool) -> Tokens:
        """Mix the tokens, then the channels of each."""
        drop = nn.Dropout(self.dropout, deterministic=not train)
        attention = MultiheadAttention(
            self.heads, self.dropout, self.dtype, name="self_attn"
        )
        y = layer_norm(self.dtype, "norm1")(x)
        placed = y + positions.astype(y.dtype)[None]
        x = x + drop(attention(placed, placed, y, train=train)[0])
        y = layer_norm(self.dtype, "norm2")(x)
        return x + drop(_feed_forward(y, self.ratio, drop, self.dtype))


class Decoded(NamedTuple):
    """Queries, and what their attention looked at, as means over heads."""

    queries: Queries
    among: Float[Array, "_ query query"]
    """Self-attention."""
    memory: Float[Array, "_ query token"]
    """Attention to the encoded tokens."""


class DecoderLayer(nn.Module):
    """Self-attention, attention to encoded tokens, two linear layers."""

    heads: int
    ratio: int
    dropout: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Queries,
        memory: Tokens,
        positions: Positions,
        blocked: Mask | None = None,
        *,
        train: bool,
    ) -> Decoded:
        """Mix the queries, look at the tokens, then mix the channels of each query."""
        drop = nn.Dropout(self.dropout, deterministic=not train)
        options: dict[str, Any] = dict(
            heads=self.heads, dropout=self.dropout, dtype=self.dtype
        )
        y = layer_norm(self.dtype, "norm1")(x)
        look = MultiheadAttention(**options, name="self_attn")
        mixed, among = look(y, y, y, blocked, train=train)
        x = x + drop(mixed)
        y = layer_norm(self.dtype, "norm2")(x)
        placed = memory + positions.astype(memory.dtype)[None]
        look = MultiheadAttention(**options, name="multihead_attn")
        found, at = look(y, placed, memory, train=train)
        x = x + drop(found)
        y = layer_norm(self.dtype, "norm3")(x)
        x = x + drop(_feed_forward(y, self.ratio, drop, self.dtype))
        return Decoded(x, jnp.mean(among, axis=1), jnp.mean(at, axis=1))


def _feed_forward(x: Array, ratio: int, drop: Any, dtype: Any) -> Array:
    """Apply linear, ReLU, linear; the layers belong to the module that calls."""
    options: dict[str, Any] = dict(dtype=dtype, kernel_init=xavier)
    y = nn.relu(nn.Dense(ratio * x.shape[-1], **options, name="linear1")(x))
    return nn.Dense(x.shape[-1], **options, name="linear2")(drop(y))


class Encoder(nn.Module):
    """Layers on tokens, and a norm."""

    layers: int
    heads: int
    ratio: int
    dropout: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Tokens, positions: Positions, *, train: bool) -> Tokens:
        """Encode."""
        for i in range(self.layers):
            layer = EncoderLayer(
                self.heads, self.ratio, self.dropout, self.dtype, name=f"layers_{i}"
            )
            x = layer(x, positions, train=train)
        return layer_norm(self.dtype, "norm")(x)


class Decoder(nn.Module):
    """Layers on queries, and a norm."""

    layers: int
    heads: int
    ratio: int
    dropout: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        queries: Queries,
        memory: Tokens,
        positions: Positions,
        blocked: Mask | None = None,
        *,
        train: bool,
    ) -> Decoded:
        """Decode the queries; the attention returned is the last layer's."""
        if train:  # what is dropped differs from example to example
            shape = (len(memory), *queries.shape[1:])
            queries = jnp.broadcast_to(queries, shape)
        found: Any = None
        for i in range(self.layers):
            layer = DecoderLayer(
                self.heads, self.ratio, self.dropout, self.dtype, name=f"layers_{i}"
            )
            found = layer(queries, memory, positions, blocked, train=train)
            queries = found.queries
        norm = layer_norm(self.dtype, "norm")
        return found._replace(queries=norm(queries))


class Transformed(NamedTuple):
    """What a transformer makes of its three inputs."""

    camera: Float[Array, "batch 1 dim"]
    tokens: Float[Array, "batch token dim"]
    decoded: Decoded


class Transformer(nn.Module):
    """Encoder of a camera token and other tokens, decoder of queries.

    The camera token has no position, and the decoder does not see it.
    """

    layers: int
    """Of the encoder, and as many of the decoder."""
    heads: int
    ratio: int
    dropout: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        camera: Float[Array, "_ 1 dim"],
        tokens: Float[Array, "batch token dim"],
        queries: Queries,
        positions: Positions,
        blocked: Mask | None = None,
        *,
        train: bool,
    ) -> Transformed:
        """Encode and decode.

        Args:
            camera: Learned, or of an earlier transformer.
            tokens: Of the image, or of what else is looked at.
            queries: What is decoded.
            positions: Of the tokens.
            blocked: True where a query must not look at another.
            train: Drop at random.

        Raises:
            UserError: There is no layer.
        """
        if self.layers < 1:
            raise UserError(
                f"config.model.layers={self.layers} must be at least 1: FastMETRO has "
                "1, 2 or 3 (S, M, L)."
            )
        options = (self.layers, self.heads, self.ratio, self.dropout, self.dtype)
        camera = jnp.broadcast_to(camera, (len(tokens), *camera.shape[1:]))
        x = jnp.concatenate([camera.astype(tokens.dtype), tokens], axis=1)
        everywhere = jnp.concatenate([jnp.zeros_like(positions[:1]), positions])
        x = Encoder(*options, name="encoder")(x, everywhere, train=train)
        memory = x[:, 1:]
        decoder = Decoder(*options, name="decoder")
        queries = queries.astype(self.dtype)
        decoded = decoder(queries, memory, positions, blocked, train=train)
        return Transformed(x[:, :1], memory, decoded)
