"""SimpleHand: a simple baseline for hand mesh reconstruction (CVPR 2024).

One stage, "mesh". A backbone's global feature gives the 2-D joints; features sampled
there become tokens; a cascade of narrow MetaFormer layers multiplies them into the 778
vertices. `configs/simplehand.py:paper` is the released network (FastViT-MA36), which
differs from the paper's text in small ways that `MeshRegressor` and the fields below
name.

Parameters (`parameter_table`): backbone 42,851,004; deconvolution with its BatchNorm
4,981,248; regressor with position codes 1,507,637; 2-D joints head 51,114. The paper's
"1.9 M outside of the backbone" is no sum of these: regressor and 2-D head are 1.56 M.
Its table is about the HRNet model, which has no deconvolution and a wider 2-D head:
1.59 M here. What the other 0.3 M are is not known (a 3x3 convolution 128 -> 256 with
BatchNorm would fit), so the released code is followed, not the number.

`features="frozen"` (`configs/simplehand.py:open`) is ours, for models that ship: the
backbone is MediaPipe's hand landmark network as it is, crops are turned upright, and
tokens are sampled at the points that this network finds, from all of its maps
(`nn.hand_features`). Regressor and losses stay the paper's; the 2-D joints are the
network's points plus a correction.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt8

from handjax.errors import UserError
from handjax.family.hand_constants import (
    HandConstants,
    joints_from_vertices,
    parameters_by_part,
)
from handjax.family.stage import Stage
from handjax.geometry import camera
from handjax.geometry.skeleton import MIDDLE_MCP, NUM_JOINTS, WRIST
from handjax.losses import elementwise
from handjax.nn import backbones, hand_features
from handjax.nn.backbones import hand_landmark
from handjax.nn.hand_features import LandmarkTokens
from handjax.nn.metaformer import MeshRegressor, torch_linear_init
from handjax.nn.ops.image import normalised
from handjax.nn.point_transformer import farthest_points
from handjax.nn.token_sampler import TokenGenerator
from handjax.types import (
    AnyArray,
    Batch,
    HandFeatures,
    HandOutput,
    Paper,
    Variables,
)

PAPER = Paper(
    name="SimpleHand",
    title="A Simple Baseline for Efficient Hand Mesh Reconstruction",
    url="https://simplehand.github.io",
    equations={
        1: "R = H_k H_{k-1} ... H_0, the mesh regressor",
        2: "H_k(X_k) = U_k(MF_k(P_k(X_k))), a decoder layer",
        3: "X_k = X_k + emb_k, position codes",
        4: "L_J3d, L1 of the 3-D joints",
        5: "L_J2d, L1 of the 2-D joints",
        6: "L_vert, L1 of the vertices",
        7: "L = w_3d L_J3d + w_2d L_J2d + w_vert L_vert",
    },
)


class Prediction(NamedTuple):
    """The hand, and what only training looks at."""

    output: HandOutput
    points2d: Float[Array, "batch point 2"]
    """Where tokens are sampled, in [0, 1] of the crop: the joints, then for generator
    "F" the coarse mesh."""


class Model(nn.Module):
    """Image to hand; the fields are `config.model`."""

    backbone: str
    backbone_drop_path: float
    # Token generator.
    token_generator: str  # token_sampler.GENERATORS
    token_map: str  # of the backbone; HRNet's is "stride8", with "C"
    upsample: tuple[int, ...]  # factors of D, E and F
    token_dim: int
    sine_code: bool
    sampler_gradient: bool  # mesh losses move the 2-D joints, as released
    # Vertices at which "F" samples besides the joints, farthest points of the flat
    # hand; 195 is the size of FastMETRO's coarse mesh.
    coarse_points: int
    # Mesh regressor.
    regressor_tokens: tuple[int, ...]
    regressor_widths: tuple[int, ...]
    regressor_blocks: tuple[int, ...]
    mixer: str  # metaformer.MIXERS
    position_codes: bool
    dropout: float  # of the attention probabilities
    drop_path: float
    # "frozen": tokens of a landmark network that is not trained, instead of the fields
    # above; `backbone` is then one of `backbones.hand_landmark`.
    features: str
    feature_dropout: float
    # Heads. The release configures a head for the root's depth and comments it out.
    root_depth: bool
    # "torch": the release's; "centre": all joints begin in the middle of the crop,
    # for outside of it the sampler has no gradient (short runs gain from it).
    joints2d_init: str
    # Input as released: OpenCV's channel order and pixels from -0.5 to 0.5.
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    channel_order: str
    fused: bool = False  # inference form of the backbone: `models.for_inference`
    dtype: str = "float32"  # of the computation; parameters are float32

    def setup(self):
        """Build backbone, heads, token generator and regressor."""
        _check_fields(self)
        dtype = jnp.dtype(self.dtype)
        self.regressor = MeshRegressor(
            self.regressor_tokens,
            self.regressor_widths,
            self.regressor_blocks,
            self.mixer,
            self.position_codes,
            self.dropout,
            self.drop_path,
            dtype=dtype,
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
            2 * self.num_points, **_JOINTS2D_INITS[self.joints2d_init]
        )
        if self.root_depth:
            self.depth_head = nn.Dense(1, kernel_init=torch_linear_init)
        self.generator = TokenGenerator(
            self.token_generator, self.token_dim, self.upsample, self.sine_code, dtype
        )

    @property
    def num_points(self) -> int:
        """Points that the 2-D head predicts."""
        return NUM_JOINTS + self.coarse_points * (self.token_generator == "F")

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
        return self.predict(image, train=train).output

    def predict(self, image: Any, *, train: bool = False) -> Prediction:
        """Predict as `__call__`, and return the sampling points, too."""
        if self.features:
            return self._from_features(image, train=train)
        dtype = jnp.dtype(self.dtype)
        maps = self.image_encoder(
            normalised(
                image, self.image_mean, self.image_std, self.channel_order, dtype
            ),
            train=train,
        )
        pooled = jnp.mean(maps["final"].astype(jnp.float32), axis=(1, 2))
        points = self.joints2d_head(pooled).reshape(-1, self.num_points, 2)
        where = points if self.sampler_gradient else jax.lax.stop_gradient(points)
        tokens = self.generator(self._token_map(maps), where, train=train)
        vertices = self.regressor(tokens, train=train)
        regressor = self.get_variable("constants", "joint_regressor")
        output = HandOutput(
            vertices,
            joints_from_vertices(regressor, vertices),
            joints2d=points[:, :NUM_JOINTS] * _size_px(image),
            root_gamma=self.depth_head(pooled)[:, 0] if self.root_depth else None,
        )
        return Prediction(output, points)

    def _from_features(self, seen: Any, *, train: bool) -> Prediction:
        """Predict from what the frozen network says (`features="frozen"`)."""
        if not isinstance(seen, HandFeatures):
            weights = self.get_variable("constants", "landmark_network")
            seen = hand_features.of_crops(self.backbone, weights, seen)
        tokens, joints_px = self.generator(seen, train=train)
        # In the unit that the regressor's layers begin with, a hand has length 1.
        vertices = HAND_LENGTH * self.regressor(tokens, train=train)
        regressor = self.get_variable("constants", "joint_regressor")
        joints3d = joints_from_vertices(regressor, vertices)
        output = HandOutput(vertices, joints3d, joints2d=joints_px)
        return Prediction(output, joints_px / hand_landmark.IMAGE_SIZE)

    def init_all(self, batch: Batch, hand: HandConstants) -> HandOutput:
        """Run every submodule once and store the hand model's constants."""
        hand.require_hand(PAPER.name)
        constants: dict[str, Any] = dict(
            joint_regressor=hand.joint_regressor, faces=hand.faces
        )
        if self.token_generator == "F":
            chosen = farthest_points(hand.v_template, self.coarse_points)
            constants["coarse_vertices"] = chosen
        if self.features:
            constants["landmark_network"] = hand_landmark.pretrained(self.backbone)
        for name, value in constants.items():
            self.put_variable("constants", name, jax.tree.map(jnp.asarray, value))
        return self(batch.seen)

    def _token_map(self, maps: dict[str, Array]) -> Array:
        if self.token_map not in maps:
            raise UserError(
                f"config.model.token_map={self.token_map!r} is no map of "
                f"{self.backbone}, which has {', '.join(maps)}."
            )
        return maps[self.token_map]


