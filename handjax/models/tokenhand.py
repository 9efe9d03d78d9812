"""TokenHand: discrete hand tokens, then classification (CVPR 2026).

Stage "tokenizer" learns a codebook of hand parts from meshes alone: Point Transformer,
nearest code, cascaded decoder. Stage "mesh" predicts which code each token of the hand
in an image has, and decodes the expected codes with the frozen tokenizer.

Only a summary of the paper is public and no code; what it leaves open is filled with
the choices of the work it builds on (SimpleHand, PCT, T2M-GPT), each said in its place.

`features="frozen"` (`configs/tokenhand.py:open`) is ours, for models that ship: the
backbone is MediaPipe's hand landmark network as it is, crops are turned upright (so are
the tokenizer's meshes), and the classifier's image tokens are made of what that network
says at the points that it finds (`nn.hand_features`). Tokenizer, classifier, soft
inference and losses stay the paper's.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from handjax.errors import UserError
from handjax.family import frozen_tokenizer
from handjax.family.hand_constants import (
    HandConstants,
    joints_from_vertices,
    parameters_by_part,
)
from handjax.family.stage import Stage
from handjax.geometry.skeleton import NUM_JOINTS, NUM_VERTICES
from handjax.losses import elementwise, supervision
from handjax.nn import backbones, hand_features
from handjax.nn.backbones import hand_landmark
from handjax.nn.hand_features import LandmarkTokens
from handjax.nn.metaformer import (
    MeshRegressor,
    MetaFormerBlock,
    TokenLinear,
    code_init,
    layer_norm,
    linear,
)
from handjax.nn.ops.image import normalised
from handjax.nn.point_transformer import PointTransformer, level_sizes
from handjax.nn.token_sampler import TokenGenerator
from handjax.nn.vq import Quantized, VectorQuantizer, nearest_code, soft_lookup
from handjax.types import (
    AnyArray,
    Batch,
    HandFeatures,
    HandOutput,
    Paper,
    Variables,
)

PAPER = Paper(
    name="TokenHand",
    title="TokenHand: Discrete Token Representation for Efficient Hand Mesh "
    "Reconstruction",
    url="https://openaccess.thecvf.com/CVPR2026",
    equations={
        "nearest code": "q(t_i = k | H), the token's index",
        "tokenizer loss": "w_rec L1 + beta sum |t_i - sg c_q(i)|^2",
        "classification": "CE(L^, L)",
        "soft inference": "S = L^ C",
        "reconstruction loss": "w_3d L_J3d + w_2d L_J2d + w_vert L_vert",
    },
)

UNIT = 0.1
"""Metres that the tokenizer calls 1, about the size of a hand's half."""


class Tokenizer(nn.Module):
    """Mesh to tokens to mesh, through a codebook."""

    encoder_widths: tuple[int, ...]
    encoder_strides: tuple[int, ...]
    encoder_k: tuple[int, ...]
    encoder_blocks: tuple[int, ...]
    encoder_neighbours: str
    num_codes: int
    code_dim: int
    decay: float
    reset_below: float
    smoothing: float
    decoder_tokens: tuple[int, ...]
    decoder_widths: tuple[int, ...]
    decoder_blocks: int
    dtype: Any

    def setup(self):
        """Build encoder, codebook and decoder."""
        self.encoder = PointTransformer(
            self.encoder_widths,
            self.encoder_strides,
            self.encoder_k,
            self.encoder_blocks,
            self.encoder_neighbours,
            dtype=self.dtype,
        )
        # Lets tokens live on any scale; the encoder ends in a ReLU.
        self.norm = layer_norm(jnp.float32, "norm")
        self.project = linear(self.code_dim, jnp.float32, "project")
        self.vq = VectorQuantizer(
            self.num_codes, self.code_dim, self.decay, self.reset_below, self.smoothing
        )
        # No dropout: what it has to draw is exact.
        self.decoder = MeshRegressor(
            self.decoder_tokens,
            self.decoder_widths,
            (self.decoder_blocks,) * len(self.decoder_widths),
            dtype=self.dtype,
        )

    def set_template(self, template: Float[np.ndarray, "778 3"]) -> None:
        """Fix which vertex each token stands at."""
        self.encoder.set_template(template)

    def encode(
        self, vertices: Float[AnyArray, "batch 778 3"], *, train: bool = False
    ) -> Float[Array, "batch token dim"]:
        """Encode root-relative meshes in metres as tokens, not yet quantised."""
        points = jnp.asarray(vertices, jnp.float32) / UNIT
        features = self.encoder(points, train=train)
        return self.project(self.norm(features.astype(jnp.float32)))

    def quantize(
        self,
        tokens: Float[Array, "batch token dim"],
        valid: Bool[AnyArray, "batch"] | None = None,
        *,
        train: bool = False,
    ) -> Quantized:
        """Find the nearest codes; with `train` the codebook moves."""
        return self.vq(tokens, valid, train=train)

    def indices(
        self, vertices: Float[AnyArray, "batch 778 3"]
    ) -> Int[Array, "batch token"]:
        """Return the code of each token of meshes: the labels of stage "mesh"."""
        return nearest_code(self.encode(vertices), self.vq.embedding.value)

    def decode(
        self, codes: Float[Array, "batch token dim"]
    ) -> Float[Array, "batch 778 3"]:
        """Decode code vectors, exact or mixed, into meshes in metres."""
        return UNIT * self.decoder(codes, train=False)


