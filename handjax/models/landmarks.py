"""Landmarks to mesh: 21 points that MediaPipe reads, and a small network above them.

handjax's own technical note, no paper. A frozen landmark network
(`nn.backbones.hand_landmark`) turns a picture into 21 points in the picture and 21 in
metres; a residual MLP turns these into the pose and shape of the hand model. So the
part that is trained sees 127 numbers and no pixel: what works on renders works on
photos, and hands can be trained on that nobody has rendered.

Stage "poses" draws hands from the pose prior and landmarks for them from
`landmark_noise`, and mixes in pairs that the landmark network read in renders. Stage
"mesh" goes on with landmarks read in pictures while training.

Parameters (`parameter_table`): 1,699,946 at a width of 512; the landmark network's
2,715,680 are frozen constants.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from handjax.errors import UserError
from handjax.family.hand_constants import HandConstants, check_root, parameters_by_part
from handjax.family.stage import Stage
from handjax.geometry import rotations
from handjax.geometry.skeleton import MIDDLE_MCP, root_joint
from handjax.losses import elementwise
from handjax.mano.hand_model import HandModel
from handjax.nn import landmark_noise
from handjax.nn.backbones import hand_landmark
from handjax.nn.landmark_noise import Landmarks
from handjax.types import AnyArray, Batch, HandOutput, Paper, Variables

PAPER = Paper(
    name="Landmarks",
    title="Hand meshes from 21 landmarks",
    url="https://ai.google.dev/edge/mediapipe/solutions/vision/hand_landmarker",
    equations={
        "vertices": "L_V, L1 of the vertices relative to the root",
        "joints": "L_J, distance of the joints relative to the root",
    },
)
_JITTER = 0.15
"""Radians by which regions are not upright: what second regions are off by."""
_PAIR_JITTER = 0.1  # pairs were read in jittered regions already
_REGION_JITTER = (0.1, 0.04)
"""Of a region's size and place, relative to its size."""


class Hand(NamedTuple):
    """What the network says: parameters, and the hand that they stand for."""

    local: Float[Array, "batch bone 3 3"]
    """Rotations, the wrist first, in the axes of the landmarks."""
    betas: Float[Array, "batch beta"]
    output: HandOutput


class Reading(NamedTuple):
    """Landmarks of a picture, and the region in which they were read."""

    landmarks: Landmarks
    """In the axes and pixels of the region."""
    region: "Region"


class Region(NamedTuple):
    """Turned squares of pictures, as `regions.Region`."""

    centre: Float[Array, "batch 2"]
    size: Float[Array, "batch"]
    angle: Float[Array, "batch"]


