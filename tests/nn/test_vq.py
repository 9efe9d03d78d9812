import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from handjax.nn import vq


def codes(embedding, count=None):
    count = np.ones(len(embedding)) if count is None else np.asarray(count)
    return vq.CodebookState(
        jnp.asarray(embedding, jnp.float32),
        jnp.asarray(embedding * count[:, None], jnp.float32),
        jnp.asarray(count, jnp.float32),
    )


def test_nearest_code_is_the_one_brute_force_finds(rng):
    tokens, book = rng.normal(size=(2, 7, 5)), rng.normal(size=(11, 5))
    distance = np.linalg.norm(tokens[..., None, :] - book, axis=-1)
    found = vq.nearest_code(jnp.float32(tokens), jnp.float32(book))
    np.testing.assert_array_equal(found, distance.argmin(-1))


def test_nearest_code_breaks_ties_to_the_lowest_index():
    book = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert vq.nearest_code(jnp.array([[1.0, 0.0]]), book).tolist() == [0]
    assert vq.nearest_code(jnp.array([[0.5, 0.5]]), book).tolist() == [0]


def test_nearest_code_reads_bfloat16_tokens_in_float32():
    # In bfloat16 1000 and 1001 are the same number.
    book = jnp.array([[1001.0], [1000.0]])
    assert vq.nearest_code(jnp.array([[1000.0]], jnp.bfloat16), book).tolist() == [1]


def test_straight_through_gives_codes_and_passes_the_gradient(rng):
    x, c = (
        jnp.float32(rng.normal(size=(2, 3, 4))),
        jnp.float32(rng.normal(size=(2, 3, 4))),
    )
    np.testing.assert_allclose(vq.straight_through(x, c), c, rtol=1e-6)
    weight = jnp.float32(rng.normal(size=x.shape))
    to_x, to_c = jax.grad(
        lambda x, c: jnp.sum(weight * vq.straight_through(x, c)), (0, 1)
    )(x, c)
    np.testing.assert_array_equal(to_x, weight)
    np.testing.assert_array_equal(to_c, np.zeros_like(c))


