"""VQ-MANO: a codebook of poses (MMHMR's first stage)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from handjax.geometry import rotations, skeleton
from handjax.models.mmhmr.joint_codec import JointDecoder, JointEncoder
from handjax.nn.vq import Quantized, VectorQuantizer, nearest_code
from handjax.types import AnyArray

Matrices = Float[Array, "batch bone 3 3"]


class Representation(NamedTuple):
    """How a rotation is written down for the tokenizer."""

    numbers: int
    write: Callable
    """Matrix (... 3 3) -> numbers."""
    read: Callable
    """Any numbers -> matrix, always a rotation; undoes `write`."""


def _matrix_of_nine(x: Float[Array, "*batch 9"]) -> Float[Array, "*batch 3 3"]:
    """Convert nine numbers of any kind to a rotation, by way of its quaternion.

    Not the nearest one, whose gradient (through a singular value decomposition) is
    infinite just at rotations.
    """
    matrix = x.reshape(*x.shape[:-1], 3, 3)
    return rotations.quaternion_to_matrix(rotations.matrix_to_quaternion(matrix))


REPRESENTATIONS = {
    "rotation_6d": Representation(
        6, rotations.matrix_to_rotation_6d, rotations.rotation_6d_to_matrix
    ),
    "axis_angle": Representation(
        3, rotations.matrix_to_axis_angle, rotations.axis_angle_to_matrix
    ),
    "quaternion": Representation(
        4, rotations.matrix_to_quaternion, rotations.quaternion_to_matrix
    ),
    "matrix": Representation(9, lambda R: R.reshape(*R.shape[:-2], 9), _matrix_of_nine),
}
"""What the tokenizer may take and give for a joint (`config.model.rotation`)."""


class Tokenizer(nn.Module):
    """VQ-MANO: pose to tokens to pose, through a codebook."""

    num_tokens: int
    num_codes: int
    code_dim: int
    rotation: str
    codec_width: int
    codec_depth: int
    dilation_growth: int
    dilation_order: str
    decay: float
    reset_below: float
    smoothing: float
    dtype: Any

    def setup(self):
        """Build encoder, codebook and decoder."""
        sizes: dict[str, Any] = dict(
            num_tokens=self.num_tokens,
            joints=len(skeleton.MANO_JOINTS),
            width=self.codec_width,
            depth=self.codec_depth,
            dilation_growth=self.dilation_growth,
            dilation_order=self.dilation_order,
            dtype=self.dtype,
        )
        self.encoder = JointEncoder(code_dim=self.code_dim, **sizes)
        self.vq = VectorQuantizer(
            self.num_codes, self.code_dim, self.decay, self.reset_below, self.smoothing
        )
        self.decoder = JointDecoder(
            numbers=REPRESENTATIONS[self.rotation].numbers, **sizes
        )

    def encode(self, matrices: Matrices) -> Float[Array, "batch token dim"]:
        """Encode poses as tokens, not yet quantised."""
        return self.encoder(REPRESENTATIONS[self.rotation].write(matrices))

    def quantize(
        self,
        tokens: Float[Array, "batch token dim"],
        valid: Bool[AnyArray, "batch"] | None = None,
        *,
        train: bool = False,
    ) -> Quantized:
        """Find nearest codes (MMHMR Eq. nearest code); `train` moves the codebook."""
        return self.vq(tokens, valid, train=train)

    def indices(self, matrices: Matrices) -> Int[Array, "batch token"]:
        """Return the code of each token of poses: the labels of masked training."""
        return nearest_code(self.encode(matrices), self.vq.embedding.value)

    def decode(self, codes: Float[Array, "batch token dim"]) -> Matrices:
        """Decode code vectors, exact or mixed, into poses.

        The decoder's numbers are added to those of no rotation: six or four numbers
        near zero would be no rotation at all.
        """
        representation = REPRESENTATIONS[self.rotation]
        still = representation.write(jnp.eye(3)[None, None])
        return representation.read(self.decoder(codes) + still)


_FLAX_FIELDS = {"parent", "name", "dtype"}


TOKENIZER_FIELDS = tuple(sorted(set(Tokenizer.__dataclass_fields__) - _FLAX_FIELDS))
"""Fields of `config.model` that a trained tokenizer fixes."""