class Model(nn.Module):
    """Picture or landmarks to hand; the fields are `config.model`."""

    network: str  # hand_landmark.VARIANTS
    width: int
    depth: int
    pair_share: float  # of the examples of a batch of poses
    root: str  # that outputs are relative to: config.data.root

    def setup(self):
        """Build the trained part."""
        if not 0 <= self.pair_share < 1:
            raise UserError(
                f"config.model.pair_share={self.pair_share} is not in [0, 1)."
            )
        self.lifter = Lifter(self.width, self.depth)

    def __call__(
        self,
        image: UInt8[AnyArray, "batch height width 3"]
        | Float[AnyArray, "batch height width 3"],
        *,
        train: bool = False,
    ) -> HandOutput:
        """Predict the hand in square crops of 0..255 RGB, however it is turned.

        The crop is read in four directions; the surest reading gives the region in
        which it is read again. What lies outside of the crop is black.
        """
        del train
        return self.predict(self.read(image)).output

    def lift(self, landmarks: Landmarks) -> Hand:
        """Return the hands of landmarks of upright regions, in their axes."""
        numbers = self.lifter(features(landmarks))
        local = rotations.rotation_6d_to_matrix(numbers[:, :-10].reshape(-1, 16, 6))
        betas = numbers[:, -10:]
        hand = HandModel(**self.get_variable("constants", "hand"))
        posed = hand.with_shape(betas).with_pose(
            local[:, 0], local[:, 1:], form="matrix"
        )
        root = posed.joints3d[:, root_joint(self.root)][:, None]
        output = HandOutput(posed.vertices - root, posed.joints3d - root)
        return Hand(local, betas, output)

    def predict(self, reading: Reading) -> Hand:
        """Return hands in the axes and pixels of the picture that was read."""
        hand = self.lift(reading.landmarks)
        output = self._in_picture(hand.output, reading)
        turn = landmark_noise.turn_in_plane(reading.region.angle)
        local = hand.local.at[:, 0].set(turn @ hand.local[:, 0])
        return Hand(local, hand.betas, output)

    def _in_picture(self, output: HandOutput, reading: Reading) -> HandOutput:
        """Put joints onto the landmarks by weak perspective; turn all back."""
        size = hand_landmark.IMAGE_SIZE
        points = reading.landmarks.screen[..., :2]
        mapped = jnp.einsum(
            "jk,nkx->njx",
            self.get_variable("constants", "screen_map"),
            output.joints3d[..., :2],
        )
        to, of = points - points.mean(1, keepdims=True), mapped.mean(1, keepdims=True)
        away = mapped - of
        scale = jnp.sum(away * to, (1, 2)) / jnp.sum(away**2, (1, 2))
        seen = (output.joints3d[..., :2] - of) * scale[:, None, None]
        seen = seen + points.mean(1, keepdims=True) - (size - 1) / 2
        region, turn = (
            reading.region,
            landmark_noise.turn_in_plane(reading.region.angle),
        )
        joints2d = jnp.einsum("nab,njb->nja", turn[:, :2, :2], seen)
        joints2d = joints2d * (region.size / size)[:, None, None]
        return HandOutput(
            _turned(turn, output.vertices),
            _turned(turn, output.joints3d),
            joints2d=joints2d + region.centre[:, None],
            confidence=reading.landmarks.presence,
        )

    def read(self, image: Any) -> Reading:
        """Return the landmarks of the hands in crops, found without knowing a turn."""
        image = jnp.asarray(image, jnp.float32)
        batch, side = image.shape[:2]
        whole = Region(
            jnp.full((4 * batch, 2), (side - 1) / 2),
            jnp.full(4 * batch, float(side)),
            jnp.repeat(jnp.arange(4) * (jnp.pi / 2), batch),
        )
        found = self.read_region(jnp.tile(image, (4, 1, 1, 1)), whole)
        presence = found.landmarks.presence.reshape(4, batch)
        surest = jnp.argmax(presence, axis=0) * batch + jnp.arange(batch)
        first = jax.tree.map(lambda x: x[surest], found)
        return self.read_region(image, region_of(points_of(first)))

    def read_region(self, image: Any, region: Region) -> Reading:
        """Return the landmarks of hands in regions of pictures."""
        # Without a parent, for it is no submodule: its weights are constants.
        network = hand_landmark.build(self.network, parent=None)
        weights = self.get_variable("constants", "landmark_network")
        crops = warped(jnp.asarray(image, jnp.float32), region) / 255
        found = network.apply(weights, crops, method="landmarks")
        landmarks = Landmarks(found.screen_px, found.world, found.presence)
        return Reading(jax.lax.stop_gradient(landmarks), region)

    def init_all(self, batch: Batch, hand: HandConstants) -> HandOutput:
        """Touch the trained part once; keep hand, landmark network and convention."""
        hand.require_hand(PAPER.name)
        noise, _ = training_landmarks()
        network = hand_landmark.pretrained(self.network)
        constants = dict(
            hand=hand.arrays(),
            faces=hand.faces,
            landmark_network=network,
            screen_map=noise.screen_map,
        )
        for name, value in constants.items():
            self.put_variable("constants", name, jax.tree.map(jnp.asarray, value))
        joints = jnp.asarray(batch.joints3d)
        some = Landmarks(joints, joints, jnp.ones(len(joints)))
        return self.lift(some).output


class Lifter(nn.Module):
    """Residual MLP; it begins at the flat hand."""

    width: int
    depth: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch feature"]
    ) -> Float[Array, "batch number"]:
        """Return six numbers of each of 16 rotations, then the betas."""
        x = nn.Dense(self.width, name="enter")(x)
        for i in range(self.depth):
            hidden = nn.Dense(self.width, name=f"in{i}")(_norm(f"norm{i}")(x))
            x = x + nn.Dense(self.width, name=f"out{i}", kernel_init=_small)(
                nn.gelu(hidden)
            )
        numbers = nn.Dense(106, name="leave", kernel_init=_tiny)(_norm("norm")(x))
        flat = np.append(np.tile([1.0, 0, 0, 0, 1, 0], 16), np.zeros(10))
        return numbers + flat.astype(np.float32)[None]


_small = nn.initializers.variance_scaling(0.1, "fan_in", "normal")
_tiny = nn.initializers.variance_scaling(1e-4, "fan_in", "normal")


def _norm(name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=1e-5, name=name)


def features(landmarks: Landmarks) -> Float[Array, "batch 127"]:
    """Return what the lifter sees, free of place and of size in the picture.

    World points from the middle knuckle in decimetres, screen points in radii, and how
    sure the network was.
    """
    world = landmarks.world - landmarks.world[:, MIDDLE_MCP, None]
    screen = landmark_noise.in_radii(jnp.asarray(landmarks.screen))
    presence = jnp.clip(jnp.asarray(landmarks.presence), 1e-3, 1 - 1e-3)
    sure = jnp.log(presence / (1 - presence)) / 5
    batch = len(world)
    parts = [10 * world.reshape(batch, -1), screen.reshape(batch, -1), sure[:, None]]
    return jnp.concatenate(parts, axis=-1)


