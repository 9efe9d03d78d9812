"""Vector quantisation: nearest code, EMA codebook, reset of dead codes.

The codebook is not a parameter: it lives in the Flax collection "codebook"
(`embedding`, `ema_sum`, `ema_count`, `initialized`) and moves by averages of the
tokens, never by the optimiser. Everything here is float32 at the highest matmul
precision: bfloat16 or TF32 distances pick other codes.

Sums run over the whole batch. Under `jit` over a device mesh that is the global batch,
and random draws depend on the key and the batch only, so codebooks do not depend on the
number of devices.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from handjax.types import AnyArray

HIGHEST = jax.lax.Precision.HIGHEST


class CodebookState(NamedTuple):
    """A codebook and the averages that move it."""

    embedding: Float[Array, "code dim"]
    ema_sum: Float[Array, "code dim"]
    """Decayed sum of the tokens given to each code."""
    ema_count: Float[Array, "code"]
    """Decayed number of them."""


class Quantized(NamedTuple):
    """What the quantiser makes of tokens."""

    tokens: Float[Array, "batch token dim"]
    """The codes, with the gradient passed straight through to the encoder's tokens."""
    codes: Float[Array, "batch token dim"]
    """The codes, no gradient."""
    indices: Int[Array, "batch token"]
    metrics: dict[str, Float[Array, ""]]
    """`usage`, `perplexity` of the batch; in training also `dead_codes`, `resets`."""


def nearest_code(
    tokens: Float[AnyArray, "*batch dim"], codebook: Float[AnyArray, "code dim"]
) -> Int[Array, "*batch"]:
    """Index of the nearest code, ties to the lowest (TokenHand Eq. nearest code)."""
    tokens = jnp.asarray(tokens, jnp.float32)
    codebook = jnp.asarray(codebook, jnp.float32)
    score = jnp.einsum("...d,cd->...c", tokens, codebook, precision=HIGHEST)
    norm = jnp.broadcast_to(jnp.sum(codebook**2, axis=-1), score.shape)
    # |t|^2 is the same for every code; leaving it out also loses fewer digits.
    return jnp.argmin(norm - 2 * score, axis=-1)


