"""Depthwise convolution for CPUs: sums of shifted arrays, with its own gradients.

XLA's CPU backend has no kernel for convolutions with one input channel per group and
runs a scalar loop; the gradient of a strided one is slower still by two orders of
magnitude. Written as a sum over kernel taps of shifted inputs the same maths becomes one
vectorised loop with the channels innermost. Layout: images are (batch, height, width,
channel), kernels (height, width, channel), windows are padded by `kernel // 2` on
every side, as torch does.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

_MAX_ROW_GROUPS = 4
"""Rows summed element by element before the reduction of the weight gradient: XLA's
reductions run at a quarter of the speed of its element-wise loops."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise(
    x: Float[Array, "batch height width dim"],
    kernel: Float[Array, "kernel kernel dim"],
    stride: int,
) -> Float[Array, "batch height_out width_out dim"]:
    """Convolve each channel with its own square kernel of odd size."""
    size = kernel.shape[0]
    height, width = (_out_size(n, size, stride) for n in x.shape[1:3])
    padded = _pad(x, size // 2)
    taps = (
        _window(padded, i, j, (height, width), stride) * kernel[None, None, None, i, j]
        for i, j in itertools.product(range(size), repeat=2)
    )
    return functools.reduce(jnp.add, taps)


def _forward(x, kernel, stride):
    return depthwise(x, kernel, stride), (x, kernel)


def _backward(stride, residuals, grad):
    x, kernel = residuals
    if stride == 1:
        grad_x = depthwise(grad, kernel[::-1, ::-1], 1)
    else:
        grad_x = _strided_input_gradient(grad, kernel, stride, x.shape[1:3])
    return grad_x, _kernel_gradient(x, grad, kernel.shape[0], stride).astype(
        kernel.dtype
    )


depthwise.defvjp(_forward, _backward)


def _strided_input_gradient(grad, kernel, stride, size):
    """Scatter each phase of the input grid from the taps that reach it.

    Tap i reaches padded rows stride * h + i: rows of phase a = i % stride receive only
    taps i = a, a + stride, ..., so each phase is a small stride-1 sum and no zero is
    ever multiplied.
    """
    taps = kernel.shape[0]
    reach = -(-taps // stride)
    rows, cols = (-(-(n + 2 * (taps // 2)) // stride) for n in size)
    padded = jnp.pad(
        grad,
        (
            (0, 0),
            (reach - 1, max(rows - grad.shape[1], 0)),
            (reach - 1, max(cols - grad.shape[2], 0)),
            (0, 0),
        ),
    )

    def phase(a, b):
        terms = (
            _window(
                padded,
                reach - 1 - i // stride,
                reach - 1 - j // stride,
                (rows, cols),
                1,
            )
            * kernel[None, None, None, i, j]
            for i in range(a, taps, stride)
            for j in range(b, taps, stride)
        )
        return functools.reduce(jnp.add, terms)

    phases = jnp.stack(
        [
            jnp.stack([phase(a, b) for b in range(stride)], axis=3)
            for a in range(stride)
        ],
        axis=2,
    )
    full = phases.reshape(grad.shape[0], rows * stride, cols * stride, grad.shape[3])
    pad = taps // 2
    return full[:, pad : pad + size[0], pad : pad + size[1]]


def _kernel_gradient(x, grad, taps, stride):
    """Correlate input and output gradient, one example at a time to stay in cache."""
    padded = _pad(x, taps // 2)
    height, width, dim = grad.shape[1:]
    groups = next(n for n in range(_MAX_ROW_GROUPS, 0, -1) if height % n == 0)
    rows = height // groups

    def correlate(image, grad_image, i, j):
        terms = (
            _window(
                image[None], i + stride * rows * n, j, (rows, width), stride
            ).squeeze(0)
            * grad_image[rows * n : rows * (n + 1)]
            for n in range(groups)
        )
        product = functools.reduce(jnp.add, terms)
        return jnp.sum(product, axis=(0, 1), dtype=jnp.float32)

    def add_example(total, example):
        parts = [correlate(*example, i, j) for i in range(taps) for j in range(taps)]
        return total + jnp.stack(parts).reshape(taps, taps, dim), None

    start = jnp.zeros((taps, taps, dim), jnp.float32)
    return lax.scan(add_example, start, (padded, grad))[0]


def _window(padded, row, col, size, stride):
    return padded[
        :,
        row : row + stride * (size[0] - 1) + 1 : stride,
        col : col + stride * (size[1] - 1) + 1 : stride,
    ]


def _pad(x, amount):
    return jnp.pad(x, ((0, 0), (amount, amount), (amount, amount), (0, 0)))


def _out_size(size, taps, stride):
    return (size + 2 * (taps // 2) - taps) // stride + 1
