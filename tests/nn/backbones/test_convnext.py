import importlib.util

import flax.linen as nn
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
from handjax.nn.backbones import convnext

STRIDES = ("stride4", "stride8", "stride16", "stride32")


def golden(name):
    stored, shapes = read_golden(GOLDEN / f"{name}.npz")
    return stored, random_state_dict(shapes)


@pytest.mark.parametrize(
    "name", ["convnext_test", pytest.param("convnext_tiny", marks=pytest.mark.slow)]
)
def test_maps_equal_timm(name):
    stored, weights = golden(name)
    variables = convnext.import_torch(weights)
    model = backbones.build(name, drop_path_rate=0.5)
    maps = jax.jit(model.apply)(variables, random_image(64, batch=1))
    for tap in (*STRIDES, "final"):
        expected = stored[f"64_{tap}"]
        error = np.abs(sample(maps[tap]) - expected).max() / expected[0]
        assert error < 1e-5, tap


@pytest.mark.parity
@pytest.mark.slow
def test_live_timm_agrees():
    torch = pytest.importorskip("torch")
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    model = import_timm().create_model("convnext_base").eval()
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    weights = random_state_dict(shapes)
    model.load_state_dict({k: torch.tensor(v) for k, v in weights.items()})
    image = random_image(64)
    with torch.no_grad():
        torch_image = torch.tensor(image).permute(0, 3, 1, 2)
        expected = model.forward_intermediates(torch_image, intermediates_only=True)
    variables = convnext.import_torch(weights)
    maps = jax.jit(backbones.build("convnext_base").apply)(variables, image)
    for tap, value in zip(STRIDES, expected, strict=True):
        value = value.permute(0, 2, 3, 1).numpy()
        scale = np.abs(value).max()
        np.testing.assert_allclose(maps[tap], value, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize(
    ("name", "count"), [("convnext_tiny", 27_818_592), ("convnext_base", 87_564_416)]
)
def test_every_size_has_the_shapes_it_announces(name, count):
    image = jax.ShapeDtypeStruct((2, 64, 96, 3), jnp.float32)
    model = backbones.build(name)
    maps, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
    for i, (tap, width) in enumerate(
        zip(STRIDES, convnext.VARIANTS[name].widths, strict=True)
    ):
        stride = 4 * 2**i
        assert maps[tap].shape == (2, 64 // stride, 96 // stride, width)
    assert maps["final"].shape == (2, 2, 3, backbones.num_features(name))
    assert count == sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def test_import_names_what_does_not_fit():
    _, weights = golden("convnext_test")
    del weights["stages.2.blocks.1.gamma"]
    with pytest.raises(ValueError, match=r"(?s)convnext_test.*stages_2/blocks_1/gamma"):
        convnext.import_torch(weights)


def test_branches_are_dropped_in_training():
    """Not in inference: `test_maps_equal_timm` has a rate too."""
    block = convnext.Block(0.5, 1.0, jnp.float32)
    image = jnp.asarray(random_image(4))

    @jax.jit
    def draw(seed):
        rngs = {"params": jax.random.key(0), "dropout": jax.random.key(seed)}
        return block.init_with_output(rngs, image, True)[0]

    added = jnp.stack([draw(seed) for seed in range(8)]) - image[None]
    dropped = jnp.all(added == 0, axis=(2, 3, 4))
    assert 0 < jnp.sum(dropped) < dropped.size


def test_drop_path_rates_grow_linearly():
    model = backbones.build("convnext_test", drop_path_rate=0.4)
    rates = []

    def note(call, args, kwargs, context):
        if isinstance(context.module, convnext.Block):
            rates.append(context.module.drop_path_rate)
        return call(*args, **kwargs)

    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    with nn.intercept_methods(note):
        jax.eval_shape(model.init, jax.random.key(0), image)
    np.testing.assert_allclose(rates, [0.0, 0.1, 0.2, 0.3, 0.4])


def test_bfloat16_keeps_float32_parameters():
    model = backbones.build("convnext_test", dtype=jnp.bfloat16)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    maps, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
    assert {leaf.dtype for leaf in jax.tree.leaves(maps)} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
