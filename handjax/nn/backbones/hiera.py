"""Hiera: a hierarchical vision transformer of plain attention blocks.

Ryali et al., ICML 2023, https://arxiv.org/abs/2306.00989, in the form timm and the
authors publish weights for. Windows of tokens attend to themselves in the first two
stages, all tokens in the last two; between stages queries are max-pooled, 2 x 2. For an
image of 224 x 224 and width w (96 in the tiny size) the maps are 56 x 56 x w,
28 x 28 x 2w, 14 x 14 x 4w and 7 x 7 x 8w; "final" is the last, without normalisation.
Maps are (batch, height, width, channel).
"""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float

from handjax.errors import UserError
from handjax.nn.backbones import _weights
from handjax.nn.ops import convolutions
from handjax.nn.ops.conv import Conv, Map, Output
from handjax.nn.ops.image import check_sides
from handjax.nn.ops.largest import largest
from handjax.types import Variables


class Variant(NamedTuple):
    """Size of one published network."""

    depths: tuple[int, int, int, int]
    width: int
    heads: int
    """Of the first stage; width and heads double from stage to stage."""


VARIANTS = {
    "hiera_tiny_224": Variant((1, 2, 7, 2), 96, 1),
    "hiera_small_224": Variant((1, 2, 11, 2), 96, 1),
    "hiera_base_224": Variant((2, 3, 16, 3), 96, 1),
    "hiera_base_plus_224": Variant((2, 3, 16, 3), 112, 2),
    "hiera_large_224": Variant((2, 6, 36, 4), 144, 2),
    # Not published: every kind of block at the least cost, for tests.
    "hiera_test": Variant((1, 1, 2, 1), 16, 1),
}
NUM_FEATURES = {name: 8 * size.width for name, size in VARIANTS.items()}
CENTRED_STRIDE = 4  # see `backbones.first_pixel`

WINDOWS = (8, 4, None, None)
"""Side of the windows that the tokens of each stage attend in; None for the map."""

# timm truncates at +-2, a hundred standard deviations, that is, not at all.
_init = nn.initializers.normal(0.02)


class Hiera(nn.Module):
    """Image to feature maps at strides 4 to 32; "final" is the last of them.

    The position code is a parameter of one image size, that of `init`.
    """

    variant: str = "hiera_tiny_224"
    drop_path_rate: float = 0.0
    """Rate of the last block; earlier blocks grow linearly from zero."""
    dtype: Any = jnp.float32
    """Type to compute in; parameters stay float32."""

    @nn.compact
    def __call__(
        self, image: Float[Array, "batch height width 3"], *, train: bool = False
    ) -> dict[str, Float[Array, "batch _ _ _"]]:
        """Return maps "stride4" to "stride32", and "final".

        Args:
            image: Normalised image; sides divisible by 32, and those of the weights.
            train: Drop residual branches (stream "dropout").
        """
        self._check_size(*image.shape[1:3])
        size = VARIANTS[self.variant]
        x = Conv(size.width, 7, 4, 1, True, self.dtype, _init, name="patch_embed")(
            image
        )
        x = x + self.param("pos_embed", _init, x.shape[1:]).astype(self.dtype)[None]
        rates = np.linspace(0, self.drop_path_rate, sum(size.depths)).tolist()
        index, taps = 0, {}
        for i, depth in enumerate(size.depths):
            for j in range(depth):
                pool = i > 0 and j == 0
                block = Block(
                    size.width * 2**i,
                    heads=size.heads * 2**i,
                    pool=pool,
                    # The block that pools attends within the windows it comes from.
                    window=WINDOWS[i - pool],
                    index=index,
                    drop_path_rate=rates[index],
                    dtype=self.dtype,
                    name=f"blocks_{index}",
                )
                x = block(x, train)
                index += 1
            taps[f"stride{4 * 2**i}"] = x
        return taps | {"final": x}

    def _check_size(self, height, width):
        check_sides("Hiera", height, width)
        if not self.has_variable("params", "pos_embed"):
            return
        rows, cols = self.get_variable("params", "pos_embed").shape[:2]
        if (height, width) != (4 * rows, 4 * cols):
            raise UserError(
                f"Hiera was given images of {height} x {width} (height x width), and "
                f"these weights are for {4 * rows} x {4 * cols}. Choose "
                f"config.data.crop_size={4 * rows}, or train weights for this size."
            )


class Block(nn.Module):
    """Attention and an MLP, each with a residual connection; may halve the map."""

    dim: int
    heads: int
    pool: bool
    window: int | None
    index: int
    drop_path_rate: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Map, train: bool) -> Output:
        """Mix tokens, then channels."""
        # Whole branches are dropped, example by example; survivors are scaled up.
        drop = nn.Dropout(self.drop_path_rate, broadcast_dims=(1, 2, 3))
        # timm's scale of the layers that end a residual branch.
        last = nn.initializers.normal(0.02 / math.sqrt(2 * (self.index + 1)))
        normed = _layer_norm(self.dtype, "norm1")(x)
        if self.pool:
            x = max_pool(_dense(self.dim, self.dtype, "proj")(normed))
        attention = Attention(
            self.dim, self.heads, self.pool, self.window, last, self.dtype, name="attn"
        )
        x = x + drop(attention(normed), deterministic=not train)
        normed = _layer_norm(self.dtype, "norm2")(x)
        out = Mlp(last, self.dtype, name="mlp")(normed)
        return x + drop(out, deterministic=not train)


