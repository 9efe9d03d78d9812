"""MMHMR: generative masked modeling for hand mesh recovery (2024; ICCV 2025: MaskHand).

Stage "tokenizer" (VQ-MANO) learns a codebook of poses from poses alone: rotations of
the 16 joints, convolutions along them, nearest code, convolutions back. Shape is no
part of it: losses and evaluation pose the true shape.

Stage "mesh" learns to name hidden tokens of the hand in an image from the others, from
maps of the image in several sizes, and from 2-D joints: blocks of graph transformer,
then layers of attention among the tokens and to the maps. Betas and camera are read
from the map alone. At inference all tokens are hidden at first; in a few steps the
surest are kept and the others guessed again. With `condition="text"` the tokens of a
text stand in for the maps, and nothing is known of 2-D joints, shape and camera.

No code of the paper is public. What it leaves open is a field here or a value of the
config; docs/mmhmr.md lists them with their reasons.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from handjax.family import frozen_tokenizer, hypotheses
from handjax.family.stage import LABELLED_POSES, Stage
from handjax.geometry import rotations, skeleton
from handjax.losses import elementwise, hmr, supervision
from handjax.mano.hand_model import HandModel
from handjax.models import (
    HandConstants,
    check_root,
    joints_from_vertices,
    parameters_by_part,
)
from handjax.models.mmhmr.joint_codec import JointDecoder, JointEncoder
from handjax.models.mmhmr.masked_synthesizer import CameraShapeHead, MaskedSynthesizer
from handjax.nn import backbones, mano_head, masked_tokens, token_pruner
from handjax.nn.feature_pyramid import FeaturePyramid
from handjax.nn.mano_head import ManoParameters, MeanParameters, Posed
from handjax.nn.masked_tokens import Sampling
from handjax.nn.ops.image import IMAGENET_MEAN, IMAGENET_STD, middle_columns, normalised
from handjax.nn.text import text_encoder
from handjax.nn.vq import Quantized, VectorQuantizer, nearest_code, soft_lookup
from handjax.types import AnyArray, Batch, HandOutput, Paper, Variables

PAPER = Paper(
    name="MMHMR",
    title="MMHMR: Generative Masked Modeling for Hand Mesh Recovery",
    url="https://m-usamasaleem.github.io/publication/MMHMR/mmhmr.html",
    equations={
        "nearest code": "z^_i = arg min_k |z_i - c_k|, the token's code",
        "tokenizer loss": "l_re L_recon + l_E |sg z - c| + l_a |z - sg c|",
        "reconstruction loss": "l_theta L_theta + l_V L_V + l_J L_J",
        1: "Q' = MHA(Norm(Q)) + Conv(Norm(Q)) + Q",
        2: "Q_GGPM = SE(Norm(Q'))",
        "deformable attention": "sum_lk A_lk W x^l(p + dp_lk)",
        "masking": "m = ceil(gamma(tau) L), gamma(tau) = cos(pi tau / 2)",
        "mask loss": "-E sum_i log p(y_i | Y_M, X_2D, X_img)",
        "expectation": "z = softmax(L) CB",
        "total loss": "L_mask + L_MANO + L_3D + L_2D",
        "sampling": "ceil(gamma(t / T) L) tokens are masked again",
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
the model, and is the default."""
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


class Seen(NamedTuple):
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


class Guess(NamedTuple):
    """What training compares: scores of all tokens, and the hand that they expect."""

    logits: Float[Array, "batch token code"]
    parameters: ManoParameters
    posed: Posed
    detected: Joints2D | None


