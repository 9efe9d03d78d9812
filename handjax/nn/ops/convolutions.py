"""Convolutions with one formulation per platform.

XLA runs some convolutions up to a hundred times slower on CPUs than the hardware
allows, above all their gradients. Each function here has two formulations of the same
maths: `"lax"` (the plain XLA operation: accelerators, and what exporters understand)
and `"cpu"`; `impl="auto"` lets the platform that the program is lowered for decide.

Layouts: images (batch, height, width, channel); kernels (height, width, channel in per
group, channel out). Windows are padded by `kernel // 2` on every side, as torch does;
XLA's "SAME" differs from that at stride 2.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from handjax.errors import UserError
from handjax.nn.ops.depthwise import depthwise

Impl = Literal["auto", "lax", "cpu"]

Image = Float[Array, "batch height width dim"]
Output = Float[Array, "batch height_out width_out dim_out"]
Kernel = Float[Array, "kernel kernel dim_in dim_out"]


_IMAGE_CHANNELS = 4
"""Up to this many, gathering windows costs less than XLA's convolution on CPUs."""


def conv2d(
    x: Image, kernel: Kernel, *, stride: int = 1, groups: int = 1, impl: Impl = "auto"
) -> Output:
    """Convolve, choosing the formulation from the shapes.

    Args:
        x: Feature map.
        kernel: Square kernel; its last axis is ordered group by group.
        stride: Step in both directions.
        groups: Number of channel groups; the number of input channels for depthwise.
        impl: Which formulation; see the module's docstring.
    """
    size, dim = kernel.shape[0], x.shape[-1]
    if dim != kernel.shape[2] * groups:
        raise UserError(
            f"The feature map has {dim} channels but the kernel takes "
            f"{kernel.shape[2]} in each of groups={groups}; pass "
            f"groups={dim // max(kernel.shape[2], 1)} or another kernel."
        )
    if groups == 1 and size == 1:
        return pointwise(x[:, ::stride, ::stride], kernel[0, 0])
    if groups == 1 and size == stride:
        return patch_conv(x, kernel, impl=impl)
    if groups > 1 and groups == dim:
        return depthwise_conv(x, kernel, stride=stride, impl=impl)
    if groups > 1:
        return grouped_conv(x, kernel, groups=groups, stride=stride, impl=impl)
    if dim <= _IMAGE_CHANNELS:
        return image_conv(x, kernel, stride=stride, impl=impl)
    return _lax_conv(x, kernel, stride, 1)


def image_conv(
    x: Image, kernel: Kernel, *, stride: int = 1, impl: Impl = "auto"
) -> Output:
    """Convolve an image of few channels, the first layer of a network."""

    def cpu(x, kernel):
        size = kernel.shape[0]
        return pointwise(windows(x, size, stride), kernel.reshape(-1, kernel.shape[-1]))

    def plain(x, kernel):
        return _lax_conv(x, kernel, stride, 1)

    return _dispatch(impl, cpu, plain, x, kernel)


def windows(x: Image, size: int, stride: int) -> Output:
    """Gather the window of every output position of a convolution, (row, column, dim).

    Times a kernel reshaped to a matrix this is the convolution. Only for images: the
    result is (size / stride)^2 times larger than x.
    """
    pad = size // 2
    padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))

    def along(x, axis):
        count = (x.shape[axis] - size) // stride + 1
        shifted = [
            lax.slice_in_dim(x, i, i + stride * (count - 1) + 1, stride, axis)
            for i in range(size)
        ]
        return jnp.concatenate(shifted, axis=-1)

    return along(along(padded, 2), 1)


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Compute the exact GELU, x * Phi(x), by erf.

    `jax.nn.gelu` goes through erfc, which keeps the relative accuracy of values near
    -1e-7 that nothing needs here and costs five times as much on CPUs.
    """
    return 0.5 * x * (1 + lax.erf(x * np.sqrt(0.5).astype(x.dtype)))


def pointwise(x: Image, kernel: Float[Array, "dim dim_out"]) -> Output:
    """Apply a 1 x 1 convolution, which is a matrix product on every platform.

    The product of two matrices, for XLA's CPU backend transposes whole maps before it
    computes the kernel's gradient of a product with more axes.
    """
    rows = x.reshape(-1, x.shape[-1])
    return jnp.dot(rows, kernel).reshape(*x.shape[:-1], -1)


def depthwise_conv(
    x: Image,
    kernel: Float[Array, "kernel kernel 1 dim_out"],
    *,
    stride: int = 1,
    impl: Impl = "auto",
) -> Output:
    """Convolve every channel alone; output channel o reads channel o // multiplier."""
    dim, multiplier = x.shape[-1], kernel.shape[-1] // x.shape[-1]

    def cpu(x, kernel):
        if kernel.shape[0] == 1:
            repeated = jnp.repeat(x[:, ::stride, ::stride], multiplier, axis=-1)
            return repeated * kernel.reshape(1, 1, 1, -1)
        by_channel = kernel.reshape(*kernel.shape[:2], dim, multiplier)
        # One pass per multiple keeps the innermost loop over contiguous channels.
        parts: list[Any] = [
            depthwise(x, by_channel[..., m], stride) for m in range(multiplier)
        ]
        out = jnp.stack(parts, axis=-1)
        return out.reshape(*out.shape[:3], dim * multiplier)

    def plain(x, kernel):
        return _lax_conv(x, kernel, stride, dim)

    return _dispatch(impl, cpu, plain, x, kernel)


