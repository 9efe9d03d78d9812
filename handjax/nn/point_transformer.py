"""Point Transformer v1 (Zhao et al., ICCV 2021) over the vertices of a mesh.

Two things differ from the original, both because the decoder tells tokens apart by
their position in the list: the points that survive a level are the same vertices in
every pose (farthest points of the template, stored in the collection "constants"), so
token i is always the same part of the hand; and neighbours may be fixed as well
(`neighbours="template"`), which is several times cheaper on a CPU.

Symbols: p_i position, x_i feature of point i, j runs over its k neighbours (itself
included), q = W_q x, k = W_k x, v = W_v x.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from handjax.errors import UserError
from handjax.nn.ops.largest import largest, top_k

NEIGHBOURS = ("posed", "template")
SHARE = 8
"""Channels that share an attention weight: channel c uses weight c mod (C / 8)."""


def farthest_points(
    points: Float[np.ndarray, "point 3"], num: int, *, start: int = 0
) -> Int[np.ndarray, "num"]:
    """Return the indices of `num` points, each farthest from those before it."""
    points = np.asarray(points, np.float64)
    chosen = np.empty(num, np.int32)
    distance = np.full(len(points), np.inf)
    last = start
    for i in range(num):
        chosen[i] = last
        distance = np.minimum(distance, np.sum((points - points[last]) ** 2, axis=1))
        last = int(np.argmax(distance))
    return chosen


def level_sizes(num_points: int, strides: tuple[int, ...]) -> tuple[int, ...]:
    """Return each level's number of points: 778 by strides 1,2,2,2,2 ends in 48."""
    sizes = []
    for stride in strides:
        num_points //= stride
        sizes.append(num_points)
    return tuple(sizes)


def nearest_neighbours(
    queries: Float[Array, "*batch query 3"],
    points: Float[Array, "*batch point 3"],
    k: int,
) -> Int[Array, "*batch query k"]:
    """Return the indices of each query's k nearest points, nearest first."""
    queries, points = queries.astype(jnp.float32), points.astype(jnp.float32)
    product = jnp.einsum(
        "...qd,...pd->...qp", queries, points, precision=jax.lax.Precision.HIGHEST
    )
    norm = jnp.broadcast_to(jnp.sum(points**2, axis=-1)[..., None, :], product.shape)
    # |q|^2 does not change the order.
    return top_k(2 * product - norm, k)[1]


def gather(
    x: Float[Array, "batch point dim"],
    index: Int[Array, "batch query k"] | Int[Array, "query k"],
) -> Float[Array, "batch query k dim"]:
    """Gather neighbours' features, by one index table for all examples or each."""
    if index.ndim == 2:
        return x[:, index]
    return jax.vmap(lambda rows, i: rows[i])(x, index)


class PointAttention(nn.Module):
    """Vector self-attention in neighbourhoods (the Point Transformer layer).

    e = Linear ReLU BN Linear (p_j - p_i);  w = softmax_j(gamma(k_j - q_i + e)), gamma =
    Linear ReLU BN Linear ReLU BN;  out_i = sum_j w * (v_j + e).
    """

    dim: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch point dim"],
        offsets: Float[Array, "batch point k 3"],
        index: Int[Array, "batch point k"] | Int[Array, "point k"],
        *,
        train: bool,
    ) -> Float[Array, "batch point dim"]:
        """Attend to neighbours; `offsets` are p_j - p_i."""
        batch, point, k, _ = offsets.shape
        dense = lambda n, name: nn.Dense(n, dtype=self.dtype, name=name)  # noqa: E731
        norm = lambda name: batch_norm(train, self.dtype, name)  # noqa: E731
        q, keys, values = (dense(self.dim, name)(x) for name in ("q", "k", "v"))
        e = nn.relu(norm("position_bn")(dense(3, "position_in")(offsets)))
        e = dense(self.dim, "position_out")(e)
        w = gather(keys, index) - q[:, :, None] + e
        w = dense(self.dim // SHARE, "weight_in")(nn.relu(norm("weight_bn1")(w)))
        w = dense(self.dim // SHARE, "weight_out")(nn.relu(norm("weight_bn2")(w)))
        w = jax.nn.softmax(w.astype(jnp.float32), axis=2).astype(self.dtype)
        mixed = (gather(values, index) + e).reshape(batch, point, k, SHARE, -1)
        return jnp.einsum("bnksw,bnkw->bnsw", mixed, w).reshape(batch, point, self.dim)


class PointBlock(nn.Module):
    """Residual block around `PointAttention`."""

    dim: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch point dim"],
        offsets: Float[Array, "batch point k 3"],
        index: Int[Array, "batch point k"] | Int[Array, "point k"],
        *,
        train: bool,
    ) -> Float[Array, "batch point dim"]:
        """Compute ReLU(x + BN Linear ReLU BN Attention ReLU BN Linear x)."""
        norm = lambda name: batch_norm(train, self.dtype, name)  # noqa: E731
        y = nn.relu(norm("bn1")(_linear(self.dim, self.dtype, "linear1")(x)))
        y = PointAttention(self.dim, self.dtype, name="attention")(
            y, offsets, index, train=train
        )
        y = _linear(self.dim, self.dtype, "linear2")(nn.relu(norm("bn2")(y)))
        return nn.relu(x + norm("bn3")(y))


class TransitionDown(nn.Module):
    """Fewer points: each takes the maximum over its neighbours in the level above."""

    dim: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch point channel"],
        offsets: Float[Array, "batch query k 3"],
        index: Int[Array, "batch query k"] | Int[Array, "query k"],
        *,
        train: bool,
    ) -> Float[Array, "batch query dim"]:
        """Compute max_j ReLU BN Linear [p_j - p_i, x_j]."""
        # The linear map of the concatenation, split so that features are mapped once
        # for each point and not once for each neighbourhood they are in.
        y = gather(_linear(self.dim, self.dtype, "feature")(x), index)
        y = y + _linear(self.dim, self.dtype, "position")(offsets)
        return largest(nn.relu(batch_norm(train, self.dtype, "bn")(y)), axis=2)


