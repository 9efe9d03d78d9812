"""Multi-scale deformable attention: each query looks at a few places of some maps.

Zhu et al., Deformable DETR, ICLR 2021, https://arxiv.org/abs/2010.04159; the same
function of its parameters as the released layer.

Places are in [0, 1] of a map, x right, y down; 0 and 1 are the outer edges of its
outermost pixels, so that pixel = place * size - 1/2 and (0, 0) is the centre of the
first pixel (PyTorch's `grid_sample(align_corners=False)` at 2 place - 1). Unlike
`token_sampler`'s points, they are the same place on maps of every size.
"""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from handjax.errors import UserError

Values = Sequence[Float[Array, "batch _ _ head dim"]]
Maps = Sequence[Float[Array, "batch _ _ channel"]]
Padding = Sequence[Bool[Array, "batch _ _"]]


def deformable_sample(
    values: Values,
    locations: Float[Array, "batch query head level point 2"],
    weights: Float[Array, "batch query head level point"],
) -> Float[Array, "batch query head dim"]:
    """Sample every map at each head's places, and return the weighted sum.

    Between pixels maps are interpolated, around them all is zero. The four pixels
    around each place are gathered, one gather for each map: on CPUs the gradient, too,
    is several times faster than by products with hat functions
    (`token_sampler.sample_pixels`), and memory does not grow with the map.

    Args:
        values: Maps, cut into heads.
        locations: Where each query looks, as the module says.
        weights: Of each place; whatever they sum to.

    Returns:
        float32, whatever the type of the maps.
    """
    out = jnp.zeros((*locations.shape[:3], values[0].shape[-1]), jnp.float32)
    for level, value in enumerate(values):
        index, share = _corners(locations[:, :, :, level], value.shape[1:3])
        share = share * weights[:, :, :, level, :, None]
        found = _gathered(value, index.reshape(*index.shape[:3], -1))
        share = share.reshape(*share.shape[:3], -1)
        out = out + jnp.einsum("bqhp,bqhpd->bqhd", share, found.astype(jnp.float32))
    return out


def _corners(
    locations: Float[Array, "batch query head point 2"], size: tuple[int, int]
) -> tuple[
    Int[Array, "batch query head point 4"], Float[Array, "batch query head point 4"]
]:
    """Return the pixels around places, numbered row by row, and each one's share."""
    height, width = size
    extent = jnp.array([width, height], jnp.float32).reshape(1, 1, 1, 1, 2)
    # A pixel beyond the edges nothing is left, so that places further out need not be
    # told apart; as integers they might overflow.
    pixel = jnp.clip(locations.astype(jnp.float32) * extent - 0.5, -1.0, extent)
    low = jax.lax.stop_gradient(jnp.floor(pixel))
    beyond = pixel - low

    def along(axis, count):
        first = low[..., axis].astype(jnp.int32)
        at = jnp.stack([first, first + 1], axis=-1)
        share = jnp.stack([1 - beyond[..., axis], beyond[..., axis]], axis=-1)
        inside = (at >= 0) & (at < count)
        return jnp.clip(at, 0, count - 1), jnp.where(inside, share, 0.0)

    (column, share_x), (row, share_y) = along(0, width), along(1, height)
    index = row[..., :, None] * width + column[..., None, :]
    share = share_y[..., :, None] * share_x[..., None, :]
    shape = (*locations.shape[:-1], 4)
    return index.reshape(shape), share.reshape(shape)


def _gathered(
    value: Float[Array, "batch height width head dim"],
    index: Int[Array, "batch query head corner"],
) -> Float[Array, "batch query head corner dim"]:
    """Gather the vectors of each head at its pixels."""
    batch, _, _, heads, dim = value.shape
    # Heads are next to each other in memory: one row for each pixel and head.
    rows = index * heads + jnp.arange(heads).reshape(1, 1, heads, 1)
    found = jnp.take_along_axis(
        value.reshape(batch, -1, dim),
        rows.reshape(batch, -1, 1),
        axis=1,
        mode="promise_in_bounds",
    )
    return found.reshape(*index.shape, dim)


