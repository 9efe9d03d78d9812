"""EfficientNet-B0, in the form timm publishes weights for.

Tan and Le, ICML 2019, https://arxiv.org/abs/1905.11946. Maps are (batch, height, width,
channel). Windows are padded as torch does, so weights of the "tf_" models, which were
trained with TensorFlow's padding and batch normalisation, are not for this network.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from handjax.nn.backbones import _torch_names, _weights
from handjax.nn.ops.batch_norm import BatchNorm
from handjax.nn.ops.conv import Conv, Map, Output
from handjax.types import Variables


class Stage(NamedTuple):
    """Blocks of one width; only the first has the stride."""

    depth: int
    width: int
    kernel_size: int
    stride: int
    expansion: int = 6
    """Channels inside a block over those that enter it."""


class Variant(NamedTuple):
    """Size of one published network."""

    stem: int
    stages: tuple[Stage, ...]
    features: int

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return sum(stage.depth for stage in self.stages)


VARIANTS = {
    "efficientnet_b0": Variant(
        32,
        (
            Stage(1, 16, 3, 1, expansion=1),
            Stage(2, 24, 3, 2),
            Stage(2, 40, 5, 2),
            Stage(3, 80, 3, 2),
            Stage(3, 112, 5, 1),
            Stage(4, 192, 5, 2),
            Stage(1, 320, 3, 1),
        ),
        1280,
    ),
    # Not published: every kind of block at the least cost, for tests.
    "efficientnet_test": Variant(
        8,
        (
            Stage(1, 8, 3, 1, expansion=1),
            Stage(2, 12, 3, 2),
            Stage(1, 16, 5, 2),
            Stage(1, 16, 3, 2),
            Stage(1, 24, 3, 2),
        ),
        32,
    ),
}
NUM_FEATURES = {name: size.features for name, size in VARIANTS.items()}
CENTRED_STRIDE = 32  # see `backbones.first_pixel`

_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# Flax counts the outputs of every group as fan out; a group has one input and output.
_depthwise_init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class EfficientNet(nn.Module):
    """Image to feature maps at strides 4 to 32, and the final, wider map."""

    variant: str = "efficientnet_b0"
    drop_path_rate: float = 0.0
    """Block i of n drops its residual branch at i / n of this."""
    dtype: Any = jnp.float32
    """Type to compute in; parameters and statistics stay float32."""

    @nn.compact
    def __call__(
        self, image: Float[Array, "batch height width 3"], *, train: bool = False
    ) -> dict[str, Float[Array, "batch _ _ _"]]:
        """Return maps "stride4" to "stride32" (the last of each stride), and "final".

        Args:
            image: Normalised image.
            train: Normalise by the batch, update running statistics (make `batch_stats`
                mutable) and drop residual branches (stream "dropout").
        """
        size = VARIANTS[self.variant]
        x = _conv(size.stem, 3, self.dtype, "conv_stem", stride=2)(image)
        x = nn.silu(BatchNorm(size.stem, name="bn1")(x, train=train))
        taps, stride, index = {}, 2, 0
        for i, stage in enumerate(size.stages):
            for j in range(stage.depth):
                block = Block(
                    stage,
                    first=j == 0,
                    drop_path_rate=self.drop_path_rate * index / size.depth,
                    dtype=self.dtype,
                    name=f"blocks_{i}_{j}",
                )
                x, index = block(x, train), index + 1
            stride *= stage.stride
            taps[f"stride{stride}"] = x
        del taps["stride2"]
        x = _conv(size.features, 1, self.dtype, "conv_head")(x)
        x = nn.silu(BatchNorm(size.features, name="bn2")(x, train=train))
        return taps | {"final": x}


class Block(nn.Module):
    """Widen, filter each channel, gate the channels, narrow; residual if it fits."""

    stage: Stage
    first: bool
    drop_path_rate: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Map, train: bool) -> Output:
        """Map (h, w) to (h / stride, w / stride)."""
        dim, width = x.shape[-1], self.stage.width
        stride = self.stage.stride if self.first else 1
        hidden = dim * self.stage.expansion
        widen = self.stage.expansion > 1
        # torch numbers the normalisations and names the last convolution by position.
        bns = ["bn1", "bn2", "bn3"] if widen else ["", "bn1", "bn2"]
        out = x
        if widen:
            out = _conv(hidden, 1, self.dtype, "conv_pw")(out)
            out = nn.silu(BatchNorm(hidden, name=bns[0])(out, train=train))
        out = _conv(
            hidden,
            self.stage.kernel_size,
            self.dtype,
            "conv_dw",
            stride=stride,
            groups=hidden,
            init=_depthwise_init,
        )(out)
        out = nn.silu(BatchNorm(hidden, name=bns[1])(out, train=train))
        out = SqueezeExcite(dim // 4, self.dtype, name="se")(out)
        last = "conv_pwl" if widen else "conv_pw"
        out = _conv(width, 1, self.dtype, last)(out)
        out = BatchNorm(width, name=bns[2])(out, train=train)
        if stride > 1 or dim != width:
            return out
        # Whole branches are dropped, example by example; survivors are scaled up.
        drop = nn.Dropout(self.drop_path_rate, broadcast_dims=(1, 2, 3))
        return x + drop(out, deterministic=not train)


class SqueezeExcite(nn.Module):
    """Gate each channel by a small network of the channels' means."""

    hidden: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Map) -> Map:
        """Multiply each channel by its gate."""
        gate = jnp.mean(x, axis=(1, 2), keepdims=True)
        gate = _conv(self.hidden, 1, self.dtype, "conv_reduce", use_bias=True)(gate)
        gate = nn.silu(gate)
        gate = _conv(x.shape[-1], 1, self.dtype, "conv_expand", use_bias=True)(gate)
        return x * nn.sigmoid(gate)


def _conv(features: int, size: int, dtype: Any, name: str, **options) -> Conv:
    return Conv(features, size, dtype=dtype, name=name, **{"init": _init, **options})


def build(name: str, **options) -> EfficientNet:
    """Build one published size; `options` are the fields of `EfficientNet`."""
    return EfficientNet(variant=name, **options)


def import_torch(state_dict: Mapping[str, np.ndarray]) -> Variables:
    """Convert timm's EfficientNet weights.

    Args:
        state_dict: timm's names to numpy arrays. The classifier `classifier.*` is
            skipped; every other entry must be known and none may be missing.

    Raises:
        ValueError: The entries are not those of one published size.
    """
    variables = _torch_names.convert(state_dict, heads=("classifier.",))
    blocks = sum(name.startswith("blocks_") for name in variables["params"])
    name = min(VARIANTS, key=lambda name: abs(VARIANTS[name].depth - blocks))
    _weights.check_fits(
        variables,
        EfficientNet(name),
        name,
        f"the state dict of one of timm's {sorted(VARIANTS)}",
    )
    return variables
