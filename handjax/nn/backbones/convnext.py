"""ConvNeXt: a convolutional network with the proportions of a vision transformer.

Liu et al., CVPR 2022, https://arxiv.org/abs/2201.03545, in the form timm publishes
weights for. Maps are (batch, height, width, channel); sides that are no multiples of 32
lose their last rows and columns, as in timm.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from handjax.nn.backbones import _torch_names, _weights
from handjax.nn.backbones._transformer import Mlp, init, layer_norm
from handjax.nn.ops.conv import Conv, Map, Output
from handjax.types import Variables


class Variant(NamedTuple):
    """Size of one published network."""

    depths: tuple[int, int, int, int]
    widths: tuple[int, int, int, int]


VARIANTS = {
    "convnext_tiny": Variant((3, 3, 9, 3), (96, 192, 384, 768)),
    "convnext_base": Variant((3, 3, 27, 3), (128, 256, 512, 1024)),
    # Not published: every kind of block at the least cost, for tests.
    "convnext_test": Variant((1, 1, 2, 1), (8, 16, 24, 32)),
}
NUM_FEATURES = {name: size.widths[-1] for name, size in VARIANTS.items()}


class ConvNeXt(nn.Module):
    """Image to feature maps at strides 4 to 32; "final" is the last of them."""

    variant: str = "convnext_tiny"
    drop_path_rate: float = 0.0
    """Rate of the last block; earlier blocks grow linearly from zero."""
    layer_scale: float = 1e-6
    """Initial factor of every residual branch."""
    dtype: Any = jnp.float32
    """Type to compute in; parameters stay float32."""

    @nn.compact
    def __call__(
        self, image: Float[Array, "batch height width 3"], *, train: bool = False
    ) -> dict[str, Float[Array, "batch _ _ _"]]:
        """Return maps "stride4" to "stride32", and "final".

        Args:
            image: Normalised image.
            train: Drop residual branches (stream "dropout").
        """
        size = VARIANTS[self.variant]
        x = _patches(size.widths[0], 4, self.dtype, "stem_0")(image)
        x = layer_norm(self.dtype, "stem_1")(x)
        rates = np.split(
            np.linspace(0, self.drop_path_rate, sum(size.depths)),
            np.cumsum(size.depths)[:-1],
        )
        taps = {}
        for i, width in enumerate(size.widths):
            stage = Stage(
                width,
                halve=i > 0,
                drop_path_rates=tuple(rates[i].tolist()),
                layer_scale=self.layer_scale,
                dtype=self.dtype,
                name=f"stages_{i}",
            )
            x = taps[f"stride{4 * 2**i}"] = stage(x, train)
        return taps | {"final": x}


class Stage(nn.Module):
    """Halve the map (but for the first stage), then mix it block by block."""

    features: int
    halve: bool
    drop_path_rates: tuple[float, ...]
    layer_scale: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Map, train: bool) -> Output:
        """Map (h, w) to (h / 2, w / 2), or keep it."""
        if self.halve:
            x = layer_norm(self.dtype, "downsample_0")(x)
            x = _patches(self.features, 2, self.dtype, "downsample_1")(x)
        for i, rate in enumerate(self.drop_path_rates):
            x = Block(rate, self.layer_scale, self.dtype, name=f"blocks_{i}")(x, train)
        return x


class Block(nn.Module):
    """Depthwise 7 x 7 convolution and MLP, as one scaled residual branch."""

    drop_path_rate: float
    layer_scale: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Map, train: bool) -> Map:
        """Add the block's residual to its input."""
        dim = x.shape[-1]
        options: dict[str, Any] = dict(use_bias=True, dtype=self.dtype, init=init)
        out = Conv(dim, 7, groups=dim, **options, name="conv_dw")(x)
        out = layer_norm(self.dtype, "norm")(out)
        out = Mlp(self.dtype, name="mlp")(out)
        constant = nn.initializers.constant(self.layer_scale)
        gamma = self.param("gamma", constant, (dim,))
        out = out * gamma.astype(out.dtype)[None, None, None]
        # Whole branches are dropped, example by example; survivors are scaled up.
        drop = nn.Dropout(self.drop_path_rate, broadcast_dims=(1, 2, 3))
        return x + drop(out, deterministic=not train)


def _patches(features: int, size: int, dtype: Any, name: str) -> Conv:
    return Conv(features, size, size, use_bias=True, dtype=dtype, init=init, name=name)


def build(name: str, **options) -> ConvNeXt:
    """Build one published size; `options` are the fields of `ConvNeXt`."""
    return ConvNeXt(variant=name, **options)


def import_torch(state_dict: Mapping[str, np.ndarray]) -> Variables:
    """Convert timm's ConvNeXt weights.

    Args:
        state_dict: timm's names to numpy arrays. The classifier `head.*`, which holds
            the norm after pooling, is skipped; every other entry must be known and none
            may be missing.

    Raises:
        ValueError: The entries are not those of one published size.
    """
    variables = _torch_names.convert(state_dict, heads=("head.",))
    name = _closest_variant(variables["params"])
    _weights.check_fits(
        variables,
        ConvNeXt(name),
        name,
        f"the state dict of one of timm's {sorted(VARIANTS)}",
    )
    return variables


def _closest_variant(params):
    stages = [params.get(f"stages_{i}", {}) for i in range(4)]
    depths = [sum(key.startswith("blocks_") for key in stage) for stage in stages]
    width = np.size(params.get("stem_0", {}).get("bias", ()))
    return min(
        VARIANTS,
        key=lambda name: (
            abs(VARIANTS[name].widths[0] - width),
            abs(sum(VARIANTS[name].depths) - sum(depths)),
        ),
    )
