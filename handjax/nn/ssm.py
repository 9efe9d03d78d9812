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

from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from handjax.nn import ops
from handjax.nn.conv import Conv
from handjax.nn.metaformer import DropPath, layer_norm

Path = Literal["auto", "sequential"]
PATHS = get_args(Path)
Discretisation = Literal["euler", "zoh"]
DISCRETISATIONS = get_args(Discretisation)


def selective_scan(
    x: Float[Array, "*batch length dim"],
    dt: Float[Array, "*batch length dim"],
    A: Float[Array, "*#batch dim state"],
    B: Float[Array, "*batch length state"],
    C: Float[Array, "*batch length state"],
    D: Float[Array, "*#batch dim"],
    *,
    path: Path = "auto",
    discretisation: Discretisation = "euler",
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
        path: How the recurrence is computed; see `PATHS`. The result is the same.
        discretisation: One of `DISCRETISATIONS`.

    Returns:
        y in float32, whatever the types of the arguments: so are all sums inside.

    Raises:
        ValueError: `path` or `discretisation` is unknown.
    """
    if path not in PATHS:
        raise ValueError(f"path={path!r} is not one of {', '.join(PATHS)}.")
    if discretisation not in DISCRETISATIONS:
        raise ValueError(
            f"discretisation={discretisation!r} is not one of "
            f"{', '.join(DISCRETISATIONS)}."
        )
    x, dt, A, B, C, D = (a.astype(jnp.float32) for a in (x, dt, A, B, C, D))
    # (*batch, length, dim, state); batch axes that A lacks are broadcast in front.
    steps, rates = dt[..., None], _aligned(A[..., None, :, :], x.ndim + 1)
    decay = jnp.exp(steps * rates)
    held = steps if discretisation == "euler" else jnp.expm1(steps * rates) / rates
    drive = held * B[..., None, :] * x[..., None]
    h = _sequential(decay, drive)
    skip = _aligned(D[..., None, :], x.ndim)
    return (h * C[..., None, :]).sum(-1) + skip * x


def _sequential(decay, drive):
    """h_t = decay_t h_{t-1} + drive_t, one position after the other."""

    def step(h, inputs):
        h = inputs[0] * h + inputs[1]
        return h, h

    by_position = tuple(jnp.moveaxis(a, -3, 0) for a in (decay, drive))
    _, h = lax.scan(step, jnp.zeros_like(by_position[0][0]), by_position)
    return jnp.moveaxis(h, 0, -3)


def _aligned(a, ndim):
    """Append axes of size 1 in front."""
    return a.reshape((1,) * (ndim - a.ndim) + a.shape)


def cross_scan(
    x: Float[Array, "batch height width dim"],
) -> Float[Array, "batch 4 length dim"]:
    """Read a map in four orders: by rows, by columns, and both from the end."""
    batch, height, width, dim = x.shape
    rows = x.reshape(batch, height * width, dim)
    columns = rows if width == 1 else x.swapaxes(1, 2).reshape(rows.shape)
    return jnp.stack([rows, columns, rows[:, ::-1], columns[:, ::-1]], axis=1)


def cross_merge(
    y: Float[Array, "batch 4 length dim"], height: int, width: int
) -> Float[Array, "batch {height} {width} dim"]:
    """Sum, at each place of the map, what the four orders of `cross_scan` hold."""
    batch, dim = len(y), y.shape[-1]
    rows, columns = (y[:, i] + y[:, i + 2, ::-1] for i in (0, 1))
    if width > 1:
        columns = columns.reshape(batch, width, height, dim).swapaxes(1, 2)
    return (rows + columns.reshape(rows.shape)).reshape(batch, height, width, dim)


# --- Layers -------------------------------------------------------------------

_linear_init = nn.initializers.normal(0.02)
"""VMamba truncates at +-2, a hundred deviations away."""
_rows_init = nn.initializers.variance_scaling(
    1 / 3, "fan_in", "uniform", in_axis=-1, out_axis=-2, batch_axis=(0,)
)
"""Uniform in +-1/sqrt(columns), for a matrix (rows, columns) in each direction."""


def _dt_bias_init(key, shape):
    """Inverse softplus of steps drawn uniformly on a log scale from 0.001 to 0.1."""
    low, high = np.log(0.001), np.log(0.1)
    dt = jnp.exp(jax.random.uniform(key, shape, minval=low, maxval=high))
    return dt + jnp.log(-jnp.expm1(-dt))


def _a_logs_init(_, shape):
    """log(1), log(2), ... along the state."""
    row = jnp.log(jnp.arange(1, shape[1] + 1, dtype=jnp.float32))
    return jnp.broadcast_to(row[None], shape)


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
    discretisation: Discretisation = "euler"
    path: Path = "auto"
    dtype: Any = jnp.float32
    """Type to compute in; steps, states and their sums are float32 always."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width dim"]
    ) -> Float[Array, "batch height width dim"]:
        """Mix the places of the map."""
        height, width = x.shape[1:3]
        inner = int(self.ratio * self.dim)
        u = self._linear((1 + self.gated) * inner, "in_proj")(x)
        u, gate = u[..., :inner], nn.silu(u[..., inner:])
        u = nn.silu(self._convolved(u))
        y = self._scanned(cross_scan(u))
        y = cross_merge(y, height, width)
        y = layer_norm(self.dtype, "out_norm")(y)
        if self.gated:
            y = y * gate
        return self._linear(self.dim, "out_proj")(y)

    def _linear(self, features, name):
        return nn.Dense(
            features,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=_linear_init,
            name=name,
        )

    def _convolved(self, u):
        dim = u.shape[-1]
        return Conv(dim, 3, groups=dim, dtype=self.dtype, name="conv")(u)

    def _scanned(self, u):
        """Scan (batch, direction, length, dim) sequences."""
        dim, state = u.shape[-1], self.state
        rank = -(-self.dim // 16) if self.dt_rank is None else self.dt_rank
        x_proj = self.param("x_proj", _rows_init, (4, rank + 2 * state, dim))
        dt_proj = self.param("dt_proj", _rows_init, (4, dim, rank))
        dt_bias = self.param("dt_bias", _dt_bias_init, (4, dim))
        a_logs = self.param("A_logs", _a_logs_init, (4 * dim, state))
        skip = self.param("Ds", nn.initializers.ones, (4 * dim,))
        mixed = jnp.einsum("bkld,kcd->bklc", u, x_proj.astype(self.dtype))
        dt, B, C = jnp.split(mixed, (rank, rank + state), axis=-1)
        dt = jnp.einsum("bklr,kdr->bkld", dt, dt_proj.astype(self.dtype))
        dt = nn.softplus(dt.astype(jnp.float32) + dt_bias[None, :, None])
        return selective_scan(
            u,
            dt,
            -jnp.exp(a_logs).reshape(4, dim, state),
            B,
            C,
            skip.reshape(4, dim),
            path=self.path,
            discretisation=self.discretisation,
        )


class VSSBlock(nn.Module):
    """x += SS2D(norm(x)); x += mlp(norm2(x)), the MLP four times wider inside."""

    dim: int
    state: int = 1
    ratio: float = 2.0
    dt_rank: int | None = None
    gated: bool = False
    discretisation: Discretisation = "euler"
    path: Path = "auto"
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
            self.dtype,
            name="op",
        )
        y = op(layer_norm(self.dtype, "norm")(x))
        x = x + DropPath(self.drop_path)(y, train=train)
        y = layer_norm(self.dtype, "norm2")(x)
        options: dict[str, Any] = dict(dtype=self.dtype, kernel_init=_linear_init)
        y = nn.Dense(int(self.mlp_ratio * self.dim), **options, name="fc1")(y)
        y = nn.Dense(self.dim, **options, name="fc2")(ops.gelu(y))
        return x + DropPath(self.drop_path)(y, train=train)
