"""Masked tokens: schedules, masks for training, confidence-guided sampling.

A model that learnt to tell hidden tokens from the others fills a hand in a few steps:
all tokens are hidden; at each step it says what every hidden one may be, one code is
drawn for each, and the least certain are hidden again, fewer at every step (MaskGIT,
and MMHMR after it). `sample` is that loop, compiled as one; what the model is does not
matter to it.

Conventions: `masked` is True where a token is hidden, and its index then means nothing
(it is 0). Everything here is float32, whatever the model computes in.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from handjax.errors import UserError
from handjax.nn.ops import largest

SCHEDULES = {
    "cosine": lambda x: jnp.cos(0.5 * jnp.pi * x),
    "linear": lambda x: 1 - x,
    "square": lambda x: 1 - x**2,
    "sqrt": lambda x: 1 - jnp.sqrt(x),
}
"""Share of the tokens that is hidden at x, from 1 at x = 0 to 0 at x = 1. "cosine" is
the paper's. "square" is slower than it at first, "linear" and then "sqrt" faster."""

REMASK = {
    "all": "the least certain of all tokens, fixed ones with the confidence that they "
    "were drawn with",
    "drawn": "the least certain of those just drawn; what is fixed stays",
}
"""Which tokens may be hidden again. The paper re-masks the lowest confidences without
an exception, so "all" is the default; it lets a token that was guessed early, when
little was known, be looked at again. MoMask and MaskGIT fix tokens for good."""

Predict = Callable[[Any, Any], Any]
"""Indices and masked (each [batch, token]) to logits [batch, token, code]."""


class Sampling(NamedTuple):
    """How a code is drawn from what the model says, and what is hidden again.

    The default is the most probable code, without chance: the paper's reported numbers
    are of its Top-1.
    """

    temperature: float = 0.0
    """0: the most probable code. Above: drawn from softmax(logits / temperature)."""
    gumbel: float = 0.0
    """Strength of Gumbel noise on log confidences when it is chosen what to hide again;
    falls to 0 in a straight line over the steps (MaskGIT's "choice temperature")."""
    top_k: int | float = 0
    """Draw among so many most probable codes; below 1 a share of the codebook, rounded
    up (the paper's text-to-mesh: 0.05); 0: among all."""
    top_p: float = 1.0
    """Draw among the fewest most probable codes with this probability together."""
    nth: int = 1
    """At temperature 0: the n-th most probable code instead of the first (Table 12)."""
    remask: str = "all"
    """A key of `REMASK`."""


class History(NamedTuple):
    """What happened at each step (the paper's Figure 9)."""

    masked: Bool[Array, "step batch token"]
    """Hidden before the step."""
    indices: Int[Array, "step batch token"]
    """All tokens after the step's draw, before any is hidden again."""
    confidence: Float[Array, "step batch token"]
    """Theirs."""


class Sampled(NamedTuple):
    """Filled tokens."""

    indices: Int[Array, "batch token"]
    confidence: Float[Array, "batch token"]
    """Probability that the model gave to the code when it was drawn; always
    softmax(logits), so that it means the same whatever `Sampling` draws from."""
    logits: Float[Array, "batch token code"]
    """Of the last step."""
    history: History


# --- how many -----------------------------------------------------------------------


def gamma(x: Any, schedule: str = "cosine") -> Any:
    """Share of the tokens that is hidden at x, which goes from 0 to 1."""
    if schedule not in SCHEDULES:
        raise UserError(f"schedule={schedule!r} is not one of {', '.join(SCHEDULES)}.")
    return SCHEDULES[schedule](jnp.asarray(x, jnp.float32))


def num_masked(share: Any, tokens: int) -> Any:
    """Return ceil(share x tokens), int32, ignoring 0.001 of a token.

    So cos(pi / 2), which is not quite 0, hides no token.
    """
    count = jnp.ceil(jnp.asarray(share, jnp.float32) * tokens - 1e-3)
    return jnp.clip(count, 0, tokens).astype(jnp.int32)