def test_ema_follows_its_closed_form(rng):
    """n_T = mu^T n_0 + (1 - mu) sum_t mu^(T-1-t) count_t, and so for the sums."""
    book, decay, steps = rng.normal(size=(3, 2)), 0.9, 5
    state, tokens = codes(book), rng.normal(size=(steps, 8, 2)).astype(np.float32)
    indices = rng.integers(0, 2, (steps, 8))  # code 2 is never used
    count, total = np.ones(3), book.copy()
    for x, i in zip(tokens, indices, strict=True):
        state = vq.ema_update(
            state, jnp.asarray(x), jnp.asarray(i), jnp.ones(8, bool), decay=decay
        )
        hot = np.eye(3)[i]
        count = decay * count + (1 - decay) * hot.sum(0)
        total = decay * total + (1 - decay) * hot.T @ x
    np.testing.assert_allclose(state.ema_count, count, rtol=1e-5)
    np.testing.assert_allclose(state.ema_sum, total, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(state.embedding, total / count[:, None], rtol=1e-4)
    np.testing.assert_allclose(state.ema_count[2], decay**steps, rtol=1e-5)
    np.testing.assert_allclose(state.embedding[2], book[2], rtol=1e-4)


def test_ema_ignores_invalid_tokens():
    state = codes(np.zeros((2, 1)))
    tokens, indices = jnp.array([[1.0], [9.0]]), jnp.array([0, 0])
    new = vq.ema_update(state, tokens, indices, jnp.array([True, False]), decay=0.5)
    np.testing.assert_allclose(new.ema_count, [1.0, 0.5])
    np.testing.assert_allclose(new.ema_sum, [[0.5], [0.0]])


def test_laplace_smoothing_is_pcts(rng):
    state, eps = codes(rng.normal(size=(4, 2)), [3.0, 0.0, 1.0, 2.0]), 1e-2
    none = jnp.zeros((1, 2)), jnp.zeros(1, jnp.int32), jnp.zeros(1, bool)
    new = vq.ema_update(state, *none, decay=0.5, smoothing=eps)
    n = np.array([1.5, 0.0, 0.5, 1.0])
    np.testing.assert_allclose(
        new.ema_count, (n + eps) / (n.sum() + 4 * eps) * n.sum(), rtol=1e-6
    )


def test_reset_moves_dead_codes_onto_tokens_and_leaves_the_others(rng):
    book = rng.normal(size=(4, 3))
    state = codes(book, [0.2, 5.0, 0.99, 1.0])
    tokens = jnp.float32(rng.normal(size=(9, 3)))
    new, moved = vq.reset_dead(
        state, tokens, jnp.ones(9, bool), jax.random.key(0), below=1.0
    )
    assert moved == 2
    np.testing.assert_array_equal(
        new.embedding[np.array([1, 3])], state.embedding[np.array([1, 3])]
    )
    np.testing.assert_array_equal(
        new.ema_sum[np.array([1, 3])], state.ema_sum[np.array([1, 3])]
    )
    for code in (0, 2):
        moved_to = np.asarray(new.embedding[code])
        assert np.any(np.all(np.asarray(tokens) == moved_to, axis=-1))
        np.testing.assert_array_equal(new.ema_sum[code], new.embedding[code])
        assert new.ema_count[code] == 1
    assert np.any(new.embedding[0] != new.embedding[2])


def test_random_rows_are_different_and_valid(rng):
    rows = jnp.arange(20.0)[:, None]
    valid = jnp.arange(20) >= 10
    drawn = vq.random_rows(jax.random.key(1), rows, valid, 10)[:, 0]
    assert sorted(drawn.tolist()) == list(range(10, 20))
    # More than there are: repeats, moved by a little noise.
    many = vq.random_rows(jax.random.key(1), rows, valid, 25)[:, 0]
    assert len(set(many.tolist())) == 25
    np.testing.assert_allclose(
        np.round(many), np.concatenate([drawn, drawn, drawn[:5]])
    )


def test_perplexity_counts_evenly_used_codes():
    assert vq.perplexity(jnp.array([5.0, 5, 5, 5, 0, 0])) == pytest.approx(4, rel=1e-4)
    assert vq.perplexity(jnp.array([7.0, 0, 0])) == pytest.approx(1, rel=1e-4)


def test_soft_lookup_tends_to_the_code_as_scores_grow(rng):
    book, logits = jnp.float32(rng.normal(size=(5, 3))), jnp.float32([[0, 0, 1, 0, 0]])
    np.testing.assert_allclose(
        vq.soft_lookup(0 * logits, book)[0], book.mean(0), rtol=1e-5
    )
    np.testing.assert_allclose(
        vq.soft_lookup(100 * logits, book)[0], book[2], rtol=1e-6
    )


def quantizer(**options):
    model = vq.VectorQuantizer(num_codes=8, dim=4, **options)
    tokens = jax.random.normal(jax.random.key(0), (3, 16, 4))
    return model, model.init(jax.random.key(1), tokens), tokens


def step(model, variables, tokens, key, valid=None):
    out, updates = model.apply(
        variables,
        tokens,
        valid,
        train=True,
        mutable=["codebook"],
        rngs={"codebook": jax.random.key(key)},
    )
    return out, updates


def test_first_batch_becomes_the_codebook():
    model, variables, tokens = quantizer(decay=1.0, reset_below=0.0)
    assert not variables["codebook"]["initialized"]
    out, updates = step(model, variables, tokens, 0)
    rows = np.asarray(tokens).reshape(-1, 4)
    for code in np.asarray(updates["codebook"]["embedding"]):
        assert np.min(np.abs(rows - code).max(-1)) < 1e-6
    assert updates["codebook"]["initialized"]
    assert out.metrics["usage"] == 1  # every code is at least its own token's nearest
    again = step(model, updates, tokens + 5, 1)[1]  # but the second batch is not
    np.testing.assert_allclose(
        again["codebook"]["embedding"], updates["codebook"]["embedding"], rtol=1e-5
    )


def test_evaluation_leaves_the_codebook_alone():
    model, variables, tokens = quantizer()
    variables = step(model, variables, tokens, 0)[1]
    out, updates = model.apply(variables, tokens, mutable=["codebook"])
    chex.assert_trees_all_equal(updates, variables)
    np.testing.assert_allclose(
        out.codes, variables["codebook"]["embedding"][out.indices], rtol=1e-6
    )


def test_a_collapsed_codebook_recovers_by_reset():
    """All codes in one place, far from the tokens: only one can ever win."""
    model, variables, _ = quantizer(reset_below=0.5)
    book = dict(variables["codebook"])
    book |= {
        "embedding": jnp.full((8, 4), 10.0) + jnp.arange(8.0)[:, None] * 1e-3,
        "ema_sum": jnp.full((8, 4), 10.0),
        "ema_count": jnp.ones(8),
        "initialized": jnp.ones((), bool),
    }
    centres = jax.random.normal(jax.random.key(5), (8, 4)) * 3
    usage = []
    variables = {"codebook": book}
    for i in range(150):
        pick = jax.random.randint(jax.random.key(100 + i), (4, 16), 0, 8)
        noise = jax.random.normal(jax.random.key(i), (4, 16, 4)) * 0.1
        out, variables = step(model, variables, centres[pick] + noise, i)
        usage.append(float(out.metrics["usage"]))
    assert usage[0] == 1 / 8
    assert np.mean(usage[-20:]) > 0.9
    assert {"dead_codes", "resets"} <= set(out.metrics)


def test_without_reset_it_stays_collapsed():
    model, variables, tokens = quantizer(reset_below=0.0, smoothing=1e-5, decay=0.9)
    far = jnp.arange(8.0)[:, None] + jnp.full((8, 4), 50.0)
    book = dict(variables["codebook"]) | {
        "embedding": far,
        "ema_sum": far,
        "ema_count": jnp.ones(8),
        "initialized": jnp.ones((), bool),
    }
    variables = {"codebook": book}
    for i in range(20):
        out, variables = step(model, variables, tokens, i)
    assert out.metrics["usage"] == 1 / 8
    assert out.metrics["resets"] == 0
    assert out.metrics["dead_codes"] >= 1


def test_eight_devices_move_the_codebook_as_one():
    model, variables, _ = quantizer(reset_below=3.0, decay=0.1)
    tokens = jax.random.normal(jax.random.key(7), (16, 6, 4))
    valid = jnp.arange(16) % 5 != 0

    def two_steps(variables, tokens, valid):
        for i in range(2):
            out, variables = step(model, variables, tokens + 3 * i, i, valid)
        return out.indices, out.metrics, variables

    one = jax.jit(two_steps)(variables, tokens, valid)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec("data"))
    eight = jax.jit(two_steps)(
        variables, jax.device_put(tokens, split), jax.device_put(valid, split)
    )
    np.testing.assert_array_equal(one[0], eight[0])
    assert one[1]["resets"] == eight[1]["resets"] > 0
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), one, eight
    )


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("first", [True, False])
def test_what_masked_rows_hold_never_reaches_the_codebook(first):
    model, variables, tokens = quantizer()
    if not first:
        variables = step(model, variables, tokens, 2)[1]
    valid = jnp.array([True, False, True])
    expected = step(model, variables, tokens, 3, valid)[1]
    for hidden in (jnp.nan, 1e30):
        poisoned = jnp.where(valid[:, None, None], tokens, hidden)
        found = step(model, variables, poisoned, 3, valid)[1]
        chex.assert_trees_all_equal(found["codebook"], expected["codebook"])


@pytest.mark.parametrize("first", [True, False])
def test_a_batch_without_valid_rows_leaves_the_codebook_as_it_is(first):
    model, variables, tokens = quantizer()
    if not first:
        variables = step(model, variables, tokens, 2)[1]
    none = jnp.zeros(3, jnp.bool_)
    for hidden in (tokens + 100, tokens * jnp.nan):
        found = step(model, variables, hidden, 3, none)[1]
        chex.assert_trees_all_equal(found["codebook"], variables["codebook"])
