"""Selective state space: the scan, the four-direction layer SS2D, the VSS block.

Gu & Dao, Mamba, 2023, https://arxiv.org/abs/2312.00752 (the scan, called S6); Liu et
al., VMamba, NeurIPS 2024, https://arxiv.org/abs/2401.10166 (SS2D, the VSS block and
how they are initialised).

Along a sequence u_t each channel has a state h of `state` numbers,

    h_t = exp(dt_t A) h_{t-1} + Bbar_t u_t,    y_t = C_t . h_t + D u_t,

where the step dt_t, B_t and C_t are computed from u_t and A < 0 is learned. The state
is discretised exactly; its input, Bbar_t, by either of `DISCRETISATIONS`:

- "euler": dt_t B_t, which every published implementation computes;
- "zoh": (exp(dt_t A) - 1) / A B_t, the zero-order hold (Hamba Eq. 3) papers print.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import lax
from jaxtyping import Array, Float

from handjax.errors import UserError
from handjax.nn import ssm_paths
from handjax.nn.metaformer import DropPath, layer_norm
from handjax.nn.ops import convolutions
from handjax.nn.ops.conv import torch_init

PATHS = ("auto", "sequential", "associative", "fused")
DISCRETISATIONS = ("euler", "zoh")


def selective_scan(
    x: Float[Array, "*batch length dim"],
    dt: Float[Array, "*batch length dim"],
    A: Float[Array, "*#batch dim state"],
    B: Float[Array, "*batch length state"],
    C: Float[Array, "*batch length state"],
    D: Float[Array, "*#batch dim"],
    *,
    path: str = "auto",
    discretisation: str = "euler",
) -> Float[Array, "*batch length dim"]:
    """Run the module's state space along each sequence (Hamba Eq. 2).

    Args:
        x: Sequences u.
        dt: Steps, positive (after softplus).
        A: Decay rates, negative. Directions of a scan are a batch axis here: A and D
            may have one row for each, and broadcast over the batch axes before.
        B: Into the state, shared by all channels.
        C: Out of the state, shared by all channels.
        D: Skip.
        path: One of `PATHS`; the result is the same.
        discretisation: One of `DISCRETISATIONS`.

    Returns:
        y in float32, whatever the types of the arguments: so are all sums inside.

    Raises:
        UserError: `path` or `discretisation` is unknown.
    """
    if path not in PATHS:
        raise UserError(f"path={path!r} is not one of {', '.join(PATHS)}.")
    if discretisation not in DISCRETISATIONS:
        raise UserError(
            f"discretisation={discretisation!r} is not one of "
            f"{', '.join(DISCRETISATIONS)}."
        )
    x, dt, A, B, C, D = (a.astype(jnp.float32) for a in (x, dt, A, B, C, D))
    A, D = _aligned(A.swapaxes(-1, -2), x.ndim), _aligned(D, x.ndim - 1)
    run = {
        name: functools.partial(getattr(ssm_paths, name), discretisation)
        for name in PATHS[1:]
    }
    if path != "auto":
        return run[path](x, dt, A, B, C, D)
    # Four directions of 22 (192) tokens of 1024, forward and gradient, on two CPU
    # threads: fused 0.36 (5.3) ms, sequential 0.98 (12.6), associative 2.2 (23.2), by
    # `python -m handjax.benchmark --what ops`; in chunks or by doubling more than
    # these. Accelerators, not measured, wait for launches, of which associative has
    # the fewest.
    return lax.platform_dependent(
        x, dt, A, B, C, D, cpu=run["fused"], default=run["associative"]
    )


def _aligned(a, ndim):
    """Append axes of size 1 in front."""
    return a.reshape((1,) * (ndim - a.ndim) + a.shape)


# --- Directions ---------------------------------------------------------------


def cross_scan(
    maps: Float[Array, "batch height width 4 dim"], *, backward: bool = True
) -> Float[Array, "4 batch length dim"]:
    """Read four maps, each in its order: by rows, by columns, and both from the end.

    Without `backward`, the last two are read from the start, too.
    """
    by_rows = "batch row column dim -> batch (row column) dim"
    by_columns = "batch row column dim -> batch (column row) dim"

    def read(i):
        sequence = rearrange(maps[..., i, :], by_columns if i % 2 else by_rows)
        return sequence[:, :: -1 if backward and i >= 2 else 1]

    return jnp.stack([read(i) for i in range(4)])


def cross_merge(
    sequences: Float[Array, "4 batch length dim"],
    height: int,
    width: int,
    *,
    backward: bool = True,
) -> Float[Array, "batch {height} {width} dim"]:
    """Sum, at each place of the map, what the four orders of `cross_scan` hold."""
    sides = dict(row=height, column=width)
    rows, columns = sequences[:2] + sequences[2:, :, :: -1 if backward else 1]
    rows = rearrange(rows, "batch (row column) dim -> batch row column dim", **sides)
    columns = rearrange(
        columns, "batch (column row) dim -> batch row column dim", **sides
    )
    return rows + columns


# --- Layers -------------------------------------------------------------------

_rows_init = nn.initializers.variance_scaling(
    1 / 3, "fan_in", "uniform", in_axis=-1, out_axis=-2, batch_axis=(0,)
)
"""Uniform in +-1/sqrt(columns), for a matrix (rows, columns) in each direction."""


def _dt_bias_init(key, shape):
    """Draw steps log-uniformly from 0.001 to 0.1, and invert the softplus."""
    low, high = np.log(0.001), np.log(0.1)
    dt = jnp.exp(jax.random.uniform(key, shape, minval=low, maxval=high))
    return dt + jnp.log(-jnp.expm1(-dt))


def _a_logs_init(_, shape):
    """Return log(1), log(2), ... along the state."""
    row = jnp.log(jnp.arange(1, shape[1] + 1, dtype=jnp.float32))
    return jnp.broadcast_to(row[None], shape)


@jax.custom_jvp
def softplus(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Compute log(1 + exp(x)) as max(x, 0) + log(1 + e), with e = exp(-|x|).

    The logarithm is the series of 2 atanh(e / (2 + e)), whose argument is 1/3 at most,
    to nine terms: to a unit in the last place, and three times as fast as the scalar
    log1p of XLA on CPUs, which took longer than the scan of 22 tokens.
    """
    e = jnp.exp(-jnp.abs(x))
    ratio = e / (2 + e)
    terms = [1 / (2 * k + 1) for k in range(9)]
    series = functools.reduce(lambda total, c: total * ratio**2 + c, terms[::-1])
    return jnp.maximum(x, 0) + 2 * ratio * series


