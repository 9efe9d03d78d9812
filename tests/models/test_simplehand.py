import importlib.util
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from places import CONFIGS, GOLDEN
from torch_reference import random_state_dict, read_golden, sample

from handjax import conversion, models
from handjax.checkpoints import workdir
from handjax.geometry import camera
from handjax.models import simplehand
from handjax.nn.metaformer import TokenLinear
from handjax.nn.token_sampler import TokenGenerator
from handjax.training import optimizers

GOLDEN = GOLDEN / "simplehand_t8.npz"


def load_config(variant):
    path = CONFIGS / "simplehand.py"
    spec = importlib.util.spec_from_file_location("simplehand_config", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variant)


def built(variant="demo", **fields):
    """Model of a config and its variables' shapes."""
    config = load_config(variant)
    config.model.update(fields)
    model = workdir.build_model(simplehand, config)
    batch = tiny.batch(2, crop=config.data.crop_size)
    init = lambda: model.init(jax.random.key(0), batch, tiny.hand(), method="init_all")  # noqa: E731
    return model, batch, jax.jit(init)


NARROW = dict(
    token_dim=8, regressor_tokens=(21,), regressor_widths=(8,), regressor_blocks=(1,)
)


# --- The released network ------------------------------------------------------


def test_parameters_by_part_are_the_released_ones():
    _, _, init = built("paper")
    assert dict(simplehand.parameter_table(jax.eval_shape(init))) == {
        "backbone": 42_851_004,
        "deconvolution": 4_981_248,
        "mesh regressor": 1_507_637,
        "2-D joints head": 51_114,
    }


def converted(weights):
    options = conversion.Options(hand="open")
    found = conversion.load("simplehand").convert(weights, options)
    return workdir.build_model(simplehand, found.config), found


def every_step(model, variables, image):
    """Output of the network and of each of its steps."""
    steps = (TokenGenerator, TokenLinear)
    output, state = jax.jit(
        lambda v, x: model.apply(
            v, x, capture_intermediates=lambda module, _: isinstance(module, steps)
        )
    )(variables, image)
    inner = state["intermediates"]
    found = {"joints2d": output.joints2d, "vertices": output.vertices}
    found["tokens0"] = inner["generator"]["__call__"][0]
    for k in range(3):
        name = f"layer{k}_upsample"
        found[f"tokens{k + 1}"] = inner["regressor"][name]["__call__"][0]
    return output, found


def assert_equal(found, expected, tolerance=1e-5):
    """Each to a share of its largest value."""
    for name in ("joints2d", "tokens0", "tokens1", "tokens2", "tokens3", "vertices"):
        error = np.abs(sample(found[name]) - expected[name]).max()
        assert error < tolerance * expected[name][0], name


def test_every_step_equals_the_released_network():
    stored, shapes = read_golden(GOLDEN)
    model, found = converted(random_state_dict(shapes))
    image = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype(np.uint8)
    output, steps = every_step(model, found.variables, image)
    assert_equal(steps, stored)
    regressor = tiny.hand().joint_regressor
    np.testing.assert_allclose(
        output.joints3d,
        np.einsum("jv,bvx->bjx", regressor, output.vertices),
        atol=1e-5 * float(jnp.abs(output.vertices).max()),
    )


@pytest.mark.slow
@pytest.mark.parity
def test_released_configuration_equals_torch():
    pytest.importorskip("torch")
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    from make_simplehand import outputs

    weights, image, expected = outputs("fastvit_ma36", 224)
    assert len(weights) == 1_325
    model, found = converted(weights)
    expected = {name: sample(value) for name, value in expected.items()}
    # Random features differ much from pixel to pixel, so that sampling them at points
    # off by rounding (1e-6 of the width) is off by more.
    _, steps = every_step(model, found.variables, image)
    assert_equal(steps, expected, tolerance=1e-4)
    folded = models.for_inference(model, found.variables)
    _, steps = every_step(*folded, image)
    assert_equal(steps, expected, tolerance=1e-4)


def test_inference_form_answers_the_same():
    model, batch, init = built(backbone="fastvit_test", **NARROW)
    rng, hand = np.random.default_rng(0), tiny.hand()

    def draw(leaf):
        normal = rng.standard_normal(leaf.shape)
        if leaf.ndim > 1:
            return jnp.float32(normal / np.sqrt(np.prod(leaf.shape[:-1])))
        return jnp.float32(1 + 0.2 * normal)

    variables = jax.tree.map(draw, jax.eval_shape(init))
    variables["constants"] = {
        name: jnp.asarray(getattr(hand, name)) for name in ("joint_regressor", "faces")
    }
    folded, fused = models.for_inference(model, variables)
    assert folded.fused and "image_encoder" not in fused["batch_stats"]
    expected = jax.jit(model.apply)(variables, batch.image)
    found = jax.jit(folded.apply)(fused, batch.image)
    for name in ("vertices", "joints3d", "joints2d"):
        a, b = getattr(expected, name), getattr(found, name)
        np.testing.assert_allclose(b, a, atol=1e-5 * float(jnp.abs(a).max()))
    again = models.for_inference(folded, fused)
    assert again[0] is folded and again[1] is fused