class Classifier(nn.Module):
    """Image tokens to the scores of each hand token's codes."""

    num_tokens: int
    num_codes: int
    blocks: int
    dropout: float
    drop_path: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch image_token dim"], *, train: bool
    ) -> Float[Array, "batch token code"]:
        """Compute the logits of all tokens, float32."""
        code = self.param("code", code_init, (1, *x.shape[1:]))
        x = x + code.astype(self.dtype)
        x = TokenLinear(self.num_tokens, self.dtype, name="to_tokens")(x)
        for i in range(self.blocks):
            x = MetaFormerBlock(
                dropout=self.dropout,
                drop_path=self.drop_path,
                dtype=self.dtype,
                name=f"block{i}",
            )(x, train=train)
        x = layer_norm(self.dtype, "norm")(x)
        return linear(self.num_codes, jnp.float32, "logits")(x.astype(jnp.float32))


_FLAX_FIELDS = {"parent", "name", "dtype"}
TOKENIZER_FIELDS = tuple(sorted(set(Tokenizer.__dataclass_fields__) - _FLAX_FIELDS))
"""Fields of `config.model` that a trained tokenizer fixes."""


class Model(nn.Module):
    """Image to hand; the fields are `config.model`."""

    # Tokenizer. Level sizes halve: 778, 389, 194, 97, 48 points.
    encoder_widths: tuple[int, ...]
    encoder_strides: tuple[int, ...]
    encoder_k: tuple[int, ...]
    encoder_blocks: tuple[int, ...]
    encoder_neighbours: str  # or "template": much cheaper on a CPU
    num_codes: int
    code_dim: int
    decay: float
    reset_below: float
    smoothing: float
    commitment: str  # or "sum", the paper's formula to the letter
    decoder_tokens: tuple[int, ...]
    decoder_widths: tuple[int, ...]
    decoder_blocks: int
    # Image to tokens.
    backbone: str
    backbone_drop_path: float
    token_generator: str  # token_sampler.GENERATORS but F
    sampler_gradient: bool  # mesh losses move the 2-D joints (SimpleHand's do)
    token_dim: int
    classifier_blocks: int
    dropout: float  # of the classifier's attention
    drop_path: float  # of the classifier
    inference: str  # or "hard": the best code of each token
    # "frozen": image tokens of a landmark network that is not trained, instead of a
    # generator's; `backbone` is then one of `backbones.hand_landmark`.
    features: str
    feature_dropout: float
    # Input. ImageNet's, for which public backbone weights are made.
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    channel_order: str  # or "bgr"
    fused: bool = False  # inference form of the backbone: `models.for_inference`
    dtype: str = "float32"  # of the computation; parameters are float32

    tokenizes = "vertices"  # what `encode` takes (`capabilities.Tokenizes`)

    def setup(self):
        """Build both stages' parts."""
        _check_fields(self)
        dtype = jnp.dtype(self.dtype)
        self.tokenizer = Tokenizer(
            **{key: getattr(self, key) for key in TOKENIZER_FIELDS}, dtype=dtype
        )
        self.classifier = Classifier(
            self.decoder_tokens[0],
            self.num_codes,
            self.classifier_blocks,
            self.dropout,
            self.drop_path,
            dtype,
        )
        if self.features:
            self.generator = LandmarkTokens(
                self.token_dim, self.feature_dropout, dtype=dtype
            )
            return
        self.image_encoder = backbones.build(
            self.backbone,
            drop_path_rate=self.backbone_drop_path,
            dtype=dtype,
            fused=self.fused,
        )
        self.joints2d_head = nn.Dense(
            2 * NUM_JOINTS,
            # All joints start in the middle of the crop: outside of it the sampler
            # has no gradient.
            bias_init=nn.initializers.constant(0.5),
            kernel_init=nn.initializers.normal(1e-3),
        )
        self.generator = TokenGenerator(
            self.token_generator, self.token_dim, dtype=dtype
        )

    def __call__(
        self,
        image: UInt8[AnyArray, "batch height width 3"]
        | Float[AnyArray, "batch height width 3"]
        | HandFeatures,
        *,
        train: bool = False,
    ) -> HandOutput:
        """Predict the hand in crops of 0..255 RGB; sides divisible by 32.

        With `features`, crops of 224 pixels whose fingers point upwards, or what
        `nn.hand_features` made of them before.
        """
        tokens, joints_px = (
            self._landmark_tokens(image, train=train)
            if self.features
            else self._image_tokens(image, train=train)
        )
        logits = self.classifier(tokens, train=train)
        indices = jnp.argmax(logits, axis=-1)
        if self.inference == "hard" and not train:
            codes = self.tokenizer.vq.lookup(indices)
        else:
            codes = soft_lookup(logits, self.tokenizer.vq.embedding.value)
        vertices = self.tokenizer.decode(codes)
        return self._output(vertices)._replace(
            joints2d=joints_px, logits=logits, indices=indices
        )

    def _landmark_tokens(
        self, seen: Any, *, train: bool
    ) -> tuple[Float[Array, "batch 21 dim"], Float[Array, "batch 21 2"]]:
        """Return image tokens and 2-D joints from the frozen network."""
        if not isinstance(seen, HandFeatures):
            weights = self.get_variable("constants", "landmark_network")
            seen = hand_features.of_crops(self.backbone, weights, seen)
        return self.generator(seen, train=train)

    def _image_tokens(
        self, image: Any, *, train: bool
    ) -> tuple[Float[Array, "batch token dim"], Float[Array, "batch 21 2"]]:
        """Return the paper's image tokens, and the 2-D joints in pixels."""
        image_in = normalised(
            image,
            self.image_mean,
            self.image_std,
            self.channel_order,
            jnp.dtype(self.dtype),
        )
        features = self.image_encoder(image_in, train=train)["final"]
        pooled = jnp.mean(features.astype(jnp.float32), axis=(1, 2))
        joints = self.joints2d_head(pooled).reshape(-1, NUM_JOINTS, 2)
        where = joints if self.sampler_gradient else jax.lax.stop_gradient(joints)
        tokens = self.generator(features, where, train=train)
        return tokens, joints * _last_pixel(image)

    def reconstruct(
        self,
        vertices: Float[AnyArray, "batch 778 3"],
        valid: Bool[AnyArray, "batch"] | None = None,
        *,
        train: bool = False,
    ) -> tuple[HandOutput, Float[Array, "batch token dim"], Quantized]:
        """Encode, quantise and decode meshes by the tokenizer.

        Returns:
            The hand, the encoder's tokens, and what the quantiser made of them.
        """
        tokens = self.tokenizer.encode(vertices, train=train)
        quantized = self.tokenizer.quantize(tokens, valid, train=train)
        output = self._output(self.tokenizer.decode(quantized.tokens))
        return output._replace(indices=quantized.indices), tokens, quantized

    def encode(
        self, vertices: Float[AnyArray, "batch 778 3"]
    ) -> Int[Array, "batch token"]:
        """Encode root-relative meshes in metres as token indices."""
        return self.tokenizer.indices(vertices)

    def decode(self, indices: Int[AnyArray, "batch token"]) -> HandOutput:
        """Decode token indices into the hand."""
        return self.decode_codes(self.tokenizer.vq.lookup(jnp.asarray(indices)))

    def decode_codes(self, codes: Float[AnyArray, "batch token dim"]) -> HandOutput:
        """Decode code vectors, which may be mixed ones, into the hand."""
        return self._output(self.tokenizer.decode(jnp.asarray(codes)))

    def init_all(self, batch: Batch, hand: HandConstants) -> HandOutput:
        """Run every submodule once and store the hand model's constants."""
        hand.require_hand(PAPER.name)
        self.put_variable(
            "constants", "joint_regressor", jnp.asarray(hand.joint_regressor)
        )
        self.put_variable("constants", "faces", jnp.asarray(hand.faces))
        if self.features:
            network = hand_landmark.pretrained(self.backbone)
            network = jax.tree.map(jnp.asarray, network)
            self.put_variable("constants", "landmark_network", network)
        self.tokenizer.set_template(hand.v_template)
        self.reconstruct(batch.vertices)
        return self(batch.seen)

    def _output(self, vertices: Float[Array, "batch 778 3"]) -> HandOutput:
        regressor = self.get_variable("constants", "joint_regressor")
        return HandOutput(vertices, joints_from_vertices(regressor, vertices))


