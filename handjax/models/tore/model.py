"""TORE's network: a host transformer whose tokens are reduced, and regressors."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from handjax.errors import UserError
from handjax.family.hand_constants import (
    HandConstants,
    joints_from_vertices,
    parameters_by_part,
)
from handjax.geometry import camera, mesh_hierarchy, skeleton
from handjax.geometry.mesh_hierarchy import MeshHierarchy
from handjax.models.tore.mesh_graph import MeshGraphBlock, shares
from handjax.models.tore.mesh_transformers import (
    TOKEN_INITS,
    FastMetro,
    Found,
    Maps,
    Metro,
    Regressed,
    RestMesh,
    coordinates,
    learned,
    places,
    token_init,
)
from handjax.nn import backbones, token_pruner
from handjax.nn.detr import Transformer
from handjax.nn.metaformer import TokenLinear, linear
from handjax.nn.ops.image import normalised
from handjax.nn.token_pruner import Weights
from handjax.types import (
    AnyArray,
    Batch,
    Explanation,
    HandOutput,
    Variables,
)

HOSTS = {
    "fastmetro": "FastMETRO: encoder and decoder",
    "metro": "METRO: encoders alone",
    "graphormer": "MeshGraphormer: METRO with tokens of a map and graph convolutions",
}
REGRESSORS = {
    "nsr": "a third, narrow encoder and decoder (the paper's choice)",
    "mlp": "linear layers on all joints at once",
    "gcn": "graph convolutions over the coarse mesh",
}
"""What makes the mesh of the joints' tokens (the paper's Table 7)."""
UPSAMPLINGS = {
    "fixed": "barycentric matrices of the mesh hierarchy, as FastMETRO's are fixed",
    "learned": "linear layers over the vertices, as METRO's",
}
OUTPUT_UNITS = {
    "metres": "metres; the camera's scale begins near 0, as released",
    "hands": "the largest side of the box around the joints at rest; the camera begins "
    "where that box is seen around the middle, and shifts in units of half a crop",
}
"""Of what the last layers give; what the model gives is in metres. In metres a shift of
the camera counts as many times as its scale is large, and at the rates that short runs
from random weights need, hands were learned late (docs/results.md). And at scale 0
shifts have no gradient: released networks, pretrained, get away from there."""
REST_FILL = 0.8
"""Side of the box around the joints at rest, in units of the crop: of a tight box grown
by 1.25, the default of `config.data.box_scale`."""
KEYPOINT_LOSSES = {"l1": "absolute, as FastMETRO", "mse": "squared, as METRO"}
NO_PRUNER = "none"


class NeuralShapeRegressor(nn.Module):
    """Vertices ask the joints, in an encoder and a decoder as wide as these.

    The encoder mixes the camera's token and the joints'. In the decoder a learned token
    of each coarse vertex attends to its neighbours in the mesh, then to all joints. The
    paper's text has the mask on the attention to joints, TORE's code on that among
    vertices, as here: joints are no neighbours of vertices.
    """

    layers: int
    heads: int
    ratio: int
    dropout: float
    token_init: str
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        camera: Float[Array, "batch 1 dim"],
        joints: Float[Array, "batch joint dim"],
        rest: RestMesh,
        *,
        train: bool,
    ) -> Regressed:
        """Regress the coarse mesh."""
        count, dim = joints.shape[1:]
        init = token_init(self.token_init, rest.vertices, rest)
        queries = learned(self, "vertex_token_embed", len(rest.vertices), dim, init)
        transformer = Transformer(
            self.layers,
            self.heads,
            self.ratio,
            self.dropout,
            self.dtype,
            name="transformer_3",
        )
        found = transformer(
            camera, joints, queries, places(count, 1, dim), ~rest.adjacency, train=train
        )
        xyz = coordinates("xyz_regressor_v")(found.decoded.queries)
        return Regressed(xyz, found.camera, found.decoded.memory)


class MlpRegressor(nn.Module):
    """All joints' features through hidden layers of 512, with ReLU.

    The paper does not say what its multi-layer perceptron is; this one has as many
    hidden layers as the transformer, and with three about the regressor's size.
    """

    layers: int
    hidden: int = 512
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        camera: Float[Array, "batch 1 dim"],
        joints: Float[Array, "batch joint dim"],
        rest: RestMesh,
        *,
        train: bool,
    ) -> Regressed:
        """Regress the coarse mesh."""
        del train
        x = joints.reshape(len(joints), -1)
        for i in range(self.layers):
            x = nn.relu(linear(self.hidden, self.dtype, f"hidden{i}")(x))
        xyz = linear(3 * len(rest.vertices), jnp.float32, "xyz_regressor_v")(x)
        return Regressed(xyz.reshape(len(x), -1, 3), camera)


class GcnRegressor(nn.Module):
    """From joints to vertices by a linear map, then residual graph convolutions.

    After Pose2Mesh, which the paper follows without saying how far: there, too, a full
    layer leads from the joints to a coarse mesh and graph convolutions refine it.
    """

    layers: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        camera: Float[Array, "batch 1 dim"],
        joints: Float[Array, "batch joint dim"],
        rest: RestMesh,
        *,
        train: bool,
    ) -> Regressed:
        """Regress the coarse mesh."""
        del train
        x = TokenLinear(len(rest.vertices), self.dtype, name="to_vertices")(joints)
        for i in range(self.layers):
            block = MeshGraphBlock(self.dtype, name=f"block{i}")
            x = block(x, shares(rest.adjacency))
        return Regressed(coordinates("xyz_regressor_v")(x), camera)


class Upsampling(nn.Module):
    """From the coarse mesh up, level by level, to the full one."""

    learned: bool

    @nn.compact
    def __call__(
        self, vertices: Float[Array, "batch coarse 3"], matrices: list[Array]
    ) -> list[Float[Array, "batch _ 3"]]:
        """Return the meshes of all levels, the coarsest first, the full one last.

        Args:
            vertices: Of the coarsest level.
            matrices: From each level to the next; of learned layers, their sizes.
        """
        levels = [vertices]
        for i, matrix in enumerate(matrices):
            if self.learned:
                up = TokenLinear(len(matrix), jnp.float32, name=f"level{i}")
                levels.append(up(levels[-1]))
            else:
                levels.append(_up(matrix, levels[-1]))
        return levels


def _up(
    matrix: Float[AnyArray, "fine coarse"], x: Float[Array, "batch coarse dim"]
) -> Float[Array, "batch fine dim"]:
    highest = jax.lax.Precision.HIGHEST
    return jnp.einsum("fc,bcd->bfd", jnp.asarray(matrix), x, precision=highest)


class Prediction(NamedTuple):
    """The hand, and what only training looks at."""

    output: HandOutput
    joints3d: Float[Array, "batch joint 3"]
    """Of the joints' tokens, relative to their own root."""
    levels: list[Float[Array, "batch _ 3"]]
    """Meshes from coarse to full, relative to the root of the mesh."""
    clusters: Weights | None


