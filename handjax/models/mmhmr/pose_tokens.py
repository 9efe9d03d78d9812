"""Tokens of 2-D joints, what an image's keypoints tell a decoder."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from handjax.geometry import skeleton
from handjax.nn.joint_graph import JointGraphConv
from handjax.nn.metaformer import code_init, linear

POSES = {
    "linear": "one linear layer for all joints, as in the paper",
    "gcn": "then two graph convolutions along the bones, as in MaskHand's figure",
    "none": "there are no tokens of 2-D joints (ablation, and text)",
}
"""How 2-D joints become tokens."""


class PoseTokens(nn.Module):
    """One token for each 2-D joint.

    A joint that is not seen has a learned token, one that is seen in part something in
    between, so that a model trained with joints runs without them.
    """

    width: int
    kind: str
    """One of `POSES`."""
    edges: Sequence[tuple[int, int]] = skeleton.BONES
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        joints2d: Float[Array, "batch joint 2"],
        seen: Float[Array, "batch joint"],
    ) -> Float[Array, "batch joint dim"]:
        """Embed joints, in 0..1 of what is looked at, by their confidence."""
        count, share = joints2d.shape[1], seen[..., None]
        found = linear(self.width, jnp.float32, "embed")(
            jnp.concatenate([2 * joints2d - 1, share], axis=-1)
        )
        absent = self.param("absent", code_init, (1, 1, self.width))
        joint = self.param("joint", code_init, (1, count, self.width))
        x = (share * found + (1 - share) * absent + joint).astype(self.dtype)
        for i in range(2 if self.kind == "gcn" else 0):
            graph = JointGraphConv(
                self.width, self.edges, "semgcn", self.dtype, name=f"graph{i}"
            )
            x = graph(nn.relu(x) if i else x)
        return x
