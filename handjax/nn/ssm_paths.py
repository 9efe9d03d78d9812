"""Ways to run the recurrence of `nn.ssm.selective_scan`, with one result.

Each takes x and dt (*batch, length, dim), A (*batch or ones, state, dim), B and C
(*batch, length, state), D (*batch or ones, dim), float32, and returns y as x. Channels
are innermost, so that loops over them are contiguous whatever the state's size.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def _discretised(discretisation, x, dt, A, B):
    """Return the old state's factor, and what is added to it: (..., state, dim)."""
    x, dt = x[..., None, :], dt[..., None, :]
    decay = jnp.exp(dt * A)
    held = dt if discretisation == "euler" else jnp.expm1(dt * A) / A
    return decay, held * x * B


def _step(discretisation, h, x, dt, A, B, C, D):
    """Advance one position: return the new state and y."""
    decay, drive = _discretised(discretisation, x, dt, A, B)
    h = decay * h + drive
    return h, (h * C).sum(-2) + D * x


def _zero_state(x, A):
    return jnp.zeros((*x.shape[:-2], *A.shape[-2:]))


def sequential(discretisation, x, dt, A, B, C, D):
    """Scan one position after another, in operations that every exporter knows."""

    def step(h, inputs):
        x, dt, B, C = inputs
        B, C = B[..., None], C[..., None]
        return _step(discretisation, h, x, dt, A, B, C, D)

    by_position = tuple(jnp.moveaxis(a, -2, 0) for a in (x, dt, B, C))
    _, y = lax.scan(step, _zero_state(x, A), by_position)
    return jnp.moveaxis(y, 0, -2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def fused(discretisation, x, dt, A, B, C, D):
    """Scan as `sequential`; the gradient loops backwards, recomputing each step.

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


fused.defvjp(_fused_forward, _fused_backward)


def _scan(step, carry, inputs, *, axis, reverse=False):
    """Run `lax.scan` over an inner axis, without transposing anything."""
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
    return jnp.dot(a, ones, precision="highest")[..., 0]


def _sum_to(a, shape):
    """Undo a broadcast."""
    axes = [i for i in range(a.ndim) if a.shape[i] != shape[i]]
    return a.sum(axes, keepdims=True)


def associative(discretisation, x, dt, A, B, C, D):
    """Compute all positions at once, in a number of passes of order log(length)."""
    A = A[..., None, :, :]
    decay, drive = _discretised(discretisation, x, dt, A, B[..., None])
    h = _recurrence(decay, drive)
    return (h * C[..., None]).sum(-2) + D[..., None, :] * x


@jax.custom_vjp
def _recurrence(decay, drive):
    """Compute h_t = decay_t h_{t-1} + drive_t."""
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
    """Compute the gradients by the same recurrence, from the end."""
    decay, h = residuals
    total = _prefix(_shifted(decay, -1), grad_h, reverse=True)
    return total * _shifted(h, 1), total


_recurrence.defvjp(_recurrence_forward, _recurrence_backward)


def _shifted(a, by):
    """Move along the positions, filling with zeros."""
    edges = [(0, 0, 0)] * a.ndim
    edges[-3] = (by, -by, 0)
    return lax.pad(a, jnp.float32(0), edges)