class Model(nn.Module):
    """Image or text to hand; the fields are `config.model`."""

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
    # What hands are made from, and how a text is read.
    condition: str = "image"  # CONDITIONS
    text: str = text_encoder.LABELS  # text_encoder.names()
    labels: tuple[str, ...] = text_encoder.ASL_LETTERS  # that text="labels" knows
    # Image to maps, betas and camera.
    backbone: str = "vit_h"
    backbone_drop_path: float = 0.55
    remat: bool = False  # a vision transformer stores less and computes more
    remat_policy: str = "nothing"  # what it stores all the same: nn.remat.POLICIES
    levels: tuple[str, ...] = ("1x", "4x")  # feature_pyramid.LEVELS, "1x" among them
    width: int = 256  # of maps and tokens
    # Share of the map "1x" that is left as tokens, clustered by TORE's pruner, for the
    # synthesizer to attend to as it does to a text's; 1, the paper's: maps, at places.
    keep_ratio: float | int = 1.0
    shape_head: str = "attention"  # masked_synthesizer.SHAPE_HEADS
    shape_layers: int = 2
    head_init: str = "torch"  # mano_head.INITS
    # 2-D joints.
    joints2d_train: str = "truth"  # JOINTS2D_TRAIN
    joints2d_test: str = "predicted"  # JOINTS2D_TEST
    joints2d_noise: float = 0.02  # standard deviation of "truth", sides of the crop
    joints2d_drop: float = 0.1  # share of training examples that have none
    # Masked synthesizer.
    layers: int = 4
    heads: int = 8
    points: int = 4
    mlp_ratio: int = 4
    dropout: float = 0.0
    ggpm_blocks: int = 2
    adjacency: str = "bias"  # graph_transformer.ADJACENCIES
    ggpm_residual: bool = False
    gate_reduction: int = 4
    pose: str = "linear"  # pose_tokens.POSES
    reference: str = "joints2d"  # masked_synthesizer.REFERENCES
    # Masks in training.
    tau_range: tuple[float, float] = (0.0, 0.7)
    schedule: str = "cosine"  # masked_tokens.SCHEDULES; of inference, too
    mask_loss: str = "all"  # MASK_LOSSES
    mask_reduction: str = "mean"  # over those tokens, or "sum"
    # Sampling.
    steps: int = 5
    temperature: float = 0.0  # 0: the most probable codes
    gumbel: float = 0.0
    top_k: int | float = 0
    top_p: float = 1.0
    nth: int = 1
    remask: str = "all"  # masked_tokens.REMASK
    decoded: str = "codes"  # DECODED
    hypothesis_temperature: float = 1.0  # of `hypotheses`, which differ by chance
    # Hands.
    root: str = "middle_mcp"  # that HandOutput is relative to; config.data.root
    joints: str = "skeleton"  # mano_head.JOINTS
    reduction: str = "sum"  # hmr_losses.REDUCTIONS
    per_device: int = 48  # examples that "sum" sums over; the paper's batch
    image_mean: tuple[float, ...] = IMAGENET_MEAN
    image_std: tuple[float, ...] = IMAGENET_STD
    channel_order: str = "rgb"
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
        seen = self.see(image, joints2d, predicts=self._predicts(), train=train)
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
        """Several hands of each image or text, drawn at `hypothesis_temperature`."""
        # Flax allows no modules inside of JAX's loops; a pure function it does.
        model, variables = self.unbind()
        seen = self.see(image, joints2d, predicts=self._predicts())
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

    def see(
        self,
        image: Image | Words,
        joints2d: Joints2D | None = None,
        joints2d_seen: Seen2D | None = None,
        *,
        predicts: bool = False,
        train: bool = False,
    ) -> Seen:
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
            return Seen(None, None, None, betas, cam, None, words.tokens, words.mask)
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
            detected = crop_pixels(found, **geometry)
            places = jax.lax.stop_gradient(found) if predicts else None
        if joints2d is not None:
            places = map_places(jnp.asarray(joints2d), **geometry)
        if places is not None and joints2d_seen is None:
            joints2d_seen = jnp.ones(places.shape[:2])
        context = self.pruner(coarse).tokens if self.keep_ratio < 1 else None
        return Seen(maps, places, joints2d_seen, betas, cam, detected, context)

    def score(
        self,
        seen: Seen,
        indices: Int[Array, "batch token"],
        masked: Bool[Array, "batch token"],
        *,
        train: bool = False,
    ) -> Float[Array, "batch token code"]:
        """Logits of all tokens, from those that are not masked."""
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
        seen: Seen,
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

    def guess(
        self,
        image: Image | Words,
        labels: Int[Array, "batch token"],
        masked: Bool[Array, "batch token"],
        joints2d: Joints2D | None,
        joints2d_seen: Seen2D | None,
        *,
        train: bool = False,
    ) -> Guess:
        """Name the hidden tokens in one step, and pose the hand that is expected."""
        predicts = self.joints2d_train == "predicted"
        seen = self.see(image, joints2d, joints2d_seen, predicts=predicts, train=train)
        logits = self.score(seen, labels, masked, train=train)
        parameters = self._parameters(self.expected(logits), seen)
        return Guess(logits, parameters, self._posed(parameters), seen.detected)

    def expected(
        self, logits: Float[Array, "batch token code"]
    ) -> Float[Array, "batch token dim"]:
        """Mean code of each token, which has a gradient (MMHMR Eq. expectation)."""
        return soft_lookup(logits, self.tokenizer.vq.embedding.value)

    def autoencode(
        self,
        mano_pose: Float[AnyArray, "batch bone 3"],
        betas: Float[AnyArray, "batch beta"] | None = None,
    ) -> HandOutput:
        """The hand that the tokenizer makes of a pose."""
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
        self, codes: Float[Array, "batch token dim"], seen: Seen
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
        mano_head.keep_hand(self, hand.arrays())
        self.autoencode(batch.mano_pose)
        labels = jnp.zeros((len(batch.betas), self.num_tokens), jnp.int32)
        seen = self.see(batch.text if self.condition == "text" else batch.image)
        self.score(seen, labels, labels == 0)
        # Sampling must find all parameters made, for it has a loop.
        return self.output(
            self.tokenizer.decode(self.tokenizer.vq.lookup(labels)), None
        )

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
        posed = self._posed(parameters)
        place = posed.joints3d[:, skeleton.root_joint(self.root)][:, None]
        return HandOutput(posed.vertices - place, posed.joints3d - place)