def straight_through(
    tokens: Float[Array, "*batch"], codes: Float[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """Return `codes`, with the gradient passed to `tokens` as if not quantised."""
    return tokens + jax.lax.stop_gradient(codes - tokens)


def soft_lookup(
    logits: Float[AnyArray, "*batch code"], codebook: Float[AnyArray, "code dim"]
) -> Float[Array, "*batch dim"]:
    """Compute S = softmax(L^) C (TokenHand Eq. soft inference).

    The paper writes L^ C; the codes of its ancestors (PCT, TokenHMR), which write the
    same, take the softmax first.
    """
    probs = jax.nn.softmax(jnp.asarray(logits, jnp.float32), axis=-1)
    return jnp.einsum("...c,cd->...d", probs, codebook, precision=HIGHEST)


def ema_update(
    codes: CodebookState,
    tokens: Float[Array, "n dim"],
    indices: Int[Array, "n"],
    valid: Bool[Array, "n"],
    *,
    decay: float,
    smoothing: float = 0.0,
) -> CodebookState:
    """Move each code to the decayed mean of its tokens.

    n <- decay n + (1 - decay) sum 1[q = k];  s <- the same of t;  c = s / n.

    Args:
        codes: Before the update.
        tokens: Of the whole batch.
        indices: Code of each token.
        valid: Tokens that count.
        decay: 0.99 in T2M-GPT and TokenHMR, 0.9 in PCT.
        smoothing: Laplace smoothing of the counts as in PCT (1e-5 there); 0: none.
    """
    num_codes = codes.ema_count.shape[0]
    tokens = jnp.where(valid[:, None], tokens, 0.0)  # 0 * nan would be nan
    assigned = jax.nn.one_hot(indices, num_codes) * valid[:, None]
    # A matmul, not a scatter: deterministic, and a plain all-reduce over devices.
    sums = jnp.einsum("nc,nd->cd", assigned, tokens, precision=HIGHEST)
    count = decay * codes.ema_count + (1 - decay) * jnp.sum(assigned, axis=0)
    total = decay * codes.ema_sum + (1 - decay) * sums
    if smoothing:
        share = (count + smoothing) / (jnp.sum(count) + num_codes * smoothing)
        count = share * jnp.sum(count)
    # A code that was never used keeps its place until it is reset.
    safe = jnp.maximum(count, 1e-9)[:, None]
    embedding = jnp.where(count[:, None] > 1e-9, total / safe, codes.embedding)
    return CodebookState(embedding, total, count)


def reset_dead(
    codes: CodebookState,
    tokens: Float[Array, "n dim"],
    valid: Bool[Array, "n"],
    rng: Array,
    *,
    below: float,
) -> tuple[CodebookState, Float[Array, ""]]:
    """Move codes whose count is under `below` onto random tokens of the batch.

    Their count becomes 1 and their sum the token, so that a code gets a while to be
    used before it is moved again. Without valid tokens no code is moved.

    Returns:
        The codebook, and how many codes were moved.
    """
    dead = (codes.ema_count < below) & jnp.any(valid)
    fresh = random_rows(rng, tokens, valid, codes.ema_count.shape[0])
    moved = CodebookState(
        embedding=jnp.where(dead[:, None], fresh, codes.embedding),
        ema_sum=jnp.where(dead[:, None], fresh, codes.ema_sum),
        ema_count=jnp.where(dead, 1.0, codes.ema_count),
    )
    return moved, jnp.sum(dead).astype(jnp.float32)


def random_rows(
    rng: Array, rows: Float[Array, "n dim"], valid: Bool[Array, "n"], num: int
) -> Float[Array, "num dim"]:
    """Draw `num` different valid rows; where there are fewer, repeats with noise.

    The noise, 0.01 / sqrt(dim), keeps repeated codes apart so that they can part ways.
    """
    key, noise_key = jax.random.split(rng)
    # Sorting random keys draws without replacement; invalid rows sort last.
    order = jnp.argsort(jax.random.uniform(key, valid.shape) + 2.0 * ~valid)
    available = jnp.maximum(jnp.sum(valid), 1)
    position = jnp.arange(num)
    chosen = rows[order[position % available]]
    noise = jax.random.normal(noise_key, chosen.shape) * (0.01 / rows.shape[-1] ** 0.5)
    return chosen + jnp.where(position[:, None] < available, 0.0, noise)


def usage_counts(
    indices: Int[Array, "n"], valid: Bool[Array, "n"], num_codes: int
) -> Float[Array, "code"]:
    """Count how many valid tokens chose each code."""
    return jnp.sum(jax.nn.one_hot(indices, num_codes) * valid[:, None], axis=0)


def perplexity(counts: Float[Array, "code"]) -> Float[Array, ""]:
    """Compute exp(-sum p ln(p + 1e-7)), the number of codes if used evenly."""
    p = counts / jnp.maximum(jnp.sum(counts), 1.0)
    return jnp.exp(-jnp.sum(p * jnp.log(p + 1e-7)))


class VectorQuantizer(nn.Module):
    """Codebook shared by all tokens.

    EMA 0.99 with reset of codes under a count of 1 is the recipe of T2M-GPT and
    TokenHMR, from whom TokenHand takes it; `decay=0.9, reset_below=0, smoothing=1e-5`
    is PCT's.
    """

    num_codes: int
    dim: int
    decay: float = 0.99
    reset_below: float = 1.0
    smoothing: float = 0.0

    def setup(self):
        """Declare the collection "codebook"."""
        shape = (self.num_codes, self.dim)
        # Only a placeholder: the first training batch replaces it.
        self.embedding = self.variable(
            "codebook",
            "embedding",
            lambda: jax.random.normal(self.make_rng("params"), shape),
        )
        self.ema_sum = self.variable(
            "codebook", "ema_sum", lambda: jnp.zeros(shape, jnp.float32)
        )
        self.ema_count = self.variable(
            "codebook", "ema_count", lambda: jnp.zeros(shape[:1], jnp.float32)
        )
        self.initialized = self.variable(
            "codebook", "initialized", lambda: jnp.zeros((), jnp.bool_)
        )

    def __call__(
        self,
        tokens: Float[Array, "batch token dim"],
        valid: Bool[Array, "batch"] | None = None,
        *,
        train: bool = False,
    ) -> Quantized:
        """Quantise tokens; `train` also moves the codebook (needs rng "codebook").

        Args:
            tokens: Encoder output.
            valid: Examples that may move the codebook, whose tokens have to be finite;
                all by default. A batch without any leaves it as it is.
            train: Whether the codebook moves. The tokens are quantised with the
                codebook as it was before the move.
        """
        tokens = tokens.astype(jnp.float32)
        batch, per_example, dim = tokens.shape
        rows = jax.lax.stop_gradient(tokens).reshape(-1, dim)
        if valid is None:
            valid = jnp.ones(batch, jnp.bool_)
        row_valid = jnp.repeat(jnp.asarray(valid), per_example)
        before = CodebookState(
            jnp.asarray(self.embedding.value),
            jnp.asarray(self.ema_sum.value),
            jnp.asarray(self.ema_count.value),
        )
        if train:
            init_rng, reset_rng = jax.random.split(self.make_rng("codebook"))
            before = self._first_batch(before, rows, row_valid, init_rng)
        flat = nearest_code(rows, before.embedding)
        counts = usage_counts(flat, row_valid, self.num_codes)
        metrics = {
            "usage": jnp.mean((counts > 0).astype(jnp.float32)),
            "perplexity": perplexity(counts),
        }
        if train:
            metrics |= self._move(before, rows, flat, row_valid, reset_rng)
        indices = flat.reshape(batch, per_example)
        codes = before.embedding[indices]
        return Quantized(straight_through(tokens, codes), codes, indices, metrics)

    def lookup(
        self, indices: Int[Array, "batch token"]
    ) -> Float[Array, "batch token dim"]:
        """Return the code vectors of indices."""
        return jnp.asarray(self.embedding.value)[indices]

    def _first_batch(
        self, codes: CodebookState, rows: Any, valid: Any, rng: Array
    ) -> CodebookState:
        start = random_rows(rng, rows, valid, self.num_codes)
        fresh = CodebookState(start, start, jnp.ones(self.num_codes, jnp.float32))
        done = self.initialized.value | ~jnp.any(valid)
        return jax.tree.map(lambda old, new: jnp.where(done, old, new), codes, fresh)

    def _move(
        self, codes: CodebookState, rows: Any, indices: Any, valid: Any, rng: Array
    ) -> dict[str, Float[Array, ""]]:
        some, before = jnp.any(valid), codes
        codes = ema_update(
            codes, rows, indices, valid, decay=self.decay, smoothing=self.smoothing
        )
        codes = jax.tree.map(lambda old, new: jnp.where(some, new, old), before, codes)
        dead = jnp.sum(codes.ema_count < (self.reset_below or 1.0))
        resets = jnp.zeros((), jnp.float32)
        if self.reset_below > 0:
            codes, resets = reset_dead(codes, rows, valid, rng, below=self.reset_below)
        self.embedding.value = codes.embedding
        self.ema_sum.value = codes.ema_sum
        self.ema_count.value = codes.ema_count
        self.initialized.value = self.initialized.value | some
        return {"dead_codes": dead.astype(jnp.float32), "resets": resets}
