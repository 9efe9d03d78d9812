import functools
import importlib.util
import re

import hamba_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from places import CONFIGS

from handjax import conversion
from handjax.checkpoints import workdir
from handjax.data import run_data
from handjax.geometry import rotations, skeleton
from handjax.mano.hand_model import HandModel
from handjax.models import hamba
from handjax.models.hamba import losses
from handjax.models.hamba import model as network
from handjax.nn import mano_head
from handjax.training import step

QUICK = {"xla_backend_optimization_level": 0}
"""Compiling is most of what these tests do."""
SCAN = dict(state=1, ratio=2.0, discretisation="euler")


@functools.cache
def load_module():
    path = CONFIGS / "hamba.py"
    spec = importlib.util.spec_from_file_location("hamba_config", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_config(variant):
    return load_module().get_config(variant)


def built(variant="smoke", **fields):
    """Model of a config, a batch, and a function that makes its variables' shapes."""
    config = load_config(variant)
    config.model.update(fields)
    model = workdir.build_model(hamba, config)
    batch = tiny.batch(2, crop=config.data.crop_size)
    init = lambda: model.init(jax.random.key(0), batch, tiny.hand(), method="init_all")  # noqa: E731
    return model, batch, lambda: jax.eval_shape(init)


@functools.cache
def constants():
    hand = {k: jnp.asarray(v) for k, v in tiny.hand().arrays().items()}
    mean = jax.jit(lambda hand: mano_head.mean_parameters(HandModel(**hand)))(hand)
    return {"hand": hand, "mean": mean._asdict()}


def drawn(shapes):
    """Variables of ordinary size (to draw them in JAX is much to compile)."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        normal = rng.standard_normal(leaf.shape)
        if leaf.ndim > 1:
            return jnp.float32(normal / np.sqrt(leaf.shape[-2]))
        name = path[-1].key
        return jnp.float32((name in ("scale", "var")) + 0.1 * np.abs(normal))

    found = {k: v for k, v in shapes.items() if k != "constants"}
    return jax.tree_util.tree_map_with_path(draw, found) | {"constants": constants()}


NARROW = dict(width=16, regressor_depths=(), decoder_depths=())


@pytest.fixture
def narrow(monkeypatch):
    """As `built`, with the tiny backbone and trunks that do nothing."""
    tiny.patch_backbone(monkeypatch)
    return lambda variant="smoke", **fields: built(variant, **{**NARROW, **fields})


# --- The released network ------------------------------------------------------


def test_parameters_by_part_are_the_published_ones():
    _, _, init = built("paper")
    assert dict(network.parameter_table(init())) == {
        "backbone": 630_912_000,
        "downsampling": 919_552,
        "joints regressor": 27_613_805,
        "token sampler": 526_336,
        "decoder": 71_776_579,
        "discriminator": 1_545_211,
    }


# --- Where tokens are sampled ----------------------------------------------------


def patch_centres(crop, patch, padding):
    """Mean pixel of the crop that each patch of the middle columns sees."""
    rows = np.arange(crop // patch) * patch - padding
    columns = np.arange(3 * crop // 4 // patch) * patch - padding + crop // 8
    seen_y = [np.mean([first + i for i in range(patch)]) for first in rows]
    seen_x = [np.mean([first + i for i in range(patch)]) for first in columns]
    return np.stack(np.meshgrid(seen_x, seen_y), axis=-1)


@pytest.mark.parametrize(
    "crop, patch, padding", [(256, 16, 2), (128, 16, 2), (256, 32, 0)]
)
def test_exact_geometry_finds_the_pixel(crop, patch, padding):
    """On a map that says where it looks, the sample is the place asked for."""
    rng = np.random.default_rng(0)
    centres = patch_centres(crop, patch, padding)
    low, high = centres[0, 0], centres[-1, -1]
    pixels = rng.uniform(low, high, (1, 40, 2))
    found = network.map_pixels(
        jnp.float32(pixels / crop - 0.5),
        "exact",
        centres.shape[:2],
        crop_px=crop,
        first_px=(patch - 1) / 2 - padding,
    )
    sampled = network.sample_pixels(jnp.float32(centres)[None], found)
    np.testing.assert_allclose(sampled, pixels, atol=crop * 1e-5)


def test_released_geometries_are_the_published_formulae():
    joints2d = np.random.default_rng(0).uniform(-0.7, 0.7, (2, 21, 2))
    for x, y in joints2d.reshape(-1, 2):
        clipped = min(max(2 * x, -0.875), 0.875) / 0.875
        for name, across in (("released_clip", clipped), ("released_noclip", 2 * x)):
            expected = ((across + 1) * 12 - 1) / 2, ((2 * y + 1) * 16 - 1) / 2
            found = network.map_pixels(
                jnp.float32([[[x, y]]]), name, (16, 12), crop_px=256, first_px=5.5
            )
            np.testing.assert_allclose(found[0, 0], expected, atol=1e-4)


def outputs_of(model, variables, image, *parts):
    """A prediction and what some submodules returned."""
    run = jax.jit(
        lambda v, x: model.apply(
            v,
            x,
            method="predict",
            capture_intermediates=lambda module, _: module.name in parts,
        ),
        compiler_options=QUICK,
    )
    prediction, state = run(variables, image)
    inner = state["intermediates"]
    return prediction, {name: inner[name]["__call__"][0] for name in parts}


def test_tokens_and_their_fusion_are_as_released(narrow):
    """Tokens are filtered samples at the first hand's joints, then comes the mean."""
    model, batch, init = narrow(backbone="vit_test", decoder_depths=(1,))
    variables, width = drawn(init()), 16
    # The betas' numbers show some of the features that the last layer is given.
    shown = np.array([0, 15, 16, 17, 57, 58, 73, 74, 88, 89])
    head = variables["params"]["decoder_head"]["betas"]
    assert head["kernel"].shape == (3 * width + 42, 10)
    head["kernel"] = head["kernel"].at[:].set(0.0).at[shown, np.arange(10)].set(1.0)
    head["bias"] = jnp.zeros(10)
    prediction, inner = outputs_of(
        model, variables, batch.image, "decoder", "downsample", "sampler"
    )
    features, joints2d = inner["downsample"], prediction.regressor.posed.joints2d
    assert features.shape == (2, 4, 3, width)  # the middle columns, by the tiny stride
    at = network.map_pixels(joints2d, "exact", (4, 3), crop_px=128, first_px=5.5)
    own = {k: variables[k]["sampler"] for k in ("params", "batch_stats")}
    sampled = network.sample_pixels(features, at)
    sampled = network.Filters(width).apply(own, sampled, train=False)
    np.testing.assert_allclose(inner["sampler"], sampled, atol=1e-5)
    assert inner["decoder"].shape == (2, 22, 1, width)
    fused = [
        np.mean(inner["decoder"], (1, 2)),
        np.reshape(joints2d, (2, 42)),
        np.mean(features, (1, 2)),
        np.mean(sampled, 1),
    ]
    np.testing.assert_allclose(
        prediction.mesh.parameters.betas,
        np.concatenate(fused, axis=-1)[:, shown],
        atol=1e-5,
    )


def test_without_a_sampler_every_joint_has_the_mean(narrow):
    model, batch, init = narrow("smoke,table4_no_sampler")
    assert "sampler" not in init()["params"]
    _, inner = outputs_of(model, drawn(init()), batch.image, "decoder", "downsample")
    tokens = np.mean(inner["downsample"], (1, 2))[:, None].repeat(22, 1)
    np.testing.assert_allclose(inner["decoder"][:, :, 0], tokens, atol=1e-5)


def test_the_regressor_can_scan_clusters_of_the_map(narrow):
    """12 places of the map, a third of them kept; the sampler sees the whole map."""
    whole = step.flat(narrow()[2]()["params"])
    model, batch, init = narrow(backbone="vit_test", keep_ratio=0.35)
    shapes = init()
    more = set(step.flat(shapes["params"])) - set(whole)
    assert {path.split("/")[0] for path in more} == {"regressor_pruner"}
    prediction, inner = outputs_of(
        model, drawn(shapes), batch.image, "regressor", "downsample", "sampler"
    )
    assert inner["downsample"].shape == (2, 4, 3, 16)
    assert inner["regressor"].shape == (2, 4, 1, 16)
    assert inner["sampler"].shape == (2, 21, 16)
    assert np.isfinite(prediction.mesh.posed.vertices).all()
    first, _ = hamba.stages(load_config("smoke"))
    assert all(re.search(first.trainable, path) for path in more)
    with pytest.raises(ValueError, match=r"keep_ratio=1.5 must be above 0 and at most"):
        narrow(keep_ratio=1.5)[2]()


def found_by(model, variables, features, joints2d):
    """What the last layer is given."""
    return model.apply(variables, features, joints2d, 128, False, method="_found")


def inputs(model):
    rng = np.random.default_rng(1)
    features = jnp.float32(rng.normal(size=(2, 8, 6, model.width)))
    return features, jnp.float32(rng.uniform(-0.3, 0.3, (2, 21, 2)))


def test_no_gradient_goes_through_the_places(narrow):
    model, _, init = narrow()

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1))
    def grads(features, joints2d):
        found = found_by(model, drawn(init()), features, joints2d)
        return jnp.sum(found["gss"] + found["sampled"])

    of_features, of_joints = grads(*inputs(model))
    assert float(jnp.abs(of_features).max()) > 0
    np.testing.assert_array_equal(of_joints, 0)


