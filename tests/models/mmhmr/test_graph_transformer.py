import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from handjax.models.mmhmr.graph_transformer import ADJACENCIES, GraphTransformerBlock

BATCH, TOKENS, DIM, HEADS = 2, 5, 8, 2


def block_of(adjacency, **fields):
    options = dict(residual=False, reduction=4, dropout=0.0) | fields
    return GraphTransformerBlock(HEADS, adjacency, **options)


def tokens(seed=1):
    shape = (BATCH, TOKENS, DIM)
    return jnp.float32(np.random.default_rng(seed).normal(size=shape))


def filled(module, x):
    init = functools.partial(module.init, train=False)
    shapes = jax.eval_shape(lambda: init(jax.random.key(0), x))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.float32(rng.normal(size=leaf.shape)), shapes)


def run(module, variables, x):
    return jax.jit(functools.partial(module.apply, train=False))(variables, x)


def slow(params, x, adjacency, residual):
    """Example by example, head by head."""
    p = jax.tree.map(np.float64, params)
    dense = lambda x, p: x @ p["kernel"] + p["bias"]  # noqa: E731
    softmax = lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True)  # noqa: E731

    def norm(x, p):
        scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(
            x.var(-1, keepdims=True) + 1e-5
        )
        return scaled * p["scale"] + p["bias"]

    out = []
    for given in np.float64(x):
        y = norm(given, p["norm_in"])
        if adjacency == "graph_conv":
            sent = dense(y, p["graph"]["linear"])
            y = np.maximum(softmax(p["graph"]["adjacency"]) @ sent, 0)
        qkv, size, heads = dense(y, p["attention"]["qkv"]), DIM // HEADS, []
        for head in range(HEADS):
            q, k, v = (qkv[:, DIM * i + size * head :][:, :size] for i in range(3))
            scores = q @ k.T / np.sqrt(size)
            if adjacency == "bias":
                scores += p["adjacency"][head]
            heads.append(softmax(scores) @ v)
        mixed = dense(np.concatenate(heads, -1), p["attention"]["out"])
        mixed = norm(mixed + dense(y, p["conv"]) + given, p["norm_out"])
        narrow = np.maximum(dense(mixed.mean(0), p["gate"]["squeeze"]), 0)
        mixed /= 1 + np.exp(-dense(narrow, p["gate"]["excite"]))
        out.append(given + mixed if residual else mixed)
    return np.stack(out)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("adjacency", ADJACENCIES)
def test_block_equals_loops_in_numpy(adjacency, residual):
    block, x = block_of(adjacency, residual=residual), tokens()
    variables = filled(block, x)
    expected = slow(variables["params"], x, adjacency, residual)
    np.testing.assert_allclose(run(block, variables, x), expected, rtol=1e-4, atol=1e-4)


def test_tokens_have_no_order_but_that_of_the_adjacency():
    order = np.array([3, 0, 4, 1, 2])
    x = tokens()
    plain = block_of("none")
    variables = filled(plain, x)
    np.testing.assert_allclose(
        run(plain, variables, x[:, order]),
        run(plain, variables, x)[:, order],
        atol=1e-5,
    )
    block = block_of("bias")
    variables = filled(block, x)
    expected = run(block, variables, x)[:, order]
    assert np.abs(run(block, variables, x[:, order]) - expected).max() > 0.01
    edges = variables["params"]["adjacency"]
    variables["params"]["adjacency"] = edges[:, order][:, :, order]
    np.testing.assert_allclose(run(block, variables, x[:, order]), expected, atol=1e-5)


def test_adjacency_starts_without_a_say_and_learns():
    block, x = block_of("bias"), tokens()

    def total(params, x):
        return jnp.sum(block.apply({"params": params}, x, train=False)[..., 0])

    init = functools.partial(block.init, train=False)
    params = jax.jit(init)(jax.random.key(0), x)["params"]
    assert params["adjacency"].shape == (HEADS, TOKENS, TOKENS)
    np.testing.assert_array_equal(params["adjacency"], 0)
    grad = jax.jit(jax.grad(total))(params, x)
    assert (np.abs(grad["adjacency"]).max(axis=(0, 2)) > 0).all()


def test_a_token_of_the_graph_convolution_keeps_half_of_itself():
    block, x = block_of("graph_conv"), tokens()
    init = functools.partial(block.init, train=False)
    params = jax.jit(init)(jax.random.key(0), x)["params"]
    weights = jax.nn.softmax(params["graph"]["adjacency"], axis=-1)
    expected = np.full((TOKENS, TOKENS), 0.125) + 0.375 * np.eye(TOKENS)
    np.testing.assert_allclose(weights, expected, atol=1e-6)


@pytest.mark.parametrize("adjacency", ADJACENCIES)
def test_tokens_may_be_bfloat16(adjacency):
    block = block_of(adjacency, dtype=jnp.bfloat16)
    x = tokens().astype(jnp.bfloat16)
    init = functools.partial(block.init_with_output, train=False)
    out, variables = jax.eval_shape(lambda: init(jax.random.key(0), x))
    assert out.dtype == jnp.bfloat16
    assert {v.dtype for v in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_unknown_adjacency_is_refused():
    block = block_of("fixed")
    with pytest.raises(ValueError, match=r"adjacency='fixed' is not one of bias, gra"):
        block.init(jax.random.key(0), tokens(), train=False)
