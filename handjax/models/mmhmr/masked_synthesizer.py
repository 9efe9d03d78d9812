"""MMHMR's decoder: from tokens, some of them masked, to scores of every token's codes.

Queries are the pose tokens and, after them, one token for each 2-D joint. Blocks of
`graph_transformer` mix them; then come layers of self-attention, attention to an image
(deformable, several maps) or to a text (plain, its tokens), and an MLP. MMHMR's paper
(https://m-usamasaleem.github.io/publication/MMHMR/mmhmr.html) leaves open most of what
the fields are; each says what is taken, and why. Norms come before each branch, and
positions are added once, as in the masked models of motion that the paper follows.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from handjax.errors import UserError
from handjax.geometry import skeleton
from handjax.models.mmhmr.graph_transformer import GraphTransformerBlock
from handjax.models.mmhmr.pose_tokens import POSES, PoseTokens
from handjax.nn.deformable_attention import DeformableAttention, Maps
from handjax.nn.metaformer import (
    CrossAttention,
    SelfAttention,
    code_init,
    layer_norm,
    linear,
)
from handjax.nn.ops.convolutions import gelu

REFERENCES = {
    "joints2d": "the 2-D joint that a query stands at, or what is learned if not seen",
    "learned": "a learned point for each query, the same in every image",
}
"""Where queries begin to look. The paper's text says that reference points are learned,
its figures show them at the 2-D joints, as the config has it, for what tells of a joint
is seen there from the first update on, and offsets are learned anyway."""

SHAPE_HEADS = {
    "attention": "one query reads the map",
    "mean": "the mean over the map (ablation)",
}
"""What betas and camera are made of."""

Tokens = Float[Array, "batch token dim"]


class MaskedSynthesizer(nn.Module):
    """Scores of the codes of all pose tokens, from those that are not masked."""

    num_tokens: int
    num_codes: int
    width: int
    """Of all tokens; not in the paper, here as wide as a code."""
    layers: int
    heads: int
    """Of every attention; as in Deformable DETR, as are the points."""
    points: int
    mlp_ratio: int
    dropout: float
    """Of attention probabilities and residual branches."""
    ggpm_blocks: int
    """Blocks of `graph_transformer` before the layers; 0 for none of them."""
    adjacency: str
    """Of the blocks, one of `graph_transformer.ADJACENCIES`."""
    ggpm_residual: bool
    reduction: int
    """Of the blocks' gates."""
    pose: str
    """One of `pose_tokens.POSES`."""
    reference: str
    """One of `REFERENCES`."""
    edges: Sequence[tuple[int, int]] = skeleton.BONES
    """Bones of the 2-D joints; they also say how many joints there are."""
    bone_joints: Sequence[int] = tuple(
        np.argsort(skeleton.MANO_TO_JOINTS)[:16].tolist()
    )
    """The 2-D joint at which each of the joints stands whose rotations are the pose
    tokens. The tokens are spread over them evenly, in their order: a convolutional
    tokenizer keeps it."""
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        indices: Int[Array, "batch token"],
        masked: Bool[Array, "batch token"],
        *,
        maps: Maps | None = None,
        context: Float[Array, "batch word _"] | None = None,
        context_valid: Bool[Array, "batch word"] | None = None,
        joints2d: Float[Array, "batch joint 2"] | None = None,
        joints2d_confidence: Float[Array, "batch joint"] | None = None,
        train: bool = False,
    ) -> Float[Array, "batch token code"]:
        """Compute the logits of all tokens, float32.

        Args:
            indices: Code of each token; of masked ones, anything.
            masked: True where the code is not known.
            maps: Of the image, of any sizes and of as many channels each.
            context: Tokens of a text, instead of maps.
            context_valid: False for padding of the text.
            joints2d: In 0..1 of what the maps show, x right, y down, 0 and 1 being
                its edges. None if there are none, which is as if none were seen.
            joints2d_confidence: In 0..1, 0 for joints that are not seen; None for 1.
            train: Drop at random.

        Raises:
            UserError: An option is unknown, or there are both maps and text, or
                neither, or another number of tokens or joints than fields say.
        """
        self._check(indices, maps, context, joints2d)
        joints2d, seen = self._joints(len(indices), joints2d, joints2d_confidence)
        x = self._embedded(indices, masked)
        if self.pose != "none":
            tokens = PoseTokens(
                self.width, self.pose, self.edges, self.dtype, name="pose"
            )
            x = jnp.concatenate([x, tokens(joints2d, seen)], axis=1)
        for i in range(self.ggpm_blocks):
            x = GraphTransformerBlock(
                self.heads,
                self.adjacency,
                self.ggpm_residual,
                self.reduction,
                self.dropout,
                self.dtype,
                name=f"ggpm{i}",
            )(x, train=train)
        reference = None if maps is None else self._reference(joints2d, seen)
        for i in range(self.layers):
            layer = SynthesizerLayer(
                self.heads,
                self.points,
                self.mlp_ratio,
                self.dropout,
                self.dtype,
                name=f"layer{i}",
            )
            x = layer(x, reference, maps, context, context_valid, train=train)
        x = layer_norm(self.dtype, "norm")(x[:, : self.num_tokens])
        return linear(self.num_codes, jnp.float32, "logits")(x.astype(jnp.float32))

    def _embedded(
        self, indices: Int[Array, "batch token"], masked: Bool[Array, "batch token"]
    ) -> Tokens:
        """Embed the codes, [MASK] where masked, at their positions."""
        init = nn.initializers.normal(0.02)
        embed = nn.Embed(self.num_codes, self.width, embedding_init=init, name="codes")
        mask = self.param("mask", init, (1, 1, self.width))
        position = self.param("position", code_init, (1, self.num_tokens, self.width))
        # What stands under a mask may be no code at all.
        known = embed(jnp.where(masked, 0, indices))
        x = jnp.where(masked[..., None], mask, known) + position
        return x.astype(self.dtype)

    def _joints(
        self,
        batch: int,
        joints2d: Float[Array, "batch joint 2"] | None,
        confidence: Float[Array, "batch joint"] | None,
    ) -> tuple[Float[Array, "batch joint 2"], Float[Array, "batch joint"]]:
        """Return joints and confidences; without joints, all confidences are zero."""
        if joints2d is None:
            joints = _num_joints(self.edges)
            return jnp.zeros((batch, joints, 2)), jnp.zeros((batch, joints))
        if confidence is None:
            return joints2d, jnp.ones(joints2d.shape[:2])
        # A joint that is not seen may stand nowhere at all.
        known = jnp.where(confidence[..., None] > 0, joints2d, 0.5)
        return known, jnp.clip(confidence.astype(jnp.float32), 0.0, 1.0)

    def _reference(
        self,
        joints2d: Float[Array, "batch joint 2"],
        seen: Float[Array, "batch joint"],
    ) -> Float[Array, "batch query 1 2"]:
        """Return the reference point of each query, the same on all maps."""
        joint = np.asarray(self.bone_joints)
        joint = joint[np.arange(self.num_tokens) * len(joint) // self.num_tokens]
        if self.pose != "none":
            joint = np.concatenate([joint, np.arange(joints2d.shape[1])])
        learned = self.param("reference", nn.initializers.normal(1.0), (len(joint), 2))
        learned = nn.sigmoid(learned)[None]
        if self.reference == "learned":
            shape = (len(joints2d), len(joint), 2)
            return jnp.broadcast_to(learned, shape)[:, :, None]
        share = seen[:, joint, None]
        return (share * joints2d[:, joint] + (1 - share) * learned)[:, :, None]

    def _check(self, indices: Any, maps: Any, context: Any, joints2d: Any) -> None:
        for key, allowed in (("pose", POSES), ("reference", REFERENCES)):
            value = getattr(self, key)
            if value not in allowed:
                raise UserError(
                    f"config.model.{key}={value!r} is not one of {', '.join(allowed)}."
                )
        if (maps is None) == (context is None):
            raise UserError(
                "The synthesizer was given "
                + ("neither maps nor a text" if maps is None else "maps and a text")
                + "; give either maps=... of an image or context=... of a text."
            )
        if indices.shape[1] != self.num_tokens:
            raise UserError(
                f"There are {indices.shape[1]} tokens, but config.model.num_tokens="
                f"{self.num_tokens}; the tokenizer decides how many there are."
            )
        joints = _num_joints(self.edges)
        if joints2d is not None and joints2d.shape[1] != joints:
            raise UserError(
                f"There are {joints2d.shape[1]} 2-D joints, but the edges are of "
                f"{joints}; give the bones of config.hand's skeleton."
            )


class SynthesizerLayer(nn.Module):
    """Self-attention, attention to the image or text, MLP, each added to its input."""

    heads: int
    points: int
    mlp_ratio: int
    dropout: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Tokens,
        reference: Float[Array, "batch token 1 2"] | None,
        maps: Maps | None,
        context: Float[Array, "batch word _"] | None,
        context_valid: Bool[Array, "batch word"] | None,
        *,
        train: bool,
    ) -> Tokens:
        """Mix tokens, look, change each token."""
        drop = nn.Dropout(self.dropout, deterministic=not train)
        y = layer_norm(self.dtype, "norm_self")(x)
        attention = SelfAttention(
            self.heads, self.dropout, self.dtype, name="self_attention"
        )
        x = x + drop(attention(y, train=train))
        y = layer_norm(self.dtype, "norm_cross")(x)
        if maps is not None and reference is not None:
            look = DeformableAttention(
                self.heads, self.points, self.dtype, name="deformable"
            )
            y = look(y, reference, maps)
        elif context is not None:
            read = CrossAttention(
                self.heads, self.dropout, self.dtype, name="cross_attention"
            )
            y = read(y, context, context_valid, train=train)
        x = x + drop(y)
        y = layer_norm(self.dtype, "norm_mlp")(x)
        y = linear(self.mlp_ratio * x.shape[-1], self.dtype, "mlp_in")(y)
        return x + drop(linear(x.shape[-1], self.dtype, "mlp_out")(gelu(y)))