@softplus.defjvp
def _softplus_slope(primals, tangents):
    return softplus(*primals), nn.sigmoid(*primals) * tangents[0]


def _linear(features, use_bias, dtype, name):
    """Return VMamba's linear layer, without its truncation (+-2, 100 deviations)."""
    init = nn.initializers.normal(0.02)
    return nn.Dense(
        features, use_bias=use_bias, dtype=dtype, kernel_init=init, name=name
    )


class SS2D(nn.Module):
    """Scan a map in four directions, each with its own state space, and sum.

    Linear, depthwise convolution, SiLU, the scans, LayerNorm, linear. On a map of one
    column (a list of tokens) two directions read forwards and two backwards.
    """

    dim: int
    state: int = 1
    """Numbers of state of each channel."""
    ratio: float = 2.0
    """Channels that are scanned, over `dim`."""
    dt_rank: int | None = None
    """Numbers that the steps of a position are made from; None for dim / 16."""
    gated: bool = False
    """Multiply the normalised result by SiLU of a second linear map of the input."""
    discretisation: str = "euler"
    path: str = "auto"
    backward: bool = True
    """Whether two of the directions read from the end; else all from the start."""
    dtype: Any = jnp.float32
    """Type to compute in; steps, states and their sums are float32 always."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width dim"]
    ) -> Float[Array, "batch height width dim"]:
        """Mix the places of the map."""
        inner = int(self.ratio * self.dim)
        u = _linear((1 + self.gated) * inner, False, self.dtype, "in_proj")(x)
        u, gate = u[..., :inner], u[..., inner:]
        u = nn.silu(DepthwiseConv(self.dtype, name="conv")(u))
        y = layer_norm(self.dtype, "out_norm")(self._scanned(u))
        if self.gated:
            y = y * nn.silu(gate)
        return _linear(self.dim, False, self.dtype, "out_proj")(y)

    def _scanned(self, u):
        """Scan in each direction and sum, in float32."""
        height, width, dim = u.shape[1:]
        rank = -(-self.dim // 16) if self.dt_rank is None else self.dt_rank
        sizes = (rank, self.state, self.state)
        x_proj = self.param("x_proj", _rows_init, (4, sum(sizes), dim))
        dt_proj = self.param("dt_proj", _rows_init, (4, dim, rank))
        dt_bias = self.param("dt_bias", _dt_bias_init, (4, dim))
        a_logs = self.param("A_logs", _a_logs_init, (4 * dim, self.state))
        skip = self.param("Ds", nn.initializers.ones, (4 * dim,))

        # From the map, one product for all directions; only its result is reordered.
        # Not laid out as "dim (scan row)": the product would be rounded otherwise.
        rows = rearrange(x_proj, "scan row dim -> (scan row) dim")
        mixed = jnp.dot(u, rows.astype(self.dtype).T)
        mixed = rearrange(mixed, "... (scan number) -> ... scan number", scan=4)
        mixed = cross_scan(mixed, backward=self.backward)
        low_rank, B, C = jnp.split(mixed, np.cumsum(sizes)[:2], axis=-1)
        dt = jnp.einsum(
            "kblr,kdr->kbld",
            low_rank,
            dt_proj.astype(self.dtype),
            preferred_element_type=jnp.float32,
        )
        dt = softplus(dt + dt_bias[:, None, None])
        four = jnp.broadcast_to(u[..., None, :], (*u.shape[:-1], 4, dim))
        y = selective_scan(
            cross_scan(four, backward=self.backward),
            dt,
            -rearrange(jnp.exp(a_logs), "(scan dim) n -> scan 1 dim n", scan=4),
            B,
            C,
            rearrange(skip, "(scan dim) -> scan 1 dim", scan=4),
            path=self.path,
            discretisation=self.discretisation,
        )
        return cross_merge(y, height, width, backward=self.backward)


class DepthwiseConv(nn.Module):
    """Convolve each channel with its own 3 x 3 kernel, zeros around the map."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width dim"]
    ) -> Float[Array, "batch height width dim"]:
        """Convolve; on one column the kernel's outer columns meet zeros only."""
        height, width, dim = x.shape[1:]
        kernel = self.param("kernel", torch_init, (3, 3, 1, dim)).astype(self.dtype)
        if width > 1:
            return convolutions.depthwise_conv(x, kernel)
        padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)))
        taps = kernel[:, 1]
        shifted = (padded[:, i : i + height] * taps[i][None, None] for i in range(3))
        return functools.reduce(jnp.add, shifted)


class VSSBlock(nn.Module):
    """x += SS2D(norm(x)); x += mlp(norm2(x)), the MLP four times wider inside."""

    dim: int
    state: int = 1
    ratio: float = 2.0
    dt_rank: int | None = None
    gated: bool = False
    discretisation: str = "euler"
    path: str = "auto"
    backward: bool = True
    mlp_ratio: float = 4.0
    drop_path: float = 0.0
    """Rate at which either branch is dropped (stream "drop_path")."""
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width dim"], *, train: bool
    ) -> Float[Array, "batch height width dim"]:
        """Mix places, then channels."""
        op = SS2D(
            self.dim,
            self.state,
            self.ratio,
            self.dt_rank,
            self.gated,
            self.discretisation,
            self.path,
            self.backward,
            self.dtype,
            name="op",
        )
        y = op(layer_norm(self.dtype, "norm")(x))
        x = x + DropPath(self.drop_path)(y, train=train)
        y = layer_norm(self.dtype, "norm2")(x)
        y = _linear(int(self.mlp_ratio * self.dim), True, self.dtype, "fc1")(y)
        y = _linear(self.dim, True, self.dtype, "fc2")(convolutions.gelu(y))
        return x + DropPath(self.drop_path)(y, train=train)
