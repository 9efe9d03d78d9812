"""Transformers from an image's map to joints and a coarse mesh: FastMETRO, METRO.

Cho et al., FastMETRO, ECCV 2022, https://arxiv.org/abs/2207.13820; Lin et al., METRO,
CVPR 2021, https://arxiv.org/abs/2012.09760; Lin et al., MeshGraphormer, ICCV 2021,
https://arxiv.org/abs/2104.00272. Without a `regressor` they are what was released, one
token for each joint and each coarse vertex; parameters have the names of the released
state dicts. With one, only joints have tokens in them, and it makes the mesh of those.

Coordinates are of the crop camera, in metres or the unit of the caller; nothing fixes
where the hand is, so that the caller subtracts a root. The camera is weak perspective
(`camera`).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from handjax.errors import UserError
from handjax.models.tore.bert import MeshEdges, ProgressiveBlock
from handjax.models.tore.mesh_graph import shares
from handjax.nn.detr import Transformer
from handjax.nn.metaformer import TokenLinear, linear
from handjax.nn.token_pruner import TokenPruner, Weights
from handjax.nn.token_sampler import sine_code

Maps = Mapping[str, Float[Array, "batch _ _ _"]]

TOKEN_INITS = {
    "normal": "each token by itself, as PyTorch's embeddings and as released",
    "places": "sines of its place in the hand at rest (`place_code`)",
}
"""What FastMETRO's tokens of joints and vertices, and TORE's regressor's, begin as. Of
"normal" ones nothing says which are neighbours; until that is learned, for longer than
short runs last, meshes are crumpled."""
_NORMAL = nn.initializers.normal(1.0)


class RestMesh(NamedTuple):
    """The hand at rest, relative to its root, metres."""

    joints: Float[Array, "joint 3"]
    vertices: Float[Array, "coarse 3"]
    adjacency: Bool[Array, "coarse coarse"]
    """True for edges and on the diagonal."""


class Regressed(NamedTuple):
    """What a regressor makes of joints' tokens."""

    vertices: Float[Array, "batch coarse 3"]
    camera: Float[Array, "batch 1 dim"]
    """The camera's token after the joints' were seen."""
    attention: Float[Array, "batch coarse joint"] | None = None
    """What each vertex looks at, as a mean over heads."""


class Found(NamedTuple):
    """What a network says of a hand."""

    joints: Float[Array, "batch joint 3"]
    """Of the joints' tokens."""
    vertices: Float[Array, "batch coarse 3"]
    cam: Float[Array, "batch 3"]
    attention: Float[Array, "batch coarse joint"] | None
    """How much each vertex looks at each joint."""
    clusters: Weights | None
    """Where each token of the image comes from, if they were pruned."""


