"""MMHMR's network: tokens of a hand named from an image, a text and 2-D joints."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from handjax.errors import UserError
from handjax.family import hypotheses
from handjax.family.hand_constants import HandConstants, parameters_by_part
from handjax.geometry import rotations, skeleton
from handjax.mano.hand_model import HandModel
from handjax.models.mmhmr.masked_synthesizer import CameraShapeHead, MaskedSynthesizer
from handjax.models.mmhmr.tokenizer import (
    REPRESENTATIONS,
    TOKENIZER_FIELDS,
    Matrices,
    Tokenizer,
)
from handjax.nn import backbones, mano_head, masked_tokens, token_pruner
from handjax.nn.feature_pyramid import FeaturePyramid
from handjax.nn.mano_head import ManoParameters, MeanParameters, Posed
from handjax.nn.masked_tokens import Sampling
from handjax.nn.ops.image import middle_columns, normalised
from handjax.nn.text import text_encoder
from handjax.nn.vq import Quantized, soft_lookup
from handjax.types import AnyArray, Batch, HandOutput, Variables

CONDITIONS = {
    "image": "crops of photos",
    "text": "what the hand shows, in words",
}
"""What hands are made from."""
JOINTS2D_TRAIN = {
    "truth": "annotated joints, moved at random (`joints2d_noise`), as in the paper",
    "predicted": "those of the model's own detector, without a gradient",
    "none": "no joints (ablation)",
}
"""What the synthesizer is told of 2-D joints in training."""
JOINTS2D_TEST = {
    "predicted": "those of the model's own detector",
    "none": "no joints",
    "given": "what the caller gives; in evaluation the annotated ones, a bound",
}
"""The same at inference. The paper takes a detector's, and has none of its own; a
library that is given a photo and a box should not need one, so a light one is part of
the model, and is what the config takes."""
DECODED = {
    "codes": "the codes that were drawn",
    "expectation": "the mean code of each token by the last step's probabilities",
}
"""What the pose is decoded from at inference."""
MASK_LOSSES = {
    "all": "of all tokens, as the paper's formula says",
    "masked": "of the hidden ones",
}

Image = (
    UInt8[AnyArray, "batch height width 3"] | Float[AnyArray, "batch height width 3"]
)
Joints2D = Float[AnyArray, "batch joint 2"]
Seen2D = Float[AnyArray, "batch joint"]


Words = Int[AnyArray, "batch length"]
"""Token ids of texts (`text_encoder.tokenizer`)."""


class Condition(NamedTuple):
    """All that is taken of an image or a text, once for all steps of sampling."""

    maps: Sequence[Float[Array, "batch _ _ channel"]] | None
    """Of `config.model.levels`; None of a text."""
    joints2d: Joints2D | None
    """For the synthesizer, in 0..1 of what the maps show."""
    joints2d_seen: Seen2D | None
    """Confidence of each, 0..1."""
    betas: Float[Array, "batch beta"]
    cam: Float[Array, "batch 3"]
    detected: Joints2D | None
    """What the detector says, in pixels of the crop."""
    context: Float[Array, "batch word _"] | None = None
    """Tokens of a text, or clusters of the map."""
    context_valid: Bool[Array, "batch word"] | None = None
    """False for padding of the text."""


class MaskedPrediction(NamedTuple):
    """What training compares: scores of all tokens, and the hand that they expect."""

    logits: Float[Array, "batch token code"]
    parameters: ManoParameters
    posed: Posed
    detected: Joints2D | None


class Model(nn.Module):
    """Image or text to hand; the fields are `config.model`."""

    tokenizes = "mano_pose"  # what `encode` takes (`capabilities.Tokenizes`)

    # Tokenizer.
    num_tokens: int  # 16, 32, 64, 128
    num_codes: int
    code_dim: int
    rotation: str  # REPRESENTATIONS
    codec_width: int
    codec_depth: int
    dilation_growth: int
    dilation_order: str  # joint_codec.DILATION_ORDERS
    decay: float
    reset_below: float
    smoothing: float
    # Its losses.
    commitment: str  # over tokens and dimensions, or "sum"
    codec_reduction: str  # of the L1 terms: REDUCTIONS
    turned: bool  # whether poses are turned as a whole, uniformly, in training
    # What hands are made from, and how a text is read.
    condition: str  # CONDITIONS
    text: str  # text_encoder.names()
    labels: tuple[str, ...]  # that text="labels" knows
    # Image to maps, betas and camera.
    backbone: str
    backbone_drop_path: float
    levels: tuple[str, ...]  # feature_pyramid.LEVELS, "1x" among them
    width: int  # of maps and tokens
    # Share of the map "1x" that is left as tokens, clustered by TORE's pruner, for the
    # synthesizer to attend to as it does to a text's; 1, the paper's: maps, at places.
    keep_ratio: float | int
    shape_head: str  # masked_synthesizer.SHAPE_HEADS
    shape_layers: int
    head_init: str  # mano_head.INITS
    # 2-D joints.
    joints2d_train: str  # JOINTS2D_TRAIN
    joints2d_test: str  # JOINTS2D_TEST
    joints2d_noise: float  # standard deviation of "truth", sides of the crop
    joints2d_drop: float  # share of training examples that have none
    # Masked synthesizer.
    layers: int
    heads: int
    points: int
    mlp_ratio: int
    dropout: float
    ggpm_blocks: int
    adjacency: str  # graph_transformer.ADJACENCIES
    ggpm_residual: bool
    gate_reduction: int
    pose: str  # pose_tokens.POSES
    reference: str  # masked_synthesizer.REFERENCES
    # Masks in training.
    tau_range: tuple[float, float]
    schedule: str  # masked_tokens.SCHEDULES; of inference, too
    mask_loss: str  # MASK_LOSSES
    mask_reduction: str  # over those tokens, or "sum"
    # Sampling.
    steps: int
    temperature: float  # 0: the most probable codes
    gumbel: float
    top_k: int | float
    top_p: float
    nth: int
    remask: str  # masked_tokens.REMASK
    decoded: str  # DECODED
    hypothesis_temperature: float  # of `hypotheses`, which differ by chance
    # Hands.
    root: str  # that HandOutput is relative to; config.data.root
    joints: str  # mano_head.JOINTS
    reduction: str  # hmr_losses.REDUCTIONS
    per_device: int  # examples that "sum" sums over; the paper's batch
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    channel_order: str
    remat: bool = False  # a vision transformer stores less and computes more
    remat_policy: str = "nothing"  # what it stores all the same: nn.remat.POLICIES
    dtype: str = "float32"  # of the computation; parameters are float32

    def setup(self):
        """Build tokenizer, backbone, pyramid, heads and synthesizer."""
        _check_fields(self)
        dtype = jnp.dtype(self.dtype)
        self.tokenizer = Tokenizer(
            **{key: getattr(self, key) for key in TOKENIZER_FIELDS}, dtype=dtype
        )
        self._build_synthesizer(dtype)
        if self.condition == "text":
            self.text_encoder = text_encoder.build(
                self.text, labels=self.labels, dtype=dtype
            )
            return
        options: dict[str, Any] = dict(
            drop_path_rate=self.backbone_drop_path, dtype=dtype
        )
        if self.remat:  # of vision transformers alone
            options |= dict(remat=True, remat_policy=self.remat_policy)
        self.image_encoder = backbones.build(self.backbone, **options)
        self.pyramid = FeaturePyramid(self.width, self.levels, dtype)
        self.shape_camera = ShapeCamera(
            CameraShapeHead(
                self.shape_head,
                self.width,
                self.shape_layers,
                self.heads,
                self.mlp_ratio,
                dtype,
            ),
            self.head_init,
        )
        if detects(self):
            self.detector = Detector()
        if self.keep_ratio < 1:
            self.pruner = token_pruner.TokenPruner(self.keep_ratio, dtype=dtype)

    def _build_synthesizer(self, dtype: Any) -> None:
        self.synthesizer = MaskedSynthesizer(
            num_tokens=self.num_tokens,
            num_codes=self.num_codes,
            width=self.width,
            layers=self.layers,
            heads=self.heads,
            points=self.points,
            mlp_ratio=self.mlp_ratio,
            dropout=self.dropout,
            ggpm_blocks=self.ggpm_blocks,
            adjacency=self.adjacency,
            ggpm_residual=self.ggpm_residual,
            reduction=self.gate_reduction,
            pose=self.pose,
            reference=self.reference,
            dtype=dtype,
        )

    def __call__(
        self,
        image: Image | Words,
        *,
        joints2d: Joints2D | None = None,
        train: bool = False,
    ) -> HandOutput:
        """Predict the hand in square crops of 0..255 RGB, or make that of a text.

        The outer eighths of the columns are not looked at.

        Args:
            image: Crops, or with `condition="text"` ids of words.
            joints2d: A detector's, pixels of the crop; without, `joints2d_test` says.
            train: Drop at random.
        """
        seen = self.encode_condition(
            image, joints2d, predicts=self._predicts(), train=train
        )
        return self.sampled_hand(
            seen, jax.random.key(0), self._sampling(), image.shape[1], self.decoded
        )

    def hypotheses(
        self,
        image: Image | Words,
        key: Array,
        count: int,
        *,
        joints2d: Joints2D | None = None,
    ) -> hypotheses.Hypotheses:
        """Draw several hands per image or text, at `hypothesis_temperature`."""
        # Flax allows no modules inside of JAX's loops; a pure function it does.
        model, variables = self.unbind()
        seen = self.encode_condition(image, joints2d, predicts=self._predicts())
        options = self._sampling()._replace(
            temperature=self.hypothesis_temperature, nth=1
        )

        def one(key: Array) -> HandOutput:
            return model.apply(
                variables,
                seen,
                key,
                options,
                image.shape[1],
                "codes",
                method="sampled_hand",
            )

        return hypotheses.draw(one, key, count)

    def encode_condition(
        self,
        image: Image | Words,
        joints2d: Joints2D | None = None,
        joints2d_seen: Seen2D | None = None,
        *,
        predicts: bool = False,
        train: bool = False,
    ) -> Condition:
        """Take all from images, or texts, that the steps of sampling need.

        Args:
            image: Square crops, or with `condition="text"` ids of words.
            joints2d: Pixels of the crop, or None.
            joints2d_seen: Their confidence, 0..1; None for 1.
            predicts: Whether the detector's stand in for missing ones.
            train: Drop at random, move statistics.
        """
        mean = MeanParameters(**self.get_variable("constants", "mean"))
        if self.condition == "text":
            words = self.text_encoder(image, train=train)
            betas, cam = (
                jnp.broadcast_to(x[None], (len(image), *x.shape))
                for x in (mean.betas, mean.cam)
            )
            return Condition(
                None, None, None, betas, cam, None, words.tokens, words.mask
            )
        maps = self.pyramid(self._features(image, train))
        coarse = maps[tuple(self.levels).index("1x")]
        betas, cam = self.shape_camera(coarse, mean)
        stride = image.shape[1] // coarse.shape[1]
        geometry = dict(
            crop_px=image.shape[1],
            edge_px=backbones.first_pixel(self.backbone, stride) - stride / 2,
        )
        detected, places = None, None
        if detects(self):
            found = self.detector(coarse)
            detected = map_to_crop(found, **geometry)
            places = jax.lax.stop_gradient(found) if predicts else None
        if joints2d is not None:
            places = crop_to_map(jnp.asarray(joints2d), **geometry)
        if places is not None and joints2d_seen is None:
            joints2d_seen = jnp.ones(places.shape[:2])
        context = self.pruner(coarse).tokens if self.keep_ratio < 1 else None
        return Condition(maps, places, joints2d_seen, betas, cam, detected, context)

    def score(
        self,
        seen: Condition,
        indices: Int[Array, "batch token"],
        masked: Bool[Array, "batch token"],
        *,
        train: bool = False,
    ) -> Float[Array, "batch token code"]:
        """Compute the logits of all tokens, from those that are not masked."""
        return self.synthesizer(
            indices,
            masked,
            maps=seen.maps if seen.context is None else None,
            context=seen.context,
            context_valid=seen.context_valid,
            joints2d=seen.joints2d,
            joints2d_confidence=seen.joints2d_seen,
            train=train,
        )

    def sampled_hand(
        self,
        seen: Condition,
        key: Array,
        options: Sampling,
        size_px: int,
        decoded: str,
    ) -> HandOutput:
        """Draw the tokens of a hand in `steps` steps, and pose it.

        Args:
            seen: Of the image.
            key: For the draws.
            options: How they are drawn.
            size_px: Side of the crop.
            decoded: One of `DECODED`.
        """
        model, variables = self.unbind()

        def predict(indices: Array, masked: Array) -> Array:
            return model.apply(variables, seen, indices, masked, method="score")

        drawn = masked_tokens.sample(
            key,
            predict,
            batch=len(seen.betas),
            tokens=self.num_tokens,
            steps=self.steps,
            schedule=self.schedule,
            options=options,
        )
        if decoded == "expectation":
            codes = self.expected(drawn.logits)
        else:
            codes = self.tokenizer.vq.lookup(drawn.indices)
        posed = self._posed(self._parameters(codes, seen))
        output = mano_head.hand_output(
            posed, root=skeleton.root_joint(self.root), size_px=size_px
        )
        if seen.maps is None:  # no camera, no picture
            output = output._replace(joints2d=None, cam=None)
        return output._replace(
            logits=drawn.logits,
            indices=drawn.indices,
            confidence=jnp.mean(drawn.confidence, axis=1),
        )

    def predict_masked(
        self,
        image: Image | Words,
        labels: Int[Array, "batch token"],
        masked: Bool[Array, "batch token"],
        joints2d: Joints2D | None,
        joints2d_seen: Seen2D | None,
        *,
        train: bool = False,
    ) -> MaskedPrediction:
        """Name the hidden tokens in one step, and pose the hand that is expected."""
        predicts = self.joints2d_train == "predicted"
        seen = self.encode_condition(
            image, joints2d, joints2d_seen, predicts=predicts, train=train
        )
        logits = self.score(seen, labels, masked, train=train)
        parameters = self._parameters(self.expected(logits), seen)
        return MaskedPrediction(
            logits, parameters, self._posed(parameters), seen.detected
        )

    def expected(
        self, logits: Float[Array, "batch token code"]
    ) -> Float[Array, "batch token dim"]:
        """Return each token's mean code, differentiable (MMHMR Eq. expectation)."""
        return soft_lookup(logits, self.tokenizer.vq.embedding.value)

    def autoencode(
        self,
        mano_pose: Float[AnyArray, "batch bone 3"],
        betas: Float[AnyArray, "batch beta"] | None = None,
    ) -> HandOutput:
        """Reconstruct the hand of a pose by the tokenizer."""
        matrices = rotations.axis_angle_to_matrix(mano_pose)
        return self.output(self.reconstruct(matrices)[0], betas)

    def _predicts(self) -> bool:
        return self.joints2d_test == "predicted"

    def _sampling(self) -> Sampling:
        return Sampling(
            self.temperature,
            self.gumbel,
            self.top_k,
            self.top_p,
            self.nth,
            self.remask,
        )

    def _features(self, image: Image, train: bool) -> Float[Array, "batch _ _ channel"]:
        """Map of the middle 3/4 of the columns, as HaMeR's backbone sees them."""
        pixels = normalised(
            middle_columns(image),
            self.image_mean,
            self.image_std,
            self.channel_order,
            jnp.dtype(self.dtype),
        )
        return self.image_encoder(pixels, train=train)["final"]

    def _parameters(
        self, codes: Float[Array, "batch token dim"], seen: Condition
    ) -> ManoParameters:
        matrices = self.tokenizer.decode(codes)
        return ManoParameters(matrices[:, :1], matrices[:, 1:], seen.betas, seen.cam)

    def _posed(self, parameters: ManoParameters) -> Posed:
        hand = HandModel(**self.get_variable("constants", "hand"))
        return mano_head.posed(hand, parameters, joints=self.joints)

    def reconstruct(
        self,
        matrices: Matrices,
        valid: Bool[AnyArray, "batch"] | None = None,
        *,
        train: bool = False,
    ) -> tuple[Matrices, Float[Array, "batch token dim"], Quantized]:
        """Encode, quantise and decode poses by the tokenizer.

        Returns:
            The pose, the encoder's tokens, and what the quantiser made of them.
        """
        tokens = self.tokenizer.encode(matrices)
        quantized = self.tokenizer.quantize(tokens, valid, train=train)
        return self.tokenizer.decode(quantized.tokens), tokens, quantized

    def encode(
        self, mano_pose: Float[AnyArray, "batch bone 3"]
    ) -> Int[Array, "batch token"]:
        """Encode absolute axis-angle poses (wrist first, camera axes) as indices."""
        return self.tokenizer.indices(rotations.axis_angle_to_matrix(mano_pose))

    def decode(
        self,
        indices: Int[AnyArray, "batch token"],
        betas: Float[AnyArray, "batch beta"] | None = None,
    ) -> HandOutput:
        """Decode token indices into the hand, of mean shape without `betas`."""
        return self.decode_codes(self.tokenizer.vq.lookup(jnp.asarray(indices)), betas)

    def decode_codes(
        self,
        codes: Float[AnyArray, "batch token dim"],
        betas: Float[AnyArray, "batch beta"] | None = None,
    ) -> HandOutput:
        """Decode code vectors, which may be mixed ones, into the hand."""
        return self.output(self.tokenizer.decode(jnp.asarray(codes)), betas)

    def init_all(self, batch: Batch, hand: HandConstants) -> HandOutput:
        """Run every submodule once and store the hand model's constants."""
        hand.require_hand("MMHMR")
        mano_head.keep_hand(self, hand.arrays())
        self.autoencode(batch.mano_pose)
        labels = jnp.zeros((len(batch.betas), self.num_tokens), jnp.int32)
        seen = self.encode_condition(
            batch.text if self.condition == "text" else batch.image
        )
        self.score(seen, labels, labels == 0)
        # Sampling must find all parameters made, for it has a loop.
        return self.output(
            self.tokenizer.decode(self.tokenizer.vq.lookup(labels)), None
        )

    def vertices(
        self, matrices: Matrices, betas: Float[AnyArray, "batch beta"]
    ) -> Float[Array, "batch vertex 3"]:
        """Return the posed meshes, metres, where the hand model puts them."""
        hand = HandModel(**self.get_variable("constants", "hand"))
        shaped = hand.with_shape(betas)
        return shaped.with_pose(matrices[:, 0], matrices[:, 1:], form="matrix").vertices

    def output(
        self, matrices: Matrices, betas: Float[AnyArray, "batch beta"] | None
    ) -> HandOutput:
        """Return a `HandOutput` of a pose that no camera sees."""
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
        posed = self._posed(parameters)
        place = posed.joints3d[:, skeleton.root_joint(self.root)][:, None]
        return HandOutput(posed.vertices - place, posed.joints3d - place)


