"""FastViT: a hybrid vision transformer trained with branches that fuse into one.

Vasu et al., ICCV 2023, https://arxiv.org/abs/2303.14189. Seven published sizes, from T8
to MA36. In training every convolution has parallel branches, each with its own batch
normalisation; `fuse` folds them, exactly, into the single convolutions of the network
built with `fused=True`. Maps are (batch, height, width, channel); any input whose sides
are multiples of 32 works.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from handjax.errors import UserError
from handjax.nn.backbones import _fastvit_weights, _weights
from handjax.nn.backbones._fastvit_blocks import (
    Attention,
    ConvMlp,
    LargeKernelConv,
    LayerScale,
    MobileOne,
    PositionCode,
)
from handjax.nn.ops.batch_norm import BatchNorm
from handjax.nn.ops.conv import Conv, Map, Output
from handjax.nn.ops.image import check_sides
from handjax.types import Variables


class Variant(NamedTuple):
    """Size of one published network."""

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    mlp_ratio: int
    attention: bool
    """Whether the last stage mixes tokens by attention (and adds a position code)."""
    head_dim: int = 32


VARIANTS = {
    "fastvit_t8": Variant((2, 2, 4, 2), (48, 96, 192, 384), 3, False),
    "fastvit_t12": Variant((2, 2, 6, 2), (64, 128, 256, 512), 3, False),
    "fastvit_s12": Variant((2, 2, 6, 2), (64, 128, 256, 512), 4, False),
    "fastvit_sa12": Variant((2, 2, 6, 2), (64, 128, 256, 512), 4, True),
    "fastvit_sa24": Variant((4, 4, 12, 4), (64, 128, 256, 512), 4, True),
    "fastvit_sa36": Variant((6, 6, 18, 6), (64, 128, 256, 512), 4, True),
    "fastvit_ma36": Variant((6, 6, 18, 6), (76, 152, 304, 608), 4, True),
    # Not published: every kind of block at the least cost, for tests.
    "fastvit_test": Variant((1, 1, 1, 1), (8, 16, 32, 64), 2, True, head_dim=16),
}
NUM_FEATURES = {name: 2 * variant.widths[-1] for name, variant in VARIANTS.items()}
CENTRED_STRIDE = 32  # see `backbones.first_pixel`


class FastViT(nn.Module):
    """Image to feature maps at strides 4 to 32, and the final 2x wider map."""

    variant: str = "fastvit_ma36"
    drop_path_rate: float = 0.0
    """Rate of the last block; earlier blocks grow linearly from zero."""
    layer_scale: float = 1e-5
    """Initial factor of every residual branch."""
    fused: bool = False
    """Build the inference form, whose variables `fuse` makes."""
    dtype: Any = jnp.float32
    """Type to compute in; parameters and statistics stay float32."""

    @nn.compact
    def __call__(
        self, image: Float[Array, "batch height width 3"], *, train: bool = False
    ) -> dict[str, Float[Array, "batch _ _ _"]]:
        """Return maps "stride4" to "stride32", and "final".

        Args:
            image: Normalised image; sides divisible by 32.
            train: Normalise by the batch, update running statistics (make `batch_stats`
                mutable) and drop residual branches (stream "dropout").
        """
        check_sides("FastViT", *image.shape[1:3])
        if train and self.fused:
            raise UserError(
                "A fused FastViT has no batch statistics to train; build it with "
                "fused=False and fuse the trained variables."
            )
        size = VARIANTS[self.variant]
        form: dict[str, Any] = dict(fused=self.fused, dtype=self.dtype)
        x = image.astype(self.dtype)
        stem = size.widths[0]
        x = MobileOne(stem, 3, stride=2, **form, name="stem_0")(x, train)
        x = MobileOne(stem, 3, stride=2, depthwise=True, **form, name="stem_1")(
            x, train
        )
        x = MobileOne(stem, 1, **form, name="stem_2")(x, train)
        rates = np.split(
            np.linspace(0, self.drop_path_rate, sum(size.depths)),
            np.cumsum(size.depths)[:-1],
        )
        taps = {}
        for i in range(4):
            stage = Stage(
                size,
                i,
                tuple(rates[i].tolist()),
                self.layer_scale,
                **form,
                name=f"stages_{i}",
            )
            x = taps[f"stride{4 * 2**i}"] = stage(x, train)
        final = MobileOne(
            2 * size.widths[-1],
            3,
            depthwise=True,
            squeeze=True,
            **form,
            name="final_conv",
        )
        return taps | {"final": final(x, train)}


class Stage(nn.Module):
    """Halve the map (but for the first stage), then mix it block by block."""

    size: Variant
    index: int
    drop_path_rates: tuple[float, ...]
    layer_scale: float
    fused: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Map, train: bool) -> Output:
        """Map (h, w) to (h / 2, w / 2), or keep it in stage 0."""
        width = self.size.widths[self.index]
        form: dict[str, Any] = dict(fused=self.fused, dtype=self.dtype)
        if self.index > 0:
            x = LargeKernelConv(width, **form, name="downsample_0")(x, train)
            x = MobileOne(width, 1, **form, name="downsample_1")(x, train)
        attention = self.size.attention and self.index == 3
        if attention:
            x = PositionCode(**form, name="position")(x)
        for i, rate in enumerate(self.drop_path_rates):
            options = dict(form, size=self.size, drop_path_rate=rate)
            options.update(layer_scale=self.layer_scale, name=f"blocks_{i}")
            block = AttentionBlock if attention else RepMixerBlock
            x = block(**options)(x, train)
        return x


class RepMixer(nn.Module):
    """Mix neighbours by a depthwise 3 x 3 convolution minus a normalised identity."""

    layer_scale: float
    fused: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Map, train: bool) -> Map:
        """Return x + gamma * (mixer(x) - norm(x))."""
        dim = x.shape[-1]
        if self.fused:
            return Conv(
                dim, 3, groups=dim, use_bias=True, dtype=self.dtype, name="conv"
            )(x)
        mixer = MobileOne(
            dim, 3, depthwise=True, activation=False, dtype=self.dtype, name="mixer"
        )
        norm = BatchNorm(dim, name="norm")
        difference = mixer(x, train) - norm(x, train=train)
        return x + LayerScale(self.layer_scale, name="layer_scale")(difference)


class RepMixerBlock(nn.Module):
    """RepMixer, then the MLP with a residual connection."""

    size: Variant
    drop_path_rate: float
    layer_scale: float
    fused: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Map, train: bool) -> Map:
        """Mix tokens, then channels."""
        form: dict[str, Any] = dict(fused=self.fused, dtype=self.dtype)
        x = RepMixer(self.layer_scale, **form, name="token_mixer")(x, train)
        out = ConvMlp(self.size.mlp_ratio, **form, name="mlp")(x, train)
        if not self.fused:
            out = LayerScale(self.layer_scale, name="layer_scale")(out)
        return x + _drop_path(self.drop_path_rate)(out, deterministic=not train)


class AttentionBlock(nn.Module):
    """Self-attention, then the MLP, each with a residual connection."""

    size: Variant
    drop_path_rate: float
    layer_scale: float
    fused: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Map, train: bool) -> Map:
        """Mix tokens, then channels."""
        form: dict[str, Any] = dict(fused=self.fused, dtype=self.dtype)
        drop = _drop_path(self.drop_path_rate)
        mixed = x
        if not self.fused:
            mixed = BatchNorm(x.shape[-1], name="norm")(x, train=train)
        mixed = Attention(self.size.head_dim, **form, name="token_mixer")(mixed)
        if not self.fused:
            mixed = LayerScale(self.layer_scale, name="layer_scale_1")(mixed)
        x = x + drop(mixed, deterministic=not train)
        out = ConvMlp(self.size.mlp_ratio, **form, name="mlp")(x, train)
        if not self.fused:
            out = LayerScale(self.layer_scale, name="layer_scale_2")(out)
        return x + drop(out, deterministic=not train)


def _drop_path(rate: float) -> nn.Dropout:
    """Drop whole residual branches, example by example; survivors are scaled up."""
    return nn.Dropout(rate, broadcast_dims=(1, 2, 3))


def build(name: str, **options) -> FastViT:
    """Build one published size; `options` are the fields of `FastViT`."""
    return FastViT(variant=name, **options)


def fuse(variables: Variables) -> Variables:
    """Fold every branch, normalisation and layer scale into the convolutions.

    Computed in float64 from the running statistics, so the result equals inference of
    the unfused network and cannot be trained further.

    Args:
        variables: "params" and "batch_stats" of `FastViT(fused=False)`.

    Returns:
        Variables of `FastViT(fused=True)` of the same variant.
    """
    return _fastvit_weights.fuse(variables)


def import_torch(state_dict: Mapping[str, np.ndarray]) -> Variables:
    """Convert timm's (unfused) FastViT weights.

    Args:
        state_dict: timm's names to numpy arrays. The classifier `head.*` is skipped;
            every other entry must be known and none may be missing.

    Raises:
        UserError: The entries are not those of one published size.
    """
    variables = _fastvit_weights.from_torch(state_dict)
    name = _closest_variant(_weights.shapes(variables))
    _weights.check_fits(
        variables,
        FastViT(name),
        name,
        f"the state dict of an unfused timm model, one of {sorted(VARIANTS)}",
    )
    return variables


def _closest_variant(shapes):
    """Return the size that shares the most fields with the weights."""
    params = {key.removeprefix("params/"): shape for key, shape in shapes.items()}
    kernels = [
        params.get(f"stages_{i}/blocks_0/mlp/fc1/kernel", (0, 0)) for i in (0, 3)
    ]
    names = {tuple(key.split("/")[:2]) for key in params if "/blocks_" in key}
    depths = tuple(sum(stage == f"stages_{i}" for stage, _ in names) for i in range(4))
    found = (
        depths,
        (kernels[0][0], kernels[1][0]),
        kernels[0][1] / max(kernels[0][0], 1),
        "stages_3/position/conv/kernel" in params,
    )

    def shared(name):
        size = VARIANTS[name]
        fields = (
            size.depths,
            (size.widths[0], size.widths[3]),
            size.mlp_ratio,
            size.attention,
        )
        return sum(a == b for a, b in zip(fields, found, strict=True))

    return max(VARIANTS, key=shared)