REDUCTIONS = ("mean", "sum")
"""Of the tokenizer's L1 terms over joints or vertices and their numbers; over examples
they are means."""


def detects(model: Model) -> bool:
    """Whether a model of images has a detector of 2-D joints."""
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
        """Joints in 0..1 of the map, x right, y down, 0 and 1 being its edges."""
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


def map_places(
    joints2d: Float[Array, "batch joint 2"], *, crop_px: int, edge_px: float
) -> Float[Array, "batch joint 2"]:
    """Where pixels of the crop are in what the maps show: 0..1, edge to edge.

    Maps show the middle 3/4 of the columns, and do not begin just where these do.

    Args:
        joints2d: Pixels of the crop, the first one's centre being (0, 0).
        crop_px: Side of the crop.
        edge_px: Where the edge of the maps' first pixels is in what they show: half a
            stride before their middle, `backbones.first_pixel`.
    """
    edge = (joints2d - edge_px) / crop_px
    return (edge - jnp.array([[[1 / 8, 0]]])) / jnp.array([[[3 / 4, 1]]])


def crop_pixels(
    places: Float[Array, "batch joint 2"], *, crop_px: int, edge_px: float
) -> Float[Array, "batch joint 2"]:
    """Undo `map_places`."""
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
            raise ValueError(
                f"config.model.{key}={value!r} is not one of {', '.join(allowed)}."
            )
    if "1x" not in model.levels:
        raise ValueError(
            f"config.model.levels={tuple(model.levels)} has no '1x', which betas and "
            "camera are read from; add it."
        )
    token_pruner.check_ratio(model.keep_ratio)


# --- Training ----------------------------------------------------------------


def stages(config: Any) -> tuple[Stage, ...]:
    """Tokenizer, then mesh, to which the tokenizer is given.

    Raises:
        ValueError: `config.model.root` is not the root of the data.
    """
    check_root(config, Model)
    tokenizer = Stage("tokenizer", tokenizer_loss, predict_pose, "^tokenizer/", False)
    if config.model.get("condition", Model.condition) == "text":
        return tokenizer, _text_stage(config)
    rest = "^(?!tokenizer/)"
    return (
        tokenizer,
        Stage("mesh", mesh_loss, predict_image, rest, True, check_mesh),
    )


