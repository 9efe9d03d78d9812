"""CLIP's text tower: token ids to a feature of each token, and one of the text.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
ICML 2021, https://arxiv.org/abs/2103.00020: a transformer with causal mask, normalised
before each part, quick GELU, and a projection of what stands at the end of the text.
Weights that others trained with the plain GELU have the same names and shapes, so that
no file tells them apart; they are not for this network.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int

from handjax.errors import UserError
from handjax.nn.metaformer import layer_norm
from handjax.types import AnyArray, TextFeatures


class Size(NamedTuple):
    """Of one published tower."""

    width: int
    layers: int
    heads: int
    dim: int
    """Of the space that texts and images share."""
    vocabulary: int = 49_408
    length: int = 77
    """Token ids of a text, start and end included."""


SIZES = {
    "clip_text_b32": Size(512, 12, 8, 512),  # ViT-B/16's is of the same size
    "clip_text_l14": Size(768, 12, 12, 768),
    # Not published: for tests.
    "clip_text_test": Size(128, 2, 2, 32, vocabulary=600, length=16),
}


class ClipText(nn.Module):
    """Token ids to features; `size` is a key of `SIZES`."""

    size: str = "clip_text_b32"
    dtype: Any = jnp.float32
    """Type to compute in; parameters stay float32."""

    @nn.compact
    def __call__(
        self, ids: Int[AnyArray, "batch length"], *, train: bool = False
    ) -> TextFeatures:
        """Compute features of texts, which end with the highest id there is.

        What follows the first such id is padding: any ids will do, and none of them
        changes what stands before.

        Args:
            ids: Of `byte_pairs.BytePairs`, at most `Size.length` for each text.
            train: Makes no difference: there is no dropout.

        Raises:
            UserError: Texts are longer than there are positions.
        """
        del train
        size = SIZES[self.size]
        ids, length = jnp.asarray(ids), ids.shape[1]
        if length > size.length:
            raise UserError(
                f"{self.size} was given {length} token ids for each text; it has "
                f"positions for {size.length}. Shorten the texts."
            )
        normal = nn.initializers.normal
        embed = nn.Embed(
            size.vocabulary,
            size.width,
            embedding_init=normal(0.02),
            name="token_embedding",
        )
        positions = self.param(
            "positional_embedding", normal(0.01), (size.length, size.width)
        )
        x = (embed(ids) + positions[None, :length]).astype(self.dtype)
        for i in range(size.layers):
            x = Block(size, self.dtype, name=f"resblocks_{i}")(x)
        tokens = layer_norm(jnp.float32, "ln_final")(x)
        end = jnp.argmax(ids == size.vocabulary - 1, axis=1)
        project = nn.Dense(
            size.dim,
            use_bias=False,
            kernel_init=normal(size.width**-0.5),
            name="text_projection",
        )
        mask = jnp.arange(length)[None] <= end[:, None]
        return TextFeatures(tokens, mask, project(tokens[jnp.arange(len(ids)), end]))


class Block(nn.Module):
    """Attention to what came before, then an MLP; each with a residual."""

    size: Size
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch length dim"]
    ) -> Float[Array, "batch length dim"]:
        """Mix tokens, then channels."""
        width, layers = self.size.width, self.size.layers
        normal = nn.initializers.normal
        # The original initial values: residual branches shrink with the depth.
        inner, residual = width**-0.5, width**-0.5 * (2 * layers) ** -0.5

        def dense(features, std, name):
            return nn.Dense(
                features, dtype=self.dtype, kernel_init=normal(std), name=name
            )

        packed = dense(3 * width, inner, "qkv")(layer_norm(self.dtype, "ln_1")(x))
        q, k, v = (
            rearrange(part, "b token (head d) -> b token head d", head=self.size.heads)
            for part in jnp.split(packed, 3, axis=-1)
        )
        mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        mixed = rearrange(mixed, "b token head d -> b token (head d)")
        x = x + dense(width, residual, "out_proj")(mixed)
        y = dense(4 * width, (2 * width) ** -0.5, "c_fc")(
            layer_norm(self.dtype, "ln_2")(x)
        )
        return x + dense(width, residual, "c_proj")(quick_gelu(y))


def quick_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Compute GELU as CLIP approximates it, x sigmoid(1.702 x)."""
    return x * jax.nn.sigmoid(1.702 * x)
