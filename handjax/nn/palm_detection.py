"""MediaPipe's palm detector: where palms are in a square picture.

Zhang et al., "MediaPipe Hands", 2020, https://arxiv.org/abs/2006.10214. A network of
residual depthwise blocks with PReLU, and two steps back up, predicts from its maps of
stride 16 and 8 a box, seven points and a score for each of 2,016 anchors.
`handjax.detection.hand_detector` makes hands of them. `pretrained` gives their weights.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from handjax.nn import pretrained_assets
from handjax.nn.ops.same_conv import Map, Output, SameConv
from handjax.types import Variables

IMAGE_SIZE = 192
"""Side of the pictures that it takes, pixels."""
NUM_ANCHORS = 2016
NUM_KEYPOINTS = 7
ASSET = "palm_detection_full"

WIDTHS, DEPTHS = (32, 64, 128, 256, 256), (4, 5, 5, 5, 5)
"""Channels and residual blocks of the maps of stride 2, 4, 8, 16 and 32; the first
block of every map but the first halves."""
_ANCHORS = ((8, 2), (16, 6))
"""Stride of a map, and anchors at each of its pixels."""


class Palms(NamedTuple):
    """Raw output, one row an anchor (`anchors`)."""

    boxes: Float[Array, "batch anchor 18"]
    """Centre x, y, width, height, then x, y of seven points: pixels, minus the
    anchor's centre (not the sizes)."""
    logits: Float[Array, "batch anchor"]
    """A palm is there: before the sigmoid."""


class PalmDetectionNetwork(nn.Module):
    """Picture to palms."""

    @nn.compact
    def __call__(self, image: Float[Array, "batch height width 3"]) -> Palms:
        """Return the raw output.

        Args:
            image: RGB in 0..1, `IMAGE_SIZE` a side.
        """
        x = PReLU(name="stem_prelu")(
            SameConv(WIDTHS[0], 5, stride=2, name="stem")(image)
        )
        maps = []
        for i, (width, depth) in enumerate(zip(WIDTHS, DEPTHS, strict=True)):
            for j in range(depth):
                halve = i > 0 and j == 0
                x = PalmBlock(width, 2 if halve else 1, name=f"down_{i}_{j}")(x)
            maps.append(x)
        outputs = []
        for i, skip in ((0, maps[3]), (1, maps[2])):
            x = _doubled(x)
            x = SameConv(skip.shape[-1], name=f"up_{i}")(x)
            x = skip + PReLU(name=f"up_{i}_prelu")(x)
            for j in range(2):
                x = PalmBlock(x.shape[-1], name=f"up_{i}_{j}")(x)
            per_pixel = dict(_ANCHORS)[16 // 2**i]
            score = SameConv(per_pixel, name=f"score_{i}")(x)
            box = SameConv(per_pixel * 18, name=f"box_{i}")(x)
            outputs.append((box.reshape(len(x), -1, 18), score.reshape(len(x), -1)))
        (coarse_box, coarse_score), (fine_box, fine_score) = outputs
        return Palms(
            jnp.concatenate([fine_box, coarse_box], 1),
            jnp.concatenate([fine_score, coarse_score], 1),
        )


class PalmBlock(nn.Module):
    """Depthwise 5 x 5 and a projection, added to the input; then PReLU."""

    width: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: Map) -> Output:
        """Map (h, w) to (h / stride, w / stride); new channels of the input are 0."""
        dim = x.shape[-1]
        out = SameConv(dim, 5, self.stride, groups=dim, name="depthwise")(x)
        out = SameConv(self.width, name="project")(out)
        if self.stride == 2:
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, self.width - dim)))
        return PReLU(name="prelu")(x + out)


class PReLU(nn.Module):
    """Negative values times a slope of their channel."""

    @nn.compact
    def __call__(self, x: Map) -> Map:
        """Apply it."""
        slope = self.param("slope", nn.initializers.constant(0.25), x.shape[-1:])
        return jnp.where(x >= 0, x, x * slope[None, None, None])


def _doubled(x: Map) -> Output:
    """Twice the side, bilinear between the middles of the pixels."""
    batch, height, width, dim = x.shape
    return jax.image.resize(x, (batch, 2 * height, 2 * width, dim), "bilinear")


@functools.cache
def anchors() -> Float[np.ndarray, "anchor 2"]:
    """Return the middles of the anchors, in pixels from the picture's top left edge."""
    found = []
    for stride, per_pixel in _ANCHORS:
        middle = (np.arange(IMAGE_SIZE // stride) + 0.5) * stride
        grid = np.stack(np.meshgrid(middle, middle), -1).reshape(-1, 2)
        found.append(np.repeat(grid, per_pixel, 0))
    return np.concatenate(found).astype(np.float32)


def pretrained() -> Variables:
    """Load the published weights of the full detector, which come with handjax."""
    return pretrained_assets.load(ASSET)