def test_weight_decay_is_the_released_one():
    """Every array holds whether torch's name has "bn" or "bias", on both sides."""
    _, shapes = read_golden(GOLDEN)
    marked = {
        key: np.full(shape, not re.search("bn|bias", key), np.float32)
        for key, shape in shapes.items()
    }
    _, found = converted(marked)
    ours = optimizers.decay_mask(found.variables["params"], "paper")
    theirs = jax.tree.map(lambda leaf: bool(leaf.all()), found.variables["params"])
    assert jax.tree.leaves(ours) == jax.tree.leaves(theirs)
    assert 0 < sum(jax.tree.leaves(ours)) < len(jax.tree.leaves(ours))
    sane = optimizers.decay_mask(found.variables["params"], "no_1d")
    assert jax.tree.leaves(sane) != jax.tree.leaves(ours)


def test_schedule_is_the_released_one_counted_in_examples():
    options = load_config("paper").stages.mesh
    assert options.steps == 200 * 256
    lr = optimizers.schedule(options)
    warmup = np.linspace(0, 5e-4, 5 * 256)
    np.testing.assert_allclose(
        [lr(i) for i in (0, 1, 700, 1279)], warmup[[0, 1, 700, -1]], rtol=1e-4
    )
    for step, expected in (
        (1280, 5e-4),
        (25_599, 5e-4),
        (25_600, 5e-5),
        (51_199, 5e-5),
    ):
        assert float(lr(step)) == pytest.approx(expected)


# --- Losses --------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    """As `built`, with the tiny backbone."""
    tiny.patch_backbone(monkeypatch)
    return built


@pytest.fixture
def narrow(small):
    """With a regressor of one narrow layer, too."""
    return lambda **fields: small(**{**NARROW, **fields})


def losses_of(model, variables, batch):
    loss = jax.jit(
        lambda variables, batch: simplehand.mesh_loss(model, variables, batch, {})[0]
    )
    return loss(variables, batch)


def trained_on(model, variables, batch):
    """What the model predicts in training."""
    apply = lambda variables, image: model.apply(  # noqa: E731
        variables, image, train=True, method="predict", mutable=["batch_stats"]
    )
    return jax.jit(apply)(variables, batch.image)[0]


def test_losses_are_the_released_formulae_with_their_masks(narrow):
    model, batch, init = narrow()
    variables = init()
    seen = np.ones((2, 21), bool)
    seen[0, [0, 9]], seen[1, [0, 3, 4]] = False, False
    batch = batch._replace(joints2d_valid=seen)
    found = losses_of(model, variables, batch)
    output, points = trained_on(model, variables, batch)
    size = batch.image.shape[1]
    far = np.abs(points - batch.joints2d / size).sum(-1) * seen
    # The first hand shows neither wrist nor middle knuckle: 3-D counts as zero there.
    solid = np.abs(output.vertices - batch.vertices).sum(-1).mean(-1)[1] / 2
    bones = np.abs(output.joints3d - batch.joints3d).sum(-1).mean(-1)[1] / 2
    expected = {"joints2d": far.mean(-1).mean(), "vertices": solid, "joints3d": bones}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(float(value), rel=1e-5), name


def test_unsupervised_hands_count_for_nothing(narrow):
    model, batch, init = narrow()
    no = np.zeros(2, bool)
    batch = batch._replace(
        joints3d_valid=no, vertices_valid=no, joints2d_valid=np.zeros((2, 21), bool)
    )
    assert all(float(v) == 0 for v in losses_of(model, init(), batch).values())


def test_depth_head_learns_the_released_target(narrow):
    model, batch, init = narrow(root_depth=True)
    batch = batch._replace(
        root3d=np.array([[0.1, 0, 0.6], [0, 0, 0]], np.float32),
        intrinsics=np.tile(np.diag([300.0, 200, 1]).astype(np.float32), (2, 1, 1)),
    )
    variables = init()
    target = 0.6 / (0.2 * np.sqrt(300 * 200) / 224)
    assert float(camera.gamma_from_root_depth(0.6, batch.intrinsics[0])) == (
        pytest.approx(target, rel=1e-5)
    )
    found = losses_of(model, variables, batch)
    output, _ = trained_on(model, variables, batch)
    assert output.root_gamma.shape == (2,)
    # The second depth is not known.
    expected = abs(float(output.root_gamma[0]) - target) / 2
    assert float(found["root_depth"]) == pytest.approx(expected, rel=1e-4)


