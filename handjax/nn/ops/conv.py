"""The convolution layer that backbones are made of."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from handjax.nn.ops import convolutions

Map = Float[Array, "batch height width dim"]
Output = Float[Array, "batch height_out width_out dim_out"]

torch_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""What torch initialises convolutions with."""


class Conv(nn.Module):
    """Convolution with torch's padding, in the formulation of the platform."""

    features: int
    kernel_size: int
    stride: int = 1
    groups: int = 1
    use_bias: bool = False
    dtype: Any = jnp.float32
    init: Any = torch_init

    @nn.compact
    def __call__(self, x: Map) -> Output:
        """Convolve the map, and add the bias if there is one."""
        size, dim = self.kernel_size, x.shape[-1] // self.groups
        kernel = self.param("kernel", self.init, (size, size, dim, self.features))
        x = convolutions.conv2d(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            stride=self.stride,
            groups=self.groups,
        )
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            x = x + bias.astype(self.dtype)[None, None, None]
        return x
