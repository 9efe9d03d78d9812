"""FastViT's parts: convolutions with branches, squeeze and excitation, MLP, attention.

Every part has a training form and, with `fused=True`, the inference form whose
parameters `_fastvit_weights` folds.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from handjax.nn.ops import convolutions
from handjax.nn.ops.batch_norm import (
    BatchNorm,
    Moments,
    apply_affine,
    covariance,
    moments,
)
from handjax.nn.ops.conv import Conv, Map, Output, torch_init

Affine = tuple[Float[Array, " dim"], Float[Array, " dim"]]

_dense_init = nn.initializers.truncated_normal(0.02)


class ConvNorm(nn.Module):
    """Convolution, then batch normalisation; one convolution when fused."""

    features: int
    kernel_size: int
    stride: int = 1
    groups: int = 1
    fused: bool = False
    dtype: Any = jnp.float32
    init: Any = torch_init

    @nn.compact
    def __call__(self, x: Map, train: bool) -> Output:
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


class Branch(nn.Module):
    """Kernel and normalisation of one branch, applied by whoever sums the branches."""

    shape: tuple[int, int, int, int]

    def setup(self):
        """Create the kernel and its normalisation."""
        self.conv = Kernel(self.shape)
        self.bn = BatchNorm(self.shape[-1])

    def kernel(self) -> convolutions.Kernel:
        """Return the kernel of the convolution."""
        return self.conv()

    def affine(self, batch: Moments | None) -> Affine:
        """Return the factor and offset that normalise the convolution's output."""
        return self.bn.affine(batch)


class Kernel(nn.Module):
    """A convolution's kernel, without the convolution."""

    shape: tuple[int, int, int, int]

    @nn.compact
    def __call__(self) -> convolutions.Kernel:
        """Return the kernel."""
        return self.param("kernel", torch_init, self.shape)


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
    def __call__(self, x: Map, train: bool) -> Output:
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
        return convolutions.gelu(out) if self.activation else out

    def _branches(self, x, train, conv):
        if self.depthwise and x.shape[-1] == self.features:
            return self._channel_branches(x, train, conv)
        if self.kernel_size > 1 and not self.depthwise:
            return self._image_branches(x, train)
        out = ConvNorm(self.features, self.kernel_size, **conv, name="conv_kxk")(
            x, train
        )
        if self.kernel_size > 1:
            return out + ConvNorm(self.features, 1, **conv, name="conv_scale")(x, train)
        return out + BatchNorm(self.features, name="identity")(x, train=train)

    def _channel_branches(self, x, train, conv):
        """Sum depthwise branches; those that only rescale x share one pass over it.

        A 1 x 1 depthwise convolution multiplies each channel, so its moments follow
        from those of x, which the identity branch needs too.
        """
        out = ConvNorm(self.features, self.kernel_size, **conv, name="conv_kxk")(
            x, train
        )
        picked = x[:, :: self.stride, :: self.stride]
        batch = moments(picked) if train else None
        scale = Branch((1, 1, 1, self.features), name="conv_scale")
        kernel = scale.kernel().reshape(-1)
        factor, offset = scale.affine(None if batch is None else batch.scaled(kernel))
        factor = factor * kernel
        if self.stride == 1:
            identity = BatchNorm(self.features, name="identity").affine(batch)
            factor, offset = factor + identity[0], offset + identity[1]
        return out + apply_affine(picked, factor, offset)

    def _image_branches(self, x, train):
        """Sum the k x k and the 1 x 1 branch of an image as one matrix product.

        Both are linear in the image's windows, so their moments follow from the
        covariance of the windows and neither output is ever computed.
        """
        size, dim = self.kernel_size, x.shape[-1]
        windows = convolutions.windows(x.astype(self.dtype), size, self.stride)
        batch = covariance(windows) if train else None
        edge = (size // 2, size // 2)
        matrix, bias = 0.0, 0.0
        for name, taps in (("conv_kxk", size), ("conv_scale", 1)):
            branch = Branch((taps, taps, dim, self.features), name=name)
            kernel = branch.kernel()
            if taps < size:
                kernel = jnp.pad(kernel, (edge, edge, (0, 0), (0, 0)))
            kernel = kernel.reshape(-1, self.features)
            factor, offset = branch.affine(
                None if batch is None else batch.through(kernel)
            )
            matrix, bias = matrix + kernel * factor[None], bias + offset
        out = convolutions.pointwise(windows, matrix.astype(self.dtype))
        return out + bias.astype(self.dtype)[None, None, None]


class SqueezeExcite(nn.Module):
    """Gate each channel by a small network of the channels' means."""

    reduction: int = 16
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Map) -> Output:
        """Multiply each channel by its gate."""
        hidden = x.shape[-1] // self.reduction
        dense: dict[str, Any] = dict(dtype=self.dtype, kernel_init=torch_init)
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
    def __call__(self, x: Map, train: bool) -> Output:
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
    def __call__(self, x: Map) -> Output:
        """Add the code."""
        dim = x.shape[-1]
        conv = Conv(dim, 7, groups=dim, use_bias=True, dtype=self.dtype, name="conv")
        return conv(x) if self.fused else x + conv(x)


class ConvMlp(nn.Module):
    """Depthwise 7 x 7 convolution, then a channel MLP."""

    ratio: int
    fused: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Map, train: bool) -> Output:
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
        # Two axes, as in `ops.pointwise`.
        flat = x.reshape(-1, dim)
        flat = nn.Dense(dim * self.ratio, **options, name="fc1")(flat)
        flat = nn.Dense(dim, **options, name="fc2")(convolutions.gelu(flat))
        return flat.reshape(x.shape)


class LayerScale(nn.Module):
    """Learned factor of each channel."""

    value: float

    @nn.compact
    def __call__(self, x: Map) -> Output:
        """Scale the channels."""
        init = nn.initializers.constant(self.value)
        gamma = self.param("gamma", init, (x.shape[-1],))
        return x * gamma.astype(x.dtype)[None, None, None]


class Attention(nn.Module):
    """Multi-head self-attention over all positions of the map."""

    head_dim: int
    fused: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Map) -> Output:
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