class PointTransformer(nn.Module):
    """Encoder: a point cloud to as many features as the last level has points."""

    widths: tuple[int, ...]
    strides: tuple[int, ...]
    neighbours_k: tuple[int, ...]
    """Neighbours in each level's attention and in the transition to it."""
    blocks: tuple[int, ...]
    """Attention blocks after each transition."""
    neighbours: str
    """"posed": nearest in the given points; "template": nearest in the template."""
    dtype: Any = jnp.float32

    def set_template(self, template: Float[np.ndarray, "point 3"]) -> None:
        """Choose the vertices of each level, and fixed neighbours if asked for."""
        if self.neighbours not in NEIGHBOURS:
            raise UserError(
                f"config.model.encoder_neighbours={self.neighbours!r} is not one of "
                f"{', '.join(NEIGHBOURS)}."
            )
        points = np.asarray(template, np.float64)
        sizes = level_sizes(len(points), self.strides)
        for level, (size, stride) in enumerate(zip(sizes, self.strides, strict=True)):
            above, k = points, min(self.neighbours_k[level], size)
            if stride > 1:
                chosen = farthest_points(above, size)
                points = above[chosen]
                self.put_variable("constants", f"chosen{level}", jnp.asarray(chosen))
                if self.neighbours == "template":
                    self._put(f"down{level}", points, above, min(k, len(above)))
            if self.neighbours == "template":
                self._put(f"near{level}", points, points, k)

    def _put(self, name: str, queries: Any, points: Any, k: int) -> None:
        # In numpy: XLA would spend minutes on folding the sort of a constant.
        distance = np.sum((queries[:, None] - points[None]) ** 2, axis=-1)
        index = np.argsort(distance, axis=-1, kind="stable")[:, :k]
        self.put_variable("constants", name, jnp.asarray(index, jnp.int32))

    @nn.compact
    def __call__(
        self, points: Float[Array, "batch point 3"], *, train: bool
    ) -> Float[Array, "batch token dim"]:
        """Compute features of the last level's points, in the template's order."""
        x = points.astype(self.dtype)
        for level, (dim, stride) in enumerate(
            zip(self.widths, self.strides, strict=True)
        ):
            above = points
            if stride > 1:
                points = above[:, self.get_variable("constants", f"chosen{level}")]
                offsets, index = self._around(f"down{level}", points, above, level)
                x = TransitionDown(dim, self.dtype, name=f"transition{level}")(
                    x, offsets, index, train=train
                )
            else:
                x = _linear(dim, self.dtype, f"linear{level}")(x)
                x = nn.relu(batch_norm(train, self.dtype, f"bn{level}")(x))
            if not self.blocks[level]:
                continue
            offsets, index = self._around(f"near{level}", points, points, level)
            for i in range(self.blocks[level]):
                x = PointBlock(dim, self.dtype, name=f"block{level}_{i}")(
                    x, offsets, index, train=train
                )
        return x

    def _around(
        self, name: str, queries: Array, points: Array, level: int
    ) -> tuple[Array, Array]:
        """Return the offsets to the neighbours, and the neighbours' indices."""
        if self.neighbours == "template":
            index = jnp.asarray(self.get_variable("constants", name))
        else:
            k = min(self.neighbours_k[level], points.shape[1])
            index = nearest_neighbours(*jax.lax.stop_gradient((queries, points)), k)
        return gather(points, index) - queries[:, :, None], index


def batch_norm(train: bool, dtype: Any, name: str) -> nn.BatchNorm:
    """Return a BatchNorm with PyTorch's constants, over all axes but the last."""
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        dtype=dtype,
        name=name,
    )


def _linear(dim: int, dtype: Any, name: str) -> nn.Dense:
    return nn.Dense(dim, use_bias=False, dtype=dtype, name=name)
