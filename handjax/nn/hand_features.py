"""Frozen landmark network to tokens: its points, its maps at the points, its mean.

What SimpleHand samples at 2-D joints that its own head predicts is sampled here at the
points of a network that was trained on photographs (`backbones.hand_landmark`).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from handjax.errors import UserError
from handjax.nn.backbones import hand_landmark
from handjax.nn.metaformer import code_init, layer_norm, linear
from handjax.nn.ops.convolutions import gelu
from handjax.nn.token_sampler import sample_pixels
from handjax.types import AnyArray, HandFeatures, Variables

KINDS = ("", "frozen")
"""Values of `config.model.features`: a backbone that is trained, or these features."""
STRIDES = (4, 8, 16, 32)
_SCREEN_UNIT, _WORLD_UNIT = 60.0, 0.08
"""Pixels and metres that the tokens call 1: about the spread of a hand's points."""


def check(features: str, backbone: str) -> None:
    """Refuse fields of `config.model` that do not go together.

    Raises:
        UserError: No such kind of features, or a backbone without landmarks.
    """
    if features not in KINDS:
        raise UserError(
            f"config.model.features={features!r} is not one of '', 'frozen'."
        )
    if features and backbone not in hand_landmark.VARIANTS:
        raise UserError(
            f"config.model.features={features!r} needs a backbone that finds "
            f"landmarks, {' or '.join(hand_landmark.VARIANTS)}; config.model.backbone="
            f"{backbone!r}."
        )


def of_crops(
    variant: str,
    variables: Variables,
    image: UInt8[AnyArray, "batch 224 224 3"] | Float[AnyArray, "batch 224 224 3"],
) -> HandFeatures:
    """Read upright crops of 0..255 RGB; no gradient leaves the features.

    Args:
        variant: Of `hand_landmark.VARIANTS`.
        variables: Of that network (`hand_landmark.pretrained`).
        image: Crops in which the fingers point upwards (`detection.regions`).

    Raises:
        UserError: The crops have another size.
    """
    if image.shape[1:3] != (hand_landmark.IMAGE_SIZE,) * 2:
        raise UserError(
            f"{variant} reads crops of {hand_landmark.IMAGE_SIZE} pixels, these have "
            f"{image.shape[1]} x {image.shape[2]}; set config.data.crop_size."
        )
    # Without a parent: inside a model its weights are constants, no parameters.
    network = hand_landmark.build(variant, parent=None)
    maps = network.apply(variables, jnp.asarray(image, jnp.float32) / 255)
    found = network.apply(variables, maps["final"], method="heads")
    sampled = [
        sample_pixels(maps[f"stride{stride}"], _pixels(found.screen_px, stride))
        for stride in STRIDES
    ]
    features = HandFeatures(
        *found,
        pooled=jnp.mean(maps["final"], axis=(1, 2)),
        sampled=jnp.concatenate(sampled, axis=-1),
    )
    return jax.lax.stop_gradient(features)


def empty(variant: str, size: int) -> HandFeatures:
    """Return features that are all zero, in the shapes of `of_crops`."""
    blocks = hand_landmark.VARIANTS[variant].blocks
    strides = np.cumprod([2, *(block.stride for block in blocks[:-1])])[1:]
    # The last block of a stride gives its map.
    widths = {s: b.width for s, b in zip(strides.tolist(), blocks, strict=False)}
    channels = sum(widths[stride] for stride in STRIDES)

    def zeros(*shape: int) -> np.ndarray:
        return np.zeros((size, *shape), np.float32)

    return HandFeatures(
        screen_px=zeros(21, 3),
        world=zeros(21, 3),
        presence=zeros(),
        is_right=zeros(),
        pooled=zeros(hand_landmark.NUM_FEATURES[variant]),
        sampled=zeros(21, channels),
    )


def _pixels(
    screen_px: Float[Array, "batch point 3"], stride: int
) -> Float[Array, "batch point 2"]:
    """Return where points of the crop lie on a map, moved to its border if outside."""
    last = hand_landmark.IMAGE_SIZE // stride - 1
    first = hand_landmark.first_pixel(stride)
    return jnp.clip((screen_px[..., :2] - first) / stride, 0, last)


class LandmarkTokens(nn.Module):
    """A token for each joint, from all that the frozen network says.

    A joint's token is the sum of its points, its samples and a part of its own of the
    global feature, which is a residual MLP of all points and the pooled feature.
    """

    dim: int
    dropout: float
    """Of samples and pooled feature."""
    width: int = 384
    """Of the global feature."""
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, features: HandFeatures, *, train: bool
    ) -> tuple[Float[Array, "batch 21 dim"], Float[Array, "batch 21 2"]]:
        """Return the tokens, and the 2-D joints in pixels of the crop."""
        points = _normalised(features)
        sampled = self._feature(features.sampled, self.dim, "sampled", train)
        pooled = self._feature(features.pooled, 256, "pooled", train)
        tokens = linear(self.dim, self.dtype, "points")(points) + sampled
        sure = jnp.stack([features.presence, features.is_right], axis=-1)
        flat = points.reshape(len(points), -1)
        whole = jnp.concatenate([flat, gelu(pooled), sure.astype(self.dtype)], axis=-1)
        whole = linear(self.width, self.dtype, "global")(whole)
        for i in range(2):
            hidden = layer_norm(self.dtype, f"global_norm{i}")(whole)
            hidden = gelu(linear(self.width, self.dtype, f"global_in{i}")(hidden))
            whole = whole + linear(self.width, self.dtype, f"global_out{i}")(hidden)
        whole = gelu(layer_norm(self.dtype, "global_norm")(whole))
        each = linear(tokens.shape[1] * self.dim, self.dtype, "global_parts")(whole)
        code = self.param("code", code_init, (1, *tokens.shape[1:]))
        tokens = tokens + each.reshape(tokens.shape) + code.astype(self.dtype)
        # The network's points are not the hand model's joints: knuckles lie nearer to
        # the wrist, and rendered or occluded hands are read wrongly.
        moved = nn.Dense(2, kernel_init=code_init, name="joints2d")(
            layer_norm(jnp.float32, "joints2d_norm")(tokens.astype(jnp.float32))
        )
        return tokens, features.screen_px[..., :2] + _SCREEN_UNIT * moved

    def _feature(
        self, x: AnyArray, dim: int, name: str, train: bool
    ) -> Float[Array, "batch *token dim"]:
        x = layer_norm(self.dtype, f"{name}_norm")(jnp.asarray(x, self.dtype))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return linear(dim, self.dtype, name)(x)


def _normalised(features: HandFeatures) -> Float[Array, "batch 21 6"]:
    """Return the points, the hand's middle at zero, in units of their spread."""
    screen = jnp.asarray(features.screen_px, jnp.float32)
    middle = hand_landmark.IMAGE_SIZE / 2
    centred = screen - jnp.array([middle, middle, 0.0])[None, None]
    world = jnp.asarray(features.world, jnp.float32)
    world = world - jnp.mean(world, axis=1, keepdims=True)
    return jnp.concatenate([centred / _SCREEN_UNIT, world / _WORLD_UNIT], axis=-1)
