"""MediaPipe's hand landmark networks, as backbones and with their own heads.

Zhang et al., "MediaPipe Hands: On-device Real-time Hand Tracking", 2020,
https://arxiv.org/abs/2006.10214. A square crop of one hand, its fingers upwards, gives
21 points in the crop, 21 points in metres, whether a hand is there and which. The
networks are EfficientNet-B0s without squeeze-and-excitation, with ReLU6 and with their
batch normalisation folded into the kernels, so fine-tuning needs small rates. Weights
come with handjax (`pretrained`). Maps are (batch, height, width, channel), float32.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from handjax.errors import UserError
from handjax.nn import pretrained_assets
from handjax.nn.ops.image import check_sides
from handjax.nn.ops.same_conv import Map, Output, SameConv
from handjax.types import Variables

MEAN, STD = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
"""Normalisation of the images: pixels in 0..1, RGB, as they are."""
IMAGE_SIZE = 224
"""Side of the crops that the heads were trained on, pixels."""


class BlockSize(NamedTuple):
    """Widths of one block."""

    hidden: int
    """Channels between expansion and projection; as many as enter: no expansion."""
    width: int
    """Channels that leave; 0: no projection."""
    kernel_size: int
    stride: int = 1


class Variant(NamedTuple):
    """Size of one published network."""

    asset: str
    stem: int
    blocks: tuple[BlockSize, ...]
    pooled_residual: bool = False
    """Whether a halving block that keeps its width adds the maximum of 2 x 2 pixels."""


def _blocks(widths: tuple[int, ...], expansion: int, last: int):
    """The blocks of a network with `widths` at each of its seven stages."""
    kernels, strides, depths = (
        (3, 3, 5, 3, 5, 5),
        (1, 2, 2, 2, 1, 2),
        (1, 2, 2, 3, 3, 4),
    )
    blocks, entering = [], 0
    for i, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        for j in range(depth):
            # The first block does not expand; the second one expands to 64.
            hidden = (24, 64)[len(blocks)] if len(blocks) < 2 else expansion * entering
            blocks.append(BlockSize(hidden, width, kernels[i], 1 if j else strides[i]))
            entering = width
    return (*blocks, BlockSize(last, 0, 3))


VARIANTS = {
    "mediapipe_hand_full": Variant(
        "hand_landmark_full", 24, _blocks((16, 24, 40, 80, 112, 192), 6, 1152)
    ),
    "mediapipe_hand_lite": Variant(
        "hand_landmark_lite",
        24,
        _blocks((16, 16, 24, 48, 64, 112), 6, 672),
        pooled_residual=True,
    ),
}
NUM_FEATURES = {name: size.blocks[-1].hidden for name, size in VARIANTS.items()}


class HandLandmarks(NamedTuple):
    """What the heads say about a crop."""

    screen_px: Float[Array, "batch 21 3"]
    """Points in `skeleton.JOINTS` order: x and y in pixels of the crop (the middle of
    the first pixel is 0), z in the same unit, minus the wrist's."""
    world: Float[Array, "batch 21 3"]
    """Points in metres, in the axes of the crop (x right, y down, z away from the
    camera), with the origin near the middle of the hand."""
    presence: Float[Array, " batch"]
    """Probability that the crop shows a hand."""
    is_right: Float[Array, " batch"]
    """Probability of a right hand, if the picture is not a mirror image."""


class HandLandmarkNetwork(nn.Module):
    """Crop to feature maps (as every backbone), or to landmarks (`landmarks`)."""

    variant: str = "mediapipe_hand_full"

    def setup(self) -> None:
        """Name the parts."""
        size = VARIANTS[self.variant]
        self.stem = SameConv(size.stem, 3, stride=2)
        self.blocks = [Block(block, size.pooled_residual) for block in size.blocks]
        self.head = Heads()

    def __call__(
        self, image: Float[Array, "batch height width 3"], *, train: bool = False
    ) -> dict[str, Float[Array, "batch _ _ _"]]:
        """Return maps "stride4" to "stride32" (the last of each stride), and "final".

        Args:
            image: RGB in 0..1; sides that are multiples of 32.
            train: Changes nothing: there is neither dropout nor batch normalisation.
        """
        del train
        check_sides(self.variant, *image.shape[1:3])
        x = nn.relu6(self.stem(image))
        taps, stride = {}, 2
        for block in self.blocks[:-1]:
            x = block(x)
            stride *= block.size.stride
            taps[f"stride{stride}"] = x
        del taps["stride2"]
        final = self.blocks[-1](x)
        if self.is_initializing():
            self.head(final)
        return taps | {"final": final}

    def landmarks(self, image: Float[Array, "batch height width 3"]) -> HandLandmarks:
        """Return the landmarks of crops of `IMAGE_SIZE`, RGB in 0..1."""
        return self.head(self(image)["final"])

    def heads(self, final: Float[Array, "batch _ _ features"]) -> HandLandmarks:
        """Return the landmarks that a map "final" tells."""
        return self.head(final)


class Block(nn.Module):
    """Expand, filter each channel, project; residual if it fits."""

    size: BlockSize
    pooled_residual: bool = False

    @nn.compact
    def __call__(self, x: Map) -> Output:
        """Map (h, w) to (h / stride, w / stride)."""
        dim, (hidden, width, kernel_size, stride) = x.shape[-1], self.size
        out = x
        if hidden != dim:
            out = nn.relu6(SameConv(hidden, name="expand")(out))
        out = SameConv(hidden, kernel_size, stride, groups=hidden, name="depthwise")(
            out
        )
        out = nn.relu6(out)
        if not width:
            return out
        out = SameConv(width, name="project")(out)
        if dim != width:
            return out
        if stride == 1:
            return x + out
        if self.pooled_residual and hidden != dim:
            return nn.max_pool(x, (2, 2), (2, 2)) + out
        return out


class Heads(nn.Module):
    """Four linear layers on the mean of the last map."""

    @nn.compact
    def __call__(self, final: Float[Array, "batch _ _ features"]) -> HandLandmarks:
        """Return the landmarks."""
        pooled = jnp.mean(final, axis=(1, 2))
        points = (len(final), 21, 3)
        screen = nn.Dense(63, name="screen")(pooled).reshape(points)
        world = nn.Dense(63, name="world")(pooled).reshape(points)
        presence = nn.Dense(1, name="presence")(pooled)[:, 0]
        side = nn.Dense(1, name="side")(pooled)[:, 0]
        return HandLandmarks(screen, world, jax.nn.sigmoid(presence), nn.sigmoid(side))


def build(name: str, **options) -> HandLandmarkNetwork:
    """Build one published size; `options` are the fields of `HandLandmarkNetwork`."""
    return HandLandmarkNetwork(variant=name, **options)


def first_pixel(stride: int) -> float:
    """Return where a map's first pixel has its middle, in pixels of the crop.

    TensorFlow pads one row less before the first one than torch, so every halving
    moves the middle by one pixel of the map that it halves: 1 + 2 + ... = stride - 1.
    """
    return stride - 1.0


def pretrained(name: str) -> Variables:
    """Load the published weights, which come with handjax.

    Raises:
        UserError: There is no such size.
    """
    if name not in VARIANTS:
        raise UserError(f"name={name!r} is not one of {', '.join(VARIANTS)}.")
    return pretrained_assets.load(VARIANTS[name].asset)