class FastMetro(nn.Module):
    """Two encoders and decoders, wide and narrow, of image tokens and learned queries.

    Vertices attend to joints and to their neighbours in the mesh alone.
    """

    width: int
    narrow: int
    layers: int
    """Of each encoder and each decoder; 1, 2, 3 are FastMETRO's S, M, L."""
    heads: int
    ratio: int
    dropout: float
    pruner: str
    """One of `token_pruner.KINDS`, or "none"."""
    keep_ratio: float
    """Share of the image's tokens that a pruner leaves."""
    regressor: nn.Module | None
    """(camera token, joints' tokens, RestMesh) -> `Regressed`."""
    token_init: str
    """One of `TOKEN_INITS`."""
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: Maps, rest: RestMesh, *, train: bool) -> Found:
        """Read the map "final"."""
        x = linear(self.width, self.dtype, "conv_1x1")(of(maps, "final"))
        tokens, grid, clusters = self._image_tokens(x)
        count = len(rest.joints)
        camera = learned(self, "cam_token_embed", 1, self.width)
        init = token_init(self.token_init, rest.joints, rest)
        queries = learned(self, "joint_token_embed", count, self.width, init)
        blocked = None
        if self.regressor is None:
            vertices = len(rest.vertices)
            init = token_init(self.token_init, rest.vertices, rest)
            more = learned(self, "vertex_token_embed", vertices, self.width, init)
            queries = jnp.concatenate([queries, more], axis=1)
            blocked = jnp.pad(~rest.adjacency, (count, 0))
        options: dict[str, Any] = dict(
            layers=self.layers,
            heads=self.heads,
            ratio=self.ratio,
            dropout=self.dropout,
            dtype=self.dtype,
        )
        wide = Transformer(**options, name="transformer_1")(
            camera, tokens, queries, places(*grid, self.width), blocked, train=train
        )
        camera, tokens, queries = self._reduced(*wide)
        last = Transformer(**options, name="transformer_2")(
            camera, tokens, queries, places(*grid, self.narrow), blocked, train=train
        )
        cam = coordinates("cam_predictor")(last.camera[:, 0])
        decoded = last.decoded
        if self.regressor is None:
            xyz = coordinates("xyz_regressor")(decoded.queries)
            among = decoded.among[:, count:, :count]
            return Found(xyz[:, :count], xyz[:, count:], cam, among, clusters)
        joints = coordinates("xyz_regressor_j")(decoded.queries)
        mesh = self.regressor(last.camera, decoded.queries, rest, train=train)
        return Found(joints, mesh.vertices, cam, mesh.attention, clusters)

    def _image_tokens(
        self, x: Float[Array, "batch height width dim"]
    ) -> tuple[Float[Array, "batch token dim"], tuple[int, int], Weights | None]:
        """Return the image's tokens, their rows and columns, and a pruner's weights.

        Pruned tokens are placed as in a column.
        """
        batch, height, width, dim = x.shape
        if self.pruner == "none":
            return x.reshape(batch, -1, dim), (height, width), None
        pruner = TokenPruner(self.keep_ratio, self.pruner, self.dtype, name="pruner")
        tokens, weights = pruner(x)
        return tokens, (tokens.shape[1], 1), weights

    def _reduced(self, camera: Array, tokens: Array, decoded: Any) -> tuple[Array, ...]:
        """Narrow the tokens; with a regressor, camera and image share a layer."""

        def reduce(name: str) -> nn.Dense:
            return linear(self.narrow, self.dtype, f"dim_reduce_{name}")

        queries = reduce("dec")(decoded.queries)
        if self.regressor is not None:
            shared = reduce("enc")
            return shared(camera), shared(tokens), queries
        return reduce("enc_cam")(camera), reduce("enc_img")(tokens), queries


class Metro(nn.Module):
    """Progressive blocks of BERT layers on tokens that all know the whole image.

    A token is a place of the mesh at rest and the mean over the map. MeshGraphormer
    (`grid`) adds a token for each place of a map, and convolves along the mesh's edges
    in its last block. With a `regressor`, there are as many mixtures of the map's
    places as joints instead (TORE's reduction of METRO); each has a joint at rest, as
    METRO's tokens have theirs, and the last block is as wide as `narrow`, as in TORE's
    network for bodies.
    """

    hidden: tuple[int, int, int]
    """Widths of the blocks."""
    outputs: tuple[int, int]
    """Widths between them."""
    narrow: int
    """Of the last block, with a regressor."""
    layers: int
    """Of each block."""
    heads: int
    ratio: int
    dropout: float
    grid: str
    """Map whose places are tokens of their own ("stride32"); "" for none."""
    regressor: nn.Module | None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: Maps, rest: RestMesh, *, train: bool) -> Found:
        """Read the map "final", and `grid`."""
        count = len(rest.joints)
        if self.regressor is None:
            x, edges = self._mesh_tokens(maps, rest)
            hidden = self.hidden
        else:
            x, edges = self._joint_tokens(of(maps, "final"), rest), None
            hidden = (*self.hidden[:-1], self.narrow)
        found: Any = None
        for i, (width, out) in enumerate(zip(hidden, (*self.outputs, 3), strict=True)):
            last = i == len(hidden) - 1
            block = ProgressiveBlock(
                width,
                out,
                self.layers,
                self.heads,
                self.ratio,
                self.dropout,
                self.dtype,
                output_dtype=jnp.float32 if last else None,
                name=f"trans_encoder_{i}",
            )
            found = block(x, edges if last else None, train=train)
            x = found.outputs
        joints = x[:, :count]
        if self.regressor is None:
            xyz = x[:, : count + len(rest.vertices)]
            among = found.attention[:, count : xyz.shape[1], :count]
            return Found(joints, xyz[:, count:], self._cam(xyz), among, None)
        camera = learned(self, "cam_token_embed", 1, self.narrow)
        camera = jnp.broadcast_to(camera, (len(x), 1, self.narrow))
        mesh = self.regressor(camera, found.hidden, rest, train=train)
        cam = coordinates("cam_predictor")(mesh.camera[:, 0])
        return Found(joints, mesh.vertices, cam, mesh.attention, None)

    def _mesh_tokens(
        self, maps: Maps, rest: RestMesh
    ) -> tuple[Float[Array, "batch token dim"], MeshEdges | None]:
        """Return tokens of joints, vertices and, for MeshGraphormer, map places."""
        features = of(maps, "final")
        mean = jnp.mean(features.astype(jnp.float32), axis=(1, 2))
        xyz = jnp.concatenate([rest.joints, rest.vertices])
        x = _beside(
            xyz, jnp.broadcast_to(mean[:, None], (len(mean), len(xyz), mean.shape[-1]))
        )
        x = x.astype(self.dtype)
        if not self.grid:
            return x, None
        fine = of(maps, self.grid)
        fine = linear(x.shape[-1], self.dtype, "grid_feat_dim")(fine)
        x = jnp.concatenate([x, fine.reshape(len(x), -1, x.shape[-1])], axis=1)
        return x, MeshEdges(len(rest.joints), shares(rest.adjacency))

    def _joint_tokens(
        self, features: Float[Array, "batch height width dim"], rest: RestMesh
    ) -> Float[Array, "batch joint _"]:
        """Mix the map's places into one token per joint."""
        places = features.reshape(len(features), -1, features.shape[-1])
        mix = TokenLinear(len(rest.joints), self.dtype, name="token_mixer")
        return _beside(rest.joints, mix(places))

    def _cam(self, xyz: Float[Array, "batch token 3"]) -> Float[Array, "batch 3"]:
        """Predict a camera from all coordinates: three linear layers in a row."""
        each = linear(1, jnp.float32, "cam_param_fc")(xyz)[..., 0]
        return coordinates("cam_param_fc3")(
            linear(150, jnp.float32, "cam_param_fc2")(each)
        )


