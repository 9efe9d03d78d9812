import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from handjax.nn.token_pruner import (
    KINDS,
    TokenPruner,
    covered,
    num_tokens,
    supervision,
)

QUICK = {"xla_backend_optimization_level": 0}
BATCH, HEIGHT, WIDTH, DIM = 2, 3, 4, 8
SHARE, KEPT = 0.45, 5  # 5.4 of 12 places


def features():
    shape = (BATCH, HEIGHT, WIDTH, DIM)
    return jnp.float32(np.random.default_rng(0).normal(size=shape))


def built(kind):
    module = TokenPruner(SHARE, kind)
    shapes = jax.eval_shape(module.init, jax.random.key(0), features())
    rng = np.random.default_rng(1)
    draw = lambda leaf: jnp.float32(0.3 * rng.normal(size=leaf.shape))  # noqa: E731
    return module, jax.tree.map(draw, shapes)


def run(module, variables, x):
    return jax.jit(module.apply, compiler_options=QUICK)(variables, x)


def convolved(x, kernel):
    """3 x 3, zeros around the map, place by place."""
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    out = np.zeros((*x.shape[:2], kernel.shape[-1]))
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            out[i, j] = np.einsum("hwc,hwcd->d", padded[i : i + 3, j : j + 3], kernel)
    return out


def gelu(x):
    return x * (1 + erf(x / np.sqrt(2))) / 2


def test_shares_are_rounded_down_to_whole_tokens():
    kept = {share: num_tokens(share, 49) for share in (1.0, 0.8, 0.5, 0.01)}
    assert kept == {1.0: 49, 0.8: 39, 0.5: 24, 0.01: 1}
    assert num_tokens(0.29, 100) == 29
    for share in (0.0, -0.5, 1.5):
        with pytest.raises(ValueError, match=rf"keep_ratio={share} must be above 0"):
            num_tokens(share, 49)


def test_itp_equals_its_definition():
    module, variables = built("itp")
    x = features()
    found = run(module, variables, x)
    p = jax.tree.map(np.float64, variables["params"])
    conv, fc = p["token_selector_conv2d"], p["token_selector_fc"]
    for b, given in enumerate(np.float64(x)):
        hidden = gelu(convolved(given, conv["kernel"]) + conv["bias"])
        scores = (hidden @ fc["kernel"] + fc["bias"]).reshape(-1, KEPT)
        M = np.exp(scores) / np.exp(scores).sum(axis=0)  # over the places
        np.testing.assert_allclose(
            found.weights[b], M.T.reshape(KEPT, HEIGHT, WIDTH), atol=1e-5
        )
        Z = M.T @ given.reshape(-1, DIM)
        Z = (Z - Z.mean()) / np.sqrt(Z.var() + 1e-5)  # over all tokens at once
        Z = Z * p["layer_norm"]["scale"] + p["layer_norm"]["bias"]
        np.testing.assert_allclose(found.tokens[b], Z, atol=2e-5)
    np.testing.assert_allclose(jnp.sum(found.weights, (2, 3)), 1, rtol=1e-5)


def test_token_learner_equals_its_definition():
    module, variables = built("token_learner")
    x = features()
    found = run(module, variables, x)
    p = jax.tree.map(np.float64, variables["params"])
    for b, given in enumerate(np.float64(x)):
        scaled = given - given.mean(-1, keepdims=True)
        y = scaled / np.sqrt(given.var(-1, keepdims=True) + 1e-5)
        y = y * p["norm"]["scale"] + p["norm"]["bias"]
        for i in range(4):
            y = convolved(gelu(y) if i else y, p[f"conv{i}"]["kernel"])
        gates = 1 / (1 + np.exp(-y))
        tokens = [(gates[..., n, None] * given).mean((0, 1)) for n in range(KEPT)]
        np.testing.assert_allclose(found.tokens[b], tokens, atol=1e-5)
        np.testing.assert_allclose(
            found.weights[b], np.moveaxis(gates, -1, 0), atol=1e-5
        )


def test_parts_have_the_parameters_of_the_release():
    module = TokenPruner(0.8)
    x = jax.ShapeDtypeStruct((1, 7, 7, 512), jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    sizes = {k: sum(x.size for x in jax.tree.leaves(v)) for k, v in shapes.items()}
    assert sizes == {
        "token_selector_conv2d": 589_952,
        "token_selector_fc": 5_031,
        "layer_norm": 39_936,
    }


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_every_parameter(kind):
    module, variables = built(kind)

    def total(variables):
        return jnp.sum(module.apply(variables, features()).tokens ** 3)

    grads = jax.jit(jax.grad(total), compiler_options=QUICK)(variables)["params"]
    for path, slope in jax.tree_util.tree_leaves_with_path(grads):
        # The softmax does not see what is added to all places.
        constant = "token_selector_fc" in str(path) and "bias" in str(path)
        assert (np.abs(slope).max() > 1e-4) != constant, path


def test_unknown_kinds_are_refused():
    with pytest.raises(ValueError, match=r"pruner='top_k' is not one of none, itp, to"):
        built("top_k")


# --- Token reduction supervision ---------------------------------------------------


def test_cells_are_counted_from_the_edges():
    points = jnp.asarray([[[-1.0, -1], [-0.51, 0.99], [0.5, -0.34], [1.0, 0], [0, 7]]])
    expected = np.zeros((3, 4), bool)
    expected[0, 0] = expected[2, 0] = expected[0, 3] = True
    found = covered(points, (3, 4))
    # -0.34 is just above the edge at -1/3; x = 1 and y = 7 are outside.
    np.testing.assert_array_equal(found[0], expected)


def test_cells_equal_a_loop():
    points = np.random.default_rng(0).uniform(-1.3, 1.3, (2, 50, 2))
    found = covered(jnp.float32(points), (7, 7))
    for b in range(2):
        expected = np.zeros((7, 7), bool)
        for x, y in points[b]:
            column, row = np.floor(7 * (x + 1) / 2), np.floor(7 * (y + 1) / 2)
            if 0 <= column < 7 and 0 <= row < 7:
                expected[int(row), int(column)] = True
        np.testing.assert_array_equal(found[b], expected)


def heat():
    """One cluster in each of two examples: 0, 1, 2, 4 on a 2 x 2 map."""
    return jnp.tile(jnp.float32([[[[0, 1], [2, 4]]]]), (2, 1, 1, 1))


def test_attention_beside_the_mesh_is_penalised():
    mask = jnp.asarray([[[0, 0], [0, 1]]] * 2, bool)
    valid = jnp.ones(2, bool)
    loss = functools.partial(supervision, heat(), mask, per_device=1)
    np.testing.assert_allclose(loss(valid), 3 / 4)  # (0 + 1 + 2) / 4
    np.testing.assert_allclose(loss(jnp.asarray([True, False])), 3 / 8)
    np.testing.assert_allclose(loss(valid, reduction="mean"), 3 / 16)
    all_seen = supervision(heat(), jnp.ones((2, 2, 2), bool), valid)
    assert float(all_seen) == 0
    with pytest.raises(ValueError, match=r"pruning_reduction='max' is not one of su"):
        loss(valid, reduction="max")


def test_a_flat_cluster_has_a_finite_gradient():
    flat, mask = jnp.full((1, 2, 2, 2), 0.25), jnp.zeros((1, 2, 2), bool)
    loss = functools.partial(supervision, mask=mask, valid=jnp.ones(1, bool))
    value, slope = jax.value_and_grad(loss)(flat)
    assert float(value) == 0 and np.isfinite(slope).all()
