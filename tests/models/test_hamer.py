"""HaMeR: what it looks at, its decoder in PyTorch's numbers, what it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from handjax.config.files import load_config
from handjax.family import hand_constants
from handjax.mano.hand_model import HandModel
from handjax.models import hamer
from handjax.nn import mano_head

DECODER = hamer.Decoder(16, 2, 2, 4, 24, jnp.float32)
RNG = np.random.default_rng(0)
PATCHES = RNG.normal(size=(2, 5, 12)).astype(np.float32)
FIELDS = tiny.fields(
    "hamer", decoder_dim=8, decoder_depth=1, decoder_heads=1, decoder_head_dim=8
)


def filled(shapes):
    """Numbers for shapes, all of which show; much faster than a compiled `init`."""
    return jax.tree.map(
        lambda leaf: RNG.normal(0, 0.2, leaf.shape).astype(np.float32), shapes
    )


@functools.cache
def decoder_variables(numbers):
    query = jnp.zeros((2, numbers))
    return filled(jax.eval_shape(DECODER.init, jax.random.key(0), query, PATCHES))


@pytest.fixture(scope="module")
def built():
    """A model on the tiny backbone, its variables and a compiled `predict`."""
    with pytest.MonkeyPatch.context() as patch:
        tiny.patch_backbone(patch)
        model = hamer.Model(
            **FIELDS | dict(root="wrist", joints="mesh", head_init="xavier")
        )
        batch = tiny.batch(2, crop=128)
        hand = tiny.hand()
        init = functools.partial(model.init, batch=batch, hand=hand, method="init_all")
        shapes = jax.eval_shape(init, jax.random.key(0))
        mean = jax.jit(mano_head.mean_parameters)(HandModel(*hand))
        constants = dict(hand=hand.arrays(), mean=mean._asdict(), faces=hand.faces)
        variables = {
            "params": filled(shapes["params"]),
            "batch_stats": jax.tree.map(np.ones_like, filled(shapes["batch_stats"])),
            "constants": constants,
        }
        assert jax.tree.map(np.shape, constants) == jax.tree.map(
            np.shape, shapes["constants"]
        )
        apply = jax.jit(functools.partial(model.apply, method="predict"))
        first = jax.device_get(apply(variables, batch.image))
        yield model, variables, apply, batch, first


def test_head_has_the_released_parameters():
    released = hamer.Decoder(1024, 6, 8, 64, 1024, jnp.float32)
    mean = mano_head.MeanParameters(jnp.zeros(96), jnp.zeros(10), jnp.zeros(3))

    def init(key):
        inputs = jnp.zeros((1, 1)), jnp.zeros((1, 192, 1280))
        token, decoder = released.init_with_output(key, *inputs)
        return decoder, mano_head.ManoHead().init(key, token, mean)

    found = jax.eval_shape(init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(found)) == 39_497_837


def test_only_the_middle_columns_are_seen(built):
    _, variables, apply, batch, first = built
    image = np.array(batch.image)
    image[:, :, :16], image[:, :, -16:] = 0, 255
    again = apply(variables, image)
    np.testing.assert_array_equal(again.output.vertices, first.output.vertices)
    image[:, :, 16:-16] = 128
    other = apply(variables, image)
    assert np.abs(other.output.vertices - first.output.vertices).max() > 1e-4


@pytest.mark.parametrize("shape", [(128, 96), (100, 100)])
def test_other_crops_are_refused(shape):
    with pytest.raises(ValueError, match=f"images of {shape[0]} x {shape[1]}"):
        hamer.middle_columns(np.zeros((1, *shape, 3), np.uint8))


def test_outputs_are_relative_to_the_root_and_in_pixels_of_the_crop(built):
    *_, (parameters, posed, output) = built
    np.testing.assert_array_equal(output.joints3d[:, 0], 0)
    np.testing.assert_allclose(
        output.joints2d, 128 * (posed.joints2d + 0.5), rtol=1e-6, atol=1e-4
    )
    assert output.cam.shape == (2, 3)
    regressor = built[1]["constants"]["hand"]["joint_regressor"]
    joints = hand_constants.joints_from_vertices(regressor, output.vertices)
    np.testing.assert_allclose(output.joints3d, joints, atol=1e-6)
    turns = np.concatenate([parameters.global_orient, parameters.hand_pose], axis=1)
    identity = np.einsum("bjxy,bjzy->bjxz", turns, turns)
    np.testing.assert_allclose(identity, np.tile(np.eye(3), (2, 16, 1, 1)), atol=1e-5)


def test_parameters_are_counted_by_part(built):
    rows = dict(hamer.parameter_table(built[1]))
    assert rows["discriminator"] == 1_545_211
    assert set(rows) == {"backbone", "decoder and heads", "discriminator"}
    total = sum(x.size for x in jax.tree.leaves(built[1]["params"]))
    assert sum(rows.values()) == total


def test_the_query_can_be_the_mean_parameters():
    with pytest.MonkeyPatch.context() as patch:
        tiny.patch_backbone(patch)
        model = hamer.Model(**FIELDS | dict(query="mean"))
        batch, hand = tiny.batch(1, crop=128), tiny.hand()
        init = functools.partial(model.init, batch=batch, hand=hand, method="init_all")
        shapes = jax.eval_shape(init, jax.random.key(0))
    assert shapes["params"]["decoder"]["embed"]["kernel"].shape == (96 + 10 + 3, 8)
    with pytest.raises(ValueError, match="query='best' is not one of zero, mean"):
        model.clone(query="best").init(jax.random.key(0), batch.image)


def test_root_of_model_and_data_must_agree():
    config = load_config("configs/hamer.py:smoke")
    config.model.root = "wrist"
    with pytest.raises(
        ValueError, match=r"model\.root='wrist' is not config\.data\.root"
    ):
        hamer.stages(config)


def test_every_parameter_that_can_learn_does():
    query = jnp.asarray(RNG.normal(size=(2, 3)), jnp.float32)

    @jax.jit
    @jax.grad
    def slopes(variables):
        token = DECODER.apply(variables, query, jnp.asarray(PATCHES))
        return jnp.sum(token**2)

    for path, slope in jax.tree.leaves_with_path(slopes(decoder_variables(3))):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        assert np.abs(slope[..., -1]).max() > 0, name
        if "self_qkv" in name:  # one token attends to itself, however it asks
            np.testing.assert_allclose(slope[:, :16], 0, atol=1e-6)


@pytest.mark.parity
def test_decoder_is_pytorchs():
    """Against the description of the released head, in plain PyTorch."""
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    params = jax.tree.map(torch.from_numpy, decoder_variables(1)["params"])

    def linear(x, name):
        layer = params[name]
        return functional.linear(x, layer["kernel"].T, layer.get("bias"))

    def norm(x, name):
        return functional.layer_norm(
            x, (16,), params[name]["scale"], params[name]["bias"], 1e-5
        )

    def attention(q, k, v):
        q, k, v = (
            x.reshape(2, -1, 2, 4).transpose(1, 2) for x in (q, k, v)
        )  # batch, head, token, channel
        weights = torch.softmax(q @ k.transpose(2, 3) * 4**-0.5, dim=-1)
        return (weights @ v).transpose(1, 2).reshape(2, -1, 8)

    x = linear(torch.zeros(2, 1, 1), "embed") + params["position"]
    patches = torch.from_numpy(PATCHES)
    for i in range(2):
        name = f"layer{i}"
        packed = linear(norm(x, f"{name}_norm_self"), f"{name}_self_qkv")
        x = x + linear(attention(*packed.chunk(3, dim=-1)), f"{name}_self_out")
        query = linear(norm(x, f"{name}_norm_cross"), f"{name}_cross_q")
        packed = linear(patches, f"{name}_cross_kv")
        mixed = attention(query, *packed.chunk(2, dim=-1))
        x = x + linear(mixed, f"{name}_cross_out")
        hidden = linear(norm(x, f"{name}_norm_mlp"), f"{name}_mlp_in")
        x = x + linear(functional.gelu(hidden), f"{name}_mlp_out")
    query = jnp.zeros((2, 1))
    found = jax.jit(DECODER.apply)(decoder_variables(1), query, PATCHES)
    np.testing.assert_allclose(found, x[:, 0], rtol=1e-4, atol=1e-5)