def step_counts(tokens: int, steps: int, schedule: str = "cosine") -> tuple[int, ...]:
    """Return the masked tokens before each step, and after the last: none.

    ceil(gamma(t / steps) x tokens), t = 0 ... steps; 64, 61, 52, 38, 20, 0 for the
    paper's 64 tokens in 5 steps.

    Raises:
        UserError: No step.
    """
    if steps < 1:
        raise UserError(f"steps={steps!r}: sampling takes 1 step at least.")
    with jax.ensure_compile_time_eval():
        at = jnp.arange(steps + 1) / steps
        return tuple(num_masked(gamma(at, schedule), tokens).tolist())


# --- training -----------------------------------------------------------------------


def training_mask(
    key: Array,
    batch: int,
    tokens: int,
    *,
    tau_range: tuple[float, float] = (0.0, 0.7),
    schedule: str = "cosine",
) -> Bool[Array, "batch token"]:
    """Mask ceil(gamma(tau) x tokens) random tokens of each example, one at least.

    This is the paper's masking (MMHMR Eq. masking).

    Args:
        key: For tau, uniform, and which tokens; other ones for each example.
        batch: Examples.
        tokens: Of each.
        tau_range: Lowest and highest tau. 0 hides all; the paper's best is 0 to 0.7,
            which hides 100 to 45 per cent (its Table 7).
        schedule: A key of `SCHEDULES`.

    Raises:
        UserError: The range is not within 0..1, or no such schedule.
    """
    low, high = tau_range
    if not 0 <= low <= high <= 1:
        raise UserError(
            f"tau_range={tau_range!r} must be two numbers, the lower one first, within "
            "0 (all tokens hidden) and 1 (one)."
        )
    tau_key, order_key = jax.random.split(key)
    tau = jax.random.uniform(tau_key, (batch,), minval=low, maxval=high)
    count = jnp.maximum(num_masked(gamma(tau, schedule), tokens), 1)
    return _lowest(jax.random.uniform(order_key, (batch, tokens)), count[:, None])


# --- sampling -----------------------------------------------------------------------


def sample(
    key: Array,
    predict: Predict,
    *,
    batch: int,
    tokens: int,
    steps: int = 5,
    schedule: str = "cosine",
    options: Sampling | None = None,
) -> Sampled:
    """Fill tokens step by step, the most certain first; one loop, inside jit or vmap.

    At step t all hidden tokens are drawn, then the ceil(gamma((t + 1) / steps) x
    tokens) least certain are hidden for the next (MMHMR Eq. sampling); the last step
    hides none.

    Args:
        key: For the draws; not used where chance has no part in `options`.
        predict: (indices, masked) -> logits [batch, token, code]. It is traced once and
            must not create parameters: a model that is being initialised calls its
            layers once outside of the loop.
        batch: Examples.
        tokens: Of each.
        steps: How often the model is asked; 5 is the paper's.
        schedule: A key of `SCHEDULES`.
        options: Default: `Sampling()`.

    Raises:
        UserError: An option that is not allowed.
    """
    options = _checked(options or Sampling())
    counts = step_counts(tokens, steps, schedule)
    indices = jnp.zeros((batch, tokens), jnp.int32)
    masked = jnp.ones((batch, tokens), jnp.bool_)
    shape = jax.eval_shape(predict, indices, masked).shape

    def step(carry, now):
        indices, confidence, masked, _ = carry
        draw_key, noise_key = jax.random.split(now["key"])
        logits = predict(jnp.where(masked, 0, indices), masked).astype(jnp.float32)
        drawn = draw(draw_key, logits, options)
        indices = jnp.where(masked, drawn, indices)
        confidence = jnp.where(masked, probability(logits, drawn), confidence)
        seen = History(masked, indices, confidence)
        order = confidence
        if options.gumbel:
            noise = jax.random.gumbel(noise_key, confidence.shape)
            order = jnp.log(confidence + 1e-20) + now["noise"] * noise
        if options.remask == "drawn":
            order = jnp.where(masked, order, jnp.inf)
        return (indices, confidence, _lowest(order, now["next"]), logits), seen

    start = (indices, jnp.zeros((batch, tokens), jnp.float32), masked)
    now = {
        "key": jax.random.split(key, steps),
        "next": jnp.asarray(counts[1:], jnp.int32),
        "noise": options.gumbel * (1 - jnp.arange(1, steps + 1) / steps),
    }
    (indices, confidence, _, logits), history = jax.lax.scan(
        step, (*start, jnp.zeros(shape, jnp.float32)), now
    )
    return Sampled(indices, confidence, logits, history)