class Attention(nn.Module):
    """Multi-head self-attention within windows, of queries that may be pooled."""

    dim: int
    heads: int
    pool: bool
    window: int | None
    """Side of the windows before pooling; None for one as large as the map."""
    last_init: Any
    dtype: Any

    @nn.compact
    def __call__(self, x: Map) -> Output:
        """Compute softmax(q k / sqrt(d)) v per window and head, then a linear map."""
        height, width = x.shape[1:3]
        sides = (self.window or height, self.window or width)
        qkv = _dense(3 * self.dim, self.dtype, "qkv")(x)
        q, k, v = jnp.split(qkv, 3, axis=-1)
        q_sides = sides
        if self.pool:
            q, q_sides = max_pool(q), (sides[0] // 2, sides[1] // 2)
            height, width = height // 2, width // 2
        q, k, v = (
            self._by_head(to_windows(part, part_sides))
            for part, part_sides in ((q, q_sides), (k, sides), (v, sides))
        )
        scores = jnp.einsum("bqhd,bkhd->bhqk", q * q.shape[-1] ** -0.5, k)
        probs = jax.nn.softmax(scores.astype(jnp.float32), axis=-1).astype(self.dtype)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", probs, v)
        mixed = rearrange(mixed, "window token head d -> window token (head d)")
        mixed = from_windows(mixed, q_sides, (height, width))
        return _dense(self.dim, self.dtype, "proj", self.last_init)(mixed)

    def _by_head(self, x):
        return rearrange(
            x, "window token (head d) -> window token head d", head=self.heads
        )


class Mlp(nn.Module):
    """Two linear maps, four times wider between them, and GELU."""

    last_init: Any
    dtype: Any

    @nn.compact
    def __call__(self, x: Map) -> Map:
        """Mix the channels of each token."""
        out = convolutions.gelu(_dense(4 * x.shape[-1], self.dtype, "fc1")(x))
        return _dense(x.shape[-1], self.dtype, "fc2", self.last_init)(out)


def max_pool(x: Map) -> Output:
    """Take the maximum of every 2 x 2 tokens, channel by channel."""
    pairs = "b (row two) (col too) dim -> b row two col too dim"
    return largest(largest(rearrange(x, pairs, two=2, too=2), 4), 2)


def to_windows(
    x: Map, sides: tuple[int, int]
) -> Float[Array, "batch_windows token dim"]:
    """Cut a map into windows of `sides` (height, width), row by row."""
    cut = "b (down row) (across col) dim -> (b down across) (row col) dim"
    return rearrange(x, cut, row=sides[0], col=sides[1])


def from_windows(
    x: Float[Array, "batch_windows token dim"],
    sides: tuple[int, int],
    shape: tuple[int, int],
) -> Map:
    """Undo `to_windows`, back to maps of `shape` (height, width)."""
    (rows, cols), (height, width) = sides, shape
    return rearrange(
        x,
        "(b down across) (row col) dim -> b (down row) (across col) dim",
        down=height // rows,
        across=width // cols,
        row=rows,
        col=cols,
    )


def _layer_norm(dtype, name):
    # The two-pass variance is torch's; the other loses digits of far-off means.
    return nn.LayerNorm(1e-6, dtype=dtype, use_fast_variance=False, name=name)


def _dense(dim, dtype, name, init=_init):
    bias = nn.initializers.constant(0.02)
    return nn.Dense(dim, dtype=dtype, kernel_init=init, bias_init=bias, name=name)


def build(name: str, **options) -> Hiera:
    """Build one published size; `options` are the fields of `Hiera`."""
    return Hiera(variant=name, **options)


def import_torch(state_dict: Mapping[str, np.ndarray]) -> Variables:
    """Convert timm's Hiera weights, or those of the authors' own package.

    Args:
        state_dict: Their names to numpy arrays. The classifier (`head.*`, and `norm.*`
            as the authors call its normalisation) is skipped; every other entry must be
            known and none may be missing.

    Raises:
        UserError: The entries are not those of one published size.
    """
    params: dict[str, Any] = {}
    for key, value in state_dict.items():
        if key.startswith(("head.", "norm.")):
            continue
        name = re.sub(r"^blocks\.(\d+)\.", r"blocks_\1.", key)
        *path, leaf = name.replace("patch_embed.proj.", "patch_embed.").split(".")
        leaf, array = _entry(path, leaf, np.asarray(value))
        node = params
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = array
    size = _closest_variant(params)
    # The check's image is 32 x 32; position codes of any size are fine.
    shown = dict(params)
    if "pos_embed" in shown:
        shown["pos_embed"] = shown["pos_embed"][:8, :8]
    source = f"the state dict of one of {sorted(VARIANTS)}"
    _weights.check_fits({"params": shown}, Hiera(size), size, source)
    return {"params": params}


def _entry(path, leaf, value):
    if leaf == "pos_embed":
        return leaf, _as_map(value)
    if leaf != "weight":
        return leaf, value
    if value.ndim == 4:
        return "kernel", value.transpose(2, 3, 1, 0)
    if path[-1].startswith("norm"):
        return "scale", value
    return "kernel", value.T


def _as_map(code):
    """Reshape a position code (1, side * side, dim) to (side, side, dim)."""
    side = math.isqrt(code.shape[1]) if code.ndim == 3 else 0
    if side == 0 or side % 8 or code.shape[:2] != (1, side**2):
        raise UserError(
            f"pos_embed has the shape {code.shape}; it must be (1, n * n, width) for "
            "images of 4n x 4n, n a multiple of 8. Pass the state dict of one of "
            f"{sorted(VARIANTS)}."
        )
    return code.reshape(side, side, -1)


def _closest_variant(params):
    blocks = sum(name.startswith("blocks_") for name in params)
    width = np.shape(params.get("patch_embed", {}).get("bias", ()))[-1:] or (0,)
    return min(
        VARIANTS,
        key=lambda name: (
            abs(VARIANTS[name].width - width[0]),
            abs(sum(VARIANTS[name].depths) - blocks),
        ),
    )
