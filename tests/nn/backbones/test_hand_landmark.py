"""The hand networks equal the TensorFlow Lite runtime, with the weights that ship."""

import functools
import hashlib
import importlib.util
import re

import jax
import jax.numpy as jnp
import make_hand_networks as golden
import numpy as np
import pytest
from places import ROOT

from handjax.nn import backbones, palm_detection
from handjax.nn.backbones import hand_landmark
from handjax.nn.ops import same_conv

NAMES = tuple(hand_landmark.VARIANTS)


@pytest.fixture(scope="module")
def stored():
    with np.load(ROOT / "tests" / "golden" / "hand_networks.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def networks():
    """Compiled once for all tests; weights as they ship."""

    palm = palm_detection.PalmDetectionNetwork()
    found = {"palm_detection_full": _jitted(palm, palm_detection.pretrained())}
    for name in NAMES:
        variables = hand_landmark.pretrained(name)
        found[name] = _jitted(backbones.build(name), variables, method="landmarks")
    return found


def _jitted(model, variables, **options):
    run = jax.jit(lambda variables, image: model.apply(variables, image, **options))
    return functools.partial(run, variables)


# Against float64, the lite network is off by 1.3e-4 pixels on rendered and real crops,
# and the TensorFlow Lite runtime by 7.6e-4 (palm detector: 3.5e-4 and 8.5e-4).
TOLERANCES = {
    "screen_px": 5e-4,
    "world": 2e-6,
    "presence": 1e-5,
    "is_right": 1e-5,
    "boxes": 3e-4,
    "logits": 1e-4,
}


def _assert_equal(found, expected, every=1):
    assert set(found._asdict()) == set(expected)
    for key, value in found._asdict().items():
        ours = np.atleast_1d(np.asarray(value)[0])[::every]
        ours = ours.reshape(expected[key].shape)
        np.testing.assert_allclose(ours, expected[key], rtol=0, atol=TOLERANCES[key])


@pytest.mark.parametrize("name", [*NAMES, "palm_detection_full"])
def test_outputs_equal_the_runtime(stored, networks, name):
    palm = name == "palm_detection_full"
    for seed in golden.SEEDS:
        found = networks[name](golden.picture(golden.FILES[name][1], seed))
        prefix = f"{name}/{seed}/"
        expected = {k[len(prefix) :]: v for k, v in stored.items() if prefix in k}
        _assert_equal(found, expected, golden.EVERY if palm else 1)


@pytest.mark.parity
@pytest.mark.parametrize("name", [*NAMES, "palm_detection_full"])
def test_outputs_equal_the_runtime_live(networks, name):
    import os

    folder = os.environ.get("MEDIAPIPE_WHEEL", "")
    if not folder or importlib.util.find_spec("ai_edge_litert") is None:
        pytest.skip("set MEDIAPIPE_WHEEL to the unpacked wheel; pip install parity")
    for seed in range(2, 6):
        found = networks[name](golden.picture(golden.FILES[name][1], seed))
        _assert_equal(found, golden.outputs(folder, name, seed))


def test_the_assets_are_those_of_the_notice():
    notice = (ROOT / "handjax" / "assets" / "NOTICE.md").read_text()
    told = dict(re.findall(r"`(\w+\.safetensors)` \| `([0-9a-f]{64})`", notice))
    assets = [hand_landmark.VARIANTS[name].asset for name in NAMES]
    assert set(told) == {f"{a}.safetensors" for a in [*assets, palm_detection.ASSET]}
    for name, sha256 in told.items():
        data = (ROOT / "handjax" / "assets" / name).read_bytes()
        assert hashlib.sha256(data).hexdigest() == sha256, name
    for words in ("The MediaPipe Authors", "Apache License, Version 2.0", "Changes:"):
        assert words in notice


@pytest.mark.parametrize("name", NAMES)
def test_maps_have_the_shapes_they_announce(name):
    image = jax.ShapeDtypeStruct((2, 64, 96, 3), jnp.float32)
    model = backbones.build(name)
    maps, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
    widths = {
        "mediapipe_hand_full": (24, 40, 112, 192),
        "mediapipe_hand_lite": (16, 24, 64, 112),
    }[name]
    for stride, width in zip((4, 8, 16, 32), widths, strict=True):
        assert maps[f"stride{stride}"].shape == (2, 64 // stride, 96 // stride, width)
    assert maps["final"].shape == (2, 2, 3, backbones.num_features(name))
    shipped = jax.tree.map(jnp.shape, hand_landmark.pretrained(name))
    assert jax.tree.map(lambda leaf: leaf.shape, variables) == shipped


def test_the_first_pixel_follows_tensorflows_padding():
    assert [backbones.first_pixel(NAMES[0], s) for s in (4, 8, 16, 32)] == [
        3,
        7,
        15,
        31,
    ]
    # A halving kernel of 3 or 5 has its middle on pixel 1 for the first output.
    for size in (3, 5):
        before, _ = same_conv.same_padding(224, size, 2)
        assert size // 2 - before == 1


@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_padding_equals_xlas_same(size, stride):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 12, 16, 6)), jnp.float32)
    layer = same_conv.SameConv(6, size, stride, groups=6)
    variables = layer.init(jax.random.key(0), x)
    expected = jax.lax.conv_general_dilated(
        x,
        variables["params"]["kernel"],
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=6,
    )
    np.testing.assert_allclose(layer.apply(variables, x), expected, atol=1e-5)


def test_odd_maps_and_unknown_names_are_refused():
    layer = same_conv.SameConv(2, 3, 2, groups=2)
    with pytest.raises(ValueError, match=r"7 x 8 .*multiples of 32"):
        layer.init(jax.random.key(0), jnp.zeros((1, 7, 8, 2)))
    with pytest.raises(ValueError, match="mediapipe_hand_full, mediapipe_hand_lite"):
        hand_landmark.pretrained("mediapipe_hand")
    model = backbones.build(NAMES[0])
    with pytest.raises(ValueError, match="multiples of 32"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 50, 64, 3)))
