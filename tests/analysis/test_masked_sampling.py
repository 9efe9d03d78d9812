import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from handjax.analysis import masked_sampling
from handjax.nn.masked_tokens import History, Sampling
from handjax.types import HandOutput

TOKENS, CODES = 8, 5


class Fills(nn.Module):
    """As MMHMR: an image is seen once, tokens are scored at each step."""

    num_tokens: int = TOKENS

    def setup(self):
        self.table = self.param(
            "table", nn.initializers.normal(1.0), (CODES + 1, TOKENS, CODES)
        )

    def encode_condition(self, image, predicts=False):
        assert predicts
        return jnp.mean(image / 255.0, axis=(1, 2, 3))

    def score(self, seen, indices, masked):
        hot = jax.nn.one_hot(jnp.where(masked, CODES, indices), CODES + 1)
        return jnp.einsum("btk,kuc->buc", hot, self.table) * seen[:, None, None]

    def decode(self, indices):
        size = jnp.sum(indices, axis=1)[:, None, None] * 1e-3
        return HandOutput(size + jnp.zeros((1, 778, 3)), size + jnp.zeros((1, 21, 3)))


def test_filling_is_watched_and_decoded():
    model = Fills()
    image = np.stack([np.full((4, 4, 3), v, np.uint8) for v in (90, 255)])
    table = np.random.default_rng(0).normal(size=(CODES + 1, TOKENS, CODES))
    variables = {"params": {"table": np.float32(table)}}
    found = masked_sampling.watch(
        model, variables, image, steps=3, options=Sampling(temperature=1.0)
    )
    assert found.history.masked.shape == (3, 2, TOKENS)
    np.testing.assert_array_equal(found.history.indices[-1], found.indices)
    # What the model says of all tokens hidden.
    first = table[-1] * TOKENS * 90 / 255
    probs = np.exp(first) / np.exp(first).sum(axis=-1, keepdims=True)
    chosen = found.history.indices[0, 0]
    np.testing.assert_allclose(
        found.history.confidence[0, 0], probs[np.arange(TOKENS), chosen], rtol=1e-4
    )
    steps = masked_sampling.meshes(model, variables, found.history.indices[:, 0])
    assert len(steps) == 3 and steps[0].shape == (778, 3)
    assert steps[-1][0, 0] == pytest.approx(found.indices[0].sum() * 1e-3)


def test_figures_show_counts_and_confidences():
    masked = np.arange(TOKENS)[None, None] < np.array([8, 7, 3])[:, None, None]
    confidence = np.repeat(np.array([0.2, 0.5, 0.9]), TOKENS).reshape(3, 1, TOKENS)
    history = History(masked, 0 * masked.astype(int), confidence)
    bars, line = masked_sampling.progress_figure(history).axes
    assert [bar.get_height() for bar in bars.patches] == [8, 7, 3]
    np.testing.assert_allclose(line.lines[0].get_ydata(), [0.2, 0.5, 0.9])
    figure = masked_sampling.masks_figure(masked[:, 0], ["a", "b", "c"])
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["a: 8", "b: 7", "c: 3"]
