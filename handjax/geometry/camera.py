"""Pinhole and weak-perspective cameras, and where a hand stands in front of them.

Conventions: OpenCV camera axes (x right, y down, z forward), metres; pixels x right,
y down. `intrinsics` is [[fx, s, cx], [0, fy, cy], [0, 0, 1]] in pixels. A weak-
perspective camera `cam` is (scale, x, y): a point X of the hand appears at
scale * (X_xy + (x, y)) in crop coordinates that run from -1 to 1, edge to edge (HaMeR,
METRO). Batch axes of all arguments broadcast.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from handjax.types import AnyArray

GAMMA_EXTENT_M = 0.2
"""Width of a hand in SimpleHand's root-depth target, metres."""
GAMMA_CROP_PX = 224
_MIN_DEPTH_M = 1e-6


def project(
    points3d: Float[AnyArray, "*#batch point 3"],
    intrinsics: Float[AnyArray, "*#batch 3 3"],
) -> Float[Array, "*batch point 2"]:
    """Return pixels of points in the camera frame.

    Points at or behind the camera plane are projected as if just before it: finite, far
    outside the picture.
    """
    points3d, intrinsics = _common(points3d, intrinsics, tails=(2, 2))
    homogeneous = jnp.einsum(
        "...ij,...pj->...pi", intrinsics, points3d, precision="highest"
    )
    depth = jnp.maximum(points3d[..., 2:], _MIN_DEPTH_M)
    return homogeneous[..., :2] / depth


def default_focal_px(
    image_size: Float[AnyArray, "*batch 2"] | tuple[int, int],
    *,
    focal_px: float | int = 5000,
    crop_size: float | int = 256,
) -> Float[Array, "*batch"]:
    """Return HaMeR's guess of the focal length of a photo (width, height).

    Its network's focal length scaled from its crop to the photo's longer side. Use the
    real one where it is known.
    """
    return focal_px / crop_size * jnp.max(jnp.asarray(image_size, jnp.float32), axis=-1)


def weak_perspective_to_translation(
    cam: Float[AnyArray, "*#batch 3"],
    focal_px: Float[AnyArray, "*#batch"] | float | int,
    crop_size: float | int,
) -> Float[Array, "*batch 3"]:
    """Return the translation (metres) at which a full-perspective crop camera agrees.

    Args:
        cam: Scale and offset of the crop, see the head of this file.
        focal_px: Focal length of the crop camera, pixels of the crop.
        crop_size: Side of the crop, pixels.
    """
    cam, focal_px = _common(cam, focal_px, tails=(1, 0))
    depth = 2 * focal_px / (crop_size * cam[..., 0] + 1e-9)
    return jnp.concatenate([cam[..., 1:], depth[..., None]], axis=-1)


def translation_to_weak_perspective(
    transl: Float[AnyArray, "*#batch 3"],
    focal_px: Float[AnyArray, "*#batch"] | float | int,
    crop_size: float | int,
) -> Float[Array, "*batch 3"]:
    """Undo `weak_perspective_to_translation`."""
    transl, focal_px = _common(transl, focal_px, tails=(1, 0))
    scale = (2 * focal_px / transl[..., 2] - 1e-9) / crop_size
    return jnp.concatenate([scale[..., None], transl[..., :2]], axis=-1)


def weak_project(
    points3d: Float[AnyArray, "*#batch point 3"], cam: Float[AnyArray, "*#batch 3"]
) -> Float[Array, "*batch point 2"]:
    """Project root-relative points by weak perspective, to -1..1 crop coordinates."""
    points3d, cam = _common(points3d, cam, tails=(2, 1))
    return cam[..., None, :1] * (points3d[..., :2] + cam[..., None, 1:])


