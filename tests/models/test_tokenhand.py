import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from handjax.config import schema as configs
from handjax.mano import model_files
from handjax.models import tokenhand
from handjax.models.tokenhand import Model
from handjax.training.step import create, make_step

TINY = tiny.fields(
    "tokenhand",
    encoder_widths=(16,),
    encoder_strides=(16,),
    encoder_k=(4,),
    encoder_blocks=(1,),
    encoder_neighbours="template",
    num_codes=32,
    code_dim=8,
    decoder_tokens=(48,),
    decoder_widths=(8,),
    token_dim=16,
    dropout=0.0,
    drop_path=0.0,
)


@pytest.fixture(autouse=True)
def backbone(monkeypatch):
    tiny.patch_backbone(monkeypatch)


@functools.cache
def _tiny():
    model = Model(**TINY)
    init = functools.partial(model.init, jax.random.key(0), method="init_all")
    return model, jax.jit(lambda: init(tiny.batch(2), tiny.hand()))()


def tiny_model():
    """The model of `TINY` and a copy of its first variables, compiled once."""
    model, variables = _tiny()
    return model, jax.tree.map(jnp.copy, variables)


def shapes(**fields):
    model = Model(**tiny.fields("tokenhand", **fields))
    init = functools.partial(model.init, jax.random.key(0), method="init_all")
    return jax.eval_shape(lambda: init(tiny.batch(2), tiny.hand()))


def rngs(seed=0):
    keys = jax.random.split(jax.random.key(seed), len(tiny.RNG_STREAMS))
    return dict(zip(tiny.RNG_STREAMS, keys, strict=True))


def test_parameters_by_part_are_those_of_the_design(monkeypatch):
    """The paper says 3.0 M; the parts were added up by hand from their formulae."""
    monkeypatch.setattr(
        tokenhand.backbones, "build", lambda *_, **__: tiny.Backbone(1216)
    )
    rows = dict(tokenhand.parameter_table(shapes()))
    counted = {
        "2-D joints head": 51_114,
        "classifier": 928_288,
        "decoder 1": 950_417,
        "decoder 2": 275_012,
        "decoder 3": 158_927,
        "decoder 4": 343_100,
        "coordinates": 99,
        "codebook": 262_144,
    }
    others = {
        "deconvolution": 4_981_248,
        "encoder": 1_989_530,
        "token projection": 263_680,
    }
    rows.pop("backbone")
    assert rows == counted | others
    assert sum(counted.values()) == 2_969_101


@pytest.mark.parametrize(
    "fields",
    [
        dict(token_generator="A"),
        dict(token_generator="B"),
        dict(token_generator="C"),
        dict(num_codes=384),
        dict(num_codes=640),
        dict(decoder_blocks=3),
        dict(decoder_tokens=(48,), decoder_widths=(256,)),
        dict(decoder_tokens=(48, 97), decoder_widths=(256, 128)),
        dict(decoder_tokens=(48, 97, 194), decoder_widths=(256, 128, 64)),
    ],
    ids=str,
)
def test_ablations_of_the_paper_are_config_values(fields):
    model = Model(**tiny.fields("tokenhand", **fields))
    batch = tiny.batch(2, crop=96)
    variables = shapes(**fields)
    if fields.get("token_generator") == "B":  # as many tokens as the map has pixels
        init = functools.partial(model.init, jax.random.key(0), method="init_all")
        variables = jax.eval_shape(lambda: init(batch, tiny.hand()))
    output = jax.eval_shape(model.apply, variables, batch.image)
    assert output.vertices.shape == (2, 778, 3)
    assert output.joints2d.shape == (2, 21, 2)
    assert output.logits.shape == (2, 48, fields.get("num_codes", 512))


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(decoder_tokens=(24, 48)), "end in 48 tokens"),
        (dict(decoder_tokens=(48, 97), decoder_widths=(8,)), "same number of layers"),
        (dict(inference="fuzzy"), "inference='fuzzy' is not one of"),
        (dict(commitment="max"), "commitment='max' is not one of"),
        (dict(channel_order="gbr"), "channel_order='gbr' is not one of"),
    ],
)
def test_fields_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        shapes(**{**TINY, **fields})


def test_decoding_the_indices_of_a_mesh_is_its_reconstruction():
    batch = tiny.batch()
    model, variables = tiny_model()
    apply = functools.partial(model.apply, variables)
    output, tokens, quantized = apply(batch.vertices, method="reconstruct")
    indices = apply(batch.vertices, method="encode")
    np.testing.assert_array_equal(indices, quantized.indices)
    np.testing.assert_array_equal(indices, output.indices)
    assert tokens.shape == (4, 48, 8)
    decoded = apply(indices, method="decode")
    np.testing.assert_allclose(decoded.vertices, output.vertices, atol=1e-6)
    regressor = model_files.joint_regressor(model_files.load())
    np.testing.assert_allclose(
        decoded.joints3d,
        np.einsum("jv,bvx->bjx", regressor, decoded.vertices),
        atol=1e-6,
    )