# --- Ablations -----------------------------------------------------------------


def test_coarse_mesh_is_supervised_where_it_projects(narrow):
    model, batch, init = narrow(token_generator="F", regressor_tokens=(216,))
    batch = batch._replace(
        root3d=np.tile(np.array([0, 0, 0.5], np.float32), (2, 1)),
        intrinsics=np.tile(
            np.array([[100, 0, 32], [0, 100, 32], [0, 0, 1]], np.float32), (2, 1, 1)
        ),
    )
    variables = init()
    coarse = variables["constants"]["coarse_vertices"]
    assert len(set(np.asarray(coarse).tolist())) == 195
    target, seen = simplehand._targets2d(variables, batch)
    assert target.shape == (2, 21 + 195, 2) and seen.shape == (2, 216)
    vertex = int(coarse[7])
    x, y, z = np.asarray(batch.vertices)[1, vertex] + [0, 0, 0.5]
    np.testing.assert_allclose(
        target[1, 21 + 7] * 64, [100 * x / z + 32, 100 * y / z + 32], rtol=1e-4
    )
    prediction = trained_on(model, variables, batch)
    assert prediction.points2d.shape == (2, 216, 2)
    assert prediction.output.joints2d.shape == (2, 21, 2)
    assert np.isfinite(float(losses_of(model, variables, batch)["joints2d"]))


@pytest.mark.parametrize(
    "row, tokens",
    [
        ("table4_baseline", 21),
        ("table5_grid", 4),
        ("table5_point14", 21),
        ("table5_enhanced", 21),
        ("table6_21_63_126_252", 21),
        ("table7_blocks_2", 21),
        ("table8_no_codes", 21),
    ],
)
def test_rows_of_the_tables_run(small, row, tokens):
    model, batch, init = small(f"demo,{row}")
    shapes = jax.eval_shape(init)
    output = jax.eval_shape(model.apply, shapes, batch.image)
    assert output.vertices.shape == (2, 778, 3)
    params = shapes["params"]
    codes = [name for name in params["regressor"] if name.endswith("_code")]
    assert len(codes) == (
        0 if row == "table8_no_codes" else len(model.regressor_tokens)
    )
    if codes:
        assert params["regressor"]["layer0_code"].shape[1] == tokens
    blocks = [name for name in params["regressor"] if "_block" in name]
    assert len(blocks) == sum(model.regressor_blocks)
    attends = "attention" in params["regressor"][blocks[0]]
    assert attends == (row != "table4_baseline")
    assert ("conv1" in params["generator"]) == (row == "table5_enhanced")


def test_hrnet_is_sampled_at_stride_8_without_a_further_layer():
    model, _, init = built("table1_hrnet")
    shapes = jax.eval_shape(init)
    assert model.backbone == "hrnet_w64"
    assert "generator" not in shapes["params"]
    assert shapes["params"]["joints2d_head"]["kernel"].shape == (2048, 42)
    parts = dict(simplehand.parameter_table(shapes))
    assert parts["2-D joints head"] + parts["mesh regressor"] == 1_593_695


def test_ablations_have_the_papers_backbone_at_full_size():
    assert load_config("table8_identity").model.backbone == "hiera_tiny_224"
    assert load_config("table1_fastvit").model.backbone == "fastvit_ma36"
    assert load_config("demo,table8_identity").model.backbone == "fastvit_t8"
    with pytest.raises(ValueError, match=r"no row 'table9'; it has table1_fastvit"):
        load_config("demo,table9")


# --- Fields --------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields, message",
    [
        (
            dict(regressor_widths=(8, 4)),
            r"regressor_tokens has 3, regressor_widths has 2",
        ),
        (dict(token_map="stride2"), r"token_map='stride2' is no map of .*final"),
        (dict(regressor_tokens=(20, 84, 336)), r"\(20, 84, 336\) tokens, but 21 come"),
        (dict(mixer="mamba"), r"mixer='mamba' is not one of attention, identity, conv"),
        (dict(joints2d_init="zero"), r"joints2d_init='zero' is not one of torch"),
        (dict(channel_order="gbr"), r"channel_order='gbr' is not one of rgb, bgr"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(small, fields, message):
    _, _, init = small(**fields)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(init)


def test_mesh_losses_leave_the_2d_joints_alone_where_told(narrow):
    for moves in (True, False):
        model, batch, init = narrow(sampler_gradient=moves)
        variables = init()

        def loss(params, model=model, batch=batch, variables=variables):
            terms = losses_of(model, {**variables, "params": params}, batch)
            return terms["vertices"]

        grad = jax.jit(jax.grad(loss))(variables["params"])["joints2d_head"]["bias"]
        assert (float(jnp.abs(grad).max()) > 0) == moves