# --- Orders ------------------------------------------------------------------------


def test_orders_are_what_they_are_called():
    names = tuple(skeleton.JOINTS[i] for i in network.SCAN_ORDERS["mano"])
    tips = tuple(f"{finger}4" for finger in skeleton.FINGERS)
    assert names == skeleton.MANO_JOINTS + tips
    assert network.SCAN_ORDERS["openpose"] == tuple(range(21))
    for order in network.SCAN_ORDERS.values():
        assert sorted(order) == list(range(21))


def test_bones_and_places_follow_the_order_of_the_scan(narrow):
    """Without scans the order of the tokens is no matter."""
    found = {}
    for order in network.SCAN_ORDERS:
        model, _, init = narrow(
            scan_order=order, graph="shared", mixer="none", decoder_depths=(2,)
        )
        variables = drawn(init())
        # Logits stand row by row, and rows change with the order.
        graph = variables["params"]["decoder"]["stage0_graph"]["conv"]
        graph["edge_logits"] = jnp.ones_like(graph["edge_logits"])
        run = jax.jit(functools.partial(found_by, model), compiler_options=QUICK)
        found[order] = run(variables, *inputs(model))
    for order in ("mano", "shuffled"):
        for name, value in found[order].items():
            np.testing.assert_allclose(value, found["openpose"][name], atol=1e-5)