def _text_stage(config: Any) -> Stage:
    """Stage "mesh" of texts; CLIP's tower stays as it was trained."""
    data = config.stages.mesh.data
    if data != LABELLED_POSES:
        raise ValueError(
            f"config.stages.mesh.data={data!r} has no texts, which config.model."
            f"condition='text' reads; use {LABELLED_POSES!r} (configs/mmhmr.py:text)."
        )
    learned = config.model.get("text", Model.text) == text_encoder.LABELS
    trained = "^(synthesizer|text_encoder)/" if learned else "^synthesizer/"
    return Stage("mesh", text_loss, predict_text, trained, False, check_mesh)


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
    far = elementwise.commitment(tokens, quantized.codes, reduction=model.commitment)
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
    return terms, metrics, supervision.moved(updates, variables, valid)


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
    rooted = [_rooted(joint_regressor, mesh, root) for mesh in (vertices, true[1])]
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
    joint_regressor: Float[AnyArray, "joint vertex"],
    vertices: Float[Array, "batch vertex 3"],
    root: int,
) -> tuple[Float[Array, "batch vertex 3"], Float[Array, "batch joint 3"]]:
    joints = joints_from_vertices(joint_regressor, vertices)
    place = joints[:, root][:, None]
    return vertices - place, joints - place


def predict_pose(model: Model, variables: Variables, batch: Batch) -> HandOutput:
    """What the tokenizer makes of the true pose, in the true shape.

    It is the floor of what tokens can say of a hand. Hands without known MANO
    parameters come out flat.
    """
    return model.apply(variables, batch.mano_pose, batch.betas, method="autoencode")


def mesh_loss(
    model: Model, variables: Variables, batch: Batch, rngs: dict[str, Array]
) -> tuple[dict[str, Array], dict[str, Array], dict[str, Any]]:
    """Masked tokens and the hand that they expect (MMHMR Eq. total loss).

    The hand is decoded from the mean codes of all tokens, hidden or not, and compared
    as HaMeR does: `hmr_losses`. The detector has a term of its own.
    """
    mask_key, joints_key = jax.random.split(rngs["mask"])
    hidden = hide(model, variables, batch, mask_key)
    found, updates = model.apply(
        variables,
        batch.image,
        hidden.labels,
        hidden.masked,
        *told_joints(model, batch, joints_key),
        train=True,
        method="guess",
        mutable=["batch_stats"],
        rngs=rngs,
    )
    size_px = jnp.asarray(batch.image).shape[1]
    terms = hmr.terms(
        found.parameters,
        found.posed,
        batch,
        crop_size=size_px,
        reduction=model.reduction,
        per_device=model.per_device,
    )
    terms["tokens"] = mask_term(model, found.logits, hidden)
    if found.detected is not None:
        error = elementwise.point_l1(found.detected, batch.joints2d) / size_px
        terms["detector"] = elementwise.reduce_points(
            error, confidence=batch.joints2d_weights
        )
    output = mano_head.hand_output(
        found.posed, root=skeleton.root_joint(model.root), size_px=size_px
    )
    error = elementwise.mean_distance(
        output.vertices, batch.vertices, example_valid=jnp.asarray(batch.vertices_valid)
    )
    metrics = {"mm": 1000 * error, **mask_metrics(found.logits, hidden)}
    return terms, metrics, dict(updates)


TEXT_TERMS = ("global_orient", "hand_pose", "joints3d")
"""Of `hmr_losses.KEYS`, those that a text can be asked for."""


def text_loss(
    model: Model, variables: Variables, batch: Batch, rngs: dict[str, Array]
) -> tuple[dict[str, Array], dict[str, Array], dict[str, Any]]:
    """Masked tokens of a text's hand, and the pose that they expect.

    Poses are compared in the true shape, of which a text says nothing.
    """
    hidden = hide(model, variables, batch, rngs["mask"])
    found = model.apply(
        variables,
        batch.text,
        hidden.labels,
        hidden.masked,
        None,
        None,
        train=True,
        method="guess",
        rngs=rngs,
    )
    parameters = found.parameters._replace(betas=jnp.asarray(batch.betas))
    terms = hmr.terms(
        parameters,
        model.apply(variables, parameters, method="_posed"),
        batch,
        crop_size=1,  # of a term that is left out
        reduction=model.reduction,
        per_device=model.per_device,
    )
    terms = {name: terms[name] for name in TEXT_TERMS}
    terms["tokens"] = mask_term(model, found.logits, hidden)
    return terms, mask_metrics(found.logits, hidden), {}


