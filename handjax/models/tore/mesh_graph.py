"""Graph convolution over the vertices of a mesh, with fixed edges.

Kolotouros et al., GraphCMR, CVPR 2019, https://arxiv.org/abs/1905.03244 (the residual
block); Lin et al., MeshGraphormer, ICCV 2021, https://arxiv.org/abs/2104.00272.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from handjax.nn.metaformer import layer_norm, linear

Vertices = Float[Array, "batch vertex dim"]
Shares = Float[Array, "vertex vertex"]


def shares(adjacency: Bool[Array, "vertex vertex"]) -> Shares:
    """Return equal weights for each vertex and its neighbours, summing to one.

    Args:
        adjacency: True for edges and on the diagonal.
    """
    weights = adjacency.astype(jnp.float32)
    return weights / jnp.sum(weights, axis=1, keepdims=True)


class MeshGraphConv(nn.Module):
    """A linear map of every vertex, then the mean over each one's neighbourhood."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Vertices, weights: Shares
    ) -> Float[Array, "batch vertex features"]:
        """Convolve over the mesh graph; the bias is added last."""
        y = nn.Dense(
            self.features,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=nn.initializers.xavier_uniform(),
            name="linear",
        )(x)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        y = jnp.einsum("uv,bvd->bud", weights.astype(self.dtype), y)
        return y + bias.astype(self.dtype)[None, None]


class MeshGraphBlock(nn.Module):
    """Norm, ReLU, narrow; norm, ReLU, convolve; norm, ReLU, widen; added to the input.

    Inside, there are half as many channels.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Vertices, weights: Shares) -> Vertices:
        """Mix every vertex with its neighbours."""
        dim = x.shape[-1]
        y = nn.relu(layer_norm(self.dtype, "norm_in")(x))
        y = linear(dim // 2, self.dtype, "narrow")(y)
        y = nn.relu(layer_norm(self.dtype, "norm1")(y))
        y = MeshGraphConv(dim // 2, self.dtype, name="conv")(y, weights)
        y = nn.relu(layer_norm(self.dtype, "norm2")(y))
        return x + linear(dim, self.dtype, "widen")(y)
