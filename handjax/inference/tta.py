"""Test-time augmentation: a hand seen turned and zoomed 95 times, the answers fused.

A crop is turned by 19 angles (-90 to 90 degrees in tens) and zoomed by 5 scales (0.7 to
1.1) about its middle, where the optical axis of its camera is. So an angle turns the
hand about that axis, which is undone exactly (where fx = fy: pixels are turned), and a
zoom changes the focal length and nothing 3-D. Hamba's paper (appendix A.2) and its
released code differ:

* "mean": predictions, turned back, averaged (the paper: "averaged over the results").
* "paper": the errors of the single predictions, averaged ("averaged the error"); a way
  to evaluate, for without the truth it gives no hand.
* "released": each prediction aligned by a similarity transform without reflection to
  the un-augmented one, joints and vertices separately; then (un-augmented + sum of all
  95) / 96, so that the un-augmented one counts twice.

A scale is how much the box of the hand grows: 0.7 shows less and larger. "released" has
its code's units, in which a box of scale 1 is 200 pixels of a picture of 224; only
the un-augmented picture is left alone, so all the others are zoomed by 224/200 on top
(the corners of its boxes are rounded, but on that picture they are whole numbers). What
lies outside of the crop is black, as there, even where a photo would show more.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from handjax.errors import UserError
from handjax.metrics.mesh_errors import procrustes_align
from handjax.types import AnyArray, Batch, HandOutput

MODES = {
    "mean": "mean of the predictions, turned back",
    "paper": "mean of the errors of the single predictions",
    "released": "mean of the predictions aligned to the un-augmented one, which counts "
    "twice",
}
ANGLES_DEG = tuple(range(-90, 91, 10))
SCALES = (0.7, 0.8, 0.9, 1.0, 1.1)
NUM_VIEWS = len(ANGLES_DEG) * len(SCALES)

_RELEASED_ZOOM = 224 / 200


class Views(NamedTuple):
    """How a crop is looked at, the un-augmented view last."""

    angle: Float[np.ndarray, "view"]
    """Radians; positive turns x towards y."""
    zoom: Float[np.ndarray, "view"]
    """Above 1 things look larger."""


def views(mode: str) -> Views:
    """Return all 95 views of a mode (a key of `MODES`)."""
    if mode not in MODES:
        raise UserError(f"tta={mode!r} is not one of {', '.join(MODES)}.")
    pairs = list(itertools.product(ANGLES_DEG, SCALES))
    pairs.sort(key=lambda pair: pair == (0, 1.0))  # stable: only that one moves
    angle, scale = np.array(pairs, np.float32).T
    zoom = 1 / scale
    if mode == "released":
        zoom[:-1] *= _RELEASED_ZOOM
    return Views(np.deg2rad(angle), zoom)


def answers_per_hand(mode: str | None) -> int:
    """Return how many hands `predict` outputs for each one in its input."""
    return NUM_VIEWS if mode == "paper" else 1


def describe(mode: str | None) -> dict[str, Any] | None:
    """Describe a mode for a file of results."""
    return dict(mode=mode, views=NUM_VIEWS, what=MODES[mode]) if mode else None


def predict(
    model: Callable[[Any], HandOutput],
    image: Num[AnyArray, "batch height width 3"],
    *,
    mode: str,
    at_once: int = 64,
) -> HandOutput:
    """Predict hands from all views of the images; runs inside jit.

    Args:
        model: Images to hands; traced once, whatever the number of views.
        image: Crops, 0..255.
        mode: A key of `MODES`.
        at_once: Images that the model may see together, which bounds memory; a whole
            batch of one view at least.

    Returns:
        For "mean" and "released" the un-augmented answer with fused vertices and
        joints3d. For "paper" 95 answers, turned back, for each hand, the hands of one
        view after those of another, with vertices and joints3d alone.
    """
    image = jnp.asarray(image)
    answer, vertices, joints3d = _in_all_views(model, image, views(mode), at_once)
    if mode == "paper":
        return HandOutput(_joined(vertices), _joined(joints3d))
    fuse = fuse_released if mode == "released" else fuse_mean
    return answer._replace(vertices=fuse(vertices), joints3d=fuse(joints3d))


def augmented(predict_fn: Callable, mode: str | None) -> Callable:
    """Wrap a stage's `predict_fn` to predict from 95 views of the image."""
    if mode is None:
        return predict_fn

    def predict_augmented(model: Any, variables: Any, batch: Batch) -> HandOutput:
        if batch.image is None:
            raise UserError(
                f"tta={mode!r} turns pictures, and this model was given features of "
                "them; evaluate it without."
            )

        def look(image):
            return predict_fn(model, variables, batch._replace(image=image))

        return predict(look, batch.image, mode=mode)

    return predict_augmented


