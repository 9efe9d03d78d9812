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
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from handjax.nn import ops
from handjax.nn.backbones import _fastvit_weights
from handjax.nn.batch_norm import BatchNorm, Moments, apply_affine, moments
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

Map = Float[Array, "batch height width dim"]

_conv_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
_dense_init = nn.initializers.truncated_normal(0.02)


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
        if image.shape[1] % 32 or image.shape[2] % 32:
            raise ValueError(
                f"FastViT was given images of {image.shape[1]} x {image.shape[2]}; both "
                "sides must be multiples of 32: crop or pad them."
            )
        if train and self.fused:
            raise ValueError(
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
    def __call__(self, x: Map, train: bool) -> Map:
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


class Conv(nn.Module):
    """Convolution with torch's padding, in the formulation of the platform."""

    features: int
    kernel_size: int
    stride: int = 1
    groups: int = 1
    use_bias: bool = False
    dtype: Any = jnp.float32
    init: Any = _conv_init

    @nn.compact
    def __call__(self, x: Map) -> Map:
        """Convolve."""
        size, dim = self.kernel_size, x.shape[-1] // self.groups
        kernel = self.param("kernel", self.init, (size, size, dim, self.features))
        x = ops.conv2d(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            stride=self.stride,
            groups=self.groups,
        )
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            x = x + bias.astype(self.dtype)[None, None, None]
        return x


class ConvNorm(nn.Module):
    """Convolution, then batch normalisation; one convolution when fused."""

    features: int
    kernel_size: int
    stride: int = 1
    groups: int = 1
    fused: bool = False
    dtype: Any = jnp.float32
    init: Any = _conv_init

    @nn.compact
    def __call__(self, x: Map, train: bool) -> Map:
        """Convolve and normalise."""
        conv = Conv(
            self.features,
            self.kernel_size,
            self.stride,
            self.groups,
            use_bias=self.fused,
            dtype=self.dtype,
            init=self.init,
            name="conv",
        )
        if self.fused:
            return conv(x)
        return BatchNorm(self.features, name="bn")(conv(x), train=train)


class ScaleNorm(nn.Module):
    """A depthwise 1 x 1 convolution and its normalisation, as factor and offset.

    The convolution multiplies each channel, so its moments follow from the input's.
    """

    features: int

    @nn.compact
    def __call__(self, batch: Moments | None):
        """Factor and offset of the branch, from the moments of its input."""
        kernel = ScaleKernel(self.features, name="conv")()
        factor, offset = BatchNorm(self.features, name="bn").affine(
            batch.scaled(kernel) if batch is not None else None
        )
        return factor * kernel, offset


class ScaleKernel(nn.Module):
    """The kernel of a depthwise 1 x 1 convolution, flat."""

    features: int

    @nn.compact
    def __call__(self) -> Float[Array, " dim"]:
        """Return the kernel."""
        return self.param("kernel", _conv_init, (1, 1, 1, self.features)).reshape(-1)


class MobileOne(nn.Module):
    """Sum of a k x k, a 1 x 1 and an identity branch, each normalised; then GELU."""

    features: int
    kernel_size: int
    stride: int = 1
    depthwise: bool = False
    squeeze: bool = False
    activation: bool = True
    fused: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Map, train: bool) -> Map:
        """Sum the branches, gate the channels, activate."""
        conv: dict[str, Any] = dict(
            stride=self.stride,
            groups=x.shape[-1] if self.depthwise else 1,
            dtype=self.dtype,
        )
        if self.fused:
            conv_all = Conv(
                self.features, self.kernel_size, use_bias=True, **conv, name="conv"
            )
            out = conv_all(x)
        else:
            out = self._branches(x, train, conv)
        if self.squeeze:
            out = SqueezeExcite(dtype=self.dtype, name="se")(out)
        return nn.gelu(out, approximate=False) if self.activation else out

    def _branches(self, x, train, conv):
        """Sum the branches; those that only rescale x share one pass over it."""
        same = x.shape[-1] == self.features and self.stride == 1
        scale = self.kernel_size > 1
        by_channel = scale and self.depthwise and x.shape[-1] == self.features
        out = ConvNorm(self.features, self.kernel_size, **conv, name="conv_kxk")(
            x, train
        )
        picked = x[:, :: self.stride, :: self.stride]
        batch = moments(picked) if train and (same or by_channel) else None
        affine = []
        if by_channel:
            affine.append(ScaleNorm(self.features, name="conv_scale")(batch))
        elif scale:
            out = out + ConvNorm(self.features, 1, **conv, name="conv_scale")(x, train)
        if same:
            affine.append(BatchNorm(self.features, name="identity").affine(batch))
        if affine:
            factors, offsets = zip(*affine, strict=True)
            out = out + apply_affine(picked, sum(factors), sum(offsets))
        return out


