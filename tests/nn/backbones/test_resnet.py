import jax
import jax.numpy as jnp
import numpy as np
import pytest
from places import GOLDEN
from torch_reference import random_image, random_state_dict, read_golden, sample

from handjax.nn import backbones
from handjax.nn.backbones import resnet

TAPS = ("stride4", "stride8", "stride16", "stride32")


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_maps_equal_timm(name):
    stored, shapes = read_golden(GOLDEN / f"{name}.npz")
    variables = resnet.import_torch(random_state_dict(shapes))
    maps = jax.jit(backbones.build(name).apply)(variables, random_image(64, batch=1))
    for tap in TAPS:
        expected = stored[f"64_{tap}"]
        error = np.abs(sample(maps[tap]) - expected).max() / expected[0]
        assert error < 1e-5, tap
    np.testing.assert_array_equal(maps["final"], maps["stride32"])


@pytest.mark.parametrize("name", sorted(resnet.VARIANTS))
def test_every_size_has_the_shapes_it_announces(name):
    image = jax.ShapeDtypeStruct((2, 64, 96, 3), jnp.float32)
    model = backbones.build(name)
    maps, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
    for i, tap in enumerate(TAPS):
        assert maps[tap].shape[:3] == (2, 64 // (4 * 2**i), 96 // (4 * 2**i))
    assert maps["final"].shape[-1] == backbones.num_features(name)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    published = {"resnet18": 11.18, "resnet34": 21.28, "resnet50": 23.51}
    assert round(count / 1e6, 2) == published[name]


def test_import_names_what_does_not_fit():
    _, shapes = read_golden(GOLDEN / "resnet18.npz")
    weights = random_state_dict(shapes)
    del weights["layer2.0.downsample.0.weight"]
    with pytest.raises(ValueError, match=r"resnet18. .*1 entry.*downsample_0"):
        resnet.import_torch(weights)


@pytest.mark.parametrize("name", ["resnet18", "fastvit_t8"])
def test_backbones_are_built_alike(name):
    """So that a config changes the backbone alone."""
    model = backbones.build(name, drop_path_rate=0.2, dtype=jnp.float32)
    assert backbones.num_features(name) > 0 and model.dtype == jnp.float32