def _in_all_views(model, image, chosen: Views, at_once: int):
    """Return the plain answer, and all views' vertices and joints3d turned back."""
    batch, number = len(image), len(chosen.zoom)
    divisors = [n for n in range(1, number + 1) if number % n == 0]
    group = max(n for n in divisors if n == 1 or n * batch <= at_once)

    def answer_group(_, group_views):
        angle, zoom = group_views
        seen = jax.vmap(turned_and_zoomed, (None, 0, 0))(image, angle, zoom)
        output = model(_joined(seen))
        output = jax.tree.map(lambda x: x.reshape(group, batch, *x.shape[1:]), output)
        last = jax.tree.map(lambda x: x[-1], output)
        back = jax.vmap(turned_back)
        return last, (back(output.vertices, angle), back(output.joints3d, angle))

    # What the loop carries ends as the answer of the last view, the un-augmented one.
    # Stacking all outputs instead would keep the logits of all views.
    start = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(model, image)
    )
    groups = jax.tree.map(lambda x: jnp.asarray(x).reshape(-1, group), chosen)
    last, (vertices, joints3d) = jax.lax.scan(answer_group, start, groups)
    return last, _joined(vertices), _joined(joints3d)


def _joined(x: Array) -> Array:
    """Merge the first two axes."""
    return x.reshape(-1, *x.shape[2:])


# --- one view -----------------------------------------------------------------------


def turned_and_zoomed(
    image: Num[AnyArray, "batch height width channel"],
    angle: Float[Array, ""],
    zoom: Float[Array, ""],
) -> Num[Array, "batch height width channel"]:
    """Move pictures by p -> c + zoom Rz(angle) (p - c), c = size / 2, black outside.

    Bilinear, rounded for integer pixels; angle 0 and zoom 1 change no bit. The middle
    is where `crop.view` puts the optical axis.
    """
    image = jnp.asarray(image)
    height, width = image.shape[1:3]
    cx, cy = width / 2, height / 2
    x, y = jnp.meshgrid(jnp.arange(width) - cx, jnp.arange(height) - cy)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    from_x = (cos * x + sin * y) / zoom + cx
    from_y = (cos * y - sin * x) / zoom + cy
    left, top = jnp.floor(from_x), jnp.floor(from_y)
    moved = jnp.zeros(image.shape, jnp.float32)
    for right, low in itertools.product((0, 1), (0, 1)):
        at_x, at_y = left + right, top + low
        weight = (1 - jnp.abs(from_x - at_x)) * (1 - jnp.abs(from_y - at_y))
        inside = (at_x >= 0) & (at_x < width) & (at_y >= 0) & (at_y < height)
        column = jnp.clip(at_x, 0, width - 1).astype(jnp.int32)
        row = jnp.clip(at_y, 0, height - 1).astype(jnp.int32)
        moved += jnp.where(inside, weight, 0.0)[None, ..., None] * image[:, row, column]
    if jnp.issubdtype(image.dtype, jnp.integer):
        moved = jnp.round(moved)
    return moved.astype(image.dtype)


def turned_back(
    points: Float[Array, "*batch point 3"], angle: Float[Array, ""]
) -> Float[Array, "*batch point 3"]:
    """Turn 3-D points back by Rz(angle)^T, to before the camera was turned."""
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    x, y, z = points[..., 0], points[..., 1], points[..., 2]
    return jnp.stack([cos * x + sin * y, cos * y - sin * x, z], axis=-1)


# --- fusion -------------------------------------------------------------------------


def fuse_mean(
    points: Float[Array, "view batch point 3"],
) -> Float[Array, "batch point 3"]:
    """Average over the views."""
    return jnp.mean(points, axis=0)


def fuse_released(
    points: Float[Array, "view batch point 3"],
) -> Float[Array, "batch point 3"]:
    """Compute (p_n + sum_i S_i p_i) / (n + 1), S_i the similarity nearest to p_n.

    The last view, p_n, is the un-augmented one; aligned to itself it is summed, too.
    """
    reference = points[-1]
    # GPUs round the factors of a float32 product to 10 bits unless told not to.
    with jax.default_matmul_precision("highest"):
        aligned = procrustes_align(
            jnp.broadcast_to(reference, points.shape), points, procrustes="proper"
        )
    return (reference + jnp.sum(aligned, axis=0)) / (len(points) + 1)