def test_hard_inference_decodes_the_best_codes():
    batch = tiny.batch()
    soft, variables = tiny_model()
    hard = Model(**TINY | dict(inference="hard"))
    output = hard.apply(variables, batch.image)
    decoded = soft.apply(variables, output.indices, method="decode")
    np.testing.assert_allclose(output.vertices, decoded.vertices, atol=1e-6)
    assert np.any(output.vertices != soft.apply(variables, batch.image).vertices)


def test_joints2d_are_pixels_and_begin_in_the_middle():
    batch = tiny.batch(crop=96)
    model, variables = tiny_model()
    joints = model.apply(variables, batch.image).joints2d
    np.testing.assert_allclose(joints, 95 / 2, atol=5)


def test_channel_order_turns_the_channels_before_they_are_normalised():
    image = tiny.batch().image
    model, variables = tiny_model()
    bgr = Model(**TINY | dict(channel_order="bgr"))
    a, b, c = (
        np.asarray(m.apply(variables, x).logits)
        for m, x in ((model, image), (bgr, image[..., ::-1]), (bgr, image))
    )
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert np.any(a != c)


def test_image_is_normalised_inside():
    batch = tiny.batch()
    model, variables = tiny_model()
    plain = Model(**TINY | dict(image_mean=(0.0, 0.0, 0.0), image_std=(1 / 255,) * 3))
    mean, std = np.float32(model.image_mean), np.float32(model.image_std)
    normalised = (np.float32(batch.image) / 255 - mean) / std
    np.testing.assert_allclose(
        model.apply(variables, batch.image).logits,
        plain.apply(variables, normalised).logits,
        rtol=1e-4,
        atol=1e-5,
    )


def test_bfloat16_changes_the_computation_and_not_the_variables():
    batch = tiny.batch()
    model, variables = tiny_model()
    half = Model(**TINY | dict(dtype="bfloat16"))
    init = functools.partial(half.init, jax.random.key(0), method="init_all")
    for leaf in jax.tree.leaves(jax.eval_shape(lambda: init(batch, tiny.hand()))):
        assert leaf.dtype != jnp.bfloat16
    a, b = (m.apply(variables, batch.image) for m in (model, half))
    assert b.vertices.dtype == b.logits.dtype == jnp.float32
    np.testing.assert_allclose(a.vertices, b.vertices, atol=0.01)
    assert np.any(a.logits != b.logits)


# --- Stages ------------------------------------------------------------------


def stage(index):
    return tokenhand.stages(None)[index]


@pytest.mark.parametrize("index", [0, 1])
def test_loss_does_not_depend_on_hidden_examples(index):
    batch = tiny.batch()
    model, variables = tiny_model()
    hidden = np.array([True, False, True, True])
    masked = batch._replace(
        joints2d_valid=batch.joints2d_valid & hidden[:, None],
        joints3d_valid=hidden,
        vertices_valid=hidden,
    )
    other = masked._replace(
        vertices=np.where(hidden[:, None, None], batch.vertices, 7),
        joints3d=np.where(hidden[:, None, None], batch.joints3d, 7),
        joints2d=np.where(hidden[:, None, None], batch.joints2d, 7e3).astype(
            np.float32
        ),
    )
    if index == 0:  # batch norm sees all examples; its running form does not
        variables["codebook"]["tokenizer"]["vq"]["initialized"] = jnp.ones((), bool)
        other = other._replace(vertices=masked.vertices)
    args = model, variables
    a = stage(index).loss_fn(*args, masked, rngs())[0]
    b = stage(index).loss_fn(*args, other, rngs())[0]
    full = stage(index).loss_fn(*args, batch, rngs())[0]
    for key in a:
        np.testing.assert_allclose(a[key], b[key], rtol=1e-6)
        assert a[key] < full[key]


def test_joints2d_loss_is_in_units_of_the_crop():
    batch = tiny.batch()
    model, variables = tiny_model()
    loss = tokenhand.mesh_loss(model, variables, batch, rngs())[0]["joints2d"]
    output, _ = model.apply(
        variables, batch.image, train=True, mutable=["batch_stats"], rngs=rngs()
    )
    expected = np.abs(output.joints2d - batch.joints2d).sum(-1).mean() / 63
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize("flows", [True, False])
def test_mesh_losses_move_the_joints2d_only_with_sampler_gradient(flows):
    batch = tiny.batch()
    _, variables = tiny_model()
    model = Model(**TINY | dict(sampler_gradient=flows))

    def vertices(head):
        params = {**variables["params"], "joints2d_head": head}
        output = model.apply({**variables, "params": params}, batch.image)
        return jnp.abs(output.vertices).sum()

    slope = jax.grad(vertices)(variables["params"]["joints2d_head"])
    assert np.any(slope["bias"] != 0) == flows