class DeformableAttention(nn.Module):
    """Attention to places near a reference point, chosen by each query.

    Sum over maps l and points k of A_lk W x_l(p + dp_lk), in each head
    (MMHMR Eq. deformable attention). Offsets dp from the reference p and the weights A
    of places are linear in the query; each place is weighed against all others of its
    head on all maps. At the start the weights are equal and head m of M looks in
    direction 2 pi m / M, its k-th point k pixels away, in the maximum norm.
    """

    heads: int = 8
    points: int = 4
    """Of each head on each map."""
    dtype: Any = jnp.float32
    """Of the maps and the result; places and weights are float32, for bfloat16 would
    move a place on a map of 64 pixels by a quarter of one."""

    @nn.compact
    def __call__(
        self,
        queries: Float[Array, "batch query dim"],
        reference: Float[Array, "batch query _ _"],
        maps: Maps,
        padding: Padding | None = None,
    ) -> Float[Array, "batch query dim"]:
        """Read the maps.

        Args:
            queries: What decides where to look.
            reference: For each map, or one for all: a point (x, y), from which offsets
                are in pixels of each map, or a box (x, y of its centre, width, height),
                by whose half they are scaled. In [0, 1] of the maps.
            maps: Of as many channels each.
            padding: True where a map shows nothing; it is zero there.

        Raises:
            UserError: Heads do not divide the queries' channels, or a reference has
                other than 2 or 4 numbers.
        """
        dim, levels = queries.shape[-1], len(maps)
        if dim % self.heads:
            raise UserError(
                f"Queries of {dim} channels cannot be cut into heads={self.heads}; "
                "choose a number of heads that divides them."
            )
        value = _linear(dim, self.dtype, "value")
        values = [value(x.astype(self.dtype)) for x in maps]
        if padding is not None:
            values = [
                jnp.where(nothing[..., None], 0, x)
                for x, nothing in zip(values, padding, strict=True)
            ]
        split = "b row col (head d) -> b row col head d"
        values = [rearrange(x, split, head=self.heads) for x in values]
        sizes = [x.shape[1:3] for x in maps]
        found = deformable_sample(
            values,
            self._locations(queries, reference, sizes),
            self._weights(queries, levels),
        )
        found = found.reshape(queries.shape).astype(self.dtype)
        return _linear(dim, self.dtype, "out")(found)

    def _locations(
        self,
        queries: Float[Array, "batch query dim"],
        reference: Float[Array, "batch query _ _"],
        sizes: list[tuple[int, int]],
    ) -> Float[Array, "batch query head level point 2"]:
        shape = (self.heads, len(sizes), self.points, 2)
        offsets = nn.Dense(
            math.prod(shape),
            kernel_init=nn.initializers.zeros,
            bias_init=lambda *_: jnp.asarray(_directions(*shape[:3]).ravel()),
            name="offsets",
        )(queries.astype(jnp.float32))
        offsets = offsets.reshape(*queries.shape[:2], *shape)
        reference = reference.astype(jnp.float32)[:, :, None, :, None]
        if reference.shape[-1] == 2:
            extent = jnp.array([(width, height) for height, width in sizes])
            return reference + offsets / extent.reshape(1, 1, 1, len(sizes), 1, 2)
        if reference.shape[-1] == 4:
            half = 0.5 * reference[..., 2:]
            return reference[..., :2] + offsets / self.points * half
        raise UserError(
            f"References have {reference.shape[-1]} numbers; give points of 2 (x, y) "
            "or boxes of 4 (x, y, width, height)."
        )

    def _weights(
        self, queries: Float[Array, "batch query dim"], levels: int
    ) -> Float[Array, "batch query head level point"]:
        count = levels * self.points
        logits = nn.Dense(
            self.heads * count, kernel_init=nn.initializers.zeros, name="weights"
        )(queries.astype(jnp.float32))
        logits = logits.reshape(*queries.shape[:2], self.heads, count)
        weights = jax.nn.softmax(logits, axis=-1)
        return weights.reshape(*weights.shape[:3], levels, self.points)


def _directions(
    heads: int, levels: int, points: int
) -> Float[np.ndarray, "head level point 2"]:
    """Return initial offsets: one direction per head, 1, 2, ... `points` long."""
    angle = 2 * math.pi * np.arange(heads) / heads
    unit = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    unit /= np.abs(unit).max(axis=-1, keepdims=True)
    long = unit[:, None, None] * np.arange(1, points + 1)[:, None]
    return np.tile(long, (1, levels, 1, 1)).astype(np.float32)


def _linear(features: int, dtype: Any, name: str) -> nn.Dense:
    xavier = nn.initializers.xavier_uniform()
    return nn.Dense(features, dtype=dtype, kernel_init=xavier, name=name)
