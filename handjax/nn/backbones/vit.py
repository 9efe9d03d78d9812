"""Vision transformers: timm's, and those that HaMeR and Hamba start from.

Dosovitskiy et al., ICLR 2021, https://arxiv.org/abs/2010.11929 (names with a patch
size, in the form timm publishes weights for); Xu et al., ViTPose, NeurIPS 2022,
https://arxiv.org/abs/2204.12484 (`vit_b`, `vit_l`, `vit_h`), whose rules differ:

- the image is padded by 2 pixels on each side before it is cut into patches, so patch
  (r, c) covers rows 16 r - 2 to 16 r + 13;
- no class token is processed: its position is added to that of every patch instead;
- HaMeR's input is 256 x 192, a grid of 16 x 12 patches.

`vit_s` and `vit_t` follow the second rules with patches of 8 and no padding, for small
pictures: 128 x 96 are the same grid, each patch centred where it is looked for.
`vit_t16` has a quarter of the patches, with padding.

There is one map, (batch, rows, columns, channel), one vector for each patch: it is both
"final" and the map of the patch's stride ("stride16" or "stride14").
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float

from handjax.errors import UserError
from handjax.nn.backbones import _torch_names, _weights
from handjax.nn.backbones._transformer import Mlp, init, layer_norm
from handjax.nn.ops.conv import Conv, Map, Output
from handjax.nn.ops.remat import rematerialize
from handjax.types import Variables

Tokens = Float[Array, "batch tokens dim"]


class Variant(NamedTuple):
    """Size of one published network, and whose rules it follows."""

    patch: int
    depth: int
    width: int
    heads: int
    rules: Literal["timm", "hamer"] = "timm"

    @property
    def padding(self) -> int:
        """Zeros on each side of the image."""
        # ViTPose's formula, 4 + 2 (ratio // 2 - 1) with ratio 1, knows no patch size;
        # at 8 it would only shift the patches off their grid.
        return 2 if self.rules == "hamer" and self.patch == 16 else 0

    @property
    def last_norm(self) -> str:
        """Name of the normalisation after the last block."""
        return "last_norm" if self.rules == "hamer" else "norm"


VARIANTS = {
    "vit_base_patch16_224": Variant(16, 12, 768, 12),
    "vit_large_patch16_224": Variant(16, 24, 1024, 16),
    "vit_huge_patch14_224": Variant(14, 32, 1280, 16),
    "vit_b": Variant(16, 12, 768, 12, "hamer"),
    "vit_l": Variant(16, 24, 1024, 16, "hamer"),
    "vit_h": Variant(16, 32, 1280, 16, "hamer"),
    # Not published: small enough to be trained from nothing.
    "vit_s": Variant(8, 12, 384, 6, "hamer"),
    "vit_t": Variant(8, 6, 192, 3, "hamer"),
    "vit_t16": Variant(16, 6, 192, 3, "hamer"),
    # Not published: both rules at the least cost, for tests.
    "vit_test_patch16": Variant(16, 2, 64, 4),
    "vit_test": Variant(16, 2, 64, 4, "hamer"),
}
NUM_FEATURES = {name: size.width for name, size in VARIANTS.items()}


class ViT(nn.Module):
    """Image to one map of its patches."""

    variant: str = "vit_h"
    drop_path_rate: float = 0.0
    """Rate of the last block; earlier blocks grow linearly from zero."""
    grid: tuple[int, int] | None = None
    """Rows and columns of patches that have a position; None to take them from the
    image at initialisation, which this field makes independent of the image."""
    remat: bool = False
    """Compute each block again in the backward pass instead of storing it."""
    remat_policy: str = "nothing"
    """What is stored of it all the same: one of `nn.remat.POLICIES`."""
    dtype: Any = jnp.float32
    """Type to compute in; parameters stay float32."""

    @nn.compact
    def __call__(
        self, image: Float[Array, "batch height width 3"], *, train: bool = False
    ) -> dict[str, Float[Array, "batch _ _ _"]]:
        """Return the map of the patches, as "final" and by its stride.

        Args:
            image: Normalised image, of the size whose patches have positions.
            train: Drop residual branches (stream "dropout").
        """
        size = VARIANTS[self.variant]
        self._check(image.shape)
        x = PatchEmbed(size, self.dtype, name="patch_embed")(image)
        if self.grid is not None and self.is_initializing():
            x = jnp.zeros((len(x), *self.grid, size.width), x.dtype)
        _, rows, cols, _ = x.shape
        x = self._add_positions(rearrange(x, "b row col dim -> b (row col) dim"))
        block = Block
        if self.remat:
            block = rematerialize(Block, self.remat_policy, static_argnums=(2,))
        rates = np.linspace(0, self.drop_path_rate, size.depth).tolist()
        for i, rate in enumerate(rates):
            x = block(size.heads, rate, self.dtype, name=f"blocks_{i}")(x, train)
        x = layer_norm(self.dtype, size.last_norm)(x[:, -rows * cols :])
        x = rearrange(x, "b (row col) dim -> b row col dim", row=rows, col=cols)
        return {f"stride{size.patch}": x, "final": x}

    def _add_positions(self, x):
        """Add a position to every token; the first one is the class token's."""
        size, (batch, patches, width) = VARIANTS[self.variant], x.shape
        positions = self.param("pos_embed", init, (1, 1 + patches, width))
        positions = positions.astype(x.dtype)
        if size.rules == "hamer":
            return x + (positions[:, 1:] + positions[:, :1])
        small = nn.initializers.normal(1e-6)
        token = self.param("cls_token", small, (1, 1, width)).astype(x.dtype)
        token = jnp.broadcast_to(token, (batch, 1, width))
        return jnp.concatenate([token, x], axis=1) + positions

    def _check(self, shape):
        """Refuse an image whose patches are not those that have positions."""
        if self.is_initializing() or not self.has_variable("params", "pos_embed"):
            return
        size, (height, width) = VARIANTS[self.variant], shape[1:3]
        grid = (height // size.patch, width // size.patch)
        stored = self.get_variable("params", "pos_embed").shape[1] - 1
        fits = grid[0] * grid[1] == stored and self.grid in (None, grid)
        if fits and height % size.patch == width % size.patch == 0:
            return
        allowed = f"{stored} patches of {size.patch} x {size.patch}"
        if self.grid is not None:
            allowed += " in {} rows and {} columns".format(*self.grid)
        raise UserError(
            f"{self.variant} was given images of {height} x {width} (height x width), "
            f"but its position embedding is for {allowed}; crop or resize the images "
            "to that, or initialise the network at their size and train it."
        )


class PatchEmbed(nn.Module):
    """Project each patch of the (padded) image to one vector."""

    size: Variant
    dtype: Any

    @nn.compact
    def __call__(self, image: Map) -> Output:
        """Map (height, width) to (rows, columns) of patches."""
        patch, pad = self.size.patch, (self.size.padding, self.size.padding)
        x = jnp.pad(image.astype(self.dtype), ((0, 0), pad, pad, (0, 0)))
        options: dict[str, Any] = dict(use_bias=True, dtype=self.dtype)
        return Conv(self.size.width, patch, patch, **options, name="proj")(x)


class Block(nn.Module):
    """Self-attention, then an MLP, each normalised before and with a residual."""

    heads: int
    drop_path_rate: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Tokens, train: bool) -> Tokens:
        """Mix tokens, then channels."""
        # Whole branches are dropped, example by example; survivors are scaled up.
        drop = nn.Dropout(self.drop_path_rate, broadcast_dims=(1, 2))
        out = Attention(self.heads, self.dtype, name="attn")(
            layer_norm(self.dtype, "norm1")(x)
        )
        x = x + drop(out, deterministic=not train)
        out = Mlp(self.dtype, name="mlp")(layer_norm(self.dtype, "norm2")(x))
        return x + drop(out, deterministic=not train)


