import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from handjax.nn import masked_tokens
from handjax.nn.masked_tokens import REMASK, SCHEDULES, Sampling, sample, step_counts

BATCH, TOKENS, CODES = 3, 16, 11
KEY = jax.random.key(7)
CHANCE = {
    "temperature": Sampling(temperature=1.0),
    "cold": Sampling(temperature=0.5, remask="drawn"),
    "gumbel": Sampling(gumbel=4.5),
    "top_k": Sampling(temperature=1.3, top_k=4),
    "top share": Sampling(temperature=1.3, top_k=0.2, gumbel=1.0),
    "top_p": Sampling(temperature=1.0, top_p=0.6),
    "both": Sampling(temperature=2.0, top_k=6, top_p=0.7, remask="drawn"),
}
OPTIONS = {
    "default": Sampling(),
    "drawn": Sampling(remask="drawn"),
    "nth": Sampling(nth=3),
    **CHANCE,
}


# --- how many -----------------------------------------------------------------------


def test_the_papers_schedule_in_five_steps():
    assert step_counts(64, 5) == (64, 61, 52, 38, 20, 0)
    assert step_counts(64, 1) == (64, 0)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("tokens", "steps"), [(64, 3), (128, 10), (16, 7)])
def test_schedules_fall_from_all_tokens_to_none(schedule, tokens, steps):
    counts = step_counts(tokens, steps, schedule)
    assert counts[0] == tokens and counts[-1] == 0
    assert all(a >= b for a, b in itertools.pairwise(counts))


def test_counts_are_not_rounded_up_by_float_noise():
    # 1 - 1/3 three times is a little more than 2.
    assert step_counts(3, 3, "linear") == (3, 2, 1, 0)
    assert step_counts(100, 10, "linear") == tuple(range(100, -1, -10))
    assert step_counts(64, 4, "square") == (64, 60, 48, 28, 0)
    assert step_counts(64, 4, "sqrt") == (64, 32, 19, 9, 0)


def test_unknown_schedules_and_no_steps_are_refused():
    with pytest.raises(ValueError, match="schedule='cosin' is not one of cosine, lin"):
        masked_tokens.gamma(0.5, "cosin")
    with pytest.raises(ValueError, match="steps=0: sampling takes 1 step"):
        step_counts(64, 0)


# --- training -----------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("tau", [0.0, 0.3, 0.7, 1.0])
def test_training_masks_have_exact_counts(schedule, tau):
    mask = masked_tokens.training_mask(
        KEY, 50, 64, tau_range=(tau, tau), schedule=schedule
    )
    share = {
        "cosine": np.cos(np.pi * tau / 2),
        "linear": 1 - tau,
        "square": 1 - tau**2,
        "sqrt": 1 - np.sqrt(tau),
    }[schedule]
    expected = max(int(np.ceil(share * 64 - 1e-3)), 1)
    assert (np.asarray(mask).sum(axis=1) == expected).all()


def test_training_masks_differ_and_cover_the_range():
    mask = jax.jit(lambda key: masked_tokens.training_mask(key, 4000, 64))(KEY)
    counts = np.asarray(mask).sum(axis=1)
    # cos(0.35 pi) = 0.454: the paper's shares, 45 to 100 per cent.
    assert counts.min() == 30 and counts.max() == 64
    tau = np.random.default_rng(0).uniform(0, 0.7, 100_000)
    assert counts.mean() == pytest.approx(
        np.ceil(64 * np.cos(np.pi * tau / 2)).mean(), abs=0.5
    )
    # No token is favoured.
    hidden = np.asarray(mask).mean(axis=0)
    assert np.ptp(hidden) < 0.1
    other = masked_tokens.training_mask(jax.random.key(8), 4000, 64)
    assert (np.asarray(other) != np.asarray(mask)).any()


@pytest.mark.parametrize("tau_range", [(-0.1, 0.5), (0.6, 0.2), (0.0, 1.2)])
def test_wrong_ranges_are_refused(tau_range):
    with pytest.raises(ValueError, match=r"tau_range=.* must be two numbers"):
        masked_tokens.training_mask(KEY, 2, 8, tau_range=tau_range)


# --- sampling -----------------------------------------------------------------------