# --- pictures -----------------------------------------------------------------------


def region_of(points: Float[Array, "batch joint 2"]) -> Region:
    """Return the regions of landmarks, by the rule of `regions.landmark_region`."""
    turn = landmark_noise.turn_upright(points)[:, :2, :2]
    angle = -jnp.arctan2(turn[:, 1, 0], turn[:, 0, 0])
    palm = np.array([0, 1, 2, 3, 5, 6, 9, 10, 13, 14, 17, 18])
    upright = jnp.einsum("nab,njb->nja", turn, points[:, palm])
    low, high = upright.min(axis=1), upright.max(axis=1)
    sides = high - low
    middle = (low + high) / 2 - jnp.stack([0 * sides[:, 1], 0.1 * sides[:, 1]], -1)
    centre = jnp.einsum("nba,nb->na", turn, middle)
    return Region(centre, 2 * jnp.maximum(sides.max(axis=1), 1e-3), angle)


def points_of(reading: Reading) -> Float[Array, "batch joint 2"]:
    """Return the screen points in pixels of the picture that was read."""
    size, region = hand_landmark.IMAGE_SIZE, reading.region
    offset = reading.landmarks.screen[..., :2] - (size - 1) / 2
    turn = landmark_noise.turn_in_plane(region.angle)[:, :2, :2]
    offset = jnp.einsum("nab,njb->nja", turn, offset)
    return region.centre[:, None] + offset * (region.size / size)[:, None, None]


def warped(
    image: Float[Array, "batch height width 3"], region: Region
) -> Float[Array, "batch side side 3"]:
    """Cut regions out of pictures, upright, bilinear, black outside."""
    size = hand_landmark.IMAGE_SIZE
    steps = (jnp.arange(size) - (size - 1) / 2)[None, :] * (region.size / size)[:, None]
    cos, sin = (
        jnp.cos(region.angle)[:, None, None],
        jnp.sin(region.angle)[:, None, None],
    )
    along, down = steps[:, None, :], steps[:, :, None]
    x = region.centre[:, 0, None, None] + cos * along - sin * down
    y = region.centre[:, 1, None, None] + sin * along + cos * down
    sample = functools.partial(jax.scipy.ndimage.map_coordinates, order=1, cval=0.0)
    of_channels = jax.vmap(sample, in_axes=(-1, None), out_axes=-1)
    return jax.vmap(lambda each, y, x: of_channels(each, [y, x]))(image, y, x)


# --- Training -----------------------------------------------------------------------


@functools.cache
def training_landmarks() -> tuple[landmark_noise.Noise, landmark_noise.Pairs]:
    """Return the noise model and the pairs that come with handjax."""
    pairs = landmark_noise.load_pairs()
    return landmark_noise.noise_of(pairs), pairs


def stages(config: Any) -> tuple[Stage, ...]:
    """Train on poses alone (with pairs of landmarks), then on pictures.

    Raises:
        UserError: `config.model.root` is not the root of the data.
    """
    check_root(config)
    return (
        Stage(
            name="poses",
            loss_fn=poses_loss,
            predict_fn=predict_drawn,
            trainable="^lifter/",
            needs_image=False,
        ),
        Stage(
            name="mesh",
            loss_fn=mesh_loss,
            predict_fn=predict_image,
            trainable="^lifter/",
            needs_image=True,
        ),
    )


def poses_loss(
    model: Model, variables: Variables, batch: Batch, rngs: dict[str, Array]
) -> tuple[dict[str, Array], dict[str, Array], dict[str, Any]]:
    """Compare with hands whose landmarks are drawn, and with pairs; see `_compared`.

    A share of the examples, `pair_share` on average, is replaced by pairs, and counts
    where the example does. All are made upright but for the jitter of regions.
    """
    keys = jax.random.split(rngs["mask"], 5)
    noise, pairs = training_landmarks()
    joints3d = jnp.asarray(batch.joints3d)
    count = len(joints3d)
    turn = _nearly_upright(keys[0], joints3d)
    vertices, joints3d = _turned(turn, batch.vertices), _turned(turn, joints3d)
    drawn = landmark_noise.draw(keys[1], noise, joints3d)

    which = jax.random.randint(keys[2], (count,), 0, len(pairs.betas))
    turn = landmark_noise.turn_in_plane(
        _PAIR_JITTER * jax.random.normal(keys[3], (count,))
    )
    read = jax.tree.map(lambda x: jnp.asarray(x)[which], pairs.landmarks)
    read = Landmarks(
        _turned(turn, read.screen), _turned(turn, read.world), read.presence
    )
    pose, betas = jnp.asarray(pairs.mano_pose)[which], jnp.asarray(pairs.betas)[which]
    hand = HandModel(**variables["constants"]["hand"])
    posed = hand.with_shape(betas).with_pose(pose[:, 0], pose[:, 1:])
    root = posed.joints3d[:, root_joint(model.root)][:, None]
    seen = _turned(turn, posed.vertices - root), _turned(turn, posed.joints3d - root)

    paired = jax.random.bernoulli(keys[4], model.pair_share, (count,))

    def chosen(of_pairs, of_poses):
        mask = paired.reshape(count, *[1] * (of_pairs.ndim - 1))
        return jnp.where(mask, of_pairs, of_poses)

    landmarks = jax.tree.map(chosen, read, drawn)
    output = model.apply(variables, landmarks, method="lift").output
    vertices, joints3d = chosen(seen[0], vertices), chosen(seen[1], joints3d)
    valid = jnp.asarray(batch.vertices_valid & batch.joints3d_valid)
    return _compared(output, vertices, joints3d, valid, valid)


