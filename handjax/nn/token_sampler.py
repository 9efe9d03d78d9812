"""Tokens from feature maps: bilinear samples, sine position code, 4x upsampling.

Points are in [0, 1] of the crop, x right, y down, with 0 and 1 at the centres of the
outermost pixels (PyTorch's `align_corners=True`): pixel = point * (size - 1).
"""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from handjax.nn.metaformer import torch_linear_init


def bilinear_sample(
    features: Float[Array, "batch height width dim"],
    points: Float[Array, "batch point 2"],
) -> Float[Array, "batch point dim"]:
    """Features at points, interpolated; points outside are moved to the border.

    Interpolation is a product with hat functions max(0, 1 - |pixel - i|), which is a
    small matmul: no gather, whose gradient is a slow scatter on every device.
    """
    height, width = features.shape[1:3]
    inside = jnp.clip(points.astype(jnp.float32), 0.0, 1.0)
    x, y = inside[..., 0] * (width - 1), inside[..., 1] * (height - 1)
    along_x = _hat(x, width).astype(features.dtype)
    along_y = _hat(y, height).astype(features.dtype)
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
    """Fixed 2-D position code: the first half of the channels from y, the other from x.

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


class Upsample4x(nn.Module):
    """Transposed convolution, kernel 4, stride 4, no bias; BatchNorm; ReLU.

    With kernel = stride the patches do not overlap, so the layer is a matmul and a
    reshape, on every platform.
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width dim"], *, train: bool
    ) -> Float[Array, "batch height4 width4 features"]:
        """Map of four times the height and width."""
        batch, height, width, _ = x.shape
        y = nn.Dense(
            16 * self.features,
            use_bias=False,
            dtype=self.dtype,
            # PyTorch counts the fan-in of a transposed convolution on its output side.
            kernel_init=_uniform(1 / math.sqrt(16 * self.features)),
            name="deconvolution",
        )(x)
        y = y.reshape(batch, height, width, 4, 4, self.features)
        y = y.transpose(0, 1, 3, 2, 4, 5)
        y = y.reshape(batch, 4 * height, 4 * width, self.features)
        norm = nn.BatchNorm(
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-5,
            dtype=self.dtype,
            name="bn",
        )
        return nn.relu(norm(y))


def _uniform(bound: float) -> nn.initializers.Initializer:
    def init(key: Any, shape: Any, dtype: Any = jnp.float32) -> Array:
        return nn.initializers.uniform(2 * bound)(key, shape, dtype) - bound

    return init


GENERATORS = {
    "A": "global feature, the same for every token",
    "B": "every pixel of the backbone's last map",
    "C": "the backbone's last map at the 2-D joints",
    "D": "the last map, upsampled 4x, at the 2-D joints (the paper's choice)",
}


class TokenGenerator(nn.Module):
    """Image tokens from the backbone's last map, in one of four ways (`GENERATORS`).

    The letters follow SimpleHand's figure 2 a-d, whose ablation TokenHand repeats: at
    224 pixels B samples the 7x7 grid, C samples at 7x7 and D at 28x28.
    """

    kind: str = "D"
    dim: int = 256
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        features: Float[Array, "batch height width channel"],
        joints: Float[Array, "batch joint 2"],
        *,
        train: bool,
    ) -> Float[Array, "batch token dim"]:
        """Tokens; 21 of them, or height x width for "B".

        Args:
            features: The backbone's last map.
            joints: 2-D joints in [0, 1] of the crop.
            train: Whether batch statistics are used and updated.
        """
        if self.kind not in GENERATORS:
            raise ValueError(
                f"config.model.token_generator={self.kind!r} is not one of "
                f"{', '.join(GENERATORS)}."
            )
        if self.kind == "D":
            features = Upsample4x(self.dim, self.dtype, name="upsample")(
                features, train=train
            )
            return bilinear_sample(self._with_code(features), joints)
        features = nn.Dense(
            self.dim, dtype=self.dtype, kernel_init=torch_linear_init, name="reduce"
        )(features)
        batch, num_joints, _ = joints.shape
        if self.kind == "A":
            token = jnp.mean(features, axis=(1, 2))
            return jnp.broadcast_to(token[:, None], (batch, num_joints, self.dim))
        features = self._with_code(features)
        if self.kind == "B":
            return features.reshape(batch, -1, self.dim)
        return bilinear_sample(features, joints)

    def _with_code(self, features: Array) -> Array:
        code = sine_code(*features.shape[1:3], self.dim)
        return features + jnp.asarray(code, features.dtype)[None]