def predict_text(model: Model, variables: Variables, batch: Batch) -> HandOutput:
    """One hand drawn for each text, other ones in each batch of a split."""
    key = jax.random.fold_in(jax.random.key(0), jnp.asarray(batch.index)[0])
    drawn = model.apply(variables, batch.text, key, 1, method="hypotheses")
    return HandOutput(
        vertices=drawn.vertices[:, 0],
        joints3d=drawn.joints3d[:, 0],
        indices=drawn.indices[:, 0],
        confidence=drawn.confidence[:, 0],
    )


def told_joints(
    model: Model, batch: Batch, key: Array
) -> tuple[Joints2D | None, Seen2D | None]:
    """What the synthesizer is told of 2-D joints in training, and how sure they are.

    Annotated joints are moved by normal noise, each alone; some examples have none, so
    that there may be none at inference.
    """
    noise_key, drop_key = jax.random.split(key)
    size_px = jnp.asarray(batch.image).shape[1]
    joints2d = jnp.asarray(batch.joints2d)
    kept = jax.random.uniform(drop_key, (len(joints2d), 1)) >= model.joints2d_drop
    if model.joints2d_train == "none":
        return None, None
    if model.joints2d_train == "predicted":
        seen = jnp.broadcast_to(kept, joints2d.shape[:2])
        return None, seen.astype(jnp.float32)
    noise = jax.random.normal(noise_key, joints2d.shape)
    seen = jnp.asarray(batch.joints2d_valid) & kept
    return (
        joints2d + model.joints2d_noise * size_px * noise,
        seen.astype(jnp.float32),
    )


class Hidden(NamedTuple):
    """Tokens of true poses, and which of them the model is not told."""

    labels: Int[Array, "batch token"]
    masked: Bool[Array, "batch token"]
    known: Bool[Array, "batch"]
    """Whether the pose is annotated; of others all tokens are hidden."""


def hide(model: Model, variables: Variables, batch: Batch, key: Array) -> Hidden:
    """Hide tokens of the true poses, as many as `model.tau_range` says."""
    labels = model.apply(variables, batch.mano_pose, method="encode")
    known = jnp.asarray(batch.mano_valid)
    masked = masked_tokens.training_mask(
        key, *labels.shape, tau_range=model.tau_range, schedule=model.schedule
    )
    # What is not known must not be told.
    return Hidden(labels, masked | ~known[:, None], known)


def mask_metrics(
    logits: Float[Array, "batch token code"], hidden: Hidden
) -> dict[str, Float[Array, ""]]:
    """Share of the hidden tokens that is named rightly, and share that is hidden.

    Tokens of poses that nobody knows are hidden, but there is no right name for them.
    """
    right = jnp.argmax(logits, axis=-1) == hidden.labels
    asked = hidden.masked & hidden.known[:, None]
    count = jnp.maximum(jnp.sum(asked), 1)
    return {
        "token_accuracy": jnp.sum(right & asked) / count,
        "masked": jnp.mean(hidden.masked.astype(jnp.float32)),
    }


def mask_term(
    model: Model, logits: Float[Array, "batch token code"], hidden: Hidden
) -> Float[Array, ""]:
    """Cross-entropy of the tokens, nats (MMHMR Eq. mask loss).

    The sum runs over all tokens as printed, which the code of its relative MMM does,
    too, and is divided by their number, as the codes of all relatives do.
    """
    error = elementwise.cross_entropy(logits, hidden.labels)
    every = jnp.ones_like(hidden.masked)
    counted = hidden.masked if model.mask_loss == "masked" else every
    counted = counted & hidden.known[:, None]
    total = jnp.sum(jnp.where(counted, error, 0.0), axis=1)
    if model.mask_reduction == "mean":
        total = total / jnp.maximum(jnp.sum(counted, axis=1), 1)
    return jnp.mean(total)


def predict_image(model: Model, variables: Variables, batch: Batch) -> HandOutput:
    """What the model makes of the image."""
    given = batch.joints2d if model.joints2d_test == "given" else None
    return model.apply(variables, batch.image, joints2d=given)


def check_mesh(
    config: Any, model: Model, variables: Variables, info: dict[str, Any]
) -> None:
    """Refuse to start stage "mesh" on a tokenizer that does not fit the config."""
    frozen_tokenizer.check(config, model, variables, info, fields=TOKENIZER_FIELDS)


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
    """Parameters by part, and the numbers of the codebook: rows (part, number)."""
    return parameters_by_part(variables, _PARTS)
