import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from handjax.models.mmhmr import joint_codec
from handjax.models.mmhmr.joint_codec import JointDecoder, JointEncoder, ResidualBlocks

TINY = dict(width=8, depth=2, dilation_growth=3, dilation_order="falling")


def shapes_of(module, *inputs):
    init = functools.partial(module.init, jax.random.key(0))
    return jax.eval_shape(lambda: init(*inputs))


def filled(shapes, seed=0):
    """Variables of ordinary size; to draw them in JAX is much to compile."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: np.float32(0.3 * rng.standard_normal(leaf.shape)), shapes
    )


@pytest.mark.parametrize("joints", [16, 24])
@pytest.mark.parametrize("times", [1, 2, 4, 8])
def test_tokens_are_the_joints_doubled_and_come_back_as_joints(joints, times):
    x = jnp.zeros((2, joints, 6))
    encoder = JointEncoder(times * joints, 12, joints, **TINY)
    tokens, variables = jax.eval_shape(
        lambda: encoder.init_with_output(jax.random.key(0), x)
    )
    assert tokens.shape == (2, times * joints, 12)
    doubled = [name for name in variables["params"] if name.startswith("double")]
    assert len(doubled) == times.bit_length()
    decoder = JointDecoder(6, times * joints, joints, **TINY)
    numbers, variables = jax.eval_shape(
        lambda: decoder.init_with_output(
            jax.random.key(0), jnp.zeros((2, times * joints, 12))
        )
    )
    assert numbers.shape == (2, joints, 6)
    steps = [name for name in variables["params"] if name.startswith("shorten")]
    assert len(steps) == times.bit_length()


@pytest.mark.parametrize("tokens", [8, 24, 48, 100])
def test_other_numbers_of_tokens_are_refused(tokens):
    with pytest.raises(ValueError, match=f"={tokens} is not .*; use 16, 32, 64, 128"):
        joint_codec.doublings(tokens, 16)


def test_resizing_takes_the_place_each_falls_into():
    """PyTorch's nearest upsampling."""
    x = jnp.arange(4.0)[None, :, None]
    of = lambda length: joint_codec.resized(x, length)[0, :, 0].tolist()  # noqa: E731
    assert of(8) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert of(3) == [0, 1, 2]
    assert of(6) == [0, 0, 1, 2, 2, 3]


def test_decoder_shortens_in_equal_steps():
    decoder = JointDecoder(6, 64, 16, **TINY)
    x = jnp.zeros((1, 64, 12))
    run = functools.partial(decoder.apply, capture_intermediates=True)
    _, state = jax.eval_shape(run, shapes_of(decoder, x), x)
    inner = state["intermediates"]
    lengths = [inner[f"shorten{i}"]["__call__"][0].shape[1] for i in range(3)]
    assert lengths == [48, 32, 16]


def slow_conv(x, kernel, bias, dilation):
    """Convolution of one list by loops, zeros around it."""
    half, length = len(kernel) // 2, len(x)
    out = np.tile(bias, (length, 1)).astype(np.float64)
    for place in range(length):
        for tap, weights in enumerate(kernel):
            source = place + (tap - half) * dilation
            if 0 <= source < length:
                out[place] += x[source] @ weights
    return out


@pytest.mark.parametrize(
    "order, dilations", [("falling", (9, 3, 1)), ("rising", (1, 3, 9))]
)
def test_residual_blocks_are_their_formula(order, dilations, rng):
    blocks = ResidualBlocks(3, 3, order)
    x = rng.normal(size=(1, 20, 4))
    variables = filled(shapes_of(blocks, jnp.float32(x)))
    expected = x[0]
    for dilation in dilations:
        i = {1: 0, 3: 1, 9: 2}[dilation]
        wide, narrow = (
            variables["params"][f"{name}{i}"] for name in ("wide", "narrow")
        )
        y = slow_conv(
            np.maximum(expected, 0), wide["kernel"], np.array(wide["bias"]), dilation
        )
        y = np.maximum(y, 0) @ np.array(narrow["kernel"][0]) + narrow["bias"]
        expected = expected + y
    found = blocks.apply(variables, jnp.float32(x))[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="dilation_order='up' is not one of falling"):
        shapes_of(ResidualBlocks(1, 3, "up"), jnp.float32(x))


def test_halving_sees_pairs_and_their_neighbours(rng):
    """A stride of 2 and a kernel of 4 between zeros keep half of the length."""
    encoder = JointEncoder(16, 4, 16, **TINY | dict(depth=0))
    x = jnp.float32(rng.normal(size=(1, 16, 6)))
    variables = filled(shapes_of(encoder, x))
    _, state = encoder.apply(variables, x, capture_intermediates=True)
    inner = {
        k: v["__call__"][0][0]
        for k, v in state["intermediates"].items()
        if k != "__call__"
    }
    weights = variables["params"]["halve"]
    padded = np.pad(np.maximum(inner["double0"], 0), ((1, 1), (0, 0)))
    expected = [
        sum(padded[2 * i + tap] @ np.array(weights["kernel"][tap]) for tap in range(4))
        for i in range(16)
    ] + np.array(weights["bias"])
    np.testing.assert_allclose(inner["halve"], expected, rtol=1e-4, atol=1e-4)


def test_half_precision_keeps_tokens_and_numbers_in_float32():
    encoder = JointEncoder(16, 4, 16, dtype=jnp.bfloat16, **TINY)
    decoder = JointDecoder(6, 16, 16, dtype=jnp.bfloat16, **TINY)
    for module, x in ((encoder, (1, 16, 6)), (decoder, (1, 16, 4))):
        out = jax.eval_shape(
            module.apply, shapes_of(module, jnp.zeros(x)), jnp.zeros(x)
        )
        assert out.dtype == jnp.float32


@pytest.fixture
def rng():
    return np.random.default_rng(0)
