"""METRO's progressive blocks of BERT layers.

Lin et al., METRO, CVPR 2021, https://arxiv.org/abs/2012.09760; Devlin et al., BERT,
2019, https://arxiv.org/abs/1810.04805. Post-norm, exact GELU, epsilon 1e-12, every
weight drawn with a deviation of 0.02. Names are those of the released state dicts,
joined by underscores: `attention.output.LayerNorm` is `attention_output_norm`, and
`encoder.layer.0` is `layer_0`.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from handjax.errors import UserError
from handjax.models.tore.mesh_graph import MeshGraphBlock, Shares
from handjax.nn.ops.convolutions import gelu

LAYER_NORM_EPS = 1e-12
MAX_TOKENS = 512
"""Learned positions of the released blocks; the first ones are used."""
bert_init = nn.initializers.normal(0.02)

Tokens = Float[Array, "batch token dim"]


class MeshEdges(NamedTuple):
    """Which tokens are vertices of a mesh, and what they take of their neighbours."""

    first: int
    """Index of the first vertex in the list of tokens."""
    shares: Shares


class BertLayer(nn.Module):
    """Self-attention and an MLP, each added to its input and normalised.

    With edges, vertices are convolved along them between the two (MeshGraphormer).
    """

    heads: int
    ratio: int
    dropout: float
    """Of the probabilities and of both branches."""
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Tokens, edges: MeshEdges | None = None, *, train: bool
    ) -> tuple[Tokens, Float[Array, "batch token token"]]:
        """Mix the tokens, then the channels of each.

        Returns:
            The tokens, and the attention as a mean over the heads.
        """
        dim = x.shape[-1]
        drop = nn.Dropout(self.dropout, deterministic=not train)
        q, k, v = (
            rearrange(
                bert_linear(dim, self.dtype, f"attention_self_{name}")(x),
                "b token (head d) -> b token head d",
                head=self.heads,
            )
            for name in ("query", "key", "value")
        )
        scores = jnp.einsum("bqhd,bkhd->bhqk", q * q.shape[-1] ** -0.5, k)
        probs = jax.nn.softmax(scores.astype(jnp.float32), axis=-1)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", drop(probs).astype(self.dtype), v)
        mixed = rearrange(mixed, "b token head d -> b token (head d)")
        y = bert_linear(dim, self.dtype, "attention_output_dense")(mixed)
        x = _norm(self.dtype, "attention_output_norm")(x + drop(y))
        if edges is not None:
            block = MeshGraphBlock(self.dtype, name="graph_conv")
            last = edges.first + len(edges.shares)
            mesh = block(x[:, edges.first : last], edges.shares)
            x = jnp.concatenate([x[:, : edges.first], mesh, x[:, last:]], axis=1)
        y = bert_linear(self.ratio * dim, self.dtype, "intermediate_dense")(x)
        y = bert_linear(dim, self.dtype, "output_dense")(gelu(y))
        x = _norm(self.dtype, "output_norm")(x + drop(y))
        return x, jnp.mean(probs, axis=1)


class Narrowed(NamedTuple):
    """What a block makes of tokens."""

    outputs: Float[Array, "batch token output"]
    """Float32 in a last block, which gives coordinates."""
    hidden: Float[Array, "batch token hidden"]
    """Of the last layer."""
    attention: Float[Array, "batch token token"]
    """Of the last layer, as a mean over heads."""


class ProgressiveBlock(nn.Module):
    """Linear map to `hidden` channels, positions, BERT layers, linear map to `outputs`.

    A linear map of the block's input is added to the result.
    """

    hidden: int
    outputs: int
    layers: int
    heads: int
    ratio: int
    dropout: float
    dtype: Any = jnp.float32
    output_dtype: Any = None
    """Of `outputs`; `dtype` unless given."""

    @nn.compact
    def __call__(
        self, x: Tokens, edges: MeshEdges | None = None, *, train: bool
    ) -> Narrowed:
        """Mix the tokens and narrow them.

        Raises:
            UserError: There are more tokens than positions.
        """
        count = x.shape[1]
        if count > MAX_TOKENS:
            raise UserError(
                f"METRO's blocks have learned positions of {MAX_TOKENS} tokens, but "
                f"{count} come in; take a coarser mesh (config.model.coarse_level)."
            )
        places = self.param("position_embeddings", bert_init, (MAX_TOKENS, self.hidden))
        y = bert_linear(self.hidden, self.dtype, "img_embedding")(x)
        y = y + places[None, :count].astype(y.dtype)
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        attention = jnp.zeros((len(x), count, count))
        for i in range(self.layers):
            layer = BertLayer(
                self.heads, self.ratio, self.dropout, self.dtype, name=f"layer_{i}"
            )
            y, attention = layer(y, edges, train=train)
        dtype = self.output_dtype or self.dtype
        out = bert_linear(self.outputs, dtype, "cls_head")(y.astype(dtype))
        out = out + bert_linear(self.outputs, dtype, "residual")(x.astype(dtype))
        return Narrowed(out, y, attention)


def bert_linear(features: int, dtype: Any, name: str) -> nn.Dense:
    """Return a linear layer initialised as in BERT."""
    return nn.Dense(features, dtype=dtype, kernel_init=bert_init, name=name)


def _norm(dtype: Any, name: str) -> nn.LayerNorm:
    # In two passes: with so small an epsilon, one pass may find a negative variance.
    return nn.LayerNorm(
        epsilon=LAYER_NORM_EPS, use_fast_variance=False, dtype=dtype, name=name
    )
