import importlib.util

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
from handjax.nn.backbones import _weights, hrnet

TAPS = ("stride4", "stride8", "stride16", "stride32", "final")

slow = pytest.mark.slow


@pytest.fixture(scope="module")
def small():
    """What timm computes with the small size, and the weights that it does so with."""
    stored, shapes = read_golden(GOLDEN / "hrnet_w18_small.npz")
    return stored, random_state_dict(shapes)


def assert_equals_golden(name, stored, weights):
    variables = hrnet.import_torch(weights)
    maps = jax.jit(backbones.build(name).apply)(variables, random_image(64, batch=1))
    for tap in TAPS:
        expected = stored[f"64_{tap}"]
        error = np.abs(sample(maps[tap]) - expected).max() / expected[0]
        assert error < 1e-5, tap


def test_maps_of_the_small_size_equal_timm(small):
    assert_equals_golden("hrnet_w18_small", *small)


@slow
def test_maps_equal_timm():
    stored, shapes = read_golden(GOLDEN / "hrnet_w18.npz")
    assert_equals_golden("hrnet_w18", stored, random_state_dict(shapes))


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("hrnet_w18_small", 11.1),
        pytest.param("hrnet_w18", 19.3, marks=slow),
        pytest.param("hrnet_w32", 39.2, marks=slow),
        pytest.param("hrnet_w48", 75.4, marks=slow),
        pytest.param("hrnet_w64", 126.0, marks=slow),
    ],
)
def test_every_size_has_the_shapes_it_announces(name, millions):
    image = jax.ShapeDtypeStruct((2, 64, 96, 3), jnp.float32)
    model = backbones.build(name, drop_path_rate=0.2)
    maps, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
    for i, tap in enumerate(TAPS[:4]):
        stride = 4 * 2**i
        assert maps[tap].shape == (2, 64 // stride, 96 // stride, 128 * 2**i)
    assert maps["final"].shape == (2, 2, 3, backbones.num_features(name))
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert round(count / 1e6, 1) == millions


def test_masks_of_weight_decay_by_name_are_those_of_torch(small):
    _, weights = small

    def spared(names):
        return sum("bn" in name or "bias" in name for name in names)

    params = _weights.shapes(hrnet.import_torch(weights)["params"])
    torch_names = [
        name
        for name in weights
        if not name.startswith("classifier") and name.endswith(("weight", "bias"))
    ]
    assert len(params) == len(torch_names)
    assert spared(params) == spared(torch_names)
    assert "stage2_0/fuse_layers_0_1_1/scale" in params


def test_import_names_what_does_not_fit(small):
    _, weights = small
    weights = dict(weights)
    del weights["stage4.0.fuse_layers.3.0.1.0.weight"]
    with pytest.raises(ValueError, match=r"hrnet_w18_small.*fuse_layers_3_0_1_0"):
        hrnet.import_torch(weights)


def test_upsampling_takes_the_nearest_pixel():
    x = jnp.arange(4.0).reshape(1, 2, 2, 1)
    expected = [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    np.testing.assert_array_equal(hrnet.repeat_pixels(x, 2)[0, ..., 0], expected)


def test_sizes_that_cannot_be_halved_are_refused():
    image = jax.ShapeDtypeStruct((1, 64, 72, 3), jnp.float32)
    with pytest.raises(ValueError, match=r"HRNet.*64 x 72.*multiples of 32"):
        jax.eval_shape(backbones.build("hrnet_w18").init, jax.random.key(0), image)


def live(name):
    torch = pytest.importorskip("torch")
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    model = import_timm().create_model(name).eval()
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    weights = random_state_dict(shapes)
    model.load_state_dict({k: torch.tensor(v) for k, v in weights.items()})
    image = random_image(64)
    return model, weights, image, torch.tensor(image).permute(0, 3, 1, 2)


@pytest.mark.parity
@slow
@pytest.mark.parametrize("name", ["hrnet_w18", "hrnet_w64"])
def test_live_timm_agrees_in_inference(name):
    model, weights, image, torch_image = live(name)
    model.requires_grad_(False)
    final, maps = model.forward_intermediates(torch_image)
    actual = jax.jit(backbones.build(name).apply)(hrnet.import_torch(weights), image)
    for tap, value in zip(TAPS, [*maps[1:], final], strict=True):
        expected = value.permute(0, 2, 3, 1).numpy()
        error = np.abs(actual[tap] - expected).max() / np.abs(expected).max()
        assert error < 1e-5, tap


@pytest.mark.parity
@slow
def test_live_timm_moves_the_statistics_alike():
    model, weights, image, torch_image = live("hrnet_w18")
    model.requires_grad_(False)
    final = model.train().forward_features(torch_image).permute(0, 2, 3, 1).numpy()
    after = {key: value.numpy() for key, value in model.state_dict().items()}

    @jax.jit
    def train(variables):
        return backbones.build("hrnet_w18").apply(
            variables, jnp.asarray(image), train=True, mutable=["batch_stats"]
        )

    maps, updated = train(hrnet.import_torch(weights))
    # Normalising by the eight values of the coarsest maps magnifies rounding: torch in
    # float32 is 3e-4 off torch in float64, no less than this is.
    assert np.abs(maps["final"] - final).max() < 1e-3 * np.abs(final).max()
    expected = hrnet.import_torch(after)["batch_stats"]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            a, b, rtol=0, atol=2e-4 * np.abs(b).max()
        ),
        updated["batch_stats"],
        expected,
    )