def crop_camera_to_image(
    cam: Float[AnyArray, "*#batch 3"],
    box_centre: Float[AnyArray, "*#batch 2"],
    box_size: Float[AnyArray, "*#batch"] | float | int,
    focal_px: Float[AnyArray, "*#batch"] | float | int,
    principal_point: Float[AnyArray, "*#batch 2"],
) -> Float[Array, "*batch 3"]:
    """Turn the weak perspective of a square crop into a translation for the photo.

    HaMeR's rule, with its assumptions: one focal length for both axes, and the hand
    seen as in the crop (no turn of the camera towards it).

    Args:
        cam: Scale and offset predicted in the crop.
        box_centre: Centre of the crop in the photo, pixels.
        box_size: Side of the crop in the photo, pixels.
        focal_px: Focal length of the photo; see `default_focal_px`.
        principal_point: Pixels of the photo; its centre where not known.
    """
    cam, centre, size, focal_px, principal = _common(
        cam, box_centre, box_size, focal_px, principal_point, tails=(1, 1, 0, 0, 1)
    )
    scale_px = size * cam[..., 0] + 1e-9  # pixels of the photo per half metre
    offset = cam[..., 1:] + 2 * (centre - principal) / scale_px[..., None]
    depth = 2 * focal_px / scale_px
    return jnp.concatenate([offset, depth[..., None]], axis=-1)


def gamma_from_root_depth(
    root_depth: Float[AnyArray, "*#batch"] | float,
    intrinsics: Float[AnyArray, "*#batch 3 3"],
) -> Float[Array, "*batch"]:
    """Return SimpleHand's scale-free root depth (its unused depth head's target).

    The depth in units of that at which 0.2 m fill a 224-pixel crop.

    Args:
        root_depth: z of the root joint, metres.
        intrinsics: Of the crop camera.
    """
    root_depth, intrinsics = _common(root_depth, intrinsics, tails=(0, 2))
    return root_depth / _unit_depth(intrinsics)


def root_depth_from_gamma(
    gamma: Float[AnyArray, "*#batch"] | float,
    intrinsics: Float[AnyArray, "*#batch 3 3"],
) -> Float[Array, "*batch"]:
    """Undo `gamma_from_root_depth`; metres."""
    gamma, intrinsics = _common(gamma, intrinsics, tails=(0, 2))
    return gamma * _unit_depth(intrinsics)


def solve_translation(
    points3d: Float[AnyArray, "*#batch point 3"],
    points2d: Float[AnyArray, "*#batch point 2"],
    intrinsics: Float[AnyArray, "*#batch 3 3"],
    weights: Float[AnyArray, "*#batch point"] | None = None,
    *,
    steps: int = 5,
) -> Float[Array, "*batch 3"]:
    """Return the translation that puts 3-D points onto their pixels.

    Minimises sum of weight * |project(points3d + transl) - points2d|^2 (pixels):
    closed form for the error along the rays, then `steps` of Gauss-Newton on the pixel
    error, each kept only if it helps.

    Args:
        points3d: Root-relative points in camera axes, metres.
        points2d: Their pixels.
        intrinsics: Camera matrix, pixels.
        weights: At least 0; a point of weight 0 is ignored even if it is not finite.
        steps: Refinements.

    Returns:
        Metres; NaN where fewer than two different pixels have weight, which leaves the
        depth open.
    """
    if weights is None:
        weights = jnp.ones(np.shape(points2d)[:-1], jnp.float32)
    points3d, points2d, intrinsics, weights = _common(
        points3d, points2d, intrinsics, weights, tails=(2, 2, 2, 1)
    )
    used = weights[..., None] > 0
    points3d = jnp.where(used, points3d, 0.0)
    rays = _rays(jnp.where(used, points2d, 0.0), intrinsics)[..., :2]
    total = jnp.maximum(jnp.sum(weights, axis=-1), 1e-12)
    weights = weights / total[..., None]
    transl, determined = _ray_solution(points3d, rays, weights)
    focal = intrinsics[..., :2, :2]

    def refine(transl, _):
        better = transl + _gauss_newton(points3d, rays, focal, weights, transl)
        cost = _pixel_cost(points3d, rays, focal, weights, better)
        helps = cost < _pixel_cost(points3d, rays, focal, weights, transl)
        return jnp.where(helps[..., None], better, transl), None

    transl, _ = jax.lax.scan(refine, transl, length=steps)
    return jnp.where(determined[..., None], transl, jnp.nan)


