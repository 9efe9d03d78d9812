import jax
import jax.numpy as jnp
import numpy as np
import pytest

from handjax.nn.largest import largest


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_it_is_the_maximum(rng, axis):
    x = rng.normal(size=(3, 4, 5)).astype(np.float32)
    np.testing.assert_array_equal(largest(jnp.asarray(x), axis), x.max(axis))


def test_the_gradient_of_equal_values_goes_to_one(rng):
    weights = rng.normal(size=3).astype(np.float32)
    gradient = jax.grad(lambda x: weights @ largest(x, 1))(jnp.ones((3, 4)))
    np.testing.assert_array_equal(gradient[:, 0], weights)
    assert not gradient[:, 1:].any()


@pytest.fixture
def rng():
    return np.random.default_rng(0)
