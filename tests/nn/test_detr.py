import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from handjax.nn.detr import Decoder, DecoderLayer, MultiheadAttention, Transformer
from handjax.nn.token_sampler import sine_code

QUICK = {"xla_backend_optimization_level": 0}
BATCH, TOKENS, QUERIES, DIM, HEADS = 2, 6, 5, 8, 2
OPTIONS = dict(heads=HEADS, ratio=2, dropout=0.1, dtype=jnp.float32)


def normal(*shape, seed=0):
    return jnp.float32(np.random.default_rng(seed).normal(size=shape))


def filled(module, *arguments):
    """Parameters of ordinary size (to draw them in JAX is much to compile)."""
    init = functools.partial(module.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), *arguments)
    rng = np.random.default_rng(1)
    draw = lambda leaf: jnp.float32(rng.normal(size=leaf.shape) * 0.4)  # noqa: E731
    return jax.tree.map(draw, shapes)


def run(module, variables, *arguments, **options):
    apply = functools.partial(module.apply, train=False, **options)
    return jax.jit(apply, compiler_options=QUICK)(variables, *arguments)


def mask():
    """Query i looks at itself and at its neighbours."""
    index = np.arange(QUERIES)
    return jnp.asarray(np.abs(index[:, None] - index) > 1)


def inputs():
    camera, tokens = normal(1, 1, DIM, seed=2), normal(BATCH, TOKENS, DIM, seed=3)
    positions = jnp.asarray(sine_code(2, 3, DIM).reshape(-1, DIM))
    return camera, tokens, normal(BATCH, QUERIES, DIM, seed=4), positions, mask()


# --- Properties -------------------------------------------------------------------


def test_attention_equals_loops_in_numpy():
    query, key, value = (normal(BATCH, n, DIM, seed=n) for n in (QUERIES, 7, 7))
    blocked = np.random.default_rng(0).random((QUERIES, 7)) < 0.4
    blocked[:, 0] = False
    module = MultiheadAttention(HEADS, dropout=0.0)
    variables = filled(module, query, key, value)
    found, probs = run(module, variables, query, key, value, jnp.asarray(blocked))
    p = jax.tree.map(np.float64, variables["params"])
    size = DIM // HEADS
    for b in range(BATCH):
        heads = []
        for head in range(HEADS):
            q, k, v = (
                np.float64(x[b]) @ p["in_proj_kernel"][:, at] + p["in_proj_bias"][at]
                for i, x in enumerate((query, key, value))
                for at in [slice(DIM * i + size * head, DIM * i + size * (head + 1))]
            )
            weights = np.where(blocked, 0, np.exp(q @ k.T / np.sqrt(size)))
            weights /= weights.sum(-1, keepdims=True)
            np.testing.assert_allclose(probs[b, head], weights, atol=1e-5)
            heads.append(weights @ v)
        out = np.concatenate(heads, -1) @ p["out_proj"]["kernel"]
        np.testing.assert_allclose(found[b], out + p["out_proj"]["bias"], atol=1e-5)


def test_a_blocked_query_is_not_seen_and_passes_no_gradient():
    module = DecoderLayer(**OPTIONS)
    _, tokens, queries, positions, blocked = inputs()
    variables = filled(module, queries, tokens, positions, blocked)

    def first(queries):
        found = module.apply(
            variables, queries, tokens, positions, blocked, train=False
        )
        return jnp.sum(found.queries[:, 0])

    slopes = jax.jit(jax.grad(first), compiler_options=QUICK)(queries)
    seen = np.abs(slopes).max(axis=(0, 2)) > 0
    np.testing.assert_array_equal(seen, ~np.asarray(blocked[0]))


def test_learned_queries_are_the_same_as_if_they_came_with_every_example():
    camera, tokens, queries, positions, blocked = inputs()
    module = Transformer(2, **OPTIONS)
    variables = filled(module, camera, tokens, queries, positions, blocked)
    one = queries[:1]
    many = jnp.repeat(one, BATCH, axis=0)
    short = run(module, variables, camera, tokens, one, positions, blocked)
    long = run(module, variables, camera, tokens, many, positions, blocked)
    assert short.decoded.queries.shape == (BATCH, QUERIES, DIM)
    for name in ("queries", "memory"):
        a, b = getattr(short.decoded, name), getattr(long.decoded, name)
        np.testing.assert_allclose(a, b, atol=1e-5)
    program = functools.partial(module.apply, train=False)
    products = [
        str(jax.make_jaxpr(program)(variables, camera, tokens, q, positions)).count(
            f"f32[1,{QUERIES},{DIM}]"
        )
        for q in (one, many)
    ]
    assert products[0] > products[1]  # among themselves, once for the batch


