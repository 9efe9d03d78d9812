import jax
import jax.numpy as jnp
import numpy as np
import pytest

from handjax.nn.ops.batch_norm import BatchNorm, covariance, moments


def draw(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(3 + 2 * rng.standard_normal(shape), jnp.float32)


def plain(x, scale, bias):
    """Normalise by the definition, for autodiff to differentiate."""
    mean = x.mean((0, 1, 2), keepdims=True)
    variance = ((x - mean) ** 2).mean((0, 1, 2), keepdims=True)
    return (x - mean) / jnp.sqrt(variance + 1e-5) * scale + bias


def test_values_and_gradients_are_those_of_the_definition():
    x, weights = draw(2, 3, 4, 5), draw(2, 3, 4, 5, seed=1)
    model = BatchNorm(5)
    variables = model.init(jax.random.key(0), x, train=False)

    def loss(x, params):
        out, _ = model.apply(
            {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
        )
        return jnp.sum(out * weights)

    def expected(x, params):
        scale, bias = (params[k].reshape(1, 1, 1, -1) for k in ("scale", "bias"))
        return jnp.sum(plain(x, scale, bias) * weights)

    params = {"scale": draw(5, seed=2), "bias": draw(5, seed=3)}
    for a, b in zip(
        jax.tree.leaves(jax.value_and_grad(loss, (0, 1))(x, params)),
        jax.tree.leaves(jax.value_and_grad(expected, (0, 1))(x, params)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-4)


def test_running_statistics_are_torchs():
    torch = pytest.importorskip("torch")
    x = draw(2, 3, 4, 5)
    reference = torch.nn.BatchNorm2d(5)
    reference(torch.tensor(np.asarray(x)).permute(0, 3, 1, 2))
    model = BatchNorm(5)
    variables = model.init(jax.random.key(0), x, train=True)
    assert (variables["batch_stats"]["mean"] == 0).all()
    _, updated = model.apply(variables, x, train=True, mutable=["batch_stats"])
    stats = updated["batch_stats"]
    np.testing.assert_allclose(stats["mean"], reference.running_mean, rtol=1e-5)
    np.testing.assert_allclose(stats["var"], reference.running_var, rtol=1e-5)


def test_forgetting_to_make_the_statistics_mutable_is_an_error():
    x = draw(2, 3, 4, 5)
    variables = BatchNorm(5).init(jax.random.key(0), x, train=False)
    with pytest.raises(Exception, match="batch_stats"):
        BatchNorm(5).apply(variables, x, train=True)


def test_moments_through_a_map_are_those_of_its_output():
    x, matrix = draw(2, 3, 4, 5), draw(5, 7, seed=1) - 3
    out = (x.reshape(-1, 5) @ matrix).reshape(2, 3, 4, 7)
    actual = covariance(x).through(matrix)
    np.testing.assert_allclose(actual.mean, moments(out).mean, rtol=1e-4)
    np.testing.assert_allclose(actual.variance, moments(out).variance, rtol=1e-4)
    factor = matrix[:, 0]
    scaled = moments(x).scaled(factor)
    expected = moments(x * factor.reshape(1, 1, 1, -1))
    np.testing.assert_allclose(scaled.variance, expected.variance, rtol=1e-4)
    assert scaled.count == expected.count == 24
