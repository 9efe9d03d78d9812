"""Fewer image tokens: clusters of them, learned from the map that they are.

A pruner makes tokens of a map, each a weighted sum over all places, and
returns the weights, which are heat maps of what a token looks at. Dou et al., TORE,
ICCV 2023, https://arxiv.org/abs/2211.10705; Ryoo et al., TokenLearner, NeurIPS 2021,
https://arxiv.org/abs/2106.11297.
"""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from handjax.errors import UserError
from handjax.nn.metaformer import LAYER_NORM_EPS, layer_norm, linear
from handjax.nn.ops.conv import Conv
from handjax.nn.ops.convolutions import gelu
from handjax.types import AnyArray

KINDS = {
    "itp": "TORE's: every token a softmax over the places",
    "token_learner": "TokenLearner's: every token a mean, gated at each place",
}

Map = Float[Array, "batch height width dim"]
Weights = Float[Array, "batch cluster height width"]


class Pruned(NamedTuple):
    """Tokens, and where they come from."""

    tokens: Float[Array, "batch cluster dim"]
    weights: Weights
    """Of every place, float32; sums to one over the places of "itp"."""


def check_ratio(keep_ratio: float | int) -> None:
    """Refuse what is not a share of tokens.

    Raises:
        UserError: It is not above 0 and at most 1.
    """
    if not 0 < keep_ratio <= 1:
        raise UserError(
            f"config.model.keep_ratio={keep_ratio!r} must be above 0 and at most 1: "
            "the share of the image's tokens that are kept."
        )


def num_tokens(keep_ratio: float | int, places: int) -> int:
    """Return how many whole tokens a share keeps, at least one: 39 of 49 at 0.8.

    Raises:
        UserError: The share is not above 0 and at most 1.
    """
    check_ratio(keep_ratio)
    # 0.29 * 100 is 28.999999999999996.
    return max(1, math.floor(keep_ratio * places + 1e-6))


class TokenPruner(nn.Module):
    """A map to clustered tokens, `num_tokens` of its places.

    Z = M^T F with M = softmax over places of Linear(GELU(Conv F))
    (TORE Eq. clustering). The convolution, 3 x 3, narrows to a quarter of the channels.
    The LayerNorm after it is over tokens and channels at once, as TORE's code has it;
    the paper says "LayerNorm".
    """

    keep_ratio: float | int
    kind: str = "itp"
    """One of `KINDS`."""
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: Map) -> Pruned:
        """Cluster the places of a map.

        Raises:
            UserError: An unknown kind, or no share of tokens.
        """
        if self.kind not in KINDS:
            raise UserError(
                f"config.model.pruner={self.kind!r} is not one of none, "
                f"{', '.join(KINDS)}."
            )
        features = features.astype(self.dtype)
        count = num_tokens(self.keep_ratio, features.shape[1] * features.shape[2])
        weights = getattr(self, f"_{self.kind}")(features, count)
        tokens = jnp.einsum("bhwn,bhwd->bnd", weights.astype(self.dtype), features)
        if self.kind == "itp":
            tokens = nn.LayerNorm(
                epsilon=LAYER_NORM_EPS,
                reduction_axes=(1, 2),
                feature_axes=(1, 2),
                dtype=self.dtype,
                name="layer_norm",
            )(tokens)
        else:
            tokens = tokens / (features.shape[1] * features.shape[2])
        return Pruned(tokens, jnp.moveaxis(weights, -1, 1))

    def _itp(self, x: Map, count: int) -> Float[Array, "batch height width cluster"]:
        conv = Conv(
            x.shape[-1] // 4,
            3,
            use_bias=True,
            dtype=self.dtype,
            name="token_selector_conv2d",
        )
        fc = linear(count, self.dtype, "token_selector_fc")
        scores = fc(gelu(conv(x))).astype(jnp.float32)
        return jax.nn.softmax(scores, axis=(1, 2))

    def _token_learner(
        self, x: Map, count: int
    ) -> Float[Array, "batch height width cluster"]:
        """Compute gates in 0..1 by four 3 x 3 convolutions, with GELU between them.

        The first published form of TokenLearner; which one TORE compared with is not
        known.
        """
        x = layer_norm(self.dtype, "norm")(x)
        for i in range(4):
            conv = Conv(count, 3, dtype=self.dtype, name=f"conv{i}")
            x = conv(gelu(x) if i else x)
        return nn.sigmoid(x.astype(jnp.float32))


def covered(
    points: Float[AnyArray, "batch point 2"], grid: tuple[int, int]
) -> Bool[Array, "batch height width"]:
    """Mark the grid cells that hold at least one projected point (TORE Eq. 1).

    Args:
        points: In crop coordinates from -1 to 1, edge to edge, x right, y down. Points
            outside are in no cell.
        grid: Rows and columns.
    """

    def among(coordinate: Array, count: int) -> Float[Array, "batch point cell"]:
        cell = jnp.floor(count * (coordinate + 1) / 2)
        found = cell[..., None] == jnp.arange(count)[None, None]
        return found.astype(jnp.float32)

    rows, columns = grid
    points = jnp.asarray(points)
    x, y = among(points[..., 0], columns), among(points[..., 1], rows)
    return jnp.einsum("bph,bpw->bhw", y, x) > 0


REDUCTIONS = {
    "sum": "over clusters, cells and the examples of one device, as TORE's code",
    "mean": "over all of them, as TORE's formula",
}


def supervision(
    weights: Weights,
    mask: Bool[Array, "batch height width"],
    valid: Bool[AnyArray, "batch"],
    *,
    reduction: str = "sum",
    per_device: int = 16,
) -> Float[Array, ""]:
    """Penalise attention beside the mesh, to supervise reduction (TORE Eq. 2).

    sum of H (1 - mask), H being a cluster's weights, stretched to 0..1: text and code
    agree on this, in the formula a sign is lost.

    Args:
        weights: Of a pruner.
        mask: `covered` by the true mesh, seen by the predicted camera.
        valid: False for examples without a mesh; they count as zero.
        reduction: One of `REDUCTIONS`.
        per_device: Examples that "sum" sums over, whatever the batch.

    Raises:
        UserError: An unknown reduction.
    """
    if reduction not in REDUCTIONS:
        raise UserError(
            f"config.model.pruning_reduction={reduction!r} is not one of "
            f"{', '.join(REDUCTIONS)}."
        )
    low, high = (f(weights, axis=(2, 3), keepdims=True) for f in (jnp.min, jnp.max))
    stretched = (weights - low) / (high - low + 1e-12)
    beside = jnp.where(mask[:, None], 0.0, stretched)
    beside = jnp.where(valid[:, None, None, None], beside, 0.0)
    if reduction == "mean":
        return jnp.mean(beside)
    return jnp.sum(beside) * (per_device / len(beside))
