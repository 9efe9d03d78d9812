"""CLIP's text tower, against PyTorch and against what causality says."""

import clip_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from handjax import conversion
from handjax.nn.text.clip_text import SIZES, ClipText

TINY = "clip_text_test"
END = SIZES[TINY].vocabulary - 1


@pytest.fixture(scope="module")
def weights():
    return clip_weights.openai(TINY)


@pytest.fixture(scope="module")
def run(weights):
    found = conversion.load("clip_text").convert(weights, conversion.Options())
    return jax.jit(lambda ids: ClipText(TINY).apply(found.variables, ids))


def texts(*ends, length=16):
    """Random ids; each text has its last token at one of `ends`."""
    ids = np.random.default_rng(0).integers(0, END, (len(ends), length))
    for row, end in zip(ids, ends, strict=True):
        row[end] = END
        row[end + 1 :] = 0
    return ids


def test_the_mask_ends_with_the_text(run):
    found = run(texts(5, 15, 1))
    assert found.tokens.shape == (3, 16, 128) and found.pooled.shape == (3, 32)
    np.testing.assert_array_equal(found.mask.sum(axis=1), [6, 16, 2])
    assert bool(found.mask[:, 0].all())


def test_padding_and_later_tokens_change_nothing_before(run):
    ids = texts(5, 5)
    ids[1] = ids[0]
    ids[1, 6:] = END  # Hugging Face pads with the end, CLIP's authors with 0
    found = run(ids)
    np.testing.assert_array_equal(found.mask[0], found.mask[1])
    np.testing.assert_allclose(found.pooled[0], found.pooled[1], atol=1e-6)
    np.testing.assert_allclose(found.tokens[0, :6], found.tokens[1, :6], atol=1e-6)


def test_short_rows_are_those_of_long_ones(weights):
    found = conversion.load("clip_text").convert(weights, conversion.Options())
    ids = texts(5)
    long, short = (
        ClipText(TINY).apply(found.variables, jnp.asarray(x)) for x in (ids, ids[:, :8])
    )
    np.testing.assert_allclose(long.tokens[:, :8], short.tokens, atol=1e-6)
    np.testing.assert_allclose(long.pooled, short.pooled, atol=1e-6)


def test_longer_texts_than_there_are_positions_are_refused():
    with pytest.raises(ValueError, match=r"given 17 token ids .* positions for 16"):
        jax.eval_shape(
            ClipText(TINY).init, jax.random.key(0), jnp.zeros((1, 17), jnp.int32)
        )


@pytest.mark.parametrize(
    "name, parameters",
    [("clip_text_b32", 63_428_096), ("clip_text_l14", 123_650_304)],
)
def test_published_sizes(name, parameters):
    ids = jnp.zeros((1, 77), jnp.int32)
    shapes = jax.eval_shape(ClipText(name).init, jax.random.key(0), ids)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == parameters


@pytest.mark.parity
def test_equal_to_torch(run, weights):
    """A reference written from the paper, with the names of the published weights."""
    torch = pytest.importorskip("torch")
    size = SIZES[TINY]

    class QuickGELU(torch.nn.Module):
        def forward(self, x):
            return x * torch.sigmoid(1.702 * x)

    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            width = size.width
            self.ln_1 = torch.nn.LayerNorm(width)
            self.ln_2 = torch.nn.LayerNorm(width)
            self.attn = torch.nn.MultiheadAttention(width, size.heads, batch_first=True)
            self.mlp = torch.nn.Sequential()
            self.mlp.add_module("c_fc", torch.nn.Linear(width, 4 * width))
            self.mlp.add_module("gelu", QuickGELU())
            self.mlp.add_module("c_proj", torch.nn.Linear(4 * width, width))

        def forward(self, x, later):
            y = self.ln_1(x)
            x = x + self.attn(y, y, y, attn_mask=later, need_weights=False)[0]
            return x + self.mlp(self.ln_2(x))

    layers = torch.nn.ModuleList(Layer() for _ in range(size.layers))
    named = {key: torch.tensor(value) for key, value in weights.items()}
    prefix = "transformer.resblocks."
    layers.load_state_dict(
        {k.removeprefix(prefix): v for k, v in named.items() if k.startswith(prefix)}
    )
    ids = texts(5, 15, 1)
    later = torch.ones(16, 16, dtype=torch.bool).triu(1)
    with torch.no_grad():
        x = named["token_embedding.weight"][torch.tensor(ids)]
        x = x + named["positional_embedding"]
        for layer in layers:
            x = layer(x, later)
        scale, bias = named["ln_final.weight"], named["ln_final.bias"]
        x = torch.nn.functional.layer_norm(x, (size.width,), scale, bias)
        end = torch.tensor(ids).argmax(dim=-1)
        pooled = x[torch.arange(3), end] @ named["text_projection"]
    found = run(ids)
    np.testing.assert_allclose(found.tokens, x, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.pooled, pooled, rtol=1e-5, atol=1e-5)