class SqueezeExcite(nn.Module):
    """Gate each channel by a small network of the channels' means."""

    reduction: int = 16
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Map) -> Map:
        """Multiply each channel by its gate."""
        hidden = x.shape[-1] // self.reduction
        dense: dict[str, Any] = dict(dtype=self.dtype, kernel_init=_conv_init)
        gate = jnp.mean(x, axis=(1, 2))
        gate = nn.relu(nn.Dense(hidden, **dense, name="fc1")(gate))
        gate = nn.sigmoid(nn.Dense(x.shape[-1], **dense, name="fc2")(gate))
        return x * gate[:, None, None]


class LargeKernelConv(nn.Module):
    """Halve the map by a 7 x 7 and a 3 x 3 depthwise convolution, summed."""

    features: int
    fused: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Map, train: bool) -> Map:
        """Map (h, w) to (h / 2, w / 2)."""
        options: dict[str, Any] = dict(
            stride=2, groups=x.shape[-1], fused=self.fused, dtype=self.dtype
        )
        large = ConvNorm(self.features, 7, **options, name="large_conv")(x, train)
        if self.fused:
            return large
        return large + ConvNorm(self.features, 3, **options, name="small_conv")(
            x, train
        )


class PositionCode(nn.Module):
    """Add a depthwise 7 x 7 convolution of the map: where its zero borders are."""

    fused: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Map) -> Map:
        """Add the code."""
        dim = x.shape[-1]
        conv = Conv(dim, 7, groups=dim, use_bias=True, dtype=self.dtype, name="conv")
        return conv(x) if self.fused else x + conv(x)


class RepMixer(nn.Module):
    """Mix neighbours by a depthwise 3 x 3 convolution minus a normalised identity."""

    layer_scale: float
    fused: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Map, train: bool) -> Map:
        """x + gamma * (mixer(x) - norm(x))."""
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


class ConvMlp(nn.Module):
    """Depthwise 7 x 7 convolution, then a channel MLP."""

    ratio: int
    fused: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Map, train: bool) -> Map:
        """Return the residual."""
        dim = x.shape[-1]
        options: dict[str, Any] = dict(dtype=self.dtype, kernel_init=_dense_init)
        x = ConvNorm(
            dim,
            7,
            groups=dim,
            fused=self.fused,
            dtype=self.dtype,
            init=_dense_init,
            name="conv",
        )(x, train)
        x = nn.Dense(dim * self.ratio, **options, name="fc1")(x)
        return nn.Dense(dim, **options, name="fc2")(nn.gelu(x, approximate=False))


class LayerScale(nn.Module):
    """Learned factor of each channel."""

    value: float

    @nn.compact
    def __call__(self, x: Map) -> Map:
        """Scale the channels."""
        init = nn.initializers.constant(self.value)
        gamma = self.param("gamma", init, (x.shape[-1],))
        return x * gamma.astype(x.dtype)[None, None, None]


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


class Attention(nn.Module):
    """Multi-head self-attention over all positions of the map."""

    head_dim: int
    fused: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Map) -> Map:
        """Attend, row-major positions."""
        batch, height, width, dim = x.shape
        options: dict[str, Any] = dict(dtype=self.dtype, kernel_init=_dense_init)
        # Folding the normalisation before it gives the fused projection a bias.
        packed = nn.Dense(3 * dim, use_bias=self.fused, **options, name="qkv")(x)
        packed = packed.reshape(batch, height * width, 3, -1, self.head_dim)
        q, k, v = (packed[:, :, i] for i in range(3))
        mixed = jax.nn.dot_product_attention(q, k, v)
        mixed = mixed.reshape(batch, height, width, dim)
        return nn.Dense(dim, **options, name="proj")(mixed)


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
        ValueError: The entries are not those of one published size.
    """
    variables = _fastvit_weights.from_torch(state_dict)
    given = _shapes(variables)
    differences = {}
    for name in VARIANTS:
        expected = _shapes(_abstract_variables(name))
        if given == expected:
            return variables
        differences[name] = set(given.items()) ^ set(expected.items())
    name = min(differences, key=lambda name: len(differences[name]))
    paths = {path for path, _ in differences[name]}
    raise ValueError(
        f"The weights fit no FastViT of {sorted(VARIANTS)}; closest is {name}, from "
        f"which {len(paths)} entries differ: {sorted(paths)[:8]}. Pass the state dict "
        "of an unfused timm FastViT."
    )


def _abstract_variables(name):
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    return jax.eval_shape(FastViT(name).init, jax.random.key(0), image)


def _shapes(variables):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree.leaves_with_path(variables)
    }
