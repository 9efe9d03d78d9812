import jax
import jax.numpy as jnp
import numpy as np
import pytest

from handjax.losses import elementwise


def test_point_l1_sums_over_coordinates():
    a, b = jnp.array([[[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]]), jnp.zeros((1, 2, 3))
    np.testing.assert_allclose(elementwise.point_l1(a, -a + b), [[12.0, 0.0]])


def test_reduction_counts_masked_elements_as_zero():
    errors = jnp.array([[1.0, 3.0], [5.0, 7.0]])
    assert elementwise.reduce_points(errors) == 4
    assert (
        elementwise.reduce_points(errors, example_valid=jnp.array([True, False])) == 1
    )
    point_valid = jnp.array([[True, False], [True, True]])
    assert elementwise.reduce_points(errors, point_valid=point_valid) == 13 / 4
    confidence = jnp.array([[0.5, 0.0], [1.0, 0.25]])
    expected = jnp.mean(jnp.where(confidence > 0, errors * confidence, 0))
    strange = errors.at[0, 1].set(jnp.nan)
    assert elementwise.reduce_points(strange, confidence=confidence) == expected


def test_masked_nan_does_not_reach_loss_or_gradient():
    errors, valid = jnp.array([[1.0], [jnp.nan]]), jnp.array([True, False])
    loss, grad = jax.value_and_grad(
        lambda e: elementwise.reduce_points(e, example_valid=valid)
    )(errors)
    assert loss == 0.5
    np.testing.assert_array_equal(grad, [[0.5], [0.0]])


TRIANGLE = np.float32([[[0, 0, 0], [2, 0, 0], [0, 2, 0]]])
FACE = np.array([[0, 1, 2]])


def test_edges_of_a_scaled_triangle_are_longer_by_its_scale():
    found = elementwise.edge_lengths(1.5 * TRIANGLE, TRIANGLE, FACE)
    np.testing.assert_allclose(found, [[[1, np.sqrt(2), 1]]], rtol=1e-5)
    assert np.abs(elementwise.edge_lengths(TRIANGLE + 3, TRIANGLE, FACE)).max() < 1e-6


def test_edges_in_the_plane_of_the_face_are_at_right_angles_to_its_normal():
    inside = elementwise.edge_normals(TRIANGLE[:, [1, 2, 0]] * 3, TRIANGLE, FACE)
    np.testing.assert_allclose(inside, 0, atol=1e-6)
    lifted = TRIANGLE.copy()
    lifted[0, 1] = 0, 0, 1  # straight up from the first corner
    found = elementwise.edge_normals(lifted, TRIANGLE, FACE)
    np.testing.assert_allclose(found, [[[1, 1 / np.sqrt(5), 0]]], rtol=1e-5)


def test_meshes_shrunk_to_a_point_have_finite_gradients():
    for loss in (elementwise.edge_lengths, elementwise.edge_normals):
        slope = jax.grad(lambda x, f=loss: jnp.sum(f(x, TRIANGLE, FACE)))(0 * TRIANGLE)
        assert np.isfinite(slope).all()
        # Nor may what is left of a mesh after rounding outweigh everything else.
        nearly = 1e-9 * TRIANGLE
        slope = jax.grad(lambda x, f=loss: jnp.sum(f(x, TRIANGLE, FACE)))(nearly)
        assert np.abs(slope).max() < 1e6


def test_commitment_pulls_tokens_and_not_codes():
    tokens, codes = jnp.array([[[1.0, 2.0], [0.0, 0.0]]]), jnp.zeros((1, 2, 2))
    assert elementwise.commitment(tokens, codes)[0] == 5 / 4
    assert elementwise.commitment(tokens, codes, reduction="sum")[0] == 5
    to_tokens, to_codes = jax.grad(
        lambda t, c: elementwise.commitment(t, c, reduction="sum")[0], (0, 1)
    )(tokens, codes)
    np.testing.assert_allclose(to_tokens, 2 * tokens)
    np.testing.assert_array_equal(to_codes, 0 * codes)
    with pytest.raises(ValueError, match="reduction='max' is not one of"):
        elementwise.commitment(tokens, codes, reduction="max")


def test_cross_entropy_of_even_scores_is_the_log_of_their_number():
    logits = jnp.zeros((2, 3, 7))
    np.testing.assert_allclose(
        elementwise.cross_entropy(logits, jnp.zeros((2, 3), int)), np.log(7), rtol=1e-6
    )


def test_cross_entropy_with_smoothing_equals_its_definition():
    rng = np.random.default_rng(0)
    logits, labels, s = rng.normal(size=(4, 5)), np.array([0, 4, 2, 2]), 0.1
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    target = (1 - s) * np.eye(5)[labels] + s / 5
    np.testing.assert_allclose(
        elementwise.cross_entropy(
            jnp.float32(logits), jnp.asarray(labels), label_smoothing=s
        ),
        -(target * np.log(p)).sum(-1),
        rtol=1e-5,
    )


def test_accuracy_and_distance():
    logits = jnp.array([[0.0, 1.0], [2.0, 1.0]])
    assert elementwise.accuracy(logits, jnp.array([1, 1])) == 0.5
    some = jnp.array([False, True])
    assert elementwise.accuracy(logits, jnp.array([1, 1]), example_valid=some) == 0
    assert elementwise.accuracy(logits, jnp.array([1, 1]), example_valid=~some) == 1
    assert (
        elementwise.accuracy(logits, jnp.array([1, 1]), example_valid=some & ~some) == 0
    )
    a = jnp.array([[[3.0, 4.0, 0.0]], [[9.0, 9.0, 9.0]]])
    valid = jnp.array([True, False])
    assert elementwise.mean_distance(a, 0 * a, example_valid=valid) == 5
