"""Graph transformer of MMHMR: attention beside a 1 x 1 convolution, then a gate.

Tokens are the nodes of a graph all of whose edges are learned. Hu et al., Squeeze-and-
excitation networks, CVPR 2018, https://arxiv.org/abs/1709.01507 (the gate); Kipf &
Welling, ICLR 2017, https://arxiv.org/abs/1609.02907 (graph convolution).
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from handjax.errors import UserError
from handjax.nn.metaformer import SelfAttention, layer_norm, linear

ADJACENCIES = {
    "bias": "added to the logits of the attention, one matrix for each head",
    "graph_conv": "a graph convolution of its own, before both branches",
    "none": "nowhere",
}
"""Where the learned adjacency enters; the paper does not say. "bias" is taken: it
leaves the block the sum that the paper prints, and starts as plain attention.
"graph_conv" is what the figure of the paper's later version (MaskHand) shows."""

Tokens = Float[Array, "batch token dim"]


class GraphTransformerBlock(nn.Module):
    """Graph-guided pose modeling (GGPM), one block.

    Q' = MHA(Norm(Q)) + Conv(Norm(Q)) + Q (MMHMR Eq. 1), with one norm for both; then
    SE(Norm(Q')) (MMHMR Eq. 2).
    """

    heads: int
    adjacency: str
    """One of `ADJACENCIES`."""
    residual: bool
    """Whether the block's input is added to its output, as MaskHand's figure has it."""
    reduction: int
    """How many times narrower the gate is inside; not in the paper."""
    dropout: float
    """Of the attention probabilities."""
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool) -> Tokens:
        """Mix the tokens, and weigh the channels by what all tokens say.

        Raises:
            UserError: An unknown adjacency.
        """
        if self.adjacency not in ADJACENCIES:
            raise UserError(
                f"config.model.adjacency={self.adjacency!r} is not one of "
                f"{', '.join(ADJACENCIES)}."
            )
        count, bias = x.shape[1], None
        y = layer_norm(self.dtype, "norm_in")(x)
        if self.adjacency == "graph_conv":
            y = LearnedGraphConv(self.dtype, name="graph")(y)
        if self.adjacency == "bias":
            zeros = nn.initializers.zeros
            bias = self.param("adjacency", zeros, (self.heads, count, count))
        attention = SelfAttention(
            self.heads, self.dropout, self.dtype, name="attention"
        )
        mixed = attention(y, train=train, bias=bias)
        mixed = mixed + linear(x.shape[-1], self.dtype, "conv")(y) + x
        mixed = layer_norm(self.dtype, "norm_out")(mixed)
        out = Gate(self.reduction, self.dtype, name="gate")(mixed)
        return x + out if self.residual else out


class LearnedGraphConv(nn.Module):
    """ReLU(softmax(A) x W): one step along edges of learned weights.

    At the start a token keeps half of itself, and takes the other half from all others
    alike: of nothing but their mean, all tokens would be the same.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        """Mix every token with all others."""
        count = x.shape[1]

        def init(key, shape):
            del key
            return math.log(max(count - 1, 1)) * jnp.eye(*shape)

        logits = self.param("adjacency", init, (count, count))
        weights = jax.nn.softmax(logits, axis=-1).astype(self.dtype)
        y = linear(x.shape[-1], self.dtype, "linear")(x)
        return nn.relu(jnp.einsum("ij,bjd->bid", weights, y))


class Gate(nn.Module):
    """Squeeze and excitation over tokens: each channel times a number in 0..1.

    The numbers are an MLP's of the mean over the tokens.
    """

    reduction: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        """Weigh the channels of every token alike."""
        dim = x.shape[-1]
        mean = jnp.mean(x.astype(jnp.float32), axis=1, keepdims=True)
        narrow = linear(max(1, dim // self.reduction), self.dtype, "squeeze")(mean)
        weights = linear(dim, self.dtype, "excite")(nn.relu(narrow))
        return x * nn.sigmoid(weights)