class Model(nn.Module):
    """Image to hand; the fields are `config.model`."""

    backbone: str
    backbone_drop_path: float
    host: str  # HOSTS
    # Reductions.
    gtr: bool  # joints' tokens alone, and a regressor
    regressor: str  # REGRESSORS; with gtr
    pruner: str  # token_pruner.KINDS, or "none"; of fastmetro
    keep_ratio: float  # share of the image's tokens that the pruner leaves
    # FastMETRO, and the regressor, which is as wide as `narrow`.
    width: int
    narrow: int
    layers: int  # 1, 2, 3 for S, M, L
    heads: int
    ratio: int
    dropout: float
    # METRO and MeshGraphormer; their heads and layers are those of a block.
    metro_hidden: tuple[int, int, int]
    metro_outputs: tuple[int, int]
    metro_layers: int
    metro_heads: int
    grid: str  # the map whose places are tokens in MeshGraphormer
    # Mesh. Level 1 of a hand's hierarchy has 195 vertices, level 2 of SMPL's 431.
    coarse_level: int
    upsampling: str  # UPSAMPLINGS
    root: str  # that all is relative to; config.data.root
    token_init: str  # TOKEN_INITS; of learned tokens
    output_unit: str  # OUTPUT_UNITS
    # Losses.
    keypoint_loss: str  # KEYPOINT_LOSSES
    pruning_reduction: str  # token_pruner.REDUCTIONS
    per_device: int  # examples that "sum" sums over; FastMETRO's 64 on four GPUs
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    channel_order: str
    fused: bool = False  # inference form of the backbone: `models.for_inference`
    dtype: str = "float32"  # of the computation; parameters are float32

    def setup(self):
        """Build backbone, head and upsampling."""
        _check_fields(self)
        dtype = jnp.dtype(self.dtype)
        self.image_encoder = backbones.build(
            self.backbone,
            drop_path_rate=self.backbone_drop_path,
            dtype=dtype,
            fused=self.fused,
        )
        self.head = self._host(dtype)
        self.upsample = Upsampling(self.upsampling == "learned")

    def _host(self, dtype: Any) -> nn.Module:
        regressor = self._regressor(dtype) if self.gtr else None
        if self.host == "fastmetro":
            return FastMetro(
                self.width,
                self.narrow,
                self.layers,
                self.heads,
                self.ratio,
                self.dropout,
                self.pruner,
                self.keep_ratio,
                regressor,
                self.token_init,
                dtype,
            )
        return Metro(
            self.metro_hidden,
            self.metro_outputs,
            self.narrow,
            self.metro_layers,
            self.metro_heads,
            self.ratio,
            self.dropout,
            self.grid if self.host == "graphormer" else "",
            regressor,
            dtype,
        )

    def _regressor(self, dtype: Any) -> nn.Module:
        if self.regressor == "mlp":
            return MlpRegressor(self.layers, dtype=dtype)
        if self.regressor == "gcn":
            return GcnRegressor(self.layers, dtype)
        return NeuralShapeRegressor(
            self.layers,
            self.heads,
            self.ratio,
            self.dropout,
            self.token_init,
            dtype,
        )

    def __call__(
        self,
        image: UInt8[AnyArray, "batch height width 3"]
        | Float[AnyArray, "batch height width 3"],
        *,
        train: bool = False,
    ) -> HandOutput:
        """Predict the hand in square crops of 0..255 RGB; sides divisible by 32."""
        return self.predict(image, train=train).output

    def predict(self, image: Any, *, train: bool = False) -> Prediction:
        """Predict as `__call__`, and return what losses need, too."""
        return self.read(self.encode(image, train=train), image.shape[1], train=train)

    def encode(self, image: Any, *, train: bool = False) -> Maps:
        """Compute the maps of the backbone."""
        dtype = jnp.dtype(self.dtype)
        pixels = normalised(
            image, self.image_mean, self.image_std, self.channel_order, dtype
        )
        return self.image_encoder(pixels, train=train)

    def find(self, maps: Maps, *, train: bool = False) -> Found:
        """Run the transformers on the maps of the backbone."""
        rest = _rest(self.get_variable("constants", "mesh"))
        found = self.head(maps, rest, train=train)
        if self.output_unit == "metres":
            return found
        extent = jnp.max(jnp.ptp(rest.joints, axis=0))
        scale = 2 * REST_FILL / extent
        units = jnp.stack([scale, 1 / scale, 1 / scale])
        cam = (found.cam + jnp.array([[1.0, 0.0, 0.0]])) * units[None]
        return found._replace(
            joints=found.joints * extent, vertices=found.vertices * extent, cam=cam
        )

    def read(self, maps: Maps, size_px: int, *, train: bool = False) -> Prediction:
        """Run everything behind the backbone.

        Args:
            maps: From `encode`.
            size_px: Side of the crop.
            train: Drop at random.
        """
        found = self.find(maps, train=train)
        levels = self.upsample(found.vertices, self._matrices())
        regressor = self.get_variable("constants", "hand")["joint_regressor"]
        joints3d = joints_from_vertices(regressor, levels[-1])
        root = skeleton.root_joint(self.root)
        place = joints3d[:, root][:, None]
        levels = [vertices - place for vertices in levels]
        seen = camera.weak_project(joints3d - place, found.cam)
        output = HandOutput(
            levels[-1],
            joints3d - place,
            joints2d=(seen + 1) / 2 * size_px,
            cam=found.cam,
        )
        joints = found.joints - found.joints[:, root][:, None]
        return Prediction(output, joints, levels, found.clusters)

    def explain(self, image: Any) -> Explanation:
        """Return what the model attends to in square crops of 0..255 RGB.

        Clusters where a pruner makes some; attention to joints in the last layer, but
        of regressors without attention. Its rows sum to one if vertices look at nothing
        else (`gtr`).
        """
        found = self.find(self.encode(image))
        attention = found.attention
        for matrix in self._matrices() if attention is not None else ():
            attention = _up(matrix, attention)
        return Explanation(found.clusters, attention)

    def init_all(self, batch: Batch, hand: HandConstants) -> HandOutput:
        """Run every submodule once and store the hand model's constants."""
        kept = constants(hand, self.coarse_level, skeleton.root_joint(self.root))
        for name, value in kept.items():
            self.put_variable("constants", name, jax.tree.map(jnp.asarray, value))
        return self(batch.image)

    def _matrices(self) -> list[Float[Array, "_ _"]]:
        """Return the upsampling from each level to the next, the coarsest first."""
        mesh = self.get_variable("constants", "mesh")
        return [mesh[f"up{level}"] for level in range(self.coarse_level, 0, -1)]


