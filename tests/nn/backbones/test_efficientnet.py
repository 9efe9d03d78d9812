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
from handjax.nn.backbones import efficientnet

WIDTHS = {"stride4": 24, "stride8": 40, "stride16": 112, "stride32": 320, "final": 1280}


def test_maps_equal_timm():
    stored, shapes = read_golden(GOLDEN / "efficientnet_b0.npz")
    variables = efficientnet.import_torch(random_state_dict(shapes))
    model = backbones.build("efficientnet_b0", drop_path_rate=0.5)
    maps = jax.jit(model.apply)(variables, random_image(64, batch=1))
    assert set(maps) == set(WIDTHS)
    for tap, value in maps.items():
        expected = stored[f"64_{tap}"]
        error = np.abs(sample(value) - expected).max() / expected[0]
        assert error < 1e-5, tap


@pytest.mark.parity
@pytest.mark.slow
def test_live_timm_agrees_in_inference_and_in_training():
    torch = pytest.importorskip("torch")
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    model = import_timm().create_model("efficientnet_b0").eval()
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    weights = random_state_dict(shapes)
    model.load_state_dict({k: torch.tensor(v) for k, v in weights.items()})
    image = random_image(96)
    torch_image = torch.tensor(image).permute(0, 3, 1, 2)
    variables = efficientnet.import_torch(weights)
    maps = jax.jit(backbones.build("efficientnet_b0").apply)(variables, image)
    with torch.no_grad():
        expected = model.forward_features(torch_image).permute(0, 2, 3, 1).numpy()
        model.train()(torch_image)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(maps["final"], expected, rtol=0, atol=1e-5 * scale)
    after = {key: value.numpy() for key, value in model.state_dict().items()}
    _assert_same_statistics(variables, image, efficientnet.import_torch(after))


def _assert_same_statistics(variables, image, expected):
    @jax.jit
    def train(variables):
        return backbones.build("efficientnet_b0").apply(
            variables, jnp.asarray(image), train=True, mutable=["batch_stats"]
        )[1]

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4),
        train(variables)["batch_stats"],
        expected["batch_stats"],
    )


def test_maps_have_the_shapes_they_announce():
    image = jax.ShapeDtypeStruct((2, 64, 96, 3), jnp.float32)
    model = backbones.build("efficientnet_b0")
    maps, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
    for tap, width in WIDTHS.items():
        stride = int(tap.removeprefix("stride")) if tap != "final" else 32
        assert maps[tap].shape == (2, 64 // stride, 96 // stride, width)
    assert backbones.num_features("efficientnet_b0") == WIDTHS["final"]
    params = jax.tree.leaves(variables["params"])
    assert sum(leaf.size for leaf in params) == 4_007_548


def test_import_names_what_does_not_fit():
    _, shapes = read_golden(GOLDEN / "efficientnet_b0.npz")
    weights = random_state_dict(shapes)
    del weights["blocks.3.1.se.conv_reduce.bias"]
    with pytest.raises(ValueError, match=r"(?s)efficientnet_b0.*blocks_3_1/se"):
        efficientnet.import_torch(weights)


def test_branches_are_dropped_in_training():
    """Not in inference: `test_maps_equal_timm` has a rate too."""
    stage = efficientnet.Stage(1, 4, 3, 1)
    block = efficientnet.Block(stage, first=True, drop_path_rate=0.5, dtype=jnp.float32)
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.standard_normal((2, 4, 4, 4)), jnp.float32)

    @jax.jit
    def draw(seed):
        rngs = {"params": jax.random.key(0), "dropout": jax.random.key(seed)}
        return block.init_with_output(rngs, image, True)[0]

    added = jnp.stack([draw(seed) for seed in range(8)]) - image[None]
    dropped = jnp.all(added == 0, axis=(2, 3, 4))
    assert 0 < jnp.sum(dropped) < dropped.size


def test_drop_path_rates_are_those_of_timm():
    """It divides by the number of blocks, so that the last one is below the rate."""
    model = backbones.build("efficientnet_b0", drop_path_rate=0.16)
    rates = []

    def note(call, args, kwargs, context):
        if isinstance(context.module, efficientnet.Block):
            rates.append(context.module.drop_path_rate)
        return call(*args, **kwargs)

    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    with nn.intercept_methods(note):
        jax.eval_shape(model.init, jax.random.key(0), image)
    np.testing.assert_allclose(rates, 0.01 * np.arange(16))


@pytest.mark.parametrize(("name", "fan_out"), [("conv_dw", 5 * 5), ("conv_pw", 72)])
def test_initial_kernels_keep_the_scale_of_each_channel(name, fan_out):
    """torch counts the outputs of one group; Flax, those of all groups."""
    model = backbones.build("efficientnet_test")

    @jax.jit
    def kernel(key):
        variables = model.init(key, jnp.zeros((1, 32, 32, 3)))
        return variables["params"]["blocks_2_0"][name]["kernel"]

    deviation = jnp.std(kernel(jax.random.key(0)))
    np.testing.assert_allclose(deviation, np.sqrt(2 / fan_out), rtol=0.1)


def test_bfloat16_keeps_float32_parameters():
    model = backbones.build("efficientnet_test", dtype=jnp.bfloat16)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    maps, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
    assert {leaf.dtype for leaf in jax.tree.leaves(maps)} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
