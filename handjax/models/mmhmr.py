"""MMHMR: generative masked modeling for hand mesh recovery (2024; ICCV 2025: MaskHand).

Stage "tokenizer" (VQ-MANO) learns a codebook of poses from poses alone: rotations of
the 16 joints, convolutions along them, nearest code, convolutions back. Shape is no
part of it: losses and evaluation pose the true shape.

No code of the paper is public. What it leaves open is a field here or a value of the
config; docs/mmhmr.md lists them with their reasons.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import flax.traverse_util
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from handjax import losses, rotations, skeleton
from handjax.mano import HandModel
from handjax.models import HandConstants
from handjax.nn import mano_head
from handjax.nn.joint_codec import JointDecoder, JointEncoder
from handjax.nn.mano_head import ManoParameters, MeanParameters
from handjax.nn.vq import Quantized, VectorQuantizer, nearest_code
from handjax.stages import Stage
from handjax.types import AnyArray, Batch, HandOutput, Paper, Variables

PAPER = Paper(
    name="MMHMR",
    title="MMHMR: Generative Masked Modeling for Hand Mesh Recovery",
    url="https://m-usamasaleem.github.io/publication/MMHMR/mmhmr.html",
    equations={
        "nearest code": "z^_i = arg min_k |z_i - c_k|, the token's code",
        "tokenizer loss": "l_re L_recon + l_E |sg z - c| + l_a |z - sg c|",
        "reconstruction loss": "l_theta L_theta + l_V L_V + l_J L_J",
    },
)


class Representation(NamedTuple):
    """How a rotation is written down for the tokenizer."""

    numbers: int
    write: Callable
    """Matrix (... 3 3) -> numbers."""
    read: Callable
    """Any numbers -> matrix, always a rotation; undoes `write`."""


def _matrix_of_nine(x: Float[Array, "*batch 9"]) -> Float[Array, "*batch 3 3"]:
    """A rotation from nine numbers of any kind, by way of its quaternion.

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

Matrices = Float[Array, "batch bone 3 3"]


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
        """Tokens of poses, not yet quantised."""
        return self.encoder(REPRESENTATIONS[self.rotation].write(matrices))

    def quantize(
        self,
        tokens: Float[Array, "batch token dim"],
        valid: Bool[AnyArray, "batch"] | None = None,
        *,
        train: bool = False,
    ) -> Quantized:
        """Nearest codes (MMHMR Eq. nearest code); with `train` the codebook moves."""
        return self.vq(tokens, valid, train=train)

    def indices(self, matrices: Matrices) -> Int[Array, "batch token"]:
        """Code of each token of poses: the labels of masked training."""
        return nearest_code(self.encode(matrices), self.vq.embedding.value)

    def decode(self, codes: Float[Array, "batch token dim"]) -> Matrices:
        """Poses from code vectors, exact or mixed.

        The decoder's numbers are added to those of no rotation: six or four numbers
        near zero would be no rotation at all.
        """
        representation = REPRESENTATIONS[self.rotation]
        still = representation.write(jnp.eye(3)[None, None])
        return representation.read(self.decoder(codes) + still)


_FLAX_FIELDS = {"parent", "name", "dtype"}
TOKENIZER_FIELDS = tuple(sorted(set(Tokenizer.__dataclass_fields__) - _FLAX_FIELDS))
"""Fields of `config.model` that a trained tokenizer fixes."""