def constants(
    hand: HandConstants,
    coarse_level: int,
    root: int,
    hierarchy: MeshHierarchy | None = None,
) -> dict[str, Any]:
    """Return the constants kept of the hand model and of its mesh's hierarchy.

    Args:
        hand: The hand model.
        coarse_level: Whose vertices are predicted.
        root: Joint that all is relative to.
        hierarchy: The one that weights were trained with; of the hand's own mesh, if
            there is none.

    Returns:
        "hand" and "faces", as other families keep them; "mesh", with "joints" and
        "vertices" of the coarse mesh at rest, relative to the root, and "adjacency" of
        that mesh; for each level from 1 on, "kept<level>", its vertices as numbers of
        the full mesh, and "up<level>", the matrix to the next finer one.
    """
    if hierarchy is None:
        hierarchy = mesh_hierarchy.build(
            hand.v_template, hand.faces, num_levels=coarse_level + 1
        )
    joints = hand.joint_regressor @ hand.v_template
    coarse = hierarchy.levels[coarse_level]
    mesh: dict[str, np.ndarray] = dict(
        joints=joints - joints[root],
        vertices=hand.v_template[coarse.kept] - joints[root],
        adjacency=coarse.adjacency,
    )
    for level in range(1, coarse_level + 1):
        mesh[f"kept{level}"] = hierarchy.levels[level].kept
        mesh[f"up{level}"] = hierarchy.upsampling(level, level - 1)
    arrays, of_hand = hand.arrays(), ("joint_regressor", "weights", "parents")
    return {
        "hand": {name: arrays[name] for name in of_hand if name in arrays},
        "faces": hand.faces,
        "mesh": mesh,
    }