def _last_pixel(image: Any) -> Float[Array, "1 1 2"]:
    """Return pixels per unit of the sampler's coordinates: width - 1, height - 1."""
    if isinstance(image, HandFeatures):
        return jnp.full((1, 1, 2), hand_landmark.IMAGE_SIZE - 1.0)
    height, width = image.shape[1:3]
    return jnp.array([[[width - 1, height - 1]]], jnp.float32)


def _check_fields(model: Model) -> None:
    """Refuse fields that do not go together."""
    hand_features.check(model.features, model.backbone)
    sizes = level_sizes(NUM_VERTICES, model.encoder_strides)
    if sizes[-1] != model.decoder_tokens[0]:
        raise UserError(
            f"config.model.encoder_strides={model.encoder_strides} end in {sizes[-1]} "
            f"tokens (levels of {sizes}), but decoder_tokens={model.decoder_tokens} "
            "begins with another number; change one of them."
        )
    if len(model.decoder_tokens) != len(model.decoder_widths):
        raise UserError(
            f"config.model.decoder_tokens={model.decoder_tokens} and decoder_widths="
            f"{model.decoder_widths} must name the same number of layers."
        )
    for key, allowed in (
        ("inference", ("soft", "hard")),
        ("token_generator", ("A", "B", "C", "D", "E")),
        ("commitment", ("mean", "sum")),
    ):
        value = getattr(model, key)
        if value not in allowed:
            raise UserError(f"config.model.{key}={value!r} is not one of {allowed}.")