@pytest.mark.parametrize("mixer", ["scan", "scan_forward"])
def test_one_direction_sees_nothing_of_what_comes(mixer):
    """But for the next token, which the convolution before the scan sees."""
    trunk = network.Trunk((1,), **SCAN, mixer=mixer)
    x = jnp.float32(np.random.default_rng(0).normal(size=(1, 22, 1, 16)))
    variables = jax.eval_shape(lambda: trunk.init(jax.random.key(0), x, train=False))
    variables = {"params": drawn(variables)["params"]}
    run = jax.jit(functools.partial(trunk.apply, train=False), compiler_options=QUICK)
    change = np.abs(run(variables, x.at[:, 21].add(1.0)) - run(variables, x))
    seen = np.max(change, axis=(0, 2, 3)) > 0
    assert seen[20:].all() and seen[:20].any() == (mixer == "scan")


# --- Options -----------------------------------------------------------------------


@pytest.mark.parametrize("row", load_module().ROWS)
def test_rows_of_the_tables_build(narrow, row):
    shapes = narrow(f"smoke,{row}", decoder_depths=(1,))[2]()
    params = shapes["params"]["decoder"]
    assert ("stage0_graph" in params) == (row != "table4_no_graph")
    block = params.get("stage0_block0", {})
    assert ("op" in block) == (row not in ("table4_no_mamba", "tables1_attention"))
    assert ("attention" in block) == (row == "tables1_attention")
    missing = {"sampled": 16, "gss": 16, "mean": 16, "joints2d": 42, "sampler": 16}
    gone = missing.get(row.removeprefix("table4_no_"), 0)
    kernel = shapes["params"]["decoder_head"]["cam"]["kernel"]
    assert kernel.shape == (3 * 16 + 42 - gone, 3)


@pytest.mark.parametrize("mixer", ["scan", "attention"])
def test_blocks_computed_again_have_the_same_parameters(mixer):
    x, rngs = jnp.zeros((1, 22, 1, 16)), {"drop_path": jax.random.key(0)}
    found = {}
    for remat in (True, False):
        trunk = network.Trunk((2,), **SCAN, mixer=mixer, remat=remat, drop_path=0.1)
        shapes = jax.eval_shape(
            lambda t=trunk: t.init(jax.random.key(0), x, train=False)
        )
        run = functools.partial(trunk.apply, train=True, rngs=rngs)
        found[remat] = shapes, str(jax.make_jaxpr(run)(shapes, x))
    assert found[True][0] == found[False][0]
    assert [found[remat][1].count("remat") > 0 for remat in found] == [True, False]


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(sampling="released"), r"sampling='released' is not one of exact, rel"),
        (dict(graph="gcn"), r"graph='gcn' is not one of per_joint, shared, semgcn, no"),
        (dict(mixer="mamba"), r"mixer='mamba' is not one of scan, scan_forward, att"),
        (dict(scan_order="smpl"), r"scan_order='smpl' is not one of openpose, mano"),
        (dict(fusion=("gss", "ts")), r"fusion=\('gss', 'ts'\) must name at least one"),
        (dict(fusion=()), r"fusion=\(\) must name at least one of gss, joints2d"),
    ],
)
def test_values_that_are_none_of_those_there_are_are_refused(narrow, fields, message):
    with pytest.raises(ValueError, match=message):
        narrow(**fields)[2]()


def test_crops_are_square_and_divide_by_four(narrow):
    model, _, init = narrow()
    for size in ((128, 96), (126, 126)):
        image = jnp.zeros((1, *size, 3))
        with pytest.raises(ValueError, match=rf"images of {size[0]} x {size[1]} \(he"):
            jax.eval_shape(model.apply, init(), image)