HAND_LENGTH = 0.1
"""Metres that the regressor behind frozen features calls 1."""

_JOINTS2D_INITS: dict[str, dict[str, Any]] = {
    "torch": dict(kernel_init=torch_linear_init),
    "centre": dict(
        kernel_init=nn.initializers.normal(1e-3),
        bias_init=nn.initializers.constant(0.5),
    ),
}


def _size_px(image: Any) -> Float[Array, "1 1 2"]:
    """Return pixels per unit: the release divides by the width, not width - 1."""
    if isinstance(image, HandFeatures):
        return jnp.full((1, 1, 2), float(hand_landmark.IMAGE_SIZE))
    height, width = image.shape[1:3]
    return jnp.array([[[width, height]]], jnp.float32)


def _check_fields(model: Model) -> None:
    """Refuse fields that do not go together."""
    hand_features.check(model.features, model.backbone)
    lengths = {
        key: len(getattr(model, key))
        for key in ("regressor_tokens", "regressor_widths", "regressor_blocks")
    }
    if len(set(lengths.values())) > 1:
        raise UserError(
            "config.model's "
            + ", ".join(f"{key} has {n}" for key, n in lengths.items())
            + " entries; each names one value for every layer of the regressor."
        )
    if model.joints2d_init not in _JOINTS2D_INITS:
        raise UserError(
            f"config.model.joints2d_init={model.joints2d_init!r} is not one of "
            f"{', '.join(_JOINTS2D_INITS)}."
        )


