import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from handjax.benchmarking import scaling
from handjax.nn.ops.largest import largest, top_k


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


def test_top_k_is_that_of_jax_with_equal_values_too(rng):
    x = jnp.asarray(rng.integers(0, 9, (4, 30, 50)), jnp.float32)
    for found, expected in zip(top_k(x, 7), jax.lax.top_k(x, 7), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_devices_that_share_the_rows_send_none():
    mesh = jax.make_mesh((8,), ("data",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    x = jax.ShapeDtypeStruct((16, 40, 50), jnp.float32, sharding=rows)
    program = jax.jit(lambda x: top_k(x, 4)).lower(x).compile().as_text()
    assert not scaling.collectives(program)


@pytest.mark.parametrize("n, k", [(778, 16), (2048, 102)])
def test_accelerators_reduce_nothing_before_they_sort(n, k):
    """What the approximate search keeps of a row on TPUs, asked to miss nothing."""
    x = jax.ShapeDtypeStruct((2, 3, n), jnp.float32)
    search = functools.partial(
        jax.lax.approx_max_k, k=k, recall_target=1.0, aggregate_to_topk=False
    )
    assert jax.eval_shape(search, x)[0].shape == (2, 3, n)
