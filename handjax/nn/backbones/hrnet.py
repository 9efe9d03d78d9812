"""HRNet: parallel branches at strides 4 to 32 that exchange features throughout.

Wang et al., TPAMI 2020, https://arxiv.org/abs/1908.07919, with the classification head
that timm publishes weights for. For an image of 224 x 224 the maps are 56 x 56 x 128,
28 x 28 x 256, 14 x 14 x 512, 7 x 7 x 1024 and, "final", 7 x 7 x 2048, whatever the
width. Maps are (batch, height, width, channel).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from handjax.nn.backbones import _torch_names, _weights
from handjax.nn.backbones.resnet import Block
from handjax.nn.ops.batch_norm import BatchNorm
from handjax.nn.ops.conv import Conv, Map, Output
from handjax.nn.ops.image import check_sides
from handjax.types import Variables


class Variant(NamedTuple):
    """Size of one published network."""

    width: int
    """Channels of the stride-4 branch; every coarser branch has twice as many."""
    modules: tuple[int, int, int] = (1, 4, 3)
    """Exchange modules with two, three and four branches."""
    blocks: int = 4
    """Residual blocks of each branch in a module."""
    first_blocks: int = 4
    """Bottlenecks before there are branches."""
    first_width: int = 64
    """Channels inside those."""


VARIANTS = {
    "hrnet_w18_small": Variant(16, (1, 1, 1), 2, 1, 32),
    "hrnet_w18": Variant(18),
    "hrnet_w32": Variant(32),
    "hrnet_w48": Variant(48),
    "hrnet_w64": Variant(64),
}
NUM_FEATURES = dict.fromkeys(VARIANTS, 2048)
CENTRED_STRIDE = 32  # see `backbones.first_pixel`

HEAD_WIDTHS = (32, 64, 128, 256)
"""Channels inside the bottlenecks that widen the branches: a quarter of what leaves."""

_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class HRNet(nn.Module):
    """Image to one feature map per branch, and their sum at stride 32, widened."""

    variant: str = "hrnet_w64"
    dtype: Any = jnp.float32
    """Type to compute in; parameters and statistics stay float32."""

    @nn.compact
    def __call__(
        self, image: Float[Array, "batch height width 3"], *, train: bool = False
    ) -> dict[str, Float[Array, "batch _ _ _"]]:
        """Return maps "stride4" to "stride32", and "final".

        Args:
            image: Normalised image; sides divisible by 32.
            train: Normalise by the batch and update running statistics (make
                `batch_stats` mutable).
        """
        check_sides("HRNet", *image.shape[1:3])
        size = VARIANTS[self.variant]
        x = image.astype(self.dtype)
        for n in (1, 2):
            x = Conv(64, 3, stride=2, dtype=self.dtype, init=_init, name=f"conv{n}")(x)
            x = nn.relu(BatchNorm(64, name=f"bn{n}")(x, train=train))
        for i in range(size.first_blocks):
            x = self._bottleneck(size.first_width, f"layer1_{i}")(x, train)
        branches = [x]
        for i, count in enumerate(size.modules):
            branches = self._add_branch(branches, f"transition{i + 1}", train)
            for j in range(count):
                module = Exchange(size.blocks, self.dtype, name=f"stage{i + 2}_{j}")
                branches = module(branches, train)
        return self._head(branches, train)

    def _add_branch(self, branches, name, train):
        """Halve the coarsest map for a new branch; the first ones are both convolved.

        Before the first branches stands one map that is wider than either.
        """
        new = 2 * branches[-1].shape[-1]
        if len(branches) > 1:
            conv = self._conv(new, 3, 2, f"{name}_{len(branches)}_0")
            return [*branches, conv(branches[-1], train)]
        width = VARIANTS[self.variant].width
        kept = self._conv(width, 3, 1, f"{name}_0")(branches[0], train)
        return [kept, self._conv(2 * width, 3, 2, f"{name}_1_0")(branches[0], train)]

    def _head(self, branches, train):
        """Widen every branch, then add them up from fine to coarse."""
        taps = {}
        total = None
        for i, (branch, width) in enumerate(zip(branches, HEAD_WIDTHS, strict=True)):
            tap = self._bottleneck(width, f"incre_modules_{i}_0")(branch, train)
            taps[f"stride{4 * 2**i}"] = tap
            if total is not None:
                down = self._conv(4 * width, 3, 2, f"downsamp_modules_{i - 1}", True)
                tap = tap + down(total, train)
            total = tap
        final = self._conv(2048, 1, 1, "final_layer", True)
        return taps | {"final": final(total, train)}

    def _bottleneck(self, width, name):
        return Block(width, 1, True, self.dtype, name=name)

    def _conv(self, features, size, stride, name, use_bias=False):
        return lambda x, train: nn.relu(
            _conv_norm(x, features, size, stride, name, self.dtype, train, use_bias)
        )


class Exchange(nn.Module):
    """Residual blocks on every branch, then each branch adds up all the others."""

    blocks: int
    dtype: Any

    @nn.compact
    def __call__(
        self, branches: list[Float[Array, "batch _ _ _"]], train: bool
    ) -> list[Float[Array, "batch _ _ _"]]:
        """Map each branch, (height / 2^i, width / 2^i, 2^i dim), to its own shape."""
        branches = [self._branch(x, i, train) for i, x in enumerate(branches)]
        count = len(branches)
        return [
            nn.relu(sum(self._moved(branches, j, i, train) for j in range(count)))
            for i in range(count)
        ]

    def _branch(self, x, i, train):
        for j in range(self.blocks):
            block = Block(x.shape[-1], 1, False, self.dtype, name=f"branches_{i}_{j}")
            x = block(x, train)
        return x

    def _moved(self, branches, j, i, train):
        """Bring branch j to the resolution and the channels of branch i."""
        x, width, name = branches[j], branches[i].shape[-1], f"fuse_layers_{i}_{j}"
        if j > i:
            x = _conv_norm(x, width, 1, 1, name, self.dtype, train)
            return repeat_pixels(x, 2 ** (j - i))
        for k in range(i - j):
            last = k == i - j - 1
            features = width if last else x.shape[-1]
            x = _conv_norm(x, features, 3, 2, f"{name}_{k}", self.dtype, train)
            x = x if last else nn.relu(x)
        return x


def repeat_pixels(x: Map, factor: int) -> Output:
    """Upsample by a whole factor, each pixel to a square of equal ones."""
    batch, height, width, dim = x.shape
    shape = (batch, height, factor, width, factor, dim)
    x = jnp.broadcast_to(x[:, :, None, :, None], shape)
    return x.reshape(batch, height * factor, width * factor, dim)


def _conv_norm(x, features, size, stride, name, dtype, train, use_bias=False):
    """Convolve and normalise within the caller's scope, by torch's names "0" and "1".

    Without a module around the two, as none of them may have "bn" in its path: torch's
    names have none here, and masks of weight decay go by it.
    """
    conv = Conv(
        features, size, stride, 1, use_bias, dtype, init=_init, name=f"{name}_0"
    )
    return BatchNorm(features, name=f"{name}_1")(conv(x), train=train)


def build(name: str, *, drop_path_rate: float = 0.0, **options) -> HRNet:
    """Build one published size; `options` are the fields of `HRNet`.

    `drop_path_rate` changes nothing: the published recipes of these sizes have no drop
    path, and configs should be able to change the backbone alone.
    """
    del drop_path_rate
    return HRNet(variant=name, **options)


def import_torch(state_dict: Mapping[str, np.ndarray]) -> Variables:
    """Convert timm's HRNet weights.

    Args:
        state_dict: timm's names to numpy arrays. The classifier `classifier.*` is
            skipped; every other entry must be known and none may be missing.

    Raises:
        ValueError: The entries are not those of one published size.
    """
    variables = _torch_names.convert(state_dict, heads=("classifier.",))
    size = _closest_variant(variables["params"])
    _weights.check_fits(
        variables, HRNet(size), size, f"the state dict of one of {sorted(VARIANTS)}"
    )
    return variables


def _closest_variant(params):
    kernel = params.get("transition1_0_0", {}).get("kernel", np.zeros(1))
    return min(VARIANTS, key=lambda name: abs(VARIANTS[name].width - kernel.shape[-1]))