def test_in_training_every_example_drops_its_own():
    _, tokens, queries, positions, _ = inputs()
    decoder = Decoder(1, **(OPTIONS | dict(dropout=0.5)))
    same = jnp.repeat(tokens[:1], BATCH, axis=0)
    variables = filled(decoder, queries[:1], same, positions)
    apply = functools.partial(decoder.apply, train=True)
    found = jax.jit(apply, compiler_options=QUICK)(
        variables, queries[:1], same, positions, rngs={"dropout": jax.random.key(0)}
    )
    assert np.abs(found.queries[0] - found.queries[1]).max() > 1e-3


def test_the_camera_has_no_position_and_the_queries_do_not_see_it():
    camera, tokens, queries, positions, _ = inputs()
    module = Transformer(1, **OPTIONS)
    variables = filled(module, camera, tokens, queries, positions)
    whole = run(module, variables, camera, tokens, queries, positions)
    assert whole.decoded.memory.shape == (BATCH, QUERIES, TOKENS)
    assert whole.camera.shape == (BATCH, 1, DIM)
    turned = run(module, variables, camera, tokens[:, ::-1], queries, positions[::-1])
    np.testing.assert_allclose(turned.camera, whole.camera, atol=1e-5)
    np.testing.assert_allclose(turned.decoded.queries, whole.decoded.queries, atol=1e-5)


def test_widths_that_heads_do_not_divide_and_no_layers_are_refused():
    camera, tokens, queries, positions, _ = inputs()
    for module, message in (
        (
            Transformer(1, **OPTIONS | dict(heads=3)),
            "8 channels cannot be cut into config.model.heads=3",
        ),
        (Transformer(0, **OPTIONS), "config.model.layers=0 must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            filled(module, camera, tokens, queries, positions)


# --- Against PyTorch ----------------------------------------------------------------


@pytest.mark.parity
def test_transformer_equals_torchs_layers():
    """PyTorch's own pre-norm layers, whose positions we add by hand."""
    torch = pytest.importorskip("torch")
    camera, tokens, queries, positions, blocked = inputs()
    module = Transformer(2, **OPTIONS)
    variables = filled(module, camera, tokens, queries, positions, blocked)
    found = run(module, variables, camera, tokens, queries, positions, blocked)
    p = jax.tree.map(lambda a: torch.tensor(np.asarray(a)), variables["params"])
    ours = lambda x: torch.tensor(np.asarray(x))  # noqa: E731

    def attended(p, query, key, value, blocked=None):
        layer = torch.nn.MultiheadAttention(DIM, HEADS, batch_first=True)
        layer.load_state_dict(
            {
                "in_proj_weight": p["in_proj_kernel"].T,
                "in_proj_bias": p["in_proj_bias"],
                "out_proj.weight": p["out_proj"]["kernel"].T,
                "out_proj.bias": p["out_proj"]["bias"],
            }
        )
        return layer(query, key, value, attn_mask=blocked)[0]

    def norm(p, x):
        return torch.nn.functional.layer_norm(x, (DIM,), p["scale"], p["bias"])

    def dense(p, x):
        return x @ p["kernel"] + p["bias"]

    def ffn(p, x):
        return dense(p["linear2"], torch.relu(dense(p["linear1"], x)))

    with torch.no_grad():
        x = torch.cat([ours(camera).expand(BATCH, 1, DIM), ours(tokens)], 1)
        at = torch.cat([torch.zeros(1, DIM), ours(positions)])
        for i in range(2):
            layer = p["encoder"][f"layers_{i}"]
            y = norm(layer["norm1"], x)
            x = x + attended(layer["self_attn"], y + at, y + at, y)
            x = x + ffn(layer, norm(layer["norm2"], x))
        x = norm(p["encoder"]["norm"], x)
        memory, z = x[:, 1:], ours(queries)
        for i in range(2):
            layer = p["decoder"][f"layers_{i}"]
            y = norm(layer["norm1"], z)
            z = z + attended(layer["self_attn"], y, y, y, ours(blocked))
            y = norm(layer["norm2"], z)
            place = memory + ours(positions)
            z = z + attended(layer["multihead_attn"], y, place, memory)
            z = z + ffn(layer, norm(layer["norm3"], z))
        z = norm(p["decoder"]["norm"], z)
    np.testing.assert_allclose(found.camera, x[:, :1], atol=2e-5)
    np.testing.assert_allclose(found.tokens, memory, atol=2e-5)
    np.testing.assert_allclose(found.decoded.queries, z, atol=2e-5)