def state_model(seed=0):
    """Logits that depend on every visible token, its place and what is hidden."""
    rng = np.random.default_rng(seed)
    base = rng.normal(0, 1, (BATCH, TOKENS, CODES)).astype(np.float32)
    table = rng.normal(0, 1, (TOKENS, CODES, TOKENS, CODES)).astype(np.float32)
    hidden = rng.normal(0, 1, (TOKENS, TOKENS, CODES)).astype(np.float32)

    def predict(indices, masked, xp=jnp):
        seen = (indices[..., None] == xp.arange(CODES)[None, None]) & ~masked[..., None]
        logits = xp.einsum("btc,tcuk->buk", seen.astype(xp.float32), table)
        logits = logits + xp.einsum("bt,tuk->buk", masked.astype(xp.float32), hidden)
        return base + logits / 3

    return predict


def reference_draw(key, logits, options):
    """One token row after the other, filters by full sorting."""
    codes = logits.shape[-1]
    if options.temperature == 0:
        return np.argsort(-logits, axis=-1, kind="stable")[..., options.nth - 1]
    k = options.top_k
    k = codes if k == 0 else int(np.ceil(k * codes)) if k < 1 else k
    filtered = k < codes or options.top_p < 1
    noise = np.asarray(
        jax.random.gumbel(key, (*logits.shape[:-1], k if filtered else codes))
    )
    out = np.zeros(logits.shape[:-1], int)
    for place in np.ndindex(*out.shape):
        row = logits[place] / np.float32(options.temperature)
        if not filtered:
            out[place] = np.argmax(row + noise[place])
            continue
        order = np.argsort(-row, kind="stable")[:k]
        probs = np.exp(row[order] - row[order].max())
        probs /= probs.sum()
        total, best, chosen = 0.0, -np.inf, -1
        for i, code in enumerate(order):
            if i and total >= options.top_p:
                break
            total += probs[i]
            if row[code] + noise[place][i] > best:
                best, chosen = row[code] + noise[place][i], code
        out[place] = chosen
    return out


def reference(key, predict, steps, schedule, options):
    """The whole loop in plain Python."""
    indices = np.zeros((BATCH, TOKENS), int)
    confidence = np.zeros((BATCH, TOKENS), np.float32)
    masked = np.ones((BATCH, TOKENS), bool)
    counts = step_counts(TOKENS, steps, schedule)
    history = []
    for t, step_key in enumerate(jax.random.split(key, steps)):
        draw_key, noise_key = jax.random.split(step_key)
        logits = predict(np.where(masked, 0, indices), masked, np)
        drawn = reference_draw(draw_key, logits, options)
        noise = np.asarray(jax.random.gumbel(noise_key, confidence.shape))
        for b in range(BATCH):
            for token in np.flatnonzero(masked[b]):
                row = logits[b, token].astype(np.float64)
                indices[b, token] = drawn[b, token]
                shares = np.exp(row - row.max())
                confidence[b, token] = shares[drawn[b, token]] / shares.sum()
        history.append((masked.copy(), indices.copy(), confidence.copy()))
        after = np.zeros_like(masked)
        for b in range(BATCH):
            score = confidence[b].astype(np.float64)
            if options.gumbel:
                scale = options.gumbel * (1 - (t + 1) / steps)
                score = np.log(score) + scale * noise[b]
            candidates = range(TOKENS)
            if options.remask == "drawn":
                candidates = np.flatnonzero(masked[b])
            ranked = sorted(candidates, key=lambda i: (score[i], i))
            after[b, ranked[: counts[t + 1]]] = True
        masked = after
    return indices, confidence, logits, history


@pytest.mark.parametrize("name", OPTIONS)
def test_the_compiled_loop_equals_a_slow_one(name):
    predict, options, steps = state_model(), OPTIONS[name], 5
    schedule = "linear" if name == "gumbel" else "cosine"
    found = jax.jit(
        lambda key: sample(
            key,
            predict,
            batch=BATCH,
            tokens=TOKENS,
            steps=steps,
            schedule=schedule,
            options=options,
        )
    )(KEY)
    indices, confidence, logits, history = reference(
        KEY, predict, steps, schedule, options
    )
    np.testing.assert_array_equal(found.indices, indices)
    np.testing.assert_allclose(found.confidence, confidence, rtol=2e-5)
    np.testing.assert_allclose(found.logits, logits, rtol=1e-4, atol=1e-5)
    for t, (masked, then, sure) in enumerate(history):
        np.testing.assert_array_equal(found.history.masked[t], masked)
        np.testing.assert_array_equal(found.history.indices[t], then)
        np.testing.assert_allclose(found.history.confidence[t], sure, rtol=2e-5)


