"""Tells poses and shapes of real hands from predicted ones.

Kanazawa et al., HMR, CVPR 2018, https://arxiv.org/abs/1712.06584, with MANO's 15 finger
joints as in HaMeR: one small network judges each joint, one all of them together, one
the shape. The wrist's rotation is not judged. 1,545,211 parameters.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from handjax.types import AnyArray

_WIDTH = 32
_options: dict[str, Any] = dict(kernel_init=nn.initializers.xavier_uniform())


class PoseDiscriminator(nn.Module):
    """Scores that are 1 for what looks real, 0 for what does not."""

    @nn.compact
    def __call__(
        self,
        hand_pose: Float[AnyArray, "batch joint 3 3"],
        betas: Float[AnyArray, "batch beta"],
    ) -> Float[Array, "batch score"]:
        """Score hands, in float32.

        Args:
            hand_pose: Rotation matrices of the joints, the wrist left out.
            betas: Shapes.

        Returns:
            A score of each joint, one of the shape, one of all joints.
        """
        batch, joints = hand_pose.shape[:2]
        x = jnp.asarray(hand_pose, jnp.float32).reshape(batch, joints, 9)
        for name in ("joint0", "joint1"):  # shared by the joints
            x = nn.relu(nn.Dense(_WIDTH, **_options, name=name)(x))
        # One linear layer for each joint: 32 numbers to 1.
        kernel = self.param("each_kernel", _each_init, (joints, _WIDTH))
        bias = self.param("each_bias", nn.initializers.zeros, (joints,))
        each = jnp.einsum("bjc,jc->bj", x, kernel) + bias[None]
        # Channel-major, as published weights have it.
        pose = jnp.swapaxes(x, 1, 2).reshape(batch, -1)
        for name in ("pose0", "pose1"):
            pose = nn.relu(nn.Dense(1024, **_options, name=name)(pose))
        pose = nn.Dense(1, **_options, name="pose_score")(pose)
        shape = jnp.asarray(betas, jnp.float32)
        for name, width in (("shape0", 10), ("shape1", 5)):
            shape = nn.relu(nn.Dense(width, **_options, name=name)(shape))
        shape = nn.Dense(1, **_options, name="shape_score")(shape)
        return jnp.concatenate([each, shape, pose], axis=-1)


_each_init = nn.initializers.variance_scaling(
    2 * _WIDTH / (_WIDTH + 1), "fan_in", "uniform", in_axis=1, out_axis=0
)
"""Xavier's uniform for layers of 32 to 1, one a row."""