class Model(nn.Module):
    """Pose to tokens and back; the fields are `config.model`."""

    tokenizes = "mano_pose"  # what `encode` takes (`codebook.of_model`)

    # Tokenizer.
    num_tokens: int = 64  # 16, 32, 64, 128
    num_codes: int = 2048
    code_dim: int = 256
    rotation: str = "rotation_6d"  # REPRESENTATIONS
    codec_width: int = 512
    codec_depth: int = 2
    dilation_growth: int = 3
    dilation_order: str = "falling"  # joint_codec.DILATION_ORDERS
    decay: float = 0.99
    reset_below: float = 1.0
    smoothing: float = 0.0
    # Its losses.
    commitment: str = "mean"  # over tokens and dimensions, or "sum"
    codec_reduction: str = "mean"  # of the L1 terms: REDUCTIONS
    turned: bool = True  # whether poses are turned as a whole, uniformly, in training
    # Hands.
    root: str = "middle_mcp"  # that HandOutput is relative to; config.data.root
    joints: str = "skeleton"  # mano_head.JOINTS
    dtype: str = "float32"  # of the computation; parameters are float32

    def setup(self):
        """Build the tokenizer."""
        _check_fields(self)
        dtype = jnp.dtype(self.dtype)
        self.tokenizer = Tokenizer(
            **{key: getattr(self, key) for key in TOKENIZER_FIELDS}, dtype=dtype
        )

    def __call__(
        self,
        mano_pose: Float[AnyArray, "batch bone 3"],
        betas: Float[AnyArray, "batch beta"] | None = None,
    ) -> HandOutput:
        """The hand that the tokenizer makes of a pose."""
        matrices = rotations.axis_angle_to_matrix(mano_pose)
        return self.output(self.reconstruct(matrices)[0], betas)

    def reconstruct(
        self,
        matrices: Matrices,
        valid: Bool[AnyArray, "batch"] | None = None,
        *,
        train: bool = False,
    ) -> tuple[Matrices, Float[Array, "batch token dim"], Quantized]:
        """Through the tokenizer and back.

        Returns:
            The pose, the encoder's tokens, and what the quantiser made of them.
        """
        tokens = self.tokenizer.encode(matrices)
        quantized = self.tokenizer.quantize(tokens, valid, train=train)
        return self.tokenizer.decode(quantized.tokens), tokens, quantized

    def encode(
        self, mano_pose: Float[AnyArray, "batch bone 3"]
    ) -> Int[Array, "batch token"]:
        """Token indices of poses: absolute axis-angle, wrist first, camera axes."""
        return self.tokenizer.indices(rotations.axis_angle_to_matrix(mano_pose))

    def decode(
        self,
        indices: Int[AnyArray, "batch token"],
        betas: Float[AnyArray, "batch beta"] | None = None,
    ) -> HandOutput:
        """The hand that token indices stand for, of mean shape unless told."""
        return self.decode_codes(self.tokenizer.vq.lookup(jnp.asarray(indices)), betas)

    def decode_codes(
        self,
        codes: Float[AnyArray, "batch token dim"],
        betas: Float[AnyArray, "batch beta"] | None = None,
    ) -> HandOutput:
        """The hand of code vectors, which may be mixed ones."""
        return self.output(self.tokenizer.decode(jnp.asarray(codes)), betas)

    def init_all(self, batch: Batch, hand: HandConstants) -> HandOutput:
        """Touch every submodule once and store what is kept of the hand model."""
        hand.require_hand(PAPER.name)
        arrays = {name: jnp.asarray(value) for name, value in hand.arrays().items()}
        self.put_variable("constants", "hand", arrays)
        self.put_variable("constants", "faces", arrays["faces"])
        mean = mano_head.mean_parameters(HandModel(**arrays))
        self.put_variable("constants", "mean", mean._asdict())
        return self(batch.mano_pose)

    def vertices(
        self, matrices: Matrices, betas: Float[AnyArray, "batch beta"]
    ) -> Float[Array, "batch vertex 3"]:
        """Posed meshes, metres, where the hand model puts them."""
        hand = HandModel(**self.get_variable("constants", "hand"))
        shaped = hand.with_shape(betas)
        return shaped.with_pose(matrices[:, 0], matrices[:, 1:], form="matrix").vertices

    def output(
        self, matrices: Matrices, betas: Float[AnyArray, "batch beta"] | None
    ) -> HandOutput:
        """What every family returns, of a pose that no camera sees."""
        mean = MeanParameters(**self.get_variable("constants", "mean"))
        batch = len(matrices)
        if betas is None:
            betas = jnp.zeros((batch, mean.betas.shape[0]))
        parameters = ManoParameters(
            matrices[:, :1],
            matrices[:, 1:],
            jnp.asarray(betas),
            jnp.broadcast_to(mean.cam, (batch, 3)),
        )
        hand = HandModel(**self.get_variable("constants", "hand"))
        posed = mano_head.posed(hand, parameters, joints=self.joints)
        place = posed.joints3d[:, skeleton.root_joint(self.root)][:, None]
        return HandOutput(posed.vertices - place, posed.joints3d - place)


REDUCTIONS = ("mean", "sum")
"""Of the tokenizer's L1 terms over joints or vertices and their numbers; over examples
they are means."""


def _check_fields(model: Model) -> None:
    """Refuse values that are none of those there are."""
    for key, allowed in (
        ("rotation", REPRESENTATIONS),
        ("commitment", ("mean", "sum")),
        ("codec_reduction", REDUCTIONS),
    ):
        value = getattr(model, key)
        if value not in allowed:
            raise ValueError(
                f"config.model.{key}={value!r} is not one of {', '.join(allowed)}."
            )


# --- Training ----------------------------------------------------------------


def stages(config: Any) -> tuple[Stage, ...]:
    """The tokenizer.

    Raises:
        ValueError: `config.model.root` is not the root of the data.
    """
    root = config.model.get("root", Model.root)
    if root != config.data.root:
        raise ValueError(
            f"config.model.root={root!r} is not config.data.root="
            f"{config.data.root!r}; predictions and annotations have to be relative to "
            "the same joint."
        )
    return (Stage("tokenizer", tokenizer_loss, predict_pose, "^tokenizer/", False),)


