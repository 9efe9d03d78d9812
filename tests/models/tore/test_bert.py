import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from handjax.models.tore import bert
from handjax.models.tore.bert import MeshEdges, ProgressiveBlock
from handjax.models.tore.mesh_graph import shares

QUICK = {"xla_backend_optimization_level": 0}
BATCH, TOKENS, DIM, HIDDEN, OUT = 2, 5, 6, 8, 3


def filled(module, *arguments, **options):
    init = functools.partial(module.init, train=False, **options)
    shapes = jax.eval_shape(init, jax.random.key(0), *arguments)
    rng = np.random.default_rng(1)
    draw = lambda leaf: jnp.float32(rng.normal(size=leaf.shape) * 0.4)  # noqa: E731
    return jax.tree.map(draw, shapes)


def run(module, variables, *arguments, **options):
    apply = functools.partial(module.apply, train=False, **options)
    return jax.jit(apply, compiler_options=QUICK)(variables, *arguments)


def tokens():
    shape = (BATCH, TOKENS, DIM)
    return jnp.float32(np.random.default_rng(0).normal(size=shape))


def path():
    """Three vertices in a row, each a neighbour of itself."""
    return jnp.asarray([[1, 1, 0], [1, 1, 1], [0, 1, 1]], bool)


def dense(x, p):
    return x @ p["kernel"] + p["bias"]


def norm(x, p, eps):
    scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
    return scaled * p["scale"] + p["bias"]


def slow_layer(x, p, heads, edges):
    size, out = x.shape[-1] // heads, []
    q, k, v = (dense(x, p[f"attention_self_{n}"]) for n in ("query", "key", "value"))
    for head in range(heads):
        own = slice(head * size, (head + 1) * size)
        weights = np.exp(q[:, own] @ k[:, own].T / np.sqrt(size))
        out.append(weights / weights.sum(-1, keepdims=True) @ v[:, own])
    y = dense(np.concatenate(out, -1), p["attention_output_dense"])
    x = norm(x + y, p["attention_output_norm"], 1e-12)
    if edges is not None:
        first, weights = edges
        x[first : first + len(weights)] = slow_graph(
            x[first : first + len(weights)], p["graph_conv"], weights
        )
    y = dense(x, p["intermediate_dense"])
    y = dense(y * (1 + erf(y / np.sqrt(2))) / 2, p["output_dense"])
    return norm(x + y, p["output_norm"], 1e-12)


def slow_graph(x, p, weights):
    relu = lambda x: np.maximum(x, 0)  # noqa: E731
    y = dense(relu(norm(x, p["norm_in"], 1e-5)), p["narrow"])
    y = relu(norm(y, p["norm1"], 1e-5)) @ p["conv"]["linear"]["kernel"]
    y = np.stack([sum(w * y[j] for j, w in enumerate(row)) for row in weights])
    y = relu(norm(y + p["conv"]["bias"], p["norm2"], 1e-5))
    return x + dense(y, p["widen"])


@pytest.mark.parametrize("meshed", [False, True])
def test_block_equals_loops_in_numpy(meshed):
    block = ProgressiveBlock(HIDDEN, OUT, layers=2, heads=2, ratio=3, dropout=0.1)
    x = tokens()
    weights = shares(path())
    edges = MeshEdges(1, weights) if meshed else None
    variables = filled(block, x, edges=edges)
    found = run(block, variables, x, edges=edges)
    p = jax.tree.map(np.float64, variables["params"])
    for i, given in enumerate(np.float64(x)):
        y = dense(given, p["img_embedding"]) + p["position_embeddings"][:TOKENS]
        for j in range(2):
            own = (1, np.float64(weights)) if meshed else None
            y = slow_layer(y, p[f"layer_{j}"], 2, own)
        out = dense(y, p["cls_head"]) + dense(given, p["residual"])
        np.testing.assert_allclose(found.hidden[i], y, atol=2e-5)
        np.testing.assert_allclose(found.outputs[i], out, atol=5e-5)
    assert found.attention.shape == (BATCH, TOKENS, TOKENS)
    np.testing.assert_allclose(jnp.sum(found.attention, -1), 1, atol=1e-5)


def test_shares_of_a_neighbourhood_are_alike():
    expected = [[1 / 2, 1 / 2, 0], [1 / 3, 1 / 3, 1 / 3], [0, 1 / 2, 1 / 2]]
    np.testing.assert_allclose(shares(path()), expected, rtol=1e-6)


def test_blocks_of_the_released_sizes_have_the_released_parameters():
    """101,182,022 less the word embeddings, poolers and tables that nothing reads."""
    hidden = (1024, 256, 64)
    unused = 30_522 * sum(hidden)  # word embeddings
    assert unused == 41_021_568
    unused += sum(h * h + h for h in hidden)  # poolers
    unused += (512 + 2 + 2) * sum(hidden)  # positions again, token types, their norm
    total = 0
    for dim, h, out in zip((2051, 512, 128), hidden, (512, 128, 3), strict=True):
        block = ProgressiveBlock(h, out, layers=4, heads=4, ratio=4, dropout=0.1)
        init = functools.partial(block.init, train=False)
        shapes = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 216, dim)))
        total += sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert total == 101_182_022 - unused


def test_more_tokens_than_positions_are_refused():
    block = ProgressiveBlock(4, 3, layers=0, heads=4, ratio=4, dropout=0.1)
    with pytest.raises(ValueError, match="positions of 512 tokens, but 513 come in"):
        filled(block, jnp.zeros((1, bert.MAX_TOKENS + 1, 4)))


@pytest.mark.parity
def test_layers_equal_torchs_post_norm_encoder():
    torch = pytest.importorskip("torch")
    block = ProgressiveBlock(HIDDEN, OUT, layers=1, heads=2, ratio=4, dropout=0.1)
    x = tokens()
    variables = filled(block, x)
    found = run(block, variables, x)
    p = jax.tree.map(lambda a: torch.tensor(np.asarray(a)), variables["params"])
    own = p["layer_0"]
    layer = torch.nn.TransformerEncoderLayer(
        HIDDEN, 2, 4 * HIDDEN, activation="gelu", layer_norm_eps=1e-12, batch_first=True
    ).eval()
    qkv = [own[f"attention_self_{n}"] for n in ("query", "key", "value")]
    state = {
        "self_attn.in_proj_weight": torch.cat([x["kernel"].T for x in qkv]),
        "self_attn.in_proj_bias": torch.cat([x["bias"] for x in qkv]),
    }
    for name, key in (
        ("self_attn.out_proj", "attention_output_dense"),
        ("linear1", "intermediate_dense"),
        ("linear2", "output_dense"),
        ("norm1", "attention_output_norm"),
        ("norm2", "output_norm"),
    ):
        scale = own[key].get("scale")
        state[f"{name}.weight"] = own[key]["kernel"].T if scale is None else scale
        state[f"{name}.bias"] = own[key]["bias"]
    layer.load_state_dict(state)
    with torch.no_grad():
        y = torch.tensor(np.asarray(x)) @ p["img_embedding"]["kernel"]
        y = y + p["img_embedding"]["bias"] + p["position_embeddings"][None, :TOKENS]
        hidden = layer(y)
    np.testing.assert_allclose(found.hidden, hidden, atol=2e-5)