# --- Training ----------------------------------------------------------------


def stages(config: Any) -> tuple[Stage, ...]:
    """Return two stages: the tokenizer, then the mesh."""
    del config
    return (
        Stage(
            name="tokenizer",
            loss_fn=tokenizer_loss,
            predict_fn=predict_mesh,
            trainable="^tokenizer/",
            needs_image=False,
        ),
        Stage(
            name="mesh",
            loss_fn=mesh_loss,
            predict_fn=predict_image,
            trainable="^(?!tokenizer/)",
            needs_image=True,
            check=check_mesh,
        ),
    )


def tokenizer_loss(
    model: Model, variables: Variables, batch: Batch, rngs: dict[str, Array]
) -> tuple[dict[str, Array], dict[str, Array], dict[str, Any]]:
    """Compute reconstruction and commitment (TokenHand Eq. tokenizer loss).

    The commitment is the mean of squares, not the sum; see `losses.commitment`.
    Examples without a mesh count for nothing, nor do they for batch statistics.
    """
    valid = jnp.asarray(batch.vertices_valid)
    vertices = jnp.asarray(batch.vertices)[supervision.valid_replacements(valid)]
    (output, tokens, quantized), updates = model.apply(
        variables,
        vertices,
        valid,
        train=True,
        method="reconstruct",
        mutable=["batch_stats", "codebook"],
        rngs=rngs,
    )
    error = elementwise.point_l1(output.vertices, vertices)
    far = elementwise.commitment(tokens, quantized.codes, reduction=model.commitment)
    terms = {
        "vertices": elementwise.reduce_points(error, example_valid=valid),
        "commitment": jnp.mean(jnp.where(valid, far, 0.0)),
    }
    metrics = {**quantized.metrics, "mm": _millimetres(output, batch)}
    return terms, metrics, supervision.updates_if_any_valid(updates, variables, valid)