def tokenizer_loss(
    model: Model, variables: Variables, batch: Batch, rngs: dict[str, Array]
) -> tuple[dict[str, Array], dict[str, Array], dict[str, Any]]:
    """Reconstruction and commitment (MMHMR Eq. tokenizer loss).

    The term that draws codes to tokens is not there, for codes are averages of tokens;
    so its weight of 0.02, the only one printed, is taken for the commitment's. Poses
    are turned as a whole to any side; those of the built-in prior are turned already,
    and are none the worse for it.
    """
    valid = jnp.asarray(batch.mano_valid) & jnp.asarray(batch.vertices_valid)
    matrices = rotations.axis_angle_to_matrix(batch.mano_pose)
    vertices = jnp.asarray(batch.vertices)
    if model.turned:
        turn = rotations.random_rotation(rngs["mask"], valid.shape)
        matrices = matrices.at[:, 0].set(_turned(turn, matrices[:, 0]))
        vertices = jnp.einsum("bij,bvj->bvi", turn, vertices, precision="highest")
    (found, tokens, quantized), updates = model.apply(
        variables,
        matrices,
        valid,
        train=True,
        method="reconstruct",
        mutable=["codebook"],
        rngs=rngs,
    )
    made = model.apply(variables, found, batch.betas, method="vertices")
    far = losses.commitment(tokens, quantized.codes, reduction=model.commitment)
    terms = reconstruction_terms(
        variables["constants"]["hand"]["joint_regressor"],
        (found, made),
        (matrices, vertices),
        valid,
        root=skeleton.root_joint(model.root),
        reduction=model.codec_reduction,
    )
    terms["commitment"] = jnp.mean(jnp.where(valid, far, 0.0))
    angle = jnp.where(valid[:, None], rotations.geodesic_angle(found, matrices), 0.0)
    metrics = {**quantized.metrics, "degrees": jnp.degrees(jnp.mean(angle))}
    return terms, metrics, dict(updates)


def _turned(
    turn: Float[Array, "batch 3 3"], matrices: Float[Array, "batch 3 3"]
) -> Float[Array, "batch 3 3"]:
    return jnp.einsum("bij,bjk->bik", turn, matrices, precision="highest")


def reconstruction_terms(
    joint_regressor: Float[AnyArray, "joint vertex"],
    found: tuple[Matrices, Float[Array, "batch vertex 3"]],
    true: tuple[Matrices, Float[Array, "batch vertex 3"]],
    valid: Bool[Array, "batch"],
    *,
    root: int,
    reduction: str,
) -> dict[str, Float[Array, ""]]:
    """L1 of rotations, vertices and joints (MMHMR Eq. reconstruction loss).

    Rotations are compared as matrices, whatever the tokenizer writes, so that
    representations compare and no sign or turn of one is punished. Meshes are in metres
    relative to the root; joints are those of the meshes on both sides.

    Args:
        joint_regressor: Of the hand model.
        found: Matrices and vertices of the reconstruction.
        true: What they should be, vertices relative to any point.
        valid: Examples that count; others are zero.
        root: Joint that meshes are relative to.
        reduction: One of `REDUCTIONS`.
    """
    matrices, vertices = found
    regress = jnp.asarray(joint_regressor, jnp.float32)
    rooted = [_rooted(regress, mesh, root) for mesh in (vertices, true[1])]
    errors = {
        "rotations": matrices - true[0],
        "vertices": rooted[0][0] - rooted[1][0],
        "joints3d": rooted[0][1] - rooted[1][1],
    }
    reduce = jnp.mean if reduction == "mean" else jnp.sum
    return {
        name: jnp.mean(
            jnp.where(valid, reduce(jnp.abs(error).reshape(len(valid), -1), axis=1), 0)
        )
        for name, error in errors.items()
    }


def _rooted(
    regress: Float[Array, "joint vertex"],
    vertices: Float[Array, "batch vertex 3"],
    root: int,
) -> tuple[Float[Array, "batch vertex 3"], Float[Array, "batch joint 3"]]:
    joints = jnp.einsum("jv,bvx->bjx", regress, vertices, precision="highest")
    place = joints[:, root][:, None]
    return vertices - place, joints - place


def predict_pose(model: Model, variables: Variables, batch: Batch) -> HandOutput:
    """What the tokenizer makes of the true pose, in the true shape.

    It is the floor of what tokens can say of a hand. Hands without known MANO
    parameters come out flat.
    """
    return model.apply(variables, batch.mano_pose, batch.betas)


_PARTS = {
    "tokenizer/encoder": "encoder",
    "tokenizer/decoder": "decoder",
    "codebook": "codebook",
}


def parameter_table(variables: Variables) -> list[tuple[str, int]]:
    """Parameters by part, and the numbers of the codebook: rows (part, number)."""
    rows: dict[str, int] = {}
    leaves = flax.traverse_util.flatten_dict(variables["params"], sep="/")
    codebook = variables["codebook"]["tokenizer"]["vq"]["embedding"]
    sizes = {path: int(np.prod(leaf.shape)) for path, leaf in leaves.items()}
    for path, size in (sizes | {"codebook": int(np.prod(codebook.shape))}).items():
        part = next(part for name, part in _PARTS.items() if path.startswith(name))
        rows[part] = rows.get(part, 0) + size
    return sorted(rows.items())
