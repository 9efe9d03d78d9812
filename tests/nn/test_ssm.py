import jax
import jax.numpy as jnp
import numpy as np
import pytest

from handjax.nn import ssm
from handjax.nn.ssm import VSSBlock, selective_scan

NAMES = ("x", "dt", "A", "B", "C", "D")


def draw(batch, length, dim, state, *, dt=0.3, seed=0):
    """Arguments of a scan, the batch's last axis having its own A and D."""
    rng = np.random.default_rng(seed)
    sequences = [(length, dim), (length, dim), (length, state), (length, state)]
    x, steps, B, C = (rng.standard_normal((*batch, *shape)) for shape in sequences)
    A = -np.exp(rng.standard_normal((*batch[-1:], dim, state)))
    D = rng.standard_normal((*batch[-1:], dim))
    arrays = (x, dt * np.abs(steps), A, B, C, D)
    return tuple(jnp.asarray(a, jnp.float32) for a in arrays)


def loop(x, dt, A, B, C, D, discretisation="euler"):
    """One sequence in float64, number by number."""
    x, dt, A, B, C, D = (np.asarray(a, np.float64) for a in (x, dt, A, B, C, D))
    y = np.zeros_like(x)
    for d in range(x.shape[1]):
        h = np.zeros(A.shape[1])
        for t in range(len(x)):
            for n in range(A.shape[1]):
                held = dt[t, d]
                if discretisation == "zoh":
                    held = (np.exp(dt[t, d] * A[d, n]) - 1) / A[d, n]
                h[n] = np.exp(dt[t, d] * A[d, n]) * h[n] + held * B[t, n] * x[t, d]
            y[t, d] = h @ C[t] + D[d] * x[t, d]
    return y


@pytest.mark.parametrize("discretisation", ssm.DISCRETISATIONS)
@pytest.mark.parametrize("state", [1, 3])
def test_scan_equals_loops_in_numpy(discretisation, state):
    x, dt, A, B, C, D = draw((2, 3), 7, 4, state)
    y = selective_scan(x, dt, A, B, C, D, discretisation=discretisation)
    for i in range(2):
        for k in range(3):
            expected = loop(
                x[i, k], dt[i, k], A[k], B[i, k], C[i, k], D[k], discretisation
            )
            np.testing.assert_allclose(y[i, k], expected, rtol=1e-5, atol=1e-5)


def test_block_of_the_paper_has_its_number_of_parameters():
    block = VSSBlock(512)
    x = jnp.zeros((1, 22, 1, 512))
    shapes = jax.eval_shape(
        lambda key: block.init(key, x, train=False), jax.random.key(0)
    )
    assert sum(p.size for p in jax.tree.leaves(shapes)) == 3_444_224
