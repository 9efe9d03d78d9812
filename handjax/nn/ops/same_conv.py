"""Convolutions with TensorFlow's "SAME" padding, for weights that were trained with it.

At stride 2 on even sides TensorFlow pads one row less at the top and left than torch
does, so the same kernel looks half a stride further. Layouts as in `nn.ops`.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from handjax.errors import UserError
from handjax.nn.ops import convolutions

Map = Float[Array, "batch height width dim"]
Output = Float[Array, "batch height_out width_out dim_out"]

_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return the rows of zeros before and after `size` rows."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class SameConv(nn.Module):
    """Convolution with a bias, padded as TensorFlow's "SAME"."""

    features: int
    kernel_size: int = 1
    stride: int = 1
    groups: int = 1
    """1, or the number of input channels."""

    @nn.compact
    def __call__(self, x: Map) -> Output:
        """Convolve in float32.

        Raises:
            UserError: A depthwise map of stride 2 has an odd side.
        """
        size, dim = self.kernel_size, x.shape[-1]
        shape = (size, size, dim // self.groups, self.features)
        kernel = self.param("kernel", _init, shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x = x.astype(jnp.float32)
        if size == 1:
            out = convolutions.pointwise(x, kernel[0, 0])
        elif self.groups == 1:
            out = _image_conv(x, kernel, self.stride)
        else:
            out = _depthwise(x, kernel, self.stride)
        return out + bias[None, None, None]


def _image_conv(x, kernel, stride):
    size = kernel.shape[0]
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=[same_padding(n, size, stride) for n in x.shape[1:3]],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _depthwise(x, kernel, stride):
    """Convolve every channel alone, by the operation that is fast on each platform.

    That one pads `kernel // 2` on every side. A further row and column of zeros before
    the first ones moves its windows by half a stride; the first output row and column
    then look only at padding and are dropped.
    """
    if stride == 1:
        return convolutions.depthwise_conv(x, kernel)
    height, width = x.shape[1:3]
    if height % 2 or width % 2:
        raise UserError(
            f"A map of {height} x {width} (height x width) cannot be halved; give an "
            "image whose sides are multiples of 32."
        )
    shifted = jnp.pad(x, ((0, 0), (1, 0), (1, 0), (0, 0)))
    return convolutions.depthwise_conv(shifted, kernel, stride=2)[:, 1:, 1:]