def _beside(
    xyz: Float[Array, "token 3"], x: Float[Array, "batch token dim"]
) -> Float[Array, "batch token _"]:
    """Prepend a place to each token."""
    xyz = jnp.broadcast_to(xyz.astype(x.dtype), (len(x), *xyz.shape))
    return jnp.concatenate([xyz, x], axis=-1)


def of(maps: Maps, name: str) -> Float[Array, "batch height width dim"]:
    """Return a map of the backbone.

    Raises:
        UserError: It has none of this name.
    """
    if name not in maps:
        raise UserError(
            f"The backbone has no map {name!r}; it has {', '.join(sorted(maps))}. Use "
            "a backbone that has (config.model.backbone), such as hrnet_w64."
        )
    return maps[name]


def places(rows: int, columns: int, dim: int) -> Float[Array, "token dim"]:
    """Return DETR's sine positions of a grid, row by row."""
    return jnp.asarray(sine_code(rows, columns, dim).reshape(-1, dim), jnp.float32)


def learned(
    module: nn.Module,
    name: str,
    count: int,
    dim: int,
    init: nn.initializers.Initializer = _NORMAL,
) -> Float[Array, "1 token dim"]:
    """Create learned tokens."""
    return module.param(name, init, (count, dim))[None]


def token_init(
    kind: str, places: Float[Array, "token 3"], rest: RestMesh
) -> nn.initializers.Initializer:
    """Return the initialiser of learned tokens of joints or vertices.

    Args:
        kind: One of `TOKEN_INITS`.
        places: Of these joints or vertices at rest.
        rest: All of them.
    """
    if kind == "normal":
        return _NORMAL

    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        del key  # joints and vertices have one code
        extent = jnp.max(jnp.ptp(rest.vertices, axis=0))
        return place_code(places / extent, shape[-1]).astype(dtype)

    return init


def place_code(places: Float[Array, "token 3"], dim: int) -> Float[Array, "token dim"]:
    """Encode places as sines along random directions, with a mean square of 1.

    Args:
        places: In units of the extent of the whole. Waves are about 2 to 12 long, so
            that near places have like codes, and linear layers can read where they are.
        dim: How many sines.
    """
    draw = np.random.default_rng(0)
    length = np.exp(draw.uniform(np.log(0.3), np.log(2.0), dim))
    waves = draw.normal(size=(3, dim)) / length
    phases = draw.uniform(0, 2 * np.pi, dim)
    exact = jnp.matmul(places, waves, precision=jax.lax.Precision.HIGHEST)
    return jnp.sqrt(2.0) * jnp.cos(exact + phases[None])


def coordinates(name: str) -> nn.Dense:
    """Return the layer that predicts coordinates or a camera.

    In bfloat16 a hand would be rounded to half millimetres.
    """
    return linear(3, jnp.float32, name)
