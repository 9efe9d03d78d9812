"""ResNet-18, 34 and 50, in the form torchvision and timm publish weights for.

He et al., CVPR 2016, https://arxiv.org/abs/1512.03385; in bottleneck blocks the 3 x 3
convolution has the stride ("version 1.5"). Maps are (batch, height, width, channel).
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


class Variant(NamedTuple):
    """Size of one published network."""

    depths: tuple[int, int, int, int]
    bottleneck: bool

    @property
    def expansion(self) -> int:
        """Channels of a block's output over those of its 3 x 3 convolutions."""
        return 4 if self.bottleneck else 1


VARIANTS = {
    "resnet18": Variant((2, 2, 2, 2), False),
    "resnet34": Variant((3, 4, 6, 3), False),
    "resnet50": Variant((3, 4, 6, 3), True),
}
NUM_FEATURES = {name: 512 * size.expansion for name, size in VARIANTS.items()}
CENTRED_STRIDE = 32  # see `backbones.first_pixel`

_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class ResNet(nn.Module):
    """Image to feature maps at strides 4 to 32; "final" is the last of them."""

    variant: str = "resnet50"
    dtype: Any = jnp.float32
    """Type to compute in; parameters and statistics stay float32."""

    @nn.compact
    def __call__(
        self, image: Float[Array, "batch height width 3"], *, train: bool = False
    ) -> dict[str, Float[Array, "batch _ _ _"]]:
        """Return maps "stride4" to "stride32", and "final".

        Args:
            image: Normalised image.
            train: Normalise by the batch and update running statistics (make
                `batch_stats` mutable).
        """
        size = VARIANTS[self.variant]
        x = image.astype(self.dtype)
        x = Conv(64, 7, stride=2, dtype=self.dtype, init=_init, name="conv1")(x)
        x = nn.relu(BatchNorm(64, name="bn1")(x, train=train))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        taps = {}
        for i, depth in enumerate(size.depths):
            for j in range(depth):
                block = Block(
                    64 * 2**i,
                    stride=2 if i > 0 and j == 0 else 1,
                    bottleneck=size.bottleneck,
                    dtype=self.dtype,
                    name=f"layer{i + 1}_{j}",
                )
                x = block(x, train)
            taps[f"stride{4 * 2**i}"] = x
        return taps | {"final": x}


class Block(nn.Module):
    """Two 3 x 3 convolutions, or one between two 1 x 1, and a residual connection."""

    features: int
    stride: int
    bottleneck: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Map, train: bool) -> Output:
        """Add the block's residual to its (projected) input."""
        width = self.features * (4 if self.bottleneck else 1)
        # Kernel size, stride and channels of each convolution.
        layers = [(3, self.stride, self.features), (3, 1, self.features)]
        if self.bottleneck:
            layers = [
                (1, 1, self.features),
                (3, self.stride, self.features),
                (1, 1, width),
            ]
        out = x
        for n, (size, stride, features) in enumerate(layers, start=1):
            out = nn.relu(out) if n > 1 else out
            out = self._conv(features, size, stride, f"conv{n}")(out)
            out = BatchNorm(features, name=f"bn{n}")(out, train=train)
        if self.stride > 1 or x.shape[-1] != width:
            x = self._conv(width, 1, self.stride, "downsample_0")(x)
            x = BatchNorm(width, name="downsample_1")(x, train=train)
        return nn.relu(x + out)

    def _conv(self, features, size, stride, name):
        return Conv(features, size, stride, dtype=self.dtype, init=_init, name=name)


def build(name: str, *, drop_path_rate: float = 0.0, **options) -> ResNet:
    """Build one published size; `options` are the fields of `ResNet`.

    `drop_path_rate` changes nothing: the published recipes of these sizes have no drop
    path, and configs should be able to change the backbone alone.
    """
    del drop_path_rate
    return ResNet(variant=name, **options)


def import_torch(state_dict: Mapping[str, np.ndarray]) -> Variables:
    """Convert torchvision's or timm's ResNet weights.

    Args:
        state_dict: Their names to numpy arrays. The classifier `fc.*` is skipped; every
            other entry must be known and none may be missing.

    Raises:
        ValueError: The entries are not those of one published size.
    """
    variables = _torch_names.convert(state_dict, heads=("fc.",))
    size = _closest_variant(variables["params"])
    _weights.check_fits(
        variables, ResNet(size), size, f"the state dict of one of {sorted(VARIANTS)}"
    )
    return variables


def _closest_variant(params):
    bottleneck = "conv3" in params.get("layer1_0", {})
    blocks = sum(name.startswith("layer") for name in params)
    return min(
        VARIANTS,
        key=lambda name: (
            VARIANTS[name].bottleneck != bottleneck,
            abs(sum(VARIANTS[name].depths) - blocks),
        ),
    )