def test_fixed_tokens_are_looked_at_again_unless_they_stay():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(BATCH, TOKENS, CODES)).astype(np.float32)

    def surer_and_surer(indices, masked):
        return logits * (1 + jnp.sum(~masked, axis=-1)[:, None, None])

    looked_again = {}
    for remask in REMASK:
        found = sample(
            KEY,
            surer_and_surer,
            batch=BATCH,
            tokens=TOKENS,
            options=Sampling(remask=remask),
        )
        masked = np.asarray(found.history.masked)
        looked_again[remask] = (masked[1:] & ~masked[:-1]).any()
        # Whatever is hidden, the counts are the schedule's.
        counts = np.broadcast_to(
            np.array(step_counts(TOKENS, 5)[:-1])[:, None], (5, BATCH)
        )
        np.testing.assert_array_equal(masked.sum(axis=-1), counts)
    assert looked_again == {"all": True, "drawn": False}


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        *((name, 5) for name in OPTIONS if name != "nth"),
        *(("default", steps) for steps in (1, 2, 3, 10)),
    ],
)
def test_a_model_that_knows_the_truth_gives_it(name, steps):
    truth = np.random.default_rng(1).integers(0, CODES, (BATCH, TOKENS))
    logits = 200.0 * jax.nn.one_hot(truth, CODES)
    found = sample(
        KEY,
        lambda indices, masked: logits,
        batch=BATCH,
        tokens=TOKENS,
        steps=steps,
        options=OPTIONS[name],
    )
    np.testing.assert_array_equal(found.indices, truth)
    np.testing.assert_allclose(found.confidence, 1)
    np.testing.assert_array_equal(found.logits, logits)


def test_the_nth_code_is_the_nth_of_each_row():
    logits = jnp.float32(np.random.default_rng(2).normal(size=(BATCH, TOKENS, CODES)))
    order = np.argsort(-np.asarray(logits), axis=-1)
    for nth in (1, 2, CODES):
        found = masked_tokens.draw(KEY, logits, Sampling(nth=nth))
        np.testing.assert_array_equal(found, order[..., nth - 1])


@pytest.mark.parametrize("name", ["top_k", "top share", "top_p", "both"])
def test_filters_never_choose_outside_and_choose_all_inside(name):
    options = CHANCE[name]
    logits = np.random.default_rng(3).normal(0, 0.8, 40).astype(np.float32)
    keys = jax.random.split(KEY, 4000)
    draws = jax.vmap(lambda key: masked_tokens.draw(key, jnp.asarray(logits), options))
    drawn = np.bincount(draws(keys), minlength=40) / len(keys)
    scaled = logits / options.temperature
    order = np.argsort(-scaled)
    if options.top_k:
        k = options.top_k
        order = order[: k if k >= 1 else int(np.ceil(k * 40))]
    probs = np.exp(scaled[order])
    probs /= probs.sum()
    if options.top_p < 1:
        number = int(np.searchsorted(np.cumsum(probs), options.top_p)) + 1
        assert 1 < number < len(order)
        order, probs = order[:number], probs[:number] / probs[:number].sum()
    assert not np.delete(drawn, order).any()
    np.testing.assert_allclose(drawn[order], probs, atol=0.04)


def test_equally_probable_codes_do_not_widen_the_filters():
    rows = jnp.zeros((500, CODES))
    for options, allowed in (
        (Sampling(temperature=1.0, top_k=3), 3),
        (Sampling(temperature=1.0, top_p=2.5 / CODES), 3),
        (Sampling(temperature=1.0, top_p=1e-9), 1),
    ):
        drawn = np.asarray(masked_tokens.draw(KEY, rows, options))
        assert len(np.unique(drawn)) == allowed