# --- Training ----------------------------------------------------------------


def stages(config: Any) -> tuple[Stage, ...]:
    """Return one stage that trains everything."""
    del config
    return (
        Stage(
            name="mesh",
            loss_fn=mesh_loss,
            predict_fn=predict_image,
            trainable="",
            needs_image=True,
        ),
    )


def mesh_loss(
    model: Model, variables: Variables, batch: Batch, rngs: dict[str, Array]
) -> tuple[dict[str, Array], dict[str, Array], dict[str, Any]]:
    """Compute the paper's three L1 terms, masked as released (SimpleHand Eq. 7).

    Each sums over coordinates, takes the mean over points, masked ones counting as
    zero, and the mean over examples. 2-D is in units of the crop: the joints inside it
    (SimpleHand Eq. 5). 3-D is in metres, the joints' (SimpleHand Eq. 4) and the
    vertices' (SimpleHand Eq. 6); a hand whose wrist and middle knuckle are both outside
    of the crop counts for neither. With `root_depth`, the release's unused target, too.
    """
    (output, points), updates = model.apply(
        variables,
        batch.seen,
        train=True,
        method="predict",
        mutable=["batch_stats"],
        rngs=rngs,
    )
    target, seen = _targets2d(variables, batch)
    whole = _is_whole(batch)
    terms = {
        "joints2d": elementwise.reduce_points(
            elementwise.point_l1(points, target), confidence=seen
        ),
        "joints3d": elementwise.reduce_points(
            elementwise.point_l1(output.joints3d, batch.joints3d),
            point_valid=whole[:, None] & batch.known_joints3d,
        ),
        "vertices": elementwise.reduce_points(
            elementwise.point_l1(output.vertices, batch.vertices),
            example_valid=whole & batch.vertices_valid,
        ),
    }
    if model.root_depth:
        gamma = camera.gamma_from_root_depth(batch.root3d[:, 2], batch.intrinsics)
        error = jnp.abs(output.root_gamma - gamma)
        known = batch.joints3d_valid & (batch.root3d[:, 2] > 0)
        terms["root_depth"] = jnp.mean(jnp.where(known, error, 0.0))
    error = elementwise.mean_distance(
        output.vertices, batch.vertices, example_valid=jnp.asarray(batch.vertices_valid)
    )
    return terms, {"mm": 1000 * error}, dict(updates)


def _targets2d(
    variables: Variables, batch: Batch
) -> tuple[Float[Array, "batch point 2"], Float[Array, "batch point"]]:
    """Return the points in units of the crop, and the weight of each."""
    size = _size_px(batch.seen)
    target = jnp.asarray(batch.joints2d) / size
    seen = jnp.asarray(batch.joints2d_weights)
    if "coarse_vertices" in variables["constants"]:
        coarse = jnp.asarray(batch.vertices)[
            :, variables["constants"]["coarse_vertices"]
        ]
        placed = coarse + jnp.asarray(batch.root3d)[:, None]
        projected = camera.project(placed, batch.intrinsics) / size
        inside = jnp.all((projected > 0) & (projected < 1), axis=-1)
        # A hand whose place is not known is nowhere in the picture.
        known = batch.vertices_valid & (batch.root3d[:, 2] > 0)
        inside = (inside & known[:, None]).astype(seen.dtype)
        target = jnp.concatenate([target, projected], axis=1)
        seen = jnp.concatenate([seen, inside], axis=1)
    return target, seen


def _is_whole(batch: Batch) -> Bool[Array, "batch"]:
    """Return whether wrist or middle knuckle is in the crop (the release's mask)."""
    seen = jnp.asarray(batch.joints2d_valid)
    return seen[:, WRIST] | seen[:, MIDDLE_MCP]


def predict_image(model: Model, variables: Variables, batch: Batch) -> HandOutput:
    """Predict the hand from the image, or from features of it."""
    return model.apply(variables, batch.seen)


_PARTS = {
    "image_encoder": "backbone",
    "joints2d_head": "2-D joints head",
    "depth_head": "root depth head",
    "generator/upsample": "deconvolution",
    "generator": "token generator",
    "regressor": "mesh regressor",
}


def parameter_table(variables: Variables) -> list[tuple[str, int]]:
    """Count parameters by part: rows (part, number)."""
    return parameters_by_part(variables, _PARTS)
