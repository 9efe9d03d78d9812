"""Maps of several sizes from a single one.

Li et al., Exploring plain vision transformer backbones for object detection (ViTDet),
ECCV 2022, https://arxiv.org/abs/2203.16527: its simple feature pyramid, whose maps are
all made of the backbone's last one, each on its own.
"""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from handjax.errors import UserError
from handjax.nn.ops import convolutions
from handjax.nn.ops.conv import Conv

LEVELS = {"1x": 0, "4x": 2, "8x": 3, "16x": 4}
"""How often each map doubles the size of the one it is made of."""

Map = Float[Array, "batch height width channel"]


class FeaturePyramid(nn.Module):
    """The maps of `levels`, all of the same width.

    Each has transposed convolutions of kernel and stride 2 that halve the channels,
    with layer norm and GELU between two of them; then a convolution of kernel 1 and one
    of kernel 3, each with layer norm. ViT-H's 16 x 12 patches become 64 x 48 at "4x",
    with 640 and 320 channels on the way.
    """

    width: int
    levels: Sequence[str]
    """Of `LEVELS`, in the order in which they are returned."""
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Map) -> tuple[Float[Array, "batch _ _ features"], ...]:
        """Make the maps.

        Raises:
            UserError: A level is unknown or named twice, or there is none.
        """
        if not self.levels or set(self.levels) - set(LEVELS):
            raise UserError(
                f"config.model.levels={tuple(self.levels)} must name at least one of "
                f"{', '.join(LEVELS)}, and nothing else."
            )
        if len(set(self.levels)) < len(self.levels):
            raise UserError(
                f"config.model.levels={tuple(self.levels)} names a map twice; name "
                "each once."
            )
        x = x.astype(self.dtype)
        return tuple(
            self._level(x, LEVELS[name], f"level{name}") for name in self.levels
        )

    def _level(
        self, x: Map, doublings: int, name: str
    ) -> Float[Array, "batch _ _ features"]:
        for i in range(doublings):
            if i:
                x = convolutions.gelu(
                    _layer_norm(self.dtype, f"{name}_up{i - 1}_norm")(x)
                )
            half = max(1, x.shape[-1] // 2)
            x = Doubled(half, self.dtype, name=f"{name}_up{i}")(x)
        for kernel in (1, 3):
            conv = Conv(
                self.width, kernel, dtype=self.dtype, name=f"{name}_conv{kernel}"
            )
            x = _layer_norm(self.dtype, f"{name}_conv{kernel}_norm")(conv(x))
        return x


class Doubled(nn.Module):
    """Transposed convolution with kernel = stride = 2, and bias."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Map) -> Float[Array, "batch _ _ features"]:
        """Map of twice the height and width."""
        # PyTorch counts the fan-in of a transposed convolution on its output side.
        bound = 1 / math.sqrt(2 * 2 * self.features)

        def init(key, shape):
            return jax.random.uniform(key, shape, jnp.float32, -bound, bound)

        kernel = self.param("kernel", init, (2, 2, x.shape[-1], self.features))
        bias = self.param("bias", init, (self.features,))
        x = convolutions.conv_transpose(x, kernel.astype(self.dtype), stride=2)
        return x + bias.astype(self.dtype)[None, None, None]


def _layer_norm(dtype: Any, name: str) -> nn.LayerNorm:
    """Return a LayerNorm over each pixel's channels, with transformers' epsilon."""
    return nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, dtype=dtype, name=name)
