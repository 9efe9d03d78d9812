"""Depthwise convolution for CPUs: sums of shifted arrays, with its own gradients.

XLA's CPU backend has no kernel for convolutions with one input channel per group and
runs a scalar loop; the gradient of a strided one is slower still by two orders of
magnitude. Written as a sum over kernel taps of shifted inputs the same maths becomes
one vectorised loop with the channels innermost. Layout: images are (batch, height,
width, channel), kernels (height, width, channel), windows are padded by `kernel // 2`
on every side, as torch does.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

_MAX_TERMS = 32
"""Terms summed in one loop: enough to pay for writing the sum, few to compile."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise(
    x: Float[Array, "batch height width dim"],
    kernel: Float[Array, "kernel kernel dim"],
    stride: int,
) -> Float[Array, "batch height_out width_out dim"]:
    """Convolve each channel with its own square kernel of odd size."""
    size = kernel.shape[0]
    out_size = tuple(_out_size(n, size, stride) for n in x.shape[1:3])

    def shifted(x, kernel):
        padded = _pad(x.astype(jnp.float32), size // 2)
        taps = (
            _window(padded, i, j, out_size, stride) * _tap(kernel, i, j)
            for i, j in itertools.product(range(size), repeat=2)
        )
        return functools.reduce(jnp.add, taps).astype(x.dtype)

    return _computed_once(shifted, (len(x), *out_size, x.shape[-1]), x, kernel)


def _computed_once(function, shape, x, kernel):
    """Call a function of x and a kernel so that XLA computes its result only once.

    XLA's CPU backend repeats sums inside each of their consumers: two depthwise
    convolutions in a row would cost 9 x 49 products. It does not look into
    conditionals, and threads still share the work inside of them. The condition must
    not be known beforehand: it is that the kernel does not begin with NaN, and the
    result is NaN if it does. It has the given shape and the dtype of x.
    """

    def not_a_number(x, kernel):
        return jnp.full(shape, jnp.nan, x.dtype)

    first = kernel[0, 0, 0]
    return lax.cond(first == first, function, not_a_number, x, kernel)


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
    reach, pad = -(-taps // stride), taps // 2
    phase_size = tuple(-(-(n + 2 * pad) // stride) for n in size)

    def phase(padded, kernel, a, b):
        terms = (
            _window(
                padded, reach - 1 - i // stride, reach - 1 - j // stride, phase_size, 1
            )
            * _tap(kernel, i, j)
            for i in range(a, taps, stride)
            for j in range(b, taps, stride)
        )
        return functools.reduce(jnp.add, terms)

    def scatter(grad, kernel):
        edges = [
            (reach - 1, max(n - m, 0))
            for n, m in zip(phase_size, grad.shape[1:3], strict=True)
        ]
        padded = jnp.pad(grad.astype(jnp.float32), ((0, 0), *edges, (0, 0)))
        columns = [
            jnp.stack([phase(padded, kernel, a, b) for b in range(stride)], axis=3)
            for a in range(stride)
        ]
        phases = jnp.stack(columns, axis=2)
        full = phases.reshape(
            len(grad), *(stride * n for n in phase_size), grad.shape[-1]
        )
        cropped = full[:, pad : pad + size[0], pad : pad + size[1]]
        return cropped.astype(grad.dtype)

    return _computed_once(scatter, (len(grad), *size, grad.shape[-1]), grad, kernel)


def _kernel_gradient(x, grad, taps, stride):
    """Correlate the input with the output gradient, a few positions at a time.

    The result is itself a small image, (tap, tap, channel): position (h, w) of the
    gradient adds its multiple of the input window there. Sums of some tens of such
    terms become one vectorised loop; XLA's reductions over space run at a quarter of
    its speed, and take long to compile. Threads share the examples.
    """
    batch, dim = len(x), x.shape[-1]
    rows, cols = _chunk(*grad.shape[1:3])
    steps = [
        -(-n // size) for n, size in zip(grad.shape[1:3], (rows, cols), strict=True)
    ]
    full = (steps[0] * rows, steps[1] * cols)
    reach = tuple(stride * (n - 1) + taps for n in full)
    starts = [(i, j) for i in range(steps[0]) for j in range(steps[1])]
    window = (stride * (rows - 1) + taps, stride * (cols - 1) + taps)
    padded = _pad_to(_pad(x.astype(jnp.float32), taps // 2), reach)
    grad = _pad_to(grad.astype(jnp.float32), full)

    def add_chunk(total, start):
        row, col = start[0] * rows, start[1] * cols
        image = lax.dynamic_slice(
            padded, (0, stride * row, stride * col, 0), (batch, *window, dim)
        )
        grads = lax.dynamic_slice(grad, (0, row, col, 0), (batch, rows, cols, dim))
        for i, j in itertools.product(range(rows), range(cols)):
            top, left = stride * i, stride * j
            piece = image[:, top : top + taps, left : left + taps]
            total = total + piece * grads[:, i, j][:, None, None]
        return total

    total = jnp.zeros((batch, taps, taps, dim), jnp.float32)
    if len(starts) == 1:
        total = add_chunk(total, (0, 0))
    else:
        total, _ = lax.scan(
            lambda total, start: (add_chunk(total, start), None),
            total,
            jnp.asarray(starts, jnp.int32),
        )
    return jnp.sum(total, axis=0)


def _chunk(height, width):
    """Return the rows and columns summed in one loop: about _MAX_TERMS positions.

    With half as many, XLA slices the window anew for each of them: four times slower.
    """
    cols = -(-width // -(-width // _MAX_TERMS))
    return min(height, max(_MAX_TERMS // cols, 1)), cols


# The two below are traced for every tap; indexing would take four times as long.


def _window(padded, row, col, size, stride):
    """Return `padded[:, row::stride, col::stride]`, cut to a size."""
    batch, *_, dim = padded.shape
    last = (row + stride * (size[0] - 1) + 1, col + stride * (size[1] - 1) + 1)
    return lax.slice(
        padded, (0, row, col, 0), (batch, *last, dim), (1, stride, stride, 1)
    )


def _tap(kernel, row, col):
    """Return `kernel[row, col]` as (1, 1, 1, channel)."""
    tap = lax.slice(kernel, (row, col, 0), (row + 1, col + 1, kernel.shape[-1]))
    return lax.expand_dims(tap, (0,))


def _pad(images, amount):
    edge = (amount, amount)
    return jnp.pad(images, ((0, 0), edge, edge, (0, 0)))


def _pad_to(images, size):
    """Append zeros up to a height and width."""
    edges = [(0, max(n - m, 0)) for n, m in zip(size, images.shape[1:3], strict=True)]
    return jnp.pad(images, ((0, 0), *edges, (0, 0)))


def _out_size(size, taps, stride):
    return (size + 2 * (taps // 2) - taps) // stride + 1
