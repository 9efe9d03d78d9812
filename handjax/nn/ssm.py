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

Path = Literal["auto", "sequential", "associative", "fused"]
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
        path: One of `PATHS`; the result is the same.
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
    # Channels innermost: every loop over them is contiguous, at any state size.
    A, D = _aligned(A.swapaxes(-1, -2), x.ndim), _aligned(D, x.ndim - 1)
    functions = {
        "sequential": functools.partial(_sequential, discretisation),
        "associative": functools.partial(_associative, discretisation),
        "fused": functools.partial(_fused, discretisation),
    }
    if path != "auto":
        return functions[path](x, dt, A, B, C, D)
    cpu, default = functions["fused"], functions["associative"]
    return lax.platform_dependent(x, dt, A, B, C, D, cpu=cpu, default=default)


def _aligned(a, ndim):
    """Append axes of size 1 in front."""
    return a.reshape((1,) * (ndim - a.ndim) + a.shape)


# --- Paths --------------------------------------------------------------------
#
# Each takes x and dt (*batch, length, dim), A (*batch or ones, state, dim), B and C
# (*batch, length, state), D (*batch or ones, dim).


def _discretised(discretisation, x, dt, A, B):
    """Factor of the old state, and what is added to it: (..., state, dim)."""
    x, dt = x[..., None, :], dt[..., None, :]
    decay = jnp.exp(dt * A)
    held = dt if discretisation == "euler" else jnp.expm1(dt * A) / A
    return decay, held * x * B


def _step(discretisation, h, x, dt, A, B, C, D):
    """One position: new state and y."""
    decay, drive = _discretised(discretisation, x, dt, A, B)
    h = decay * h + drive
    return h, (h * C).sum(-2) + D * x


def _zero_state(x, A):
    return jnp.zeros((*x.shape[:-2], *A.shape[-2:]))


def _sequential(discretisation, x, dt, A, B, C, D):
    """One position after the other, in operations that every exporter knows."""

    def step(h, inputs):
        x, dt, B, C = inputs
        B, C = B[..., None], C[..., None]
        return _step(discretisation, h, x, dt, A, B, C, D)

    by_position = tuple(jnp.moveaxis(a, -2, 0) for a in (x, dt, B, C))
    _, y = lax.scan(step, _zero_state(x, A), by_position)
    return jnp.moveaxis(y, 0, -2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fused(discretisation, x, dt, A, B, C, D):
    """As sequential; the gradient is a loop backwards that computes each step anew.

    Only the states are kept for it, and neither loop transposes anything.
    """
    return _fused_forward(discretisation, x, dt, A, B, C, D)[0]


def _fused_forward(discretisation, x, dt, A, B, C, D):
    def step(h, inputs):
        x, dt, B, C = inputs
        B, C = B[..., None], C[..., None]
        new, y = _step(discretisation, h, x, dt, A, B, C, D)
        return new, (h, y)

    inputs = (x, dt, B, C)
    _, (states, y) = _scan(step, _zero_state(x, A), inputs, axis=x.ndim - 2)
    return y, (x, dt, A, B, C, D, states)


def _fused_backward(discretisation, residuals, grad_y):
    x, dt, A, B, C, D, states = residuals

    def step(carry, inputs):
        grad_h, grad_A, grad_D = carry
        h, x, dt, B, C, grad_y = inputs
        # Sums over the batch and the channels come after, where they cost less.
        full = (jnp.broadcast_to(a, h.shape) for a in (A, B[..., None], C[..., None]))
        D_full = jnp.broadcast_to(D, x.shape)
        forward = functools.partial(_step, discretisation)
        _, pull = jax.vjp(forward, h, x, dt, *full, D_full)
        grad_h, grad_x, grad_dt, A_t, B_t, C_t, D_t = pull((grad_h, grad_y))
        grads = (grad_x, grad_dt, _sum_channels(B_t), _sum_channels(C_t))
        return (grad_h, grad_A + A_t, grad_D + D_t), grads

    zero = _zero_state(x, A)
    start = (zero, zero, jnp.zeros_like(zero[..., 0, :]))
    carry, grads = _scan(
        step, start, (states, x, dt, B, C, grad_y), axis=x.ndim - 2, reverse=True
    )
    _, grad_A, grad_D = carry
    grad_x, grad_dt, grad_B, grad_C = grads
    grad_A, grad_D = _sum_to(grad_A, A.shape), _sum_to(grad_D, D.shape)
    return grad_x, grad_dt, grad_A, grad_B, grad_C, grad_D


_fused.defvjp(_fused_forward, _fused_backward)


def _scan(step, carry, inputs, *, axis, reverse=False):
    """`lax.scan` over an inner axis, transposing nothing."""
    length = inputs[0].shape[axis]
    options: dict[str, Any] = dict(axis=axis, allow_negative_indices=False)

    def at(t):
        return tuple(
            lax.dynamic_index_in_dim(a, t, keepdims=False, **options) for a in inputs
        )

    def body(i, state):
        carry, outputs = state
        t = length - 1 - i if reverse else i
        carry, values = step(carry, at(t))
        outputs = tuple(
            lax.dynamic_update_index_in_dim(a, value, t, **options)
            for a, value in zip(outputs, values, strict=True)
        )
        return carry, outputs

    shapes = jax.eval_shape(lambda carry: step(carry, at(0))[1], carry)
    outputs = tuple(
        jnp.zeros((*s.shape[:axis], length, *s.shape[axis:])) for s in shapes
    )
    return lax.fori_loop(0, length, body, (carry, outputs))


def _sum_channels(a):
    """Sum the last axis, by a product: XLA's sums over it are scalar on CPUs."""
    ones = jnp.ones((a.shape[-1], 1))
    total = jnp.dot(a.reshape(-1, a.shape[-1]), ones, precision="highest")
    return total.reshape(a.shape[:-1])


def _sum_to(a, shape):
    """Undo a broadcast."""
    axes = [i for i in range(a.ndim) if a.shape[i] != shape[i]]
    return a.sum(axes, keepdims=True)


def _associative(discretisation, x, dt, A, B, C, D):
    """All positions at once, in passes whose number grows with log(length)."""
    A = A[..., None, :, :]
    decay, drive = _discretised(discretisation, x, dt, A, B[..., None])
    h = _recurrence(decay, drive)
    return (h * C[..., None]).sum(-2) + D[..., None, :] * x


@jax.custom_vjp
def _recurrence(decay, drive):
    """h_t = decay_t h_{t-1} + drive_t."""
    return _prefix(decay, drive)


def _prefix(decay, drive, *, reverse=False):
    def join(first, second):
        return first[0] * second[0], second[0] * first[1] + second[1]

    axis = drive.ndim - 3
    return lax.associative_scan(join, (decay, drive), reverse=reverse, axis=axis)[1]


def _recurrence_forward(decay, drive):
    h = _prefix(decay, drive)
    return h, (decay, h)


def _recurrence_backward(residuals, grad_h):
    """The same recurrence, from the end."""
    decay, h = residuals
    total = _prefix(_shifted(decay, -1), grad_h, reverse=True)
    return total * _shifted(h, 1), total


_recurrence.defvjp(_recurrence_forward, _recurrence_backward)


def _shifted(a, by):
    """Move along the positions, filling with zeros."""
    edges = [(0, 0, 0)] * a.ndim
    edges[-3] = (by, -by, 0)
    return lax.pad(a, jnp.float32(0), edges)


# --- Directions ---------------------------------------------------------------


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
