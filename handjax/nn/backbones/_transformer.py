"""What ConvNeXt and the vision transformers have in common."""

from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from handjax.nn.ops import convolutions

init = nn.initializers.truncated_normal(0.02)


class Mlp(nn.Module):
    """Two dense layers with a GELU between, four times wider inside."""

    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "*shape dim"]) -> Float[Array, "*shape dim"]:
        """Mix the channels of each position."""
        options: dict[str, Any] = dict(dtype=self.dtype, kernel_init=init)
        hidden = nn.Dense(4 * x.shape[-1], **options, name="fc1")(x)
        return nn.Dense(x.shape[-1], **options, name="fc2")(convolutions.gelu(hidden))


def layer_norm(dtype: Any, name: str) -> nn.LayerNorm:
    """Normalise over the channels, with these networks' epsilon, in two passes."""
    return nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, dtype=dtype, name=name)