def _ray_solution(points3d: Array, rays: Array, weights: Array) -> tuple[Array, Array]:
    """Solve t_xy - ray t_z = ray Z - X in the least-squares sense.

    Centring first leaves one unknown and keeps float32 digits.
    """
    right = rays * points3d[..., 2:] - points3d[..., :2]
    ray0, right0 = (
        jnp.sum(weights[..., None] * x, axis=-2, keepdims=True) for x in (rays, right)
    )
    spread = jnp.sum(weights[..., None] * (rays - ray0) ** 2, axis=(-2, -1))
    mixed = weights[..., None] * (rays - ray0) * (right - right0)
    determined = spread > 1e-12
    depth = -jnp.sum(mixed, axis=(-2, -1)) / jnp.where(determined, spread, 1.0)
    shift = (right0 + ray0 * depth[..., None, None])[..., 0, :]
    return jnp.concatenate([shift, depth[..., None]], axis=-1), determined


def _residual(points3d, rays, focal, transl) -> tuple[Array, Array, Array]:
    placed = points3d + transl[..., None, :]
    depth = jnp.maximum(placed[..., 2], _MIN_DEPTH_M)
    seen = placed[..., :2] / depth[..., None]
    error = jnp.einsum("...ij,...pj->...pi", focal, seen - rays, precision="highest")
    return error, seen, depth


def _pixel_cost(points3d, rays, focal, weights, transl) -> Array:
    error, _, _ = _residual(points3d, rays, focal, transl)
    return jnp.sum(weights[..., None] * error**2, axis=(-2, -1))


def _gauss_newton(points3d, rays, focal, weights, transl) -> Array:
    error, seen, depth = _residual(points3d, rays, focal, transl)
    eye = jnp.broadcast_to(jnp.eye(2, dtype=seen.dtype), (*seen.shape, 2))
    slope = jnp.concatenate([eye, -seen[..., None]], axis=-1) / depth[..., None, None]
    slope = jnp.einsum("...ij,...pjk->...pik", focal, slope, precision="highest")
    weighted = weights[..., None, None] * slope
    normal = jnp.einsum("...pij,...pik->...jk", weighted, slope, precision="highest")
    gradient = jnp.einsum("...pij,...pi->...j", weighted, error, precision="highest")
    scale = jnp.trace(normal, axis1=-2, axis2=-1)[..., None, None]
    damping = (
        1e-9 * scale * jnp.broadcast_to(jnp.eye(3, dtype=seen.dtype), normal.shape)
    )
    return -jnp.linalg.solve(normal + damping, gradient[..., None])[..., 0]


def _rays(points2d: Array, intrinsics: Array) -> Array:
    """Return the points at depth 1 that pixels see, (x, y, 1)."""
    fx, skew, cx = (intrinsics[..., 0, i, None] for i in range(3))
    fy, cy = intrinsics[..., 1, 1, None], intrinsics[..., 1, 2, None]
    y = (points2d[..., 1] - cy) / fy
    x = (points2d[..., 0] - cx - skew * y) / fx
    return jnp.stack([x, y, jnp.ones_like(x)], axis=-1)


def _unit_depth(intrinsics: Array) -> Array:
    focal = jnp.sqrt(intrinsics[..., 0, 0] * intrinsics[..., 1, 1])
    return GAMMA_EXTENT_M * focal / GAMMA_CROP_PX


def _common(*arrays, tails: tuple[int, ...]) -> list[Array]:
    """Broadcast the leading axes of arrays that have `tails` axes of their own."""
    arrays = [jnp.asarray(array, jnp.result_type(float)) for array in arrays]
    split = [
        (a.shape[: a.ndim - t], a.shape[a.ndim - t :])
        for a, t in zip(arrays, tails, strict=True)
    ]
    batch = np.broadcast_shapes(*(leading for leading, _ in split))
    return [
        jnp.broadcast_to(a, (*batch, *own))
        for a, (_, own) in zip(arrays, split, strict=True)
    ]
