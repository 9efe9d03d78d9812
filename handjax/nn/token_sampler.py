"""Tokens from feature maps: bilinear samples, sine position code, upsampling.

Points are in [0, 1] of the crop, x right, y down, with 0 and 1 at the centres of the
outermost pixels (PyTorch's `align_corners=True`): pixel = point * (size - 1). Where a
function takes pixels of the map, (0, 0) is the centre of its first one.
"""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float

from handjax.errors import UserError
from handjax.nn.metaformer import torch_linear_init
from handjax.nn.ops.batch_norm import BatchNorm
from handjax.nn.ops.conv import Conv


def bilinear_sample(
    features: Float[Array, "batch height width dim"],
    points: Float[Array, "batch point 2"],
) -> Float[Array, "batch point dim"]:
    """Interpolate features at points; points outside are moved to the border.

    Interpolation is a product with hat functions max(0, 1 - |pixel - i|), which is a
    small matmul: no gather, whose gradient is a slow scatter on every device.
    """
    height, width = features.shape[1:3]
    inside = jnp.clip(points.astype(jnp.float32), 0.0, 1.0)
    return sample_pixels(
        features, inside * jnp.array([width - 1, height - 1])[None, None]
    )


def sample_pixels(
    features: Float[Array, "batch height width dim"],
    pixels: Float[Array, "batch point 2"],
) -> Float[Array, "batch point dim"]:
    """Interpolate features at pixels of the map; around the map all is zero.

    As PyTorch's `grid_sample(padding_mode="zeros")`: half a pixel beyond the centre of
    the outermost one, half of its features are left.
    """
    height, width = features.shape[1:3]
    along_x = _hat(pixels[..., 0], width).astype(features.dtype)
    along_y = _hat(pixels[..., 1], height).astype(features.dtype)
    rows = jnp.einsum("bpw,bhwd->bphd", along_x, features)
    return jnp.einsum("bph,bphd->bpd", along_y, rows)


def _hat(
    pixel: Float[Array, "batch point"], size: int
) -> Float[Array, "batch point size"]:
    grid = jnp.arange(size, dtype=jnp.float32)[None, None]
    return jnp.maximum(0.0, 1.0 - jnp.abs(pixel[..., None] - grid))


def sine_code(
    height: int, width: int, dim: int, *, temperature: float = 10_000.0
) -> Float[np.ndarray, "height width dim"]:
    """Return a fixed 2-D position code: half of the channels from y, half from x.

    Positions 1..n are scaled to (0, 2 pi]; channels 2j and 2j+1 are the sine and the
    cosine at frequency temperature^(-2j / (dim / 2)).
    """
    half = dim // 2
    frequency = temperature ** (-2.0 * (np.arange(half) // 2) / half)

    def axis(size: int) -> np.ndarray:
        position = np.arange(1, size + 1) / (size + 1e-6) * 2 * math.pi
        angle = position[:, None] * frequency
        return np.where(np.arange(half) % 2 == 0, np.sin(angle), np.cos(angle))

    code = np.empty((height, width, dim), np.float32)
    code[..., :half] = axis(height)[:, None]
    code[..., half:] = axis(width)[None]
    return code


class Upsample(nn.Module):
    """Transposed convolution, kernel = stride = `factor`, no bias; BatchNorm; ReLU.

    With kernel = stride the patches do not overlap, so the layer is a matmul and a
    reshape, on every platform.
    """

    features: int
    factor: int = 4
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width dim"], *, train: bool
    ) -> Float[Array, "batch new_height new_width features"]:
        """Map of `factor` times the height and width."""
        n = self.factor
        y = nn.Dense(
            n * n * self.features,
            use_bias=False,
            dtype=self.dtype,
            # PyTorch counts the fan-in of a transposed convolution on its output side.
            kernel_init=_uniform(1 / math.sqrt(n * n * self.features)),
            name="deconvolution",
        )(x)
        spread = "b row col (down across dim) -> b (row down) (col across) dim"
        y = rearrange(y, spread, down=n, across=n)
        return nn.relu(BatchNorm(self.features, name="norm")(y, train=train))


def _uniform(bound: float) -> nn.initializers.Initializer:
    def init(key: Any, shape: Any, dtype: Any = jnp.float32) -> Array:
        return nn.initializers.uniform(2 * bound)(key, shape, dtype) - bound

    return init


GENERATORS = {
    "A": "global feature, the same for every token",
    "B": "every pixel of the map",
    "C": "the map as it is, at the 2-D points",
    "D": "the map, upsampled, at the 2-D points (the papers' choice)",
    "E": "as D, after further convolutions",
    "F": "as D, at the joints and at the vertices of a coarse mesh",
}


class TokenGenerator(nn.Module):
    """Image tokens from one map of the backbone, in one of six ways (`GENERATORS`).

    The letters are those of SimpleHand's figure 2. The rows of its table 5 at 224
    pixels: A global, B grid 7x7, C point 7x7, D point 28x28 (14x14 with
    `upsample=(2,)`), E point 28x28 enhanced, F coarse mesh. "F" differs from "D" in the
    points alone, which the caller gives.

    The paper leaves open what "enhanced" is: here it is `upsample=(2, 2)` ("two layers
    of two-fold deconvolutions") or E's two 3x3 convolutions ("more convolutions"), both
    with BatchNorm and ReLU; and for 14x14 one deconvolution with kernel = stride = 2,
    as the released 4x one has kernel = stride.
    """

    kind: str = "D"
    dim: int = 256
    upsample: tuple[int, ...] = (4,)
    """Factors of the transposed convolutions of D, E and F."""
    sine: bool = True
    """Whether the fixed sine code is added to the map."""
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        features: Float[Array, "batch height width channel"],
        points: Float[Array, "batch point 2"],
        *,
        train: bool,
    ) -> Float[Array, "batch token dim"]:
        """Return tokens: one for each point, or height x width for "B".

        Args:
            features: A map of the backbone.
            points: In [0, 1] of the crop.
            train: Whether batch statistics are used and updated.
        """
        if self.kind not in GENERATORS:
            raise UserError(
                f"config.model.token_generator={self.kind!r} is not one of "
                f"{', '.join(GENERATORS)}."
            )
        if self.kind in "DEF":
            features = self._upsampled(features, train)
        # A map of the right width is taken as it is (HRNet's at stride 8).
        elif features.shape[-1] != self.dim:
            reduce = nn.Dense(
                self.dim, dtype=self.dtype, kernel_init=torch_linear_init, name="reduce"
            )
            features = reduce(features)
        batch, num_points, _ = points.shape
        if self.kind == "A":
            token = jnp.mean(features, axis=(1, 2))
            return jnp.broadcast_to(token[:, None], (batch, num_points, self.dim))
        if self.sine:
            code = sine_code(*features.shape[1:3], self.dim)
            features = features + jnp.asarray(code, features.dtype)[None]
        if self.kind == "B":
            return features.reshape(batch, -1, self.dim)
        return bilinear_sample(features, points)

    def _upsampled(self, features: Array, train: bool) -> Array:
        for i, factor in enumerate(self.upsample):
            layer = Upsample(self.dim, factor, self.dtype, name=f"upsample{i}")
            features = layer(features, train=train)
        for i in range(2 if self.kind == "E" else 0):
            features = Conv(self.dim, 3, dtype=self.dtype, name=f"conv{i}")(features)
            norm = BatchNorm(self.dim, name=f"conv{i}_norm")
            features = nn.relu(norm(features, train=train))
        return features
