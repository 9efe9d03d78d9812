"""Hamba's network: a first hand, tokens at its joints, a second hand."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from handjax.errors import UserError
from handjax.family.hand_constants import HandConstants, parameters_by_part
from handjax.geometry import skeleton
from handjax.mano.hand_model import HandModel
from handjax.nn import backbones, joint_graph, mano_head, token_pruner
from handjax.nn.joint_graph import JointGraphBlock
from handjax.nn.mano_head import ManoHead, ManoParameters, MeanParameters, Posed
from handjax.nn.metaformer import MetaFormerBlock, layer_norm, linear
from handjax.nn.ops.batch_norm import BatchNorm
from handjax.nn.ops.image import middle_columns, normalised
from handjax.nn.ops.remat import rematerialize
from handjax.nn.pose_discriminator import PoseDiscriminator
from handjax.nn.ssm import VSSBlock
from handjax.nn.token_sampler import sample_pixels
from handjax.types import AnyArray, Batch, HandOutput, Variables

GEOMETRIES = {
    "exact": "the joint's pixel, through the columns cut off and the patches' padding",
    "released_clip": "the released switch on: x clipped, and stretched by 8/7",
    "released_noclip": "the released switch off: x as if no columns were cut off",
    "none": "nowhere: the mean over the map stands for every joint",
}
"""Where on the map the token sampler looks (`map_pixels`)."""

SCAN_ORDERS = {
    "openpose": tuple(range(skeleton.NUM_JOINTS)),
    "mano": tuple(np.argsort(skeleton.MANO_TO_JOINTS).tolist()),
    "shuffled": tuple(np.random.default_rng(0).permutation(21).tolist()),
}
"""Joints in the order in which they are scanned. "openpose", the library's own, is the
released one; the paper says "mano": wrist, index, middle, little, ring, thumb, then the
tips."""

MIXERS = ("scan", "scan_forward", "attention", "none")
"""What mixes the 22 tokens after each graph convolution: VSS blocks, those that scan
in one direction only, transformer blocks, or nothing."""

FUSED = ("gss", "joints2d", "mean", "sampled")
"""What the last layer can be given: the mean over the mixed tokens, the first hand's
2-D joints, the mean over the map, the mean over the sampled tokens."""

Map = Float[Array, "batch height width dim"]


class Hand(NamedTuple):
    """Parameters, and the hand that they stand for."""

    parameters: ManoParameters
    posed: Posed


class Prediction(NamedTuple):
    """Both hands of the network."""

    regressor: Hand
    mesh: Hand


class Model(nn.Module):
    """Image to hand; the fields are `config.model`."""

    backbone: str
    tap: str  # which of its maps; a vision transformer has but one
    backbone_drop_path: float
    frozen_backbone: bool
    width: int  # of the narrowed map and the tokens
    # Share of the narrowed map's tokens that the regressor scans, clustered by TORE's
    # pruner; 1, the paper's: all of them, where they are.
    keep_ratio: float | int
    regressor_depths: tuple[int, ...]  # VSS blocks of each stage
    decoder_depths: tuple[int, ...]
    # Of the scans, see `nn.ssm`. The paper prints "zoh".
    state: int
    ratio: float
    discretisation: str
    drop_path: float  # of the last block of each trunk; not known of the release
    # Tokens.
    sampling: str  # GEOMETRIES; which of its two the release has is unknown
    scan_order: str  # SCAN_ORDERS
    graph: str  # joint_graph.KINDS, or "none"
    mixer: str  # MIXERS
    heads: int  # of mixer="attention"
    fusion: tuple[str, ...]
    # Hands.
    root: str  # that HandOutput is relative to; config.data.root
    joints: str  # mano_head.JOINTS
    head_init: str  # mano_head.INITS
    # Losses.
    adversarial: bool  # whether there is a discriminator
    reduction: str  # hmr_losses.REDUCTIONS
    per_device: int  # examples that "sum" sums over; the paper's 56 on two GPUs
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    channel_order: str
    # Compute blocks again in the backward pass instead of storing them.
    remat: bool = False
    remat_policy: str = "nothing"  # what is stored all the same: nn.remat.POLICIES
    scan_path: str = "auto"  # ssm.PATHS: the same numbers at other speeds
    # Of the graph: the bones of config.hand's skeleton, unless the config has others.
    edges: Sequence[tuple[int, int]] = skeleton.BONES
    dtype: str = "float32"  # of the computation; parameters are float32

    def setup(self):
        """Build backbone, regressor, sampler, decoder and discriminator."""
        _check_fields(self)
        dtype = jnp.dtype(self.dtype)
        options: dict[str, Any] = dict(
            drop_path_rate=self.backbone_drop_path, dtype=dtype
        )
        if self.remat:  # of vision transformers alone
            options |= dict(remat=True, remat_policy=self.remat_policy)
        self.image_encoder = backbones.build(self.backbone, **options)
        trunk: dict[str, Any] = dict(
            state=self.state,
            ratio=self.ratio,
            discretisation=self.discretisation,
            path=self.scan_path,
            drop_path=self.drop_path,
            remat=self.remat,
            remat_policy=self.remat_policy,
            dtype=dtype,
        )
        self.downsample = Filters(self.width, dtype)
        if self.keep_ratio < 1:
            self.regressor_pruner = token_pruner.TokenPruner(
                self.keep_ratio, dtype=dtype
            )
        self.regressor = Trunk(self.regressor_depths, **trunk)
        self.regressor_head = ManoHead(self.head_init)
        self.sampler = Filters(self.width, dtype)
        place = {joint: i for i, joint in enumerate(joints_in_order(self))}
        self.decoder = Trunk(
            self.decoder_depths,
            mixer=self.mixer,
            heads=self.heads,
            graph=self.graph,
            edges=tuple((place[a], place[b]) for a, b in self.edges),
            **trunk,
        )
        self.decoder_head = ManoHead(self.head_init)
        if self.adversarial:
            self.discriminator = PoseDiscriminator()

    def __call__(
        self,
        image: UInt8[AnyArray, "batch height width 3"]
        | Float[AnyArray, "batch height width 3"],
        *,
        train: bool = False,
    ) -> HandOutput:
        """Predict the hand in square crops of 0..255 RGB.

        The outer eighths of the columns are not looked at.
        """
        return output_of(self, self.predict(image, train=train).mesh, image)

    def predict(self, image: Any, *, train: bool = False) -> Prediction:
        """Predict as `__call__`, and return the first hand and parameters, too."""
        features = self._features(image, train)
        first = self._first(features, train)
        found = self._found(features, first.posed.joints2d, image.shape[1], train)
        fused = jnp.concatenate([found[name] for name in self.fusion], axis=-1)
        parameters = self.decoder_head(fused, self._mean_parameters())
        return Prediction(first, self._hand(parameters))

    def regress(self, image: Any, *, train: bool = False) -> Hand:
        """Return the first hand alone."""
        return self._first(self._features(image, train), train)

    def discriminate(
        self,
        hand_pose: Float[AnyArray, "batch joint 3 3"],
        betas: Float[AnyArray, "batch beta"],
    ) -> Float[Array, "batch score"]:
        """Score hands without a look at the image: 1 is real."""
        return self.discriminator(hand_pose, betas)

    def init_all(self, batch: Batch, hand: HandConstants) -> HandOutput:
        """Run every submodule once and store the hand model's constants."""
        mano_head.keep_hand(self, hand.arrays())
        prediction = self.predict(batch.image)
        if self.adversarial:
            parameters = prediction.mesh.parameters
            self.discriminate(parameters.hand_pose, parameters.betas)
        return output_of(self, prediction.mesh, batch.image)

    def _features(self, image: Any, train: bool) -> Map:
        """Map of the middle 3/4 of the columns, narrowed to `width` channels."""
        pixels = normalised(
            middle_columns(image, multiple=4),
            self.image_mean,
            self.image_std,
            self.channel_order,
            jnp.dtype(self.dtype),
        )
        maps = self.image_encoder(pixels, train=train)
        if self.tap not in maps:
            raise UserError(
                f"config.model.tap={self.tap!r} is no map of {self.backbone}; it has "
                f"{', '.join(sorted(maps))}."
            )
        return self.downsample(maps[self.tap], train=train)

    def _first(self, features: Map, train: bool) -> Hand:
        """Predict the regressor's hand, skinned and projected (Hamba Eq. 4).

        The regressor scans the narrowed map (the paper says the backbone's); one linear
        layer (an MLP, there) makes the parameters of the mean over it.
        """
        if self.keep_ratio < 1:  # a column of clusters
            features = self.regressor_pruner(features).tokens[:, :, None]
        scanned = _mean(self.regressor(features, train=train), (1, 2))
        return self._hand(self.regressor_head(scanned, self._mean_parameters()))

    def _found(
        self,
        features: Map,
        joints2d: Float[Array, "batch joint 2"],
        crop_px: int,
        train: bool,
    ) -> dict[str, Float[Array, "batch _"]]:
        """Return the inputs of the fusion layer, by the names of `FUSED`."""
        mean = _mean(features, (1, 2))
        sampled = self._sampled(features, joints2d, crop_px, train)
        tokens = jnp.concatenate([sampled, mean.astype(sampled.dtype)[:, None]], axis=1)
        mixed = self.decoder(tokens[:, :, None], train=train)
        return {
            "gss": _mean(mixed, (1, 2)),
            "joints2d": joints2d.reshape(len(joints2d), -1),
            "mean": mean,
            "sampled": _mean(sampled, 1),
        }

    def _sampled(
        self,
        features: Map,
        joints2d: Float[Array, "batch joint 2"],
        crop_px: int,
        train: bool,
    ) -> Float[Array, "batch joint dim"]:
        """Sample tokens at the 2-D joints, in the order of the scan (Hamba Eq. 5).

        No gradient goes through the places.
        """
        joints2d = jax.lax.stop_gradient(joints2d)
        joints2d = joints2d[:, np.array(joints_in_order(self))]
        if self.sampling == "none":
            mean = jnp.mean(features, axis=(1, 2))[:, None]
            return jnp.broadcast_to(mean, (*joints2d.shape[:2], features.shape[-1]))
        pixels = map_pixels(
            joints2d,
            self.sampling,
            features.shape[1:3],
            crop_px=crop_px,
            first_px=backbones.first_pixel(self.backbone, crop_px // features.shape[1]),
        )
        return self.sampler(sample_pixels(features, pixels), train=train)

    def _mean_parameters(self) -> MeanParameters:
        return MeanParameters(**self.get_variable("constants", "mean"))

    def _hand(self, parameters: ManoParameters) -> Hand:
        model = HandModel(**self.get_variable("constants", "hand"))
        return Hand(parameters, mano_head.posed(model, parameters, joints=self.joints))


class Filters(nn.Module):
    """Linear, batch norm, ReLU, linear: two convolutions of kernel 1."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch *place dim"], *, train: bool
    ) -> Float[Array, "batch *place features"]:
        """Transform each vector of a map or of a list of tokens."""
        y = linear(self.features, self.dtype, "linear0")(x)
        norm = BatchNorm(self.features, name="norm")
        y = nn.relu(norm(y.reshape(len(y), -1, 1, self.features), train=train))
        y = y.reshape(*x.shape[:-1], self.features)
        return linear(self.features, self.dtype, "linear1")(y)


class Trunk(nn.Module):
    """Stages of blocks at one width, on a map or on a column of tokens.

    With a graph, every stage begins by replacing the joints' tokens, which are all but
    the last, by their graph convolution; the last, the mean, passes by (Hamba Eq. 7).
    Then come the blocks, x = x + SS2D(LN(x)), x = x + FFN(LN(x)) (Hamba Eq. 8), two in
    a stage as released, where the paper's algorithm has one.
    """

    depths: tuple[int, ...]
    """Blocks of each stage."""
    state: int
    ratio: float
    discretisation: str
    mixer: str = "scan"
    """One of `MIXERS`."""
    heads: int = 8
    """Of mixer "attention"."""
    graph: str = "none"
    """One of `joint_graph.KINDS`, or "none"."""
    edges: Sequence[tuple[int, int]] = ()
    """Of the graph, between places in the list of tokens."""
    path: str = "auto"
    drop_path: float = 0.0
    """Rate of the last block; earlier blocks grow linearly from zero."""
    remat: bool = False
    remat_policy: str = "nothing"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Map, *, train: bool) -> Map:
        """Mix places and channels; the result is normalised."""
        rates = iter(np.linspace(0, self.drop_path, sum(self.depths)).tolist())
        out = x
        for i, depth in enumerate(self.depths):
            if self.graph != "none":
                mix = JointGraphBlock(
                    x.shape[-1],
                    self.edges,
                    self.graph,
                    self.dtype,
                    name=f"stage{i}_graph",
                )
                joints = mix(x[:, :-1, 0], train=train)
                x = jnp.concatenate([joints[:, :, None], x[:, -1:]], axis=1)
            for j in range(depth):
                x = self._mixed(x, next(rates), train, f"stage{i}_block{j}")
            # A stage gets what is not normalised, so that all norms but the last do
            # nothing; the released weights have them.
            out = layer_norm(self.dtype, f"norm{i}")(x)
        return out

    def _mixed(self, x: Map, drop_path: float, train: bool, name: str) -> Map:
        if self.mixer == "none":
            return x
        if self.mixer == "attention":
            block = MetaFormerBlock(
                num_heads=self.heads, drop_path=drop_path, dtype=self.dtype, name=name
            )
            return self._run(block, x[:, :, 0], train)[:, :, None]
        block = VSSBlock(
            x.shape[-1],
            self.state,
            self.ratio,
            discretisation=self.discretisation,
            path=self.path,
            backward=self.mixer == "scan",
            drop_path=drop_path,
            dtype=self.dtype,
            name=name,
        )
        return self._run(block, x, train)

    def _run(self, block: nn.Module, x: Array, train: bool) -> Array:
        run = lambda block, x: block(x, train=train)  # noqa: E731
        return (rematerialize(run, self.remat_policy) if self.remat else run)(block, x)


# --- Geometry ----------------------------------------------------------------


def map_pixels(
    joints2d: Float[AnyArray, "batch joint 2"],
    geometry: str,
    grid: tuple[int, int],
    *,
    crop_px: int,
    first_px: float,
) -> Float[Array, "batch joint 2"]:
    """Convert 2-D joints of the crop to pixels of the map.

    The map shows the middle 3/4 of the columns of a square crop, one pixel of it a
    square patch. So the exact x, from the middle, is 4/3 of what the release takes
    without its clipping, and 7/6 of what it takes with it. Its y is right, but for two
    shifts that are corrected here: the padding of the patches (2 pixels, an eighth of a
    patch) and half a pixel of the crop, for joints count from the centre of the first
    pixel. Maps of convolutions have other shifts (`backbones.first_pixel`).

    Args:
        joints2d: In units of the crop from its middle, x right, y down.
        geometry: One of `GEOMETRIES` but "none".
        grid: Rows and columns of the map.
        crop_px: Side of the crop.
        first_px: Where the map's first pixel has its middle, in pixels of the columns
            that the map shows; see `backbones.first_pixel`. Of "exact" alone.
    """
    rows, columns = grid
    size = jnp.array([columns, rows])[None, None]
    if geometry == "exact":
        return joints2d * rows + size / 2 - first_px * rows / crop_px
    at = 2 * joints2d
    if geometry == "released_clip":
        inside = 1 - 0.5 * (rows - columns) / rows
        x = jnp.clip(at[..., :1], -inside, inside) / inside
        at = jnp.concatenate([x, at[..., 1:]], axis=-1)
    return ((at + 1) * size - 1) / 2


def joints_in_order(model: Model) -> tuple[int, ...]:
    """Return joints in scan order, one of `SCAN_ORDERS`; a body's as they come.

    Raises:
        UserError: The order is of a hand's joints, and the edges are of others.
    """
    count = 1 + max(max(edge) for edge in model.edges)
    if model.scan_order == "openpose":
        return tuple(range(count))
    if count != skeleton.NUM_JOINTS:
        raise UserError(
            f"config.model.scan_order={model.scan_order!r} is an order of a hand's "
            f"{skeleton.NUM_JOINTS} joints, but there are {count}; use 'openpose', "
            "which takes joints as they come."
        )
    return SCAN_ORDERS[model.scan_order]


def _mean(x: Float[Array, "batch *rest"], axis: Any) -> Float[Array, "batch dim"]:
    return jnp.mean(x.astype(jnp.float32), axis=axis)


def output_of(model: Model, hand: Hand, image: Any) -> HandOutput:
    """Return one of the two hands as a `HandOutput`."""
    root = skeleton.root_joint(model.root)
    return mano_head.hand_output(hand.posed, root=root, size_px=image.shape[1])


def _check_fields(model: Model) -> None:
    """Refuse values that are none of those there are."""
    graphs = (*joint_graph.KINDS, "none")
    for key, allowed in (
        ("sampling", GEOMETRIES),
        ("scan_order", SCAN_ORDERS),
        ("graph", graphs),
        ("mixer", MIXERS),
    ):
        value = getattr(model, key)
        if value not in allowed:
            raise UserError(
                f"config.model.{key}={value!r} is not one of {', '.join(allowed)}."
            )
    unknown = [name for name in model.fusion if name not in FUSED]
    if unknown or not model.fusion:
        raise UserError(
            f"config.model.fusion={tuple(model.fusion)} must name at least one of "
            f"{', '.join(FUSED)}, and nothing else."
        )
    token_pruner.check_ratio(model.keep_ratio)


# --- Training ----------------------------------------------------------------


PARTS = {"backbone": "_features", "joints regressor": "regress", "decoder": "predict"}
"""Methods of the model that do what the one before does and a part more; their times
are told apart by `python -m handjax.benchmark --what parts`."""

_PARTS = {
    "image_encoder": "backbone",
    "downsample": "downsampling",
    "regressor": "joints regressor",
    "sampler": "token sampler",
    "decoder": "decoder",
    "discriminator": "discriminator",
}


def parameter_table(variables: Variables) -> list[tuple[str, int]]:
    """Count parameters by part, as the paper does: rows (part, number)."""
    return parameters_by_part(variables, _PARTS)