def _turned(turn: Array, points: Any) -> Float[Array, "batch point 3"]:
    return jnp.einsum("nab,npb->npa", turn, jnp.asarray(points))


def mesh_loss(
    model: Model, variables: Variables, batch: Batch, rngs: dict[str, Array]
) -> tuple[dict[str, Array], dict[str, Array], dict[str, Any]]:
    """Compare with hands in pictures, read in their true regions, jittered."""
    keys = jax.random.split(rngs["mask"], 3)
    region = region_of(jnp.asarray(batch.joints2d))
    grown, moved = _REGION_JITTER
    size = region.size * jnp.exp(grown * jax.random.normal(keys[0], region.size.shape))
    shift = moved * jax.random.normal(keys[1], region.centre.shape) * size[:, None]
    angle = region.angle + _JITTER * jax.random.normal(keys[2], region.angle.shape)
    region = Region(region.centre + shift, size, angle)
    reading = model.apply(variables, batch.image, region, method="read_region")
    hand = model.apply(variables, reading, method="predict")
    # The region is where the 2-D joints are, so all of them have to be known.
    read = batch.joints2d_valid.all(axis=-1)
    return _compared(
        hand.output,
        batch.vertices,
        batch.joints3d,
        jnp.asarray(read & batch.vertices_valid),
        jnp.asarray(read & batch.joints3d_valid),
    )


def _compared(output, vertices, joints3d, vertices_valid, joints3d_valid):
    """Return both terms in metres.

    L1 of the vertices, summed over axes (Landmarks Eq. vertices), and distance of the
    joints (Landmarks Eq. joints), means over points and over the examples that are
    annotated.
    """
    miss = jnp.abs(output.vertices - vertices).sum(axis=-1).mean(axis=-1)
    square = jnp.sum((output.joints3d - joints3d) ** 2, axis=-1)
    apart = jnp.sqrt(square + 1e-12).mean(axis=-1)
    terms = {
        "vertices": _mean(miss, vertices_valid),
        "joints3d": _mean(apart, joints3d_valid),
    }
    error = elementwise.mean_distance(
        output.vertices, vertices, example_valid=vertices_valid
    )
    return terms, {"mm": 1000 * error}, {}


def _mean(values, valid):
    return jnp.sum(jnp.where(valid, values, 0.0)) / jnp.maximum(jnp.sum(valid), 1)


def _nearly_upright(key: Array, joints3d: Array) -> Float[Array, "batch 3 3"]:
    """Return turns that make hands upright, as nearly as a second region does."""
    jitter = _JITTER * jax.random.normal(key, (len(joints3d),))
    return landmark_noise.turn_in_plane(jitter) @ landmark_noise.turn_upright(joints3d)


def predict_drawn(model: Model, variables: Variables, batch: Batch) -> HandOutput:
    """Return what the model makes of landmarks drawn for the hands of a batch."""
    joints3d = jnp.asarray(batch.joints3d)
    turn = landmark_noise.turn_upright(joints3d)
    noise, _ = training_landmarks()
    key = jax.random.key(0)
    drawn = landmark_noise.draw(key, noise, _turned(turn, joints3d))
    output = model.apply(variables, drawn, method="lift").output
    back = jnp.swapaxes(turn, 1, 2)
    return HandOutput(_turned(back, output.vertices), _turned(back, output.joints3d))


def predict_image(model: Model, variables: Variables, batch: Batch) -> HandOutput:
    """Return what the model makes of the picture."""
    return model.apply(variables, batch.image)


def parameter_table(variables: Variables) -> list[tuple[str, int]]:
    """Count the trained parameters."""
    return parameters_by_part(variables, {"lifter": "lifter"})
