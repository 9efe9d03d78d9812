"""Rotations as matrices, axis-angle, quaternions and six numbers.

Conventions: right-handed; radians; a matrix R turns column vectors, x' = R x, and
`R_a_b` maps b coordinates to a. Axis-angle is the axis times the angle; `matrix_to_*`
returns angles from 0 to pi. Quaternions are (w, x, y, z), the identity (1, 0, 0, 0); q
and -q are one rotation, functions return w >= 0. Six numbers are two columns (or rows,
see `layout`) of the matrix, made orthonormal by Gram-Schmidt.

Every function is smooth enough to train through: gradients are finite at no rotation
and at a half turn. (At exactly pi the axis has two signs; one of them is chosen.)
Numbers that state no direction, such as zeros or parallel vectors, give a fixed one
without a gradient; so results are always rotations, and gradients bounded.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt32

from handjax.types import AnyArray

_NO_TURN = (1.0, 0.0, 0.0, 0.0)
LAYOUTS = ("columns", "rows", "interleaved")
"""Where six numbers sit in the matrix: `columns` is first column then second (HaMeR,
Hamba); `rows` first row then second (PyTorch3D, TokenHMR); `interleaved` the first two
columns read row by row (SPIN)."""

_SHORTEST = 1e-4
"""Length below which a vector states no direction: what trains through it would get a
gradient of one over its length."""
_SMALLEST_SINE = 1e-3
"""Of the angle between two vectors below which they count as parallel: rounding would
be a large part of what they differ by."""


def axis_angle_to_matrix(
    axis_angle: Float[AnyArray, "*batch 3"],
) -> Float[Array, "*batch 3 3"]:
    """Compute I + a K + b K^2 (Rodrigues), with K the cross-product matrix."""
    axis_angle = jnp.asarray(axis_angle)
    square = jnp.sum(axis_angle**2, axis=-1)[..., None, None]
    a, b = _sinc(square), 0.5 * _sinc(square / 4) ** 2
    outer = axis_angle[..., :, None] * axis_angle[..., None, :]
    eye = jnp.broadcast_to(jnp.eye(3, dtype=axis_angle.dtype), outer.shape)
    return eye + a * _cross_matrix(axis_angle) + b * (outer - square * eye)


def matrix_to_axis_angle(
    matrix: Float[AnyArray, "*batch 3 3"],
) -> Float[Array, "*batch 3"]:
    """Return axis times angle, the angle from 0 to pi."""
    return quaternion_to_axis_angle(matrix_to_quaternion(matrix))


def rotation_6d_to_matrix(
    numbers: Float[AnyArray, "*batch 6"], *, layout: str = "columns"
) -> Float[Array, "*batch 3 3"]:
    """Return the rotation that Gram-Schmidt makes of two vectors.

    Zeros give the identity; a second vector that is zero or parallel to the first is
    replaced by one across it.

    Raises:
        ValueError: `layout` is not one of `LAYOUTS`.
    """
    _check_layout(layout)
    numbers = jnp.asarray(numbers)
    if layout == "interleaved":
        first, second = numbers[..., 0::2], numbers[..., 1::2]
    else:
        first, second = numbers[..., :3], numbers[..., 3:]
    x = _normalised(first, (1.0, 0.0, 0.0))
    rest = second - jnp.sum(x * second, axis=-1, keepdims=True) * x
    parallel = _square(rest) < _SMALLEST_SINE**2 * _square(second)
    y = _normalised(jnp.where(parallel, 0.0, rest), _across(x))
    return jnp.stack([x, y, jnp.cross(x, y)], axis=-2 if layout == "rows" else -1)


def matrix_to_rotation_6d(
    matrix: Float[AnyArray, "*batch 3 3"], *, layout: str = "columns"
) -> Float[Array, "*batch 6"]:
    """Return two columns (or rows) of the matrix as six numbers.

    Raises:
        ValueError: `layout` is not one of `LAYOUTS`.
    """
    _check_layout(layout)
    matrix = jnp.asarray(matrix)
    if layout == "rows":
        parts = (matrix[..., 0, :], matrix[..., 1, :])
    elif layout == "columns":
        parts = (matrix[..., :, 0], matrix[..., :, 1])
    else:
        parts = tuple(matrix[..., row, :2] for row in range(3))
    return jnp.concatenate(parts, axis=-1)


def quaternion_to_matrix(
    quaternion: Float[AnyArray, "*batch 4"],
) -> Float[Array, "*batch 3 3"]:
    """Return the matrix of a quaternion of any length; of zero, the identity."""
    w, x, y, z = jnp.moveaxis(_normalised(jnp.asarray(quaternion), _NO_TURN), -1, 0)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


def matrix_to_quaternion(
    matrix: Float[AnyArray, "*batch 3 3"],
) -> Float[Array, "*batch 4"]:
    """Return the unit quaternion with w >= 0.

    Four formulae exist, each dividing by one component; the largest is taken, so none
    is near zero.
    """
    m = jnp.asarray(matrix)
    m00, m11, m22 = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    # Each is four times the square of w, x, y, z.
    squares = jnp.stack(
        [1 + m00 + m11 + m22, 1 + m00 - m11 - m22, 1 - m00 + m11 - m22]
        + [1 - m00 - m11 + m22],
        axis=-1,
    )
    wx, wy, wz = (
        m[..., 2, 1] - m[..., 1, 2],
        m[..., 0, 2] - m[..., 2, 0],
        m[..., 1, 0] - m[..., 0, 1],
    )
    xy, xz, yz = (
        m[..., 0, 1] + m[..., 1, 0],
        m[..., 0, 2] + m[..., 2, 0],
        m[..., 1, 2] + m[..., 2, 1],
    )
    s0, s1, s2, s3 = jnp.moveaxis(squares, -1, 0)
    rows = ((s0, wx, wy, wz), (wx, s1, xy, xz), (wy, xy, s2, yz), (wz, xz, yz, s3))
    products = jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)
    largest = jnp.argmax(squares, axis=-1)[..., None, None]
    chosen = jnp.take_along_axis(products, largest, axis=-2)[..., 0, :]
    return _positive(_normalised(chosen, _NO_TURN))


def quaternion_to_axis_angle(
    quaternion: Float[AnyArray, "*batch 4"],
) -> Float[Array, "*batch 3"]:
    """Return axis times angle, the angle from 0 to pi."""
    quaternion = _positive(_normalised(jnp.asarray(quaternion), _NO_TURN))
    w, vector = quaternion[..., :1], quaternion[..., 1:]
    square = jnp.sum(vector**2, axis=-1, keepdims=True)
    small = square < 1e-6
    # Both branches stay finite, for reverse-mode differentiation visits both.
    length = jnp.sqrt(jnp.where(small, 1.0, square))
    ratio = 2 * jnp.arctan2(length, w) / length
    return jnp.where(small, 2 + square / 3, ratio) * vector


def random_rotation(
    rng: Key[Array, ""] | UInt32[Array, "2"], shape: tuple[int, ...] = ()
) -> Float[Array, "*batch 3 3"]:
    """Draw rotation matrices uniformly over all rotations."""
    return quaternion_to_matrix(jax.random.normal(rng, (*shape, 4)))


def geodesic_angle(
    R_a: Float[AnyArray, "*batch 3 3"], R_b: Float[AnyArray, "*batch 3 3"]
) -> Float[Array, "*batch"]:
    """Return the angle of the rotation between two, 0 to pi.

    Precise at both ends, where arccos of the trace loses half of the digits.
    """
    R = jnp.einsum("...ji,...jk->...ik", R_a, R_b, precision="highest")
    axis = jnp.stack(
        [
            R[..., 2, 1] - R[..., 1, 2],
            R[..., 0, 2] - R[..., 2, 0],
            R[..., 1, 0] - R[..., 0, 1],
        ],
        axis=-1,
    )
    square = jnp.sum(axis**2, axis=-1)
    # sqrt has no gradient at 0: take 0 there.
    sine = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
    return jnp.arctan2(sine, jnp.trace(R, axis1=-2, axis2=-1) - 1)


def _check_layout(layout: str) -> None:
    if layout not in LAYOUTS:
        raise ValueError(f"layout={layout!r} is not one of {LAYOUTS}.")


def _sinc(square: Array) -> Array:
    """Return sin(t)/t from t^2, with its derivatives, also at 0."""
    small = square < 1e-2
    t = jnp.sqrt(jnp.where(small, 1.0, square))
    series = 1 - square / 6 * (1 - square / 20 * (1 - square / 42))
    return jnp.where(small, series, jnp.sin(t) / t)


def _cross_matrix(v: Array) -> Array:
    x, y, z = jnp.moveaxis(v, -1, 0)
    zero = jnp.zeros_like(x)
    rows = ((zero, -z, y), (z, zero, -x), (-y, x, zero))
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


def _square(v: Array) -> Array:
    return jnp.sum(v**2, axis=-1, keepdims=True)


def _normalised(v: Array, fallback: tuple[float, ...] | Array) -> Array:
    """Scale to length 1; vectors too short to have a direction become `fallback`."""
    square = _square(v)
    short = square < _SHORTEST**2
    # The branch that is not taken must have a finite gradient as well.
    unit = v * jax.lax.rsqrt(jnp.where(short, 1.0, square))
    other = jnp.broadcast_to(jnp.asarray(fallback, unit.dtype), unit.shape)
    return jnp.where(short, other, unit)


def _across(x: Array) -> Array:
    """Return a unit vector at right angles to a unit vector, without a gradient."""
    x = jax.lax.stop_gradient(x)
    axis = jax.nn.one_hot(jnp.argmin(jnp.abs(x), axis=-1), 3, dtype=x.dtype)
    rest = axis - jnp.sum(x * axis, axis=-1, keepdims=True) * x
    return rest * jax.lax.rsqrt(_square(rest))


def _positive(quaternion: Array) -> Array:
    return jnp.where(quaternion[..., :1] < 0, -quaternion, quaternion)
