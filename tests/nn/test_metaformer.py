import jax
import jax.numpy as jnp
import numpy as np
import pytest

from handjax.nn.metaformer import (
    DropPath,
    MeshRegressor,
    MetaFormerBlock,
    TokenLinear,
)


def block_and_input():
    block = MetaFormerBlock(num_heads=4)
    x = jax.random.normal(jax.random.key(0), (2, 5, 16)) * 3 + 1
    variables = block.init(jax.random.key(1), x, train=False)
    noise = lambda p: p + 0.1 * jax.random.normal(jax.random.key(p.size), p.shape)  # noqa: E731
    return block, jax.tree.map(noise, variables), x


def test_block_equals_loops_in_numpy():
    from scipy.special import erf

    block, variables, x = block_and_input()
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), variables["params"])

    def norm(x, p):
        mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return (x - mean) / np.sqrt(var + 1e-5) * p["scale"] + p["bias"]

    def dense(x, p):
        return x @ p["kernel"] + p["bias"]

    expected = []
    for example in np.asarray(x, np.float64):
        qkv = dense(norm(example, p["norm1"]), p["attention"]["qkv"])
        heads = []
        for head in range(4):
            q, k, v = (qkv[:, 16 * i + 4 * head :][:, :4] for i in range(3))
            scores = np.exp(q @ k.T / 2)
            heads.append(scores / scores.sum(-1, keepdims=True) @ v)
        example = example + dense(np.concatenate(heads, -1), p["attention"]["out"])
        hidden = dense(norm(example, p["norm2"]), p["mlp_in"])
        hidden = hidden * (1 + erf(hidden / np.sqrt(2))) / 2
        expected.append(example + dense(hidden, p["mlp_out"]))
    np.testing.assert_allclose(
        block.apply(variables, x, train=False), np.stack(expected), rtol=2e-5, atol=2e-5
    )


@pytest.mark.parity
def test_block_equals_torch():
    torch = pytest.importorskip("torch")
    block, variables, x = block_and_input()
    p = jax.tree.map(lambda a: torch.tensor(np.asarray(a)), variables["params"])
    attention = torch.nn.MultiheadAttention(16, 4, batch_first=True)
    attention.load_state_dict(
        {
            "in_proj_weight": p["attention"]["qkv"]["kernel"].T,
            "in_proj_bias": p["attention"]["qkv"]["bias"],
            "out_proj.weight": p["attention"]["out"]["kernel"].T,
            "out_proj.bias": p["attention"]["out"]["bias"],
        }
    )
    norm = lambda x, p: torch.nn.functional.layer_norm(  # noqa: E731
        x, (16,), p["scale"], p["bias"]
    )
    dense = lambda x, p: x @ p["kernel"] + p["bias"]  # noqa: E731
    with torch.no_grad():
        y = torch.tensor(np.asarray(x))
        z = norm(y, p["norm1"])
        y = y + attention(z, z, z)[0]
        z = torch.nn.functional.gelu(dense(norm(y, p["norm2"]), p["mlp_in"]))
        y = y + dense(z, p["mlp_out"])
    np.testing.assert_allclose(
        block.apply(variables, x, train=False), y.numpy(), rtol=2e-5, atol=2e-5
    )


def test_block_has_the_parameters_of_its_formula():
    block = MetaFormerBlock()
    shapes = jax.eval_shape(
        lambda: block.init(jax.random.key(0), jnp.zeros((1, 4, 64)), train=False)
    )
    total = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    assert total == 12 * 64**2 + 13 * 64


def test_attention_does_not_know_the_order_of_tokens():
    block, variables, x = block_and_input()
    order = jnp.array([3, 0, 4, 1, 2])
    np.testing.assert_allclose(
        block.apply(variables, x[:, order], train=False),
        block.apply(variables, x, train=False)[:, order],
        rtol=1e-4,
        atol=1e-5,
    )


def test_token_linear_is_a_matrix_over_tokens():
    x = jax.random.normal(jax.random.key(0), (2, 5, 3))
    layer = TokenLinear(7)
    variables = layer.init(jax.random.key(1), x)
    p = variables["params"]["over_tokens"]
    expected = np.einsum("btc,tu->buc", x, p["kernel"]) + np.asarray(p["bias"])[:, None]
    np.testing.assert_allclose(
        layer.apply(variables, x), expected, rtol=1e-5, atol=1e-6
    )


def test_drop_path_drops_whole_examples_and_keeps_the_mean():
    x = jnp.ones((4000, 2, 3))
    out = DropPath(0.25).apply({}, x, train=True, rngs={"drop_path": jax.random.key(0)})
    kept = np.asarray(out).reshape(4000, -1)
    assert set(np.unique(np.round(kept, 5))) == {0.0, np.float32(np.round(4 / 3, 5))}
    assert np.all(kept == kept[:, :1])
    assert kept.mean() == pytest.approx(1, abs=0.03)
    np.testing.assert_array_equal(DropPath(0.25).apply({}, x, train=False), x)


@pytest.mark.parametrize(
    "tokens, widths", [((48,), (256,)), ((48, 97), (256, 128)), ((6, 5, 9), (8, 8, 4))]
)
def test_mesh_regressor_ends_in_vertices_whatever_its_layers(tokens, widths):
    model = MeshRegressor(tokens, widths, (1,) * len(tokens))
    x = jnp.zeros((2, tokens[0], 16))
    shape = jax.eval_shape(
        lambda: model.init_with_output(jax.random.key(0), x, train=False)[0]
    )
    assert shape.shape == (2, 778, 3)