def draw(
    key: Array, logits: Float[Array, "*batch code"], options: Sampling
) -> Int[Array, "*batch"]:
    """Draw one code of each row, as `options` say.

    Temperature first, then the `top_k`, then of these, their probabilities made to add
    up to 1, the `top_p`.

    Raises:
        UserError: `top_k` or `nth` is more than there are codes.
    """
    codes = logits.shape[-1]
    top_k = _top_k(options.top_k, codes)
    if options.nth > codes:
        raise UserError(f"nth={options.nth}: there are {codes} codes.")
    if options.temperature == 0:
        if options.nth == 1:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        return largest.top_k(logits, options.nth)[1][..., -1].astype(jnp.int32)
    scaled = logits / options.temperature
    if top_k == codes and options.top_p == 1:
        return jax.random.categorical(key, scaled).astype(jnp.int32)
    # Sorted, so that the filters are exact where codes are equally probable.
    values, order = largest.top_k(scaled, top_k)
    if options.top_p < 1:
        probs = jax.nn.softmax(values, axis=-1)
        before = jnp.cumsum(probs, axis=-1) - probs
        # The first always stays: nothing is before it.
        first = jnp.arange(top_k) == 0
        keep = (before < options.top_p) | jnp.broadcast_to(first, before.shape)
        values = jnp.where(keep, values, -jnp.inf)
    place = jax.random.categorical(key, values)[..., None]
    return jnp.take_along_axis(order, place, axis=-1)[..., 0].astype(jnp.int32)


def probability(
    logits: Float[Array, "*batch code"], indices: Int[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """Return the softmax at the indices, float32: the confidence of a code."""
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, indices[..., None], axis=-1)[..., 0]
    return jnp.exp(chosen - jax.nn.logsumexp(logits, axis=-1))


def _lowest(values: Any, count: Any) -> Any:
    """Mark the `count` lowest of each row; of equal ones, the first."""
    rank = jnp.argsort(jnp.argsort(values, axis=-1), axis=-1)
    return rank < jnp.broadcast_to(count, rank.shape)


def _top_k(top_k: int | float, codes: int) -> int:
    """Return `Sampling.top_k` as a number of codes."""
    found = math.ceil(top_k * codes) if top_k < 1 else int(top_k)
    if found > codes:
        raise UserError(f"top_k={top_k!r}: there are {codes} codes.")
    return found or codes


def _checked(options: Sampling) -> Sampling:
    """Refuse what cannot be meant."""
    for name, good, allowed in (
        ("temperature", options.temperature >= 0, "0 or more"),
        ("gumbel", options.gumbel >= 0, "0 or more"),
        (
            "top_k",
            0 <= options.top_k < 1 or float(options.top_k).is_integer(),
            "a whole number, or a share between 0 and 1",
        ),
        ("top_k", options.top_k >= 0, "0 or more"),
        ("top_p", 0 < options.top_p <= 1, "above 0, up to 1"),
        ("nth", options.nth >= 1, "1 or more"),
        ("remask", options.remask in REMASK, f"one of {', '.join(REMASK)}"),
    ):
        if not good:
            given = getattr(options, name)
            raise UserError(f"sampling: {name}={given!r} must be {allowed}.")
    if options.nth > 1 and options.temperature > 0:
        raise UserError(
            f"sampling: nth={options.nth} is a choice without chance; give it with "
            f"temperature=0, not {options.temperature!r}."
        )
    return options
