import functools
import importlib.util

import chex
import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from places import GOLDEN
from torch_reference import (
    import_timm,
    random_image,
    random_state_dict,
    read_golden,
    sample,
)

from handjax.nn import backbones
from handjax.nn.backbones import hiera

TAPS = ("stride4", "stride8", "stride16", "stride32")


@pytest.fixture(scope="module")
def golden():
    """What timm computes with the tiny size, and the weights that it does so with."""
    stored, shapes = read_golden(GOLDEN / "hiera_tiny_224.npz")
    return stored, random_state_dict(shapes)


@pytest.fixture(scope="module")
def small():
    """Shapes of the test size's weights for images of 32 x 32, and of such images."""
    image = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    model = backbones.build("hiera_test")
    return jax.eval_shape(model.init, jax.random.key(0), image), image


def draw(shapes):
    """Weights for these shapes."""
    rng = np.random.default_rng(0)

    def one(leaf):
        fan_in = np.prod(leaf.shape[:-1]) if leaf.ndim in (2, 4) else 1
        return jnp.asarray(rng.standard_normal(leaf.shape) / fan_in**0.5, jnp.float32)

    return jax.tree.map(one, shapes)


def test_maps_equal_timm(golden):
    stored, weights = golden
    variables = hiera.import_torch(weights)
    model = backbones.build("hiera_tiny_224")
    maps = jax.jit(model.apply)(variables, random_image(224, batch=1))
    for tap in TAPS:
        expected = stored[f"224_{tap}"]
        error = np.abs(sample(maps[tap]) - expected).max() / expected[0]
        assert error < 1e-5, tap
    np.testing.assert_array_equal(maps["final"], maps["stride32"])


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("hiera_tiny_224", 27.141),
        ("hiera_small_224", 34.239),
        ("hiera_base_224", 50.756),
        ("hiera_base_plus_224", 69.000),
        ("hiera_large_224", 212.587),
    ],
)
def test_every_size_has_the_shapes_it_announces(name, millions):
    model, size = backbones.build(name), hiera.VARIANTS[name]
    image = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    maps, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
    for i, tap in enumerate(TAPS):
        side = 224 // (4 * 2**i)
        assert maps[tap].shape == (2, side, side, size.width * 2**i)
    features = backbones.num_features(name)
    assert maps["final"].shape == (2, 7, 7, features)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    # Published counts have the normalisation of the classifier.
    assert round((count + 2 * features) / 1e6, 3) == millions


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 96), (96, 96)])
def test_init_takes_images_of_any_multiple_of_32(height, width):
    image = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
    model = backbones.build("hiera_tiny_224")
    maps, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
    assert maps["final"].shape == (1, height // 32, width // 32, 768)
    code = variables["params"]["pos_embed"]
    assert code.shape == (height // 4, width // 4, 96)


def test_windows_are_cut_and_put_back():
    x = jnp.arange(2 * 4 * 6 * 3.0).reshape(2, 4, 6, 3)
    windows = hiera.to_windows(x, (2, 3))
    np.testing.assert_array_equal(windows[1], x[0, :2, 3:].reshape(6, 3))
    np.testing.assert_array_equal(hiera.from_windows(windows, (2, 3), (4, 6)), x)


def test_a_block_drops_whole_branches_of_examples_in_training():
    block = hiera.Block(8, 1, False, None, 0, 0.5, jnp.float32)
    shape = jax.ShapeDtypeStruct((64, 2, 2, 8), jnp.float32)
    init = functools.partial(block.init, train=False)
    params, x = draw((jax.eval_shape(init, jax.random.key(0), shape), shape))

    @jax.jit
    def moved(params, x, key):
        inference = block.apply(params, x, False)
        training = block.apply(params, x, True, rngs={"dropout": key})
        return jnp.abs(jnp.stack([inference, training]) - x[None]).max((2, 3, 4)) > 0

    inference, training = moved(params, x, jax.random.key(0))
    assert inference.all()
    # Both branches are dropped in a quarter of the examples.
    assert 0.6 < training.mean() < 0.9


def test_branches_are_dropped_in_training_only(small):
    model = backbones.build("hiera_test", drop_path_rate=0.5)
    jax.eval_shape(model.apply, *small)
    with pytest.raises(flax.errors.InvalidRngError, match="dropout"):
        jax.eval_shape(functools.partial(model.apply, train=True), *small)


def test_parameters_are_float32_whatever_the_type_of_the_maps(small):
    variables, image = small
    model = backbones.build("hiera_test", dtype=jnp.bfloat16)
    assert jax.eval_shape(model.init, jax.random.key(0), image) == variables
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    maps = jax.eval_shape(model.apply, variables, image)
    assert {leaf.dtype for leaf in jax.tree.leaves(maps)} == {jnp.dtype("bfloat16")}


@pytest.mark.slow
def test_bfloat16_computes_near_float32(small):
    variables, image = draw(small)
    out, expected = (
        jax.jit(backbones.build("hiera_test", dtype=dtype).apply)(variables, image)
        for dtype in (jnp.bfloat16, jnp.float32)
    )
    error = jnp.abs(out["final"].astype(jnp.float32) - expected["final"]).max()
    assert error < 0.05 * jnp.abs(expected["final"]).max()


def test_import_takes_the_names_of_the_authors_package(golden):
    weights = golden[1]
    theirs = {k: v for k, v in weights.items() if not k.startswith("head.")}
    theirs["norm.weight"] = theirs["head.projection.weight"] = np.zeros(3)
    expected = hiera.import_torch(weights)
    chex.assert_trees_all_equal(hiera.import_torch(theirs), expected)


def test_import_names_what_does_not_fit(golden):
    _, weights = golden
    without = {k: v for k, v in weights.items() if k != "blocks.1.proj.weight"}
    with pytest.raises(ValueError, match=r"hiera_tiny_224.*blocks_1/proj/kernel"):
        hiera.import_torch(without)
    code = np.zeros((1, 3000, 96), np.float32)
    with pytest.raises(ValueError, match=r"pos_embed.*\(1, 3000, 96\).*n \* n"):
        hiera.import_torch(weights | {"pos_embed": code})
    without = {k: v for k, v in weights.items() if k != "pos_embed"}
    with pytest.raises(ValueError, match=r"hiera_tiny_224.*pos_embed"):
        hiera.import_torch(without)


@pytest.mark.parametrize(
    ("side", "words"),
    [
        (64, "weights are for 32 x 32.*crop_size=32"),
        (40, "multiples of 32.*crop_size"),
        (224, "weights are for 32 x 32.*crop_size=32"),
    ],
)
def test_images_of_another_size_than_the_weights_are_refused(small, side, words):
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    model = backbones.build("hiera_test")
    with pytest.raises(ValueError, match=f"{side} x {side} .*{words}"):
        jax.eval_shape(model.apply, small[0], image)


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.parametrize("name", ["hiera_tiny_224", "hiera_base_224"])
@pytest.mark.parametrize("side", [96, 224])
def test_live_timm_agrees(name, side):
    torch = pytest.importorskip("torch")
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    model = import_timm().create_model(name, img_size=side).eval()
    model.requires_grad_(False)
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    weights = random_state_dict(shapes)
    model.load_state_dict({k: torch.tensor(v) for k, v in weights.items()})
    image = random_image(side)
    maps = model.forward_intermediates(
        torch.tensor(image).permute(0, 3, 1, 2), intermediates_only=True
    )
    actual = jax.jit(backbones.build(name).apply)(hiera.import_torch(weights), image)
    for tap, value in zip(TAPS, maps, strict=True):
        expected = value.permute(0, 2, 3, 1).numpy()
        error = np.abs(actual[tap] - expected).max() / np.abs(expected).max()
        assert error < 1e-5, tap