REDUCTIONS = ("mean", "sum")
"""Of the tokenizer's L1 terms over joints or vertices and their numbers; over examples
they are means."""


def detects(model: Model) -> bool:
    """Return whether a model of images has a detector of 2-D joints."""
    return "predicted" in (model.joints2d_train, model.joints2d_test)


class Detector(nn.Module):
    """Light detector of 2-D joints: where each joint's heat on a map is on average.

    Sun et al., Integral human pose regression, ECCV 2018. Not in the paper, which takes
    OpenPose's joints.
    """

    joints: int = skeleton.NUM_JOINTS

    @nn.compact
    def __call__(
        self, features: Float[Array, "batch height width channel"]
    ) -> Float[Array, "batch joint 2"]:
        """Return joints in 0..1 of the map, x right, y down, from edge to edge."""
        batch, height, width, _ = features.shape
        heat = nn.Dense(self.joints, name="heat")(features.astype(jnp.float32))
        heat = jax.nn.softmax(heat.reshape(batch, -1, self.joints), axis=1)
        x, y = np.meshgrid(
            (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
        )
        places = jnp.asarray(np.stack([x.ravel(), y.ravel()], axis=-1), jnp.float32)
        return jnp.einsum("bpj,px->bjx", heat, places, precision="highest")


class ShapeCamera(nn.Module):
    """Betas and camera, added to the mean hand's, from what a head reads."""

    head: CameraShapeHead
    initialiser: str = "torch"  # mano_head.INITS

    @nn.compact
    def __call__(
        self, features: Float[Array, "batch height width channel"], mean: MeanParameters
    ) -> tuple[Float[Array, "batch beta"], Float[Array, "batch 3"]]:
        """Read the map."""
        read, init = self.head(features), mano_head.initialiser(self.initialiser)
        betas, cam = (
            to[None] + nn.Dense(to.shape[0], kernel_init=init, name=name)(read)
            for name, to in (("betas", mean.betas), ("cam", mean.cam))
        )
        return betas, cam


def crop_to_map(
    joints2d: Float[Array, "batch joint 2"], *, crop_px: int, edge_px: float
) -> Float[Array, "batch joint 2"]:
    """Convert pixels of the crop to places on the maps, 0..1, edge to edge.

    Maps show the middle 3/4 of the columns, and do not begin just where these do.

    Args:
        joints2d: Pixels of the crop, the first one's centre being (0, 0).
        crop_px: Side of the crop.
        edge_px: Where the edge of the maps' first pixels is in what they show: half a
            stride before their middle, `backbones.first_pixel`.
    """
    edge = (joints2d - edge_px) / crop_px
    return (edge - jnp.array([[[1 / 8, 0]]])) / jnp.array([[[3 / 4, 1]]])


def map_to_crop(
    places: Float[Array, "batch joint 2"], *, crop_px: int, edge_px: float
) -> Float[Array, "batch joint 2"]:
    """Undo `crop_to_map`."""
    edge = places * jnp.array([[[3 / 4, 1]]]) + jnp.array([[[1 / 8, 0]]])
    return edge * crop_px + edge_px


def _check_fields(model: Model) -> None:
    """Refuse values that are none of those there are."""
    for key, allowed in (
        ("condition", CONDITIONS),
        ("rotation", REPRESENTATIONS),
        ("commitment", ("mean", "sum")),
        ("codec_reduction", REDUCTIONS),
        ("joints2d_train", JOINTS2D_TRAIN),
        ("joints2d_test", JOINTS2D_TEST),
        ("mask_loss", MASK_LOSSES),
        ("mask_reduction", ("mean", "sum")),
        ("decoded", DECODED),
    ):
        value = getattr(model, key)
        if value not in allowed:
            raise UserError(
                f"config.model.{key}={value!r} is not one of {', '.join(allowed)}."
            )
    if "1x" not in model.levels:
        raise UserError(
            f"config.model.levels={tuple(model.levels)} has no '1x', which betas and "
            "camera are read from; add it."
        )
    token_pruner.check_ratio(model.keep_ratio)


# --- Training ----------------------------------------------------------------


_PARTS = {
    "tokenizer/encoder": "encoder",
    "tokenizer/decoder": "decoder",
    "codebook": "codebook",
    "image_encoder": "backbone",
    "text_encoder": "text encoder",
    "pyramid": "pyramid",
    "shape_camera": "x-attention head",
    "detector": "detector",
    "pruner": "image token pruner",
    "synthesizer/ggpm": "graph transformer",
    "synthesizer": "synthesizer",
}


def parameter_table(variables: Variables) -> list[tuple[str, int]]:
    """Count parameters by part, and the codebook's numbers: rows (part, number)."""
    return parameters_by_part(variables, _PARTS)