GOLDEN = {
    "tokenizer": (
        dict(
            loss=1.2997990,
            loss_vertices=0.08741520,
            loss_commitment=0.08512939,
            grad_norm=1.0655886,
            update_norm=0.6094667,
            perplexity=29.398869,
        ),
        dict(
            loss=1.1950858,
            loss_vertices=0.08361146,
            loss_commitment=0.07179424,
            grad_norm=0.7592127,
            update_norm=0.5606976,
            perplexity=29.308420,
        ),
    ),
    "mesh": (
        dict(
            loss=5.6331615,
            loss_tokens=3.6490884,
            loss_joints3d=0.08754100,
            loss_joints2d=0.17841434,
            loss_vertices=0.09302487,
            grad_norm=8.896558,
            update_norm=0.3524975,
        ),
        dict(
            loss=5.3516011,
            loss_tokens=3.3998909,
            loss_joints3d=0.08671750,
            loss_joints2d=0.17731465,
            loss_vertices=0.09072203,
            grad_norm=3.5677836,
            update_norm=0.2620953,
        ),
    ),
}
"""Loss, gradient and update norms of two steps, made by this test's own code."""


def settings(name):
    weights = (
        dict(vertices=10.0, commitment=5.0)
        if name == "tokenizer"
        else dict(tokens=1.0, joints3d=10.0, joints2d=1.0, vertices=10.0)
    )
    return configs.ml_collections.ConfigDict(
        configs.stage(steps=60, batch_size=4, losses=weights, optimizer=dict(lr=3e-3))
    )


@functools.cache
def compiled(index, model):
    name = stage(index).name
    return jax.jit(make_step(model, stage(index), settings(name)))


def trained(index, steps, model, variables, batch):
    name = stage(index).name
    state = create(variables, stage(index), settings(name), jax.random.key(3))
    history = []
    for _ in range(steps):
        state, metrics = compiled(index, model)(state, batch)
        history.append(jax.device_get(metrics))
    return state.variables, history


def tokenizer_of(variables):
    """Weights, statistics, codes and indices of the tokenizer."""
    parts = {name: values.get("tokenizer") for name, values in variables.items()}
    return jax.tree.map(np.array, parts)


def test_one_batch_can_be_learned_and_the_frozen_tokenizer_does_not_move():
    batch = tiny.batch()
    model, variables = tiny_model()
    variables, history = trained(0, 60, model, variables, batch)
    assert history[-1]["loss"] < 0.6 * history[0]["loss"]
    assert {"usage", "perplexity", "dead_codes", "resets", "mm"} <= set(history[0])
    before, others = tokenizer_of(variables), variables["params"]
    variables, history = trained(1, 60, model, variables, batch)
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]
    assert history[-1]["loss_tokens"] < history[0]["loss_tokens"]
    chex.assert_trees_all_equal(tokenizer_of(variables), before)
    assert np.any(
        variables["params"]["classifier"]["logits"]["kernel"]
        != others["classifier"]["logits"]["kernel"]
    )


@pytest.mark.parametrize("index", [0, 1])
def test_golden_step(index):
    """Loss and gradient norms of the first step.

    If this fails and you did not mean to change what the model computes, it is a bug.
    If you did, put the new numbers here and say why in the commit.
    """
    batch = tiny.batch()
    model, variables = tiny_model()
    history = trained(index, 2, model, variables, batch)[1]
    for step, values in enumerate(GOLDEN[stage(index).name]):
        for key, value in values.items():
            np.testing.assert_allclose(
                history[step][key], value, rtol=2e-3, err_msg=key
            )


# --- The check between the stages --------------------------------------------


def fitting():
    config = configs.base()
    config.model = dict(TINY)
    model, variables = tiny_model()
    variables["codebook"]["tokenizer"]["vq"]["initialized"] = jnp.ones((), bool)
    file = model_files.load()
    info = {
        "config": {"model": dict(TINY)},
        "hand": {"name": file.name, "sha256": file.sha256},
    }
    return config, model, variables, info


def test_check_accepts_the_tokenizer_of_this_config():
    tokenhand.check_mesh(*fitting())


def test_check_refuses_other_tokens_codebook_or_hand():
    config, model, variables, info = fitting()
    check = tokenhand.check_mesh
    with pytest.raises(ValueError, match=r"encoder_strides=\(1, 16\).*has \(16,\)"):
        other = {"model": TINY | {"encoder_strides": (1, 16)}}
        check(config, model, variables, info | {"config": other})
    with pytest.raises(ValueError, match=r"codebook is 32 x 8.*is 64 x 8"):
        check(config, Model(**TINY | {"num_codes": 64}), variables, info)
    with pytest.raises(ValueError, match="hand model was 'mano'"):
        check(
            config, model, variables, info | {"hand": {"name": "mano", "sha256": "f"}}
        )
    variables["codebook"]["tokenizer"]["vq"]["initialized"] = jnp.zeros((), bool)
    with pytest.raises(ValueError, match="never trained"):
        check(config, model, variables, {})
