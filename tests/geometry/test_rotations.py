"""Rotation conversions: agreement with scipy, round trips, and the two hard places."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from handjax.geometry import rotations

SCALES = (0.0, 1e-7, 1e-4, 0.05, 0.1, 0.2, 1.0, 3.0, np.pi - 1e-3, np.pi)


def _vectors(scale, shape=(3, 5)):
    axes = np.random.default_rng(0).normal(size=(*shape, 3))
    axes /= np.linalg.norm(axes, axis=-1, keepdims=True)
    return (scale * axes).astype(np.float32)


def _scipy(axis_angle):
    flat = Rotation.from_rotvec(axis_angle.reshape(-1, 3).astype(np.float64))
    return flat.as_matrix().reshape(*axis_angle.shape, 3)


@pytest.mark.parametrize("scale", [*SCALES, 5.0])
def test_axis_angle_to_matrix_equals_scipy(scale):
    axis_angle = _vectors(scale)
    matrix = rotations.axis_angle_to_matrix(axis_angle)
    np.testing.assert_allclose(matrix, _scipy(axis_angle), atol=1e-6)


@pytest.mark.parametrize("scale", SCALES[:-1])
def test_matrix_to_axis_angle_inverts(scale):
    axis_angle = _vectors(scale)
    back = rotations.matrix_to_axis_angle(rotations.axis_angle_to_matrix(axis_angle))
    np.testing.assert_allclose(back, axis_angle, atol=max(3e-6 * scale, 1e-9))


def test_tiny_rotations_keep_their_digits():
    axis_angle = _vectors(1e-7)
    back = rotations.matrix_to_axis_angle(rotations.axis_angle_to_matrix(axis_angle))
    np.testing.assert_allclose(back, axis_angle, rtol=1e-5)


def test_a_half_turn_comes_back_up_to_sign():
    axis_angle = _vectors(np.pi)
    matrix = rotations.axis_angle_to_matrix(axis_angle)
    back = rotations.axis_angle_to_matrix(rotations.matrix_to_axis_angle(matrix))
    np.testing.assert_allclose(back, matrix, atol=3e-6)
    exact = jnp.diag(jnp.array([-1.0, 1.0, -1.0]))
    np.testing.assert_allclose(
        jnp.abs(rotations.matrix_to_axis_angle(exact)), [0, np.pi, 0], atol=1e-6
    )


def test_angles_beyond_pi_wrap():
    axis_angle = _vectors(5.0)
    matrix = rotations.axis_angle_to_matrix(axis_angle)
    back = np.asarray(rotations.matrix_to_axis_angle(matrix))
    expected = axis_angle / 5.0 * (5.0 - 2 * np.pi)
    np.testing.assert_allclose(back, expected, atol=1e-5)


@pytest.mark.parametrize("layout", ["columns", "rows", "interleaved"])
def test_rotation_6d_round_trip(layout):
    matrix = rotations.random_rotation(jax.random.key(0), (4, 2))
    numbers = rotations.matrix_to_rotation_6d(matrix, layout=layout)
    back = rotations.rotation_6d_to_matrix(numbers, layout=layout)
    np.testing.assert_allclose(back, matrix, atol=1e-6)


def test_rotation_6d_layouts_are_what_they_say():
    matrix = jnp.arange(9.0).reshape(3, 3)
    take = rotations.matrix_to_rotation_6d
    assert take(matrix).tolist() == [0, 3, 6, 1, 4, 7]
    assert take(matrix, layout="rows").tolist() == [0, 1, 2, 3, 4, 5]
    assert take(matrix, layout="interleaved").tolist() == [0, 1, 3, 4, 6, 7]
    with pytest.raises(ValueError, match="layout='cols' is not one of"):
        take(matrix, layout="cols")
    with pytest.raises(ValueError, match="layout='cols' is not one of"):
        rotations.rotation_6d_to_matrix(jnp.zeros(6), layout="cols")


def test_rotation_6d_of_any_numbers_is_a_rotation():
    numbers = jax.random.normal(jax.random.key(1), (50, 6))
    matrix = rotations.rotation_6d_to_matrix(numbers)
    gram = jnp.einsum("bij,bkj->bik", matrix, matrix)
    np.testing.assert_allclose(gram, np.broadcast_to(np.eye(3), (50, 3, 3)), atol=1e-5)
    np.testing.assert_allclose(jnp.linalg.det(matrix), 1, atol=1e-5)


def test_quaternions_equal_scipys_and_round_trip():
    matrix = rotations.random_rotation(jax.random.key(2), (200,))
    quaternion = np.asarray(rotations.matrix_to_quaternion(matrix))
    expected = Rotation.from_matrix(np.asarray(matrix)).as_quat()[:, [3, 0, 1, 2]]
    expected *= np.where(expected[:, :1] < 0, -1, 1)
    np.testing.assert_allclose(quaternion, expected, atol=2e-6)
    np.testing.assert_allclose(
        rotations.quaternion_to_matrix(-3 * quaternion), matrix, atol=2e-6
    )
    axis_angle = rotations.quaternion_to_axis_angle(-quaternion)
    np.testing.assert_allclose(
        rotations.axis_angle_to_matrix(axis_angle), matrix, atol=2e-6
    )


@pytest.mark.parametrize("scale", SCALES)
def test_geodesic_angle_is_the_angle(scale):
    matrix = rotations.random_rotation(jax.random.key(3), (3, 5))
    turned = matrix @ rotations.axis_angle_to_matrix(_vectors(scale))
    angle = rotations.geodesic_angle(matrix, turned)
    np.testing.assert_allclose(angle, scale, atol=2e-6)


def test_random_rotations_are_uniform():
    matrix = rotations.random_rotation(jax.random.key(4), (20_000,))
    np.testing.assert_allclose(matrix.mean(axis=0), np.zeros((3, 3)), atol=0.02)
    # Under the uniform measure the angle has density (1 - cos t) / pi.
    eye = jnp.broadcast_to(jnp.eye(3), matrix.shape)
    angle = np.asarray(rotations.geodesic_angle(eye, matrix))
    for t in (1.0, 2.0, 3.0):
        assert np.mean(angle < t) == pytest.approx((t - np.sin(t)) / np.pi, abs=0.015)


@pytest.mark.parametrize(
    "through",
    [
        rotations.axis_angle_to_matrix,
        lambda a: rotations.matrix_to_axis_angle(rotations.axis_angle_to_matrix(a)),
        lambda a: rotations.matrix_to_rotation_6d(rotations.axis_angle_to_matrix(a)),
        lambda a: rotations.geodesic_angle(
            rotations.axis_angle_to_matrix(a), jnp.eye(3)
        )[None],
    ],
)
def test_gradients_are_finite(through):
    scales = (0.0, 1e-7, 0.1, np.pi, 2 * np.pi)
    vectors = [_vectors(scale, (2,)) for scale in scales]
    vectors += [np.float32([[scale, 0, 0]]) for scale in scales]
    vectors = np.concatenate(vectors)
    first = jax.jacrev(through)
    assert np.isfinite(jax.jit(jax.vmap(first))(vectors)).all()
    assert np.isfinite(jax.jit(jax.vmap(jax.jacfwd(first)))(vectors)).all()


def test_gradients_are_finite_at_exact_half_turns_and_identity():
    # The axis-angle goes through the quaternion, so both are tried.
    jacobian = jax.jit(jax.jacrev(rotations.matrix_to_axis_angle))
    for diagonal in ([1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]):
        assert np.isfinite(jacobian(jnp.diag(jnp.array(diagonal, jnp.float32)))).all()


_X, _Y = np.eye(3, dtype=np.float32)[:2]
DEGENERATE = {
    "zeros": np.zeros(6),
    "first is zero": np.concatenate([0 * _X, _Y]),
    "second is zero": np.concatenate([_X, 0 * _X]),
    "parallel": np.concatenate([[0.3, -0.4, 0.5], [-0.6, 0.8, -1.0]]),
    "nearly parallel": np.concatenate([[0.3, -0.4, 0.5], [0.3, -0.4, 0.5000002]]),
    "tiny": 1e-9 * np.arange(1, 7),
    "tiny second": np.concatenate([_X, 1e-9 * _Y]),
}


@pytest.mark.parametrize("layout", rotations.LAYOUTS)
@pytest.mark.parametrize("name", DEGENERATE)
def test_six_numbers_without_a_direction_are_a_rotation_with_a_bounded_gradient(
    name, layout
):
    first, second = DEGENERATE[name].astype(np.float32).reshape(2, 3)
    numbers = np.concatenate([first, second])
    if layout == "interleaved":
        numbers = np.stack([first, second], axis=-1).ravel()

    def matrix_of(numbers):
        return rotations.rotation_6d_to_matrix(numbers, layout=layout)

    R = np.asarray(matrix_of(numbers), np.float64)
    np.testing.assert_allclose(R @ R.T, np.eye(3), atol=1e-5)
    assert np.linalg.det(R) == pytest.approx(1, abs=1e-5)
    assert np.abs(jax.jacrev(matrix_of)(numbers)).max() < 1e4
    if name in ("zeros", "tiny"):
        np.testing.assert_array_equal(R, np.eye(3))


@pytest.mark.parametrize("factor", [0, 1e-9, 1e-13])
def test_quaternions_without_a_direction_do_not_turn(factor):
    quaternion = np.float32([0.5, -0.5, 0.5, 0.5]) * np.float32(factor)
    for through, expected in (
        (rotations.quaternion_to_matrix, np.eye(3)),
        (rotations.quaternion_to_axis_angle, np.zeros(3)),
    ):
        np.testing.assert_array_equal(through(quaternion), expected)
        assert np.abs(jax.jacrev(through)(quaternion)).max() < 1e4
    nine = jax.jacrev(rotations.matrix_to_quaternion)(jnp.zeros((3, 3)))
    assert np.abs(nine).max() < 1e4


def test_gradient_at_zero_is_the_cross_product_matrix():
    jacobian = jax.jacrev(rotations.axis_angle_to_matrix)(jnp.zeros(3))
    for k, axis in enumerate(np.eye(3)):
        cross = np.cross(axis, np.eye(3)).T  # columns: axis x e_i
        np.testing.assert_allclose(jacobian[..., k], cross, atol=1e-7)