class CameraShapeHead(nn.Module):
    """Features of the whole hand from the coarsest map, for betas and camera.

    One learned query reads the map, layer after layer, as HaMeR's decoder does, but for
    its self-attention, in which a single token has nothing to choose from. The paper
    has HaMeR's decoder in mind, not its depth of 6: after two layers the query has
    looked again, knowing what it saw.
    """

    kind: str
    """One of `SHAPE_HEADS`."""
    width: int
    layers: int
    heads: int
    mlp_ratio: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, features: Float[Array, "batch height width channel"]
    ) -> Float[Array, "batch dim"]:
        """Compute float32 features, `width` of them or one per channel of the map.

        Raises:
            UserError: An unknown kind.
        """
        if self.kind not in SHAPE_HEADS:
            raise UserError(
                f"config.model.shape_head={self.kind!r} is not one of "
                f"{', '.join(SHAPE_HEADS)}."
            )
        if self.kind == "mean":
            return jnp.mean(features.astype(jnp.float32), axis=(1, 2))
        batch, _, _, channels = features.shape
        pixels = features.reshape(batch, -1, channels)
        query = self.param("query", nn.initializers.normal(1.0), (1, 1, self.width))
        x = jnp.broadcast_to(query, (batch, 1, self.width)).astype(self.dtype)
        for i in range(self.layers):
            y = layer_norm(self.dtype, f"layer{i}_norm_cross")(x)
            read = CrossAttention(self.heads, 0.0, self.dtype, name=f"layer{i}_cross")
            x = x + read(y, pixels, train=False)
            y = layer_norm(self.dtype, f"layer{i}_norm_mlp")(x)
            y = linear(self.mlp_ratio * self.width, self.dtype, f"layer{i}_mlp_in")(y)
            x = x + linear(self.width, self.dtype, f"layer{i}_mlp_out")(gelu(y))
        return layer_norm(jnp.float32, "norm")(x[:, 0])


def _num_joints(edges: Sequence[tuple[int, int]]) -> int:
    return 1 + max(max(edge) for edge in edges)