def mesh_loss(
    model: Model, variables: Variables, batch: Batch, rngs: dict[str, Array]
) -> tuple[dict[str, Array], dict[str, Array], dict[str, Any]]:
    """Compute classification plus geometry (TokenHand Eq. reconstruction loss).

    2-D in units of the crop, joints outside of it masked, others by their confidence;
    3-D in metres; reductions as in SimpleHand. Labels come from the frozen encoder on
    the true mesh.
    """
    labels = model.apply(variables, batch.vertices, method="encode")
    output, updates = model.apply(
        variables, batch.seen, train=True, mutable=["batch_stats"], rngs=rngs
    )
    to_unit = 1 / _last_pixel(batch.seen)
    joints2d = elementwise.point_l1(output.joints2d * to_unit, batch.joints2d * to_unit)
    mesh_valid = batch.vertices_valid
    terms = {
        "tokens": elementwise.reduce_points(
            elementwise.cross_entropy(output.logits, labels), example_valid=mesh_valid
        ),
        "joints3d": elementwise.reduce_points(
            elementwise.point_l1(output.joints3d, batch.joints3d),
            point_valid=batch.known_joints3d,
        ),
        "joints2d": elementwise.reduce_points(
            joints2d, confidence=batch.joints2d_weights
        ),
        "vertices": elementwise.reduce_points(
            elementwise.point_l1(output.vertices, batch.vertices),
            example_valid=mesh_valid,
        ),
    }
    metrics = {
        "token_accuracy": elementwise.accuracy(
            output.logits, labels, example_valid=mesh_valid
        ),
        "mm": _millimetres(output, batch),
    }
    return terms, metrics, dict(updates)


def predict_mesh(model: Model, variables: Variables, batch: Batch) -> HandOutput:
    """Reconstruct the true mesh by the tokenizer: the floor of stage "mesh"."""
    return model.apply(variables, batch.vertices, method="reconstruct")[0]


def predict_image(model: Model, variables: Variables, batch: Batch) -> HandOutput:
    """Predict the hand from the image, or from features of it."""
    return model.apply(variables, batch.seen)


def _millimetres(output: HandOutput, batch: Batch) -> Float[Array, ""]:
    return 1000 * elementwise.mean_distance(
        output.vertices, batch.vertices, example_valid=jnp.asarray(batch.vertices_valid)
    )


# --- The tokenizer between the stages ----------------------------------------


def check_mesh(
    config: Any, model: Model, variables: Variables, info: dict[str, Any]
) -> None:
    """Refuse to start stage "mesh" on a tokenizer that does not fit the config."""
    frozen_tokenizer.check(config, model, variables, info, fields=TOKENIZER_FIELDS)


def parameter_table(variables: Variables) -> list[tuple[str, int]]:
    """Count parameters by part: rows (part, number).

    The paper's "3.0 M" are the parts of stage "mesh" other than backbone and
    deconvolution: `uv head`, `head`, decoder, coordinates and codebook.
    """
    layers = {
        f"tokenizer/decoder/{name}": f"decoder {_number(name) + 1}"
        for name in variables["params"]["tokenizer"]["decoder"]
        if name.startswith("layer")
    }
    return parameters_by_part(variables, _PARTS | layers)


_PARTS = {
    "tokenizer/encoder": "encoder",
    "tokenizer/norm": "token projection",
    "tokenizer/project": "token projection",
    "tokenizer/decoder/coordinates": "coordinates",
    "image_encoder": "backbone",
    "joints2d_head": "2-D joints head",
    "generator/upsample": "deconvolution",
    "generator": "token generator",
    "classifier": "classifier",
    "codebook": "codebook",
}


def _number(layer: str) -> int:
    """Return the number of a decoder's layer: 2 of "layer2_block0"."""
    return int(layer.removeprefix("layer").partition("_")[0])