def _rest(mesh: dict[str, Array]) -> RestMesh:
    names = ("joints", "vertices", "adjacency")
    return RestMesh(*(jnp.asarray(mesh[name]) for name in names))


def _check_fields(model: Model) -> None:
    """Refuse values that are none of those there are, and what does not go together."""
    pruners = (NO_PRUNER, *token_pruner.KINDS)
    for key, allowed in (
        ("host", HOSTS),
        ("regressor", REGRESSORS),
        ("pruner", pruners),
        ("upsampling", UPSAMPLINGS),
        ("token_init", TOKEN_INITS),
        ("output_unit", OUTPUT_UNITS),
        ("keypoint_loss", KEYPOINT_LOSSES),
        ("pruning_reduction", token_pruner.REDUCTIONS),
    ):
        value = getattr(model, key)
        if value not in allowed:
            raise UserError(
                f"config.model.{key}={value!r} is not one of {', '.join(allowed)}."
            )
    if model.coarse_level < 1:
        raise UserError(
            f"config.model.coarse_level={model.coarse_level} must be at least 1: the "
            "level of the mesh hierarchy whose vertices are predicted."
        )
    if model.host == "fastmetro":
        return
    wrong = {
        "pruner": model.pruner != NO_PRUNER
        and "clusters what an encoder reads; METRO "
        "has no tokens of the image: use 'none'",
        "gtr": model.gtr and model.host == "graphormer" and "is of fastmetro and metro",
        "regressor": model.gtr
        and model.regressor != "nsr"
        and "leaves no token of the camera, which METRO reads there: use 'nsr'",
    }
    for key, why in wrong.items():
        if why:
            raise UserError(
                f"config.model.{key}={getattr(model, key)!r} with host={model.host!r}: "
                f"it {why}."
            )


# --- Training ----------------------------------------------------------------


PARTS = {"backbone": "encode", "head": "predict"}
"""Methods of the model that do what the one before does and a part more; their times
are told apart by `python -m handjax.benchmark --what parts`."""

_PARTS = {
    "image_encoder": "backbone",
    "head/conv_1x1": "1x1 convolution",
    "head/pruner": "image token pruner",
    "head/transformer_1": "wide transformer",
    "head/transformer_2": "narrow transformer",
    "head/regressor": "shape regressor",
    "head/trans_encoder": "progressive blocks",
    "head": "tokens and heads",
    "upsample": "upsampling",
}


def parameter_table(variables: Variables) -> list[tuple[str, int]]:
    """Count parameters by part: rows (part, number)."""
    return parameters_by_part(variables, _PARTS)
