"""Graph convolution over the joints of a skeleton, with learned edge weights.

The graph is data: `edges`, pairs of joints such as `skeleton.BONES`, both ways. What a
joint takes from its neighbours is weighed by a softmax over them of one learned number
for each directed edge; entries that are no edges are left out of it, not made small, so
that the layer is the same in every floating-point type.

Zhao et al., Semantic graph convolutional networks, CVPR 2019,
https://arxiv.org/abs/1904.03345; Dong et al., Hamba, NeurIPS 2024.
"""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from handjax.errors import UserError
from handjax.nn.ops.batch_norm import BatchNorm

KINDS = {
    "per_joint": "two matrices for every joint, as Hamba was released",
    "shared": "one matrix for all joints, as Hamba's paper has it",
    "semgcn": "one matrix for a joint itself and one for its neighbours, as SemGCN",
}

Tokens = Float[Array, "batch joint dim"]
Output = Float[Array, "batch joint features"]


def adjacency(
    edges: Sequence[tuple[int, int]], num_joints: int
) -> Bool[np.ndarray, "joint joint"]:
    """Return which joints are neighbours: symmetric, without loops.

    Raises:
        UserError: An edge names a joint that is not there, or a joint has no edge.
    """
    pairs = np.array(edges)
    if pairs.min() < 0 or pairs.max() >= num_joints:
        raise UserError(
            f"The edges name joints {pairs.min()} to {pairs.max()}, but the tokens are "
            f"of joints 0 to {num_joints - 1}."
        )
    near = np.zeros((num_joints, num_joints), bool)
    near[pairs[:, 0], pairs[:, 1]] = near[pairs[:, 1], pairs[:, 0]] = True
    lonely = np.flatnonzero(~near.any(axis=1))
    if lonely.size:
        raise UserError(
            f"Joint {lonely[0]} has no edge, so that it has no neighbours to weigh; "
            f"{num_joints} tokens need edges that reach every joint."
        )
    return near


def edge_weights(
    logits: Float[Array, " edge"], mask: Bool[np.ndarray, "joint joint"]
) -> Float[Array, "joint joint"]:
    """Compute the softmax over each joint's neighbours, zero elsewhere; float32.

    Args:
        logits: One for each true entry of the mask, row by row.
        mask: Row i marks the joints that joint i takes from; no row is empty.
    """
    dense = jnp.zeros(mask.shape, jnp.float32)
    dense = dense.at[np.nonzero(mask)].set(logits.astype(jnp.float32))
    return jax.nn.softmax(dense, axis=-1, where=jnp.asarray(mask))


class JointGraphConv(nn.Module):
    """One step along the edges (`KINDS`).

    With a the softmax weights of the edges and N(i) the neighbours of joint i:

    - per_joint: y_i = x_i W0_i + sum over j in N(i) of a_ij x_j W1_j + b. A matrix goes
      with the joint that the features come from. The released layer also weighs the
      joint itself by a softmax over one entry, which is 1 whatever the logit; that
      logit is kept (`self_logits`), for published weights have it, and does nothing.
    - shared: y = softmax(M * G) x W (Hamba Eq. 6), G having loops, for without them a
      joint would lose its own features; the softmax is over neighbours alone.
    - semgcn: y_i = a_ii x_i W0 + sum over j in N(i) of a_ij x_j W1 + b, one softmax
      over a joint and its neighbours.

    Logits begin at 1, biases uniform as in each released layer. `per_joint`'s matrices
    begin within 1.414 sqrt(6 / ((joints + 2) dim features)), which is what PyTorch's
    Xavier rule makes of an array of four axes; the others' as the rule means them.
    """

    features: int
    edges: Sequence[tuple[int, int]]
    kind: str = "per_joint"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Tokens) -> Output:
        """Mix every joint with its neighbours.

        Raises:
            UserError: An unknown kind, or edges that do not fit the joints.
        """
        if self.kind not in KINDS:
            raise UserError(
                f"config.model.graph={self.kind!r} is not one of {', '.join(KINDS)}."
            )
        near, x = adjacency(self.edges, x.shape[1]), x.astype(self.dtype)
        return getattr(self, f"_{self.kind}")(x, near)

    def _per_joint(self, x: Tokens, near: np.ndarray) -> Output:
        joints, dim = x.shape[1:]
        bound = 1.414 * math.sqrt(6 / ((joints + 2) * dim * self.features))
        shape = (2, joints, dim, self.features)
        kernel = self.param("kernel", _uniform(bound), shape).astype(self.dtype)
        self.param("self_logits", nn.initializers.ones, (joints,))
        weights = self._edge_weights(near)
        # One product for both halves: XLA on CPU copies what is cut out of the kernel,
        # and turns it round where the batch comes first, in ten times the time.
        twice = jnp.concatenate([x, x], axis=1).swapaxes(0, 1)
        y = jnp.einsum("nbc,ncd->nbd", twice, kernel.reshape(-1, dim, self.features))
        own, sent = jnp.split(y.swapaxes(0, 1), 2, axis=1)
        return own + _gathered(weights, sent) + self._bias(1 / math.sqrt(joints))

    def _shared(self, x: Tokens, near: np.ndarray) -> Output:
        weights = self._edge_weights(near | np.eye(len(near), dtype=bool))
        return _gathered(weights, self._linear(x, "kernel"))

    def _semgcn(self, x: Tokens, near: np.ndarray) -> Output:
        loop = np.eye(len(near), dtype=bool)
        weights = self._edge_weights(near | loop)
        own = jnp.where(loop, weights, 0.0).astype(self.dtype)
        y = _gathered(own, self._linear(x, "self_kernel"))
        y = y + _gathered(weights - own, self._linear(x, "neighbour_kernel"))
        return y + self._bias(1 / math.sqrt(self.features))

    def _edge_weights(self, mask: np.ndarray) -> Float[Array, "joint joint"]:
        shape = (int(mask.sum()),)
        logits = self.param("edge_logits", nn.initializers.ones, shape)
        return edge_weights(logits, mask).astype(self.dtype)

    def _linear(self, x: Tokens, name: str) -> Output:
        # Xavier, uniform, with the gain sqrt(2) of what a ReLU follows.
        init = nn.initializers.variance_scaling(2.0, "fan_avg", "uniform")
        kernel = self.param(name, init, (x.shape[-1], self.features))
        return jnp.dot(x, kernel.astype(self.dtype))

    def _bias(self, bound: float) -> Float[Array, "1 1 features"]:
        bias = self.param("bias", _uniform(bound), (self.features,))
        return bias.astype(self.dtype)[None, None]


def _gathered(weights: Float[Array, "joint joint"], x: Output) -> Output:
    """Sum of what the joints send, by the weights of each receiver."""
    return jnp.einsum("ij,bjd->bid", weights, x)


def _uniform(bound: float) -> nn.initializers.Initializer:
    def init(key: Any, shape: Any, dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class JointGraphBlock(nn.Module):
    """Graph convolution, batch norm over examples and joints, ReLU."""

    features: int
    edges: Sequence[tuple[int, int]]
    kind: str = "per_joint"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool) -> Output:
        """Replace the features of the joints; there is no residual."""
        conv = JointGraphConv(
            self.features, self.edges, self.kind, self.dtype, name="conv"
        )
        norm = BatchNorm(self.features, name="norm")
        return nn.relu(norm(conv(x)[:, None], train=train)[:, 0])