def test_without_temperature_chance_has_no_part():
    predict = state_model()
    greedy = jax.jit(lambda key: sample(key, predict, batch=BATCH, tokens=TOKENS))
    runs = [greedy(jax.random.key(i)) for i in (0, 1)]
    np.testing.assert_array_equal(runs[0].indices, runs[1].indices)
    cold = sample(
        KEY,
        predict,
        batch=BATCH,
        tokens=TOKENS,
        options=Sampling(temperature=1e-6),
    )
    np.testing.assert_array_equal(cold.indices, runs[0].indices)
    np.testing.assert_array_equal(
        masked_tokens.draw(KEY, runs[0].logits, Sampling()),
        np.argmax(runs[0].logits, axis=-1),
    )


@pytest.mark.parametrize("name", ["temperature", "gumbel"])
def test_the_same_key_gives_the_same_tokens_another_key_others(name):
    predict, options = state_model(), CHANCE[name]

    @jax.jit
    def run(key):
        found = sample(key, predict, batch=BATCH, tokens=TOKENS, options=options)
        return found.indices

    first = np.asarray(run(KEY))
    np.testing.assert_array_equal(first, run(KEY))
    assert (first != np.asarray(run(jax.random.key(0)))).any()


def test_many_keys_at_once_are_the_runs_of_each():
    predict, options = state_model(), CHANCE["both"]

    def run(key):
        return sample(key, predict, batch=BATCH, tokens=TOKENS, options=options)

    keys = jax.random.split(KEY, 3)
    together, one = jax.jit(jax.vmap(run))(keys), jax.jit(run)
    for i, key in enumerate(keys):
        alone = one(key)
        np.testing.assert_array_equal(together.indices[i], alone.indices)
        np.testing.assert_allclose(together.confidence[i], alone.confidence, rtol=1e-5)


def test_confidence_is_float32_and_says_what_the_model_says():
    logits = jnp.asarray(
        np.random.default_rng(0).normal(size=(1, 4, CODES)), "bfloat16"
    )
    # Not of the filtered and flattened distribution that is drawn from.
    options = Sampling(temperature=3.0, top_k=2)
    found = sample(
        KEY, lambda i, m: logits, batch=1, tokens=4, steps=2, options=options
    )
    assert found.logits.dtype == found.confidence.dtype == jnp.float32
    exact = np.asarray(logits, np.float64)
    probs = np.exp(exact) / np.exp(exact).sum(-1, keepdims=True)
    expected = np.take_along_axis(probs, np.asarray(found.indices)[..., None], -1)
    np.testing.assert_allclose(found.confidence, expected[..., 0], rtol=1e-5)


class Filler(nn.Module):
    """A Linen model that fills tokens inside a method of its own."""

    def setup(self):
        self.embed = nn.Embed(CODES + 1, 8)
        self.head = nn.Dense(CODES)

    def __call__(self, indices, masked):
        x = self.embed(jnp.where(masked, CODES, indices))
        return self.head(x + jnp.mean(x, axis=1, keepdims=True))

    def fill(self, key):
        return sample(key, self, batch=2, tokens=TOKENS, options=CHANCE["temperature"])


def test_a_flax_module_can_be_sampled_from_within():
    model = Filler()
    start = jnp.zeros((2, TOKENS), jnp.int32)
    variables = model.init(KEY, start, start > 0)
    inside = jax.jit(lambda key: model.apply(variables, key, method="fill"))(KEY)
    outside = sample(
        KEY,
        lambda indices, masked: model.apply(variables, indices, masked),
        batch=2,
        tokens=TOKENS,
        options=CHANCE["temperature"],
    )
    np.testing.assert_array_equal(inside.indices, outside.indices)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (Sampling(temperature=-1.0), r"temperature=-1.0 must be 0 or more"),
        (Sampling(gumbel=-1.0), r"gumbel=-1.0 must be 0 or more"),
        (Sampling(top_k=1.5), r"top_k=1.5 must be a whole number, or a share"),
        (Sampling(top_k=-3), r"top_k=-3 must be"),
        (Sampling(top_k=CODES + 1, temperature=1.0), r"top_k=12: there are 11 codes"),
        (Sampling(top_p=0.0), r"top_p=0.0 must be above 0, up to 1"),
        (Sampling(nth=0), r"nth=0 must be 1 or more"),
        (Sampling(nth=12), r"nth=12: there are 11 codes"),
        (Sampling(nth=2, temperature=1.0), r"nth=2 is a choice without chance"),
        (Sampling(remask="some"), r"remask='some' must be one of all, drawn"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        sample(KEY, state_model(), batch=BATCH, tokens=TOKENS, options=options)