# --- Stages ------------------------------------------------------------------------


def trained_parts(config):
    """Of each stage, the parts that have parameters it trains."""
    shapes = step.flat(built()[2]()["params"])
    return {
        stage.name: {
            path.split("/")[0] for path in shapes if re.search(stage.trainable, path)
        }
        for stage in hamba.stages(config)
    }


def test_the_regressor_learns_first_then_everything():
    config = load_config("smoke")
    first = {"image_encoder", "downsample", "regressor", "regressor_head"}
    rest = {"sampler", "decoder", "decoder_head", "discriminator"}
    assert trained_parts(config) == {"regressor": first, "mesh": first | rest}
    config.model.frozen_backbone = True
    first -= {"image_encoder"}
    assert trained_parts(config) == {"regressor": first, "mesh": first | rest}
    assert [stage.real_poses for stage in hamba.stages(config)] == [0, 2]
    config.model.adversarial = False
    assert [stage.real_poses for stage in hamba.stages(config)] == [0, 0]
    config.data.root = "wrist"
    with pytest.raises(
        ValueError, match=r"root='middle_mcp' is not config\.data\.root"
    ):
        hamba.stages(config)


@pytest.mark.parametrize("adversarial", [True, False])
def test_both_hands_have_terms_and_one_plays(narrow, adversarial):
    model, batch, init = narrow(adversarial=adversarial)
    assert ("discriminator" in init()["params"]) == adversarial
    config = load_config("smoke")
    for stage in hamba.stages(config):
        fed = run_data.for_stage(batch, stage)
        rngs = {"drop_path": jax.random.key(0)}
        terms, metrics, updates = jax.eval_shape(
            functools.partial(stage.loss_fn, model), init(), fed, rngs
        )
        expected = set(config.stages[stage.name].losses)
        if not adversarial:
            expected -= {"adversarial", "discriminator"}
        assert set(terms) == expected and set(metrics) == {"mm"}
        assert set(updates) == {"batch_stats"}


def test_the_first_hands_terms_are_those_of_its_own_stage(narrow):
    """Both stages weigh the same sums; only the batch statistics may differ."""
    model, batch, init = narrow(adversarial=False)
    variables = drawn(init())
    first, both = (
        jax.jit(functools.partial(loss, model), compiler_options=QUICK)(
            variables, batch, {}
        )[0]
        for loss in (losses.regressor_loss, losses.mesh_loss)
    )
    for name, value in first.items():
        np.testing.assert_allclose(both[f"regressor_{name}"], value, rtol=1e-5)
        assert float(both[name]) != float(value)


# --- Against PyTorch ---------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parity
def test_regressor_and_decoder_equal_torch():
    torch = pytest.importorskip("torch")
    from torch_hamba import Hamba

    weights = hamba_weights.weights(hamba_weights.TINY)
    found = conversion.load("hamba").convert(weights, conversion.Options(hand="open"))
    model = workdir.build_model(hamba, found.config)
    image = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype(np.uint8)
    prediction, inner = outputs_of(
        model, found.variables, image, "image_encoder", "downsample"
    )

    neighbours = torch.zeros(21, 21, dtype=torch.bool)
    for a, b in skeleton.BONES:
        neighbours[a, b] = neighbours[b, a] = True
    sizes = hamba_weights.TINY
    network = Hamba(
        *(sizes[k] for k in ("channels", "width", "regressor", "decoder")), neighbours
    ).eval()
    named = {k: torch.tensor(v) for k, v in weights.items()}
    network.load_state_dict({k: named[k] for k in network.state_dict()})
    joints2d = torch.tensor(np.array(prediction.regressor.posed.joints2d))
    with torch.no_grad():
        final = torch.tensor(np.array(inner["image_encoder"]["final"]))
        features = network.downsample(final.permute(0, 3, 1, 2))
        first = network.first(features)
        second = network.second(features, joints2d, clip=True)
    np.testing.assert_allclose(
        inner["downsample"], features.permute(0, 2, 3, 1), atol=1e-5
    )
    for ours, theirs in ((prediction.regressor, first), (prediction.mesh, second)):
        pose, betas, cam = (x.numpy() for x in theirs)
        matrices = jax.jit(rotations.rotation_6d_to_matrix)(pose.reshape(2, 16, 6))
        ours = ours.parameters
        np.testing.assert_allclose(ours.global_orient, matrices[:, :1], atol=1e-4)
        np.testing.assert_allclose(ours.hand_pose, matrices[:, 1:], atol=1e-4)
        np.testing.assert_allclose(ours.betas, betas, atol=1e-4)
        np.testing.assert_allclose(ours.cam, cam, atol=1e-4)