def grouped_conv(
    x: Image, kernel: Kernel, *, groups: int, stride: int = 1, impl: Impl = "auto"
) -> Output:
    """Convolve `groups` slices of the channels, each with its own kernel."""

    def cpu(x, kernel):
        slices = zip(
            jnp.split(x, groups, axis=-1),
            jnp.split(kernel, groups, axis=-1),
            strict=True,
        )
        return jnp.concatenate([_lax_conv(a, k, stride, 1) for a, k in slices], -1)

    def plain(x, kernel):
        return _lax_conv(x, kernel, stride, groups)

    return _dispatch(impl, cpu, plain, x, kernel)


def patch_conv(
    x: Image,
    kernel: Float[Array, "kernel kernel dim dim_out"],
    *,
    impl: Impl = "auto",
) -> Output:
    """Project non-overlapping patches (stride = kernel size, no padding)."""
    size = kernel.shape[0]

    def cpu(x, kernel):
        batch, height, width, dim = x.shape
        rows, cols = height // size, width // size
        x = x[:, : rows * size, : cols * size]
        patches = x.reshape(batch, rows, size, cols, size, dim).swapaxes(2, 3)
        flat = patches.reshape(batch, rows, cols, size * size * dim)
        return pointwise(flat, kernel.reshape(size * size * dim, -1))

    def plain(x, kernel):
        return _lax_conv(x, kernel, size, 1, padding=0)

    return _dispatch(impl, cpu, plain, x, kernel)


def conv_transpose(
    x: Image,
    kernel: Float[Array, "kernel kernel dim dim_out"],
    *,
    stride: int,
    padding: int = 0,
    impl: Impl = "auto",
) -> Output:
    """Convolve transposed: input pixel i adds to rows stride * i - padding + tap.

    Equal to torch's `conv_transpose2d` for its weight transposed to (2, 3, 0, 1); the
    output has stride * (size - 1) + kernel - 2 * padding rows.
    """
    size = kernel.shape[0]

    def cpu(x, kernel):
        return _overlap_add(x, kernel, stride, padding)

    def plain(x, kernel):
        edge = size - 1 - padding
        return lax.conv_general_dilated(
            x,
            kernel[::-1, ::-1],
            window_strides=(1, 1),
            padding=((edge, edge), (edge, edge)),
            lhs_dilation=(stride, stride),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    return _dispatch(impl, cpu, plain, x, kernel)


def _overlap_add(x, kernel, stride, padding):
    """Compute each stride x stride block of the output by one matrix product.

    A block is reached by the inputs at and before it, as many as the kernel has
    blocks: their channels side by side make the rows of the product.
    """
    size, _, dim, dim_out = kernel.shape
    batch, height, width, _ = x.shape
    blocks = -(-size // stride)
    missing = blocks * stride - size
    kernel = jnp.pad(kernel, ((0, missing), (0, missing), (0, 0), (0, 0)))
    kernel = kernel.reshape(blocks, stride, blocks, stride, dim, dim_out)
    kernel = kernel[::-1, :, ::-1].transpose(0, 2, 4, 1, 3, 5)
    before = (blocks - 1, blocks - 1)
    padded = jnp.pad(x, ((0, 0), before, before, (0, 0)))
    rows, cols = height + blocks - 1, width + blocks - 1
    reaching = [
        padded[:, a : a + rows, b : b + cols]
        for a in range(blocks)
        for b in range(blocks)
    ]
    out = pointwise(
        jnp.concatenate(reaching, axis=-1), kernel.reshape(blocks**2 * dim, -1)
    )
    out = out.reshape(batch, rows, cols, stride, stride, dim_out).swapaxes(2, 3)
    out = out.reshape(batch, rows * stride, cols * stride, dim_out)
    out_height, out_width = (
        stride * (n - 1) + size - 2 * padding for n in (height, width)
    )
    return out[:, padding : padding + out_height, padding : padding + out_width]


def _lax_conv(x, kernel, stride, groups, padding=None):
    pad = kernel.shape[0] // 2 if padding is None else padding
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _dispatch(impl: Impl, cpu: Callable, plain: Callable, *args: Array) -> Array:
    if impl == "auto":
        return jax.lax.platform_dependent(*args, cpu=cpu, default=plain)
    return (cpu if impl == "cpu" else plain)(*args)
