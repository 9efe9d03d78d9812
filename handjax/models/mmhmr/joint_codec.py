"""Joints' rotations to a list of tokens and back, by convolutions along the list.

Saleem et al., MMHMR, 2024 say only that there are 1-D convolutions and ResBlocks; the
layers here are those of TokenHMR (Dwivedi et al., CVPR 2024), from which the paper's
numbers of tokens follow: 1, 2, 4 or 8 times the 16 joints. TokenHMR rounds lengths to
tens; here nothing is rounded.

The list has no order but that of the joints, and its neighbours are those of the list.
All convolutions keep the length: zeros are added at both ends.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from handjax.errors import UserError
from handjax.nn.ops.conv import torch_init

DILATION_ORDERS = ("falling", "rising")
"""Of the residual blocks. "falling": the widest look first, as T2M-GPT and TokenHMR."""

List = Float[Array, "batch place dim"]
Output = Float[Array, "batch place_out dim_out"]


class JointEncoder(nn.Module):
    """Lengthen the list of joints, halve it once, and let residual blocks mix it."""

    num_tokens: int
    code_dim: int
    joints: int
    width: int
    depth: int
    dilation_growth: int
    dilation_order: str
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch joint number"]
    ) -> Float[Array, "batch token dim"]:
        """Encode the joints as tokens, float32.

        Raises:
            UserError: `num_tokens` is not `joints` times a power of two.
        """
        x = nn.relu(_conv(self.width, self.dtype, "embed")(x.astype(self.dtype)))
        for i in range(doublings(self.num_tokens, self.joints) + 1):
            x = resized(x, 2 * x.shape[1])
            x = nn.relu(_conv(self.width, self.dtype, f"double{i}")(x))
        x = nn.Conv(
            self.width,
            (4,),
            (2,),
            padding=((1, 1),),
            dtype=self.dtype,
            kernel_init=torch_init,
            name="halve",
        )(x)
        x = ResidualBlocks(
            self.depth,
            self.dilation_growth,
            self.dilation_order,
            self.dtype,
            name="blocks",
        )(x)
        return _conv(self.code_dim, jnp.float32, "tokens")(x.astype(jnp.float32))


class JointDecoder(nn.Module):
    """Shorten the list of tokens in equal steps to the joints, then residual blocks."""

    numbers: int
    """Of each joint's rotation."""
    num_tokens: int
    joints: int
    width: int
    depth: int
    dilation_growth: int
    dilation_order: str
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, codes: Float[Array, "batch token dim"]
    ) -> Float[Array, "batch joint number"]:
        """Decode tokens into the numbers of each joint, float32."""
        x = nn.relu(_conv(self.width, self.dtype, "embed")(codes.astype(self.dtype)))
        steps = doublings(self.num_tokens, self.joints) + 1
        lengths = np.linspace(self.num_tokens, self.joints, steps + 1).astype(int)[1:]
        for i, length in enumerate(lengths.tolist()):
            x = resized(x, length)
            x = nn.relu(_conv(self.width, self.dtype, f"shorten{i}")(x))
        x = ResidualBlocks(
            self.depth,
            self.dilation_growth,
            self.dilation_order,
            self.dtype,
            name="blocks",
        )(x)
        x = nn.relu(_conv(self.width, self.dtype, "last")(x))
        return _conv(self.numbers, jnp.float32, "numbers")(x.astype(jnp.float32))


class ResidualBlocks(nn.Module):
    """x + conv1(relu(conv3(relu(x)))), so many times, at growing dilations."""

    depth: int
    dilation_growth: int
    dilation_order: str
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: List) -> List:
        """Mix places and channels."""
        if self.dilation_order not in DILATION_ORDERS:
            raise UserError(
                f"config.model.dilation_order={self.dilation_order!r} is not one of "
                f"{', '.join(DILATION_ORDERS)}."
            )
        powers = list(range(self.depth))
        for i in powers if self.dilation_order == "rising" else powers[::-1]:
            dilation = self.dilation_growth**i
            y = _conv(x.shape[-1], self.dtype, f"wide{i}", dilation=dilation)(
                nn.relu(x)
            )
            y = _conv(x.shape[-1], self.dtype, f"narrow{i}", size=1)(nn.relu(y))
            x = x + y
        return x


def doublings(num_tokens: int, joints: int) -> int:
    """Return how often the joints must be doubled to give the number of tokens.

    Raises:
        UserError: No number of times will do.
    """
    times = max(num_tokens // joints, 1).bit_length() - 1
    if joints << times != num_tokens:
        allowed = ", ".join(str(joints << i) for i in range(4))
        raise UserError(
            f"config.model.num_tokens={num_tokens} is not the number of joints, "
            f"{joints}, doubled some times; use {allowed} or more."
        )
    return times


def resized(x: List, length: int) -> Output:
    """Resample the list to `length`, copying the old place each falls into."""
    places = np.arange(length) * x.shape[1] // length
    return x[:, places]


def _conv(
    features: int, dtype: Any, name: str, *, size: int = 3, dilation: int = 1
) -> nn.Conv:
    """Return a convolution that keeps the length, initialised as in PyTorch."""
    pad = dilation * (size // 2)
    return nn.Conv(
        features,
        (size,),
        padding=((pad, pad),),
        kernel_dilation=(dilation,),
        dtype=dtype,
        kernel_init=torch_init,
        name=name,
    )