class Attention(nn.Module):
    """Multi-head self-attention over all tokens."""

    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        """Attend."""
        dim = x.shape[-1]
        options: dict[str, Any] = dict(dtype=self.dtype, kernel_init=init)
        packed = nn.Dense(3 * dim, **options, name="qkv")(x)
        q, k, v = (
            rearrange(part, "b token (head d) -> b token head d", head=self.heads)
            for part in jnp.split(packed, 3, axis=-1)
        )
        mixed = jax.nn.dot_product_attention(q, k, v)
        mixed = rearrange(mixed, "b token head d -> b token (head d)")
        return nn.Dense(dim, **options, name="proj")(mixed)


def build(name: str, **options) -> ViT:
    """Build one published size; `options` are the fields of `ViT`."""
    return ViT(variant=name, **options)


def import_torch(state_dict: Mapping[str, np.ndarray]) -> Variables:
    """Convert timm's weights, or those of HaMeR's backbone.

    Args:
        state_dict: timm's names, or HaMeR's without the prefix `backbone.`, to numpy
            arrays. The classifier (`head.*`, `fc_norm.*`) is skipped; every other entry
            must be known and none may be missing.

    Raises:
        UserError: The entries are not those of one published size.
    """
    variables = _torch_names.convert(state_dict, heads=("head.", "fc_norm."))
    params = variables["params"]
    name = _closest_variant(params)
    positions = np.shape(params.get("pos_embed", ()))
    # How the patches are laid out is not in the weights, nor in their shapes.
    grid = (positions[1] - 1, 1) if len(positions) == 3 and positions[1] > 1 else None
    _weights.check_fits(
        variables,
        ViT(name, grid=grid),
        name,
        f"the state dict of one of timm's or HaMeR's {sorted(VARIANTS)}",
    )
    return variables


def _closest_variant(params):
    """Return the size that shares the most fields with the weights."""
    kernel = params.get("patch_embed", {}).get("proj", {}).get("kernel", ())
    found = (
        kernel.shape[0] if np.ndim(kernel) == 4 else 0,
        sum(name.startswith("blocks_") for name in params),
        kernel.shape[-1] if np.ndim(kernel) == 4 else 0,
        "hamer" if "last_norm" in params else "timm",
    )

    def shared(name):
        size = VARIANTS[name]
        fields = (size.patch, size.depth, size.width, size.rules)
        return sum(a == b for a, b in zip(fields, found, strict=True))

    return max(VARIANTS, key=shared)
