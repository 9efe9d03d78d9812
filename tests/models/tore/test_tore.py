import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from places import CONFIGS

from data_pipelines.synthetic.body import mesh as body_mesh
from handjax.benchmarking import token_mixing
from handjax.checkpoints import workdir
from handjax.data import run_data
from handjax.family import hand_constants
from handjax.geometry import camera
from handjax.losses import elementwise
from handjax.mano import model_files
from handjax.models import tore
from handjax.models.tore import losses, mesh_transformers
from handjax.models.tore import model as network
from handjax.models.tore.mesh_transformers import FastMetro
from handjax.nn import token_pruner

QUICK = {"xla_backend_optimization_level": 0}
"""Compiling is most of what these tests do."""


@functools.cache
def load_module():
    path = CONFIGS / "tore.py"
    spec = importlib.util.spec_from_file_location("tore_config", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def built(variant="smoke", **fields):
    """Model of a config, a batch, and a function that makes its variables' shapes."""
    config = load_module().get_config(variant)
    config.model.update(fields)
    model = workdir.build_model(tore, config)
    batch = tiny.batch(2, crop=config.data.crop_size)
    init = lambda: model.init(jax.random.key(0), batch, tiny.hand(), method="init_all")  # noqa: E731
    return model, batch, lambda: jax.eval_shape(init)


@functools.cache
def constants():
    return jax.tree.map(jnp.asarray, network.constants(tiny.hand(), 1, 0))


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


def run(model, variables, *arguments, **options):
    apply = functools.partial(model.apply, **options)
    return jax.jit(apply, compiler_options=QUICK)(variables, *arguments)


@pytest.fixture
def narrow(monkeypatch):
    """As `built`, with the tiny backbone."""
    tiny.patch_backbone(monkeypatch)
    return built


# --- The released networks --------------------------------------------------------


def head(variant, **fields):
    """Parameters behind the backbone, and billions of multiplications up to the mesh.

    The published cost is of the transformers: the coarse mesh is not upsampled.
    """
    config = load_module().get_config(variant)
    config.model.update(backbone="resnet50", **fields)
    model = workdir.build_model(tore, config)
    map_of = lambda dim: jax.ShapeDtypeStruct((1, 7, 7, dim), jnp.float32)  # noqa: E731
    maps = {"final": map_of(2048), "stride32": map_of(1024)}
    known = {"constants": constants()}

    def init(maps):
        key = {"params": jax.random.key(0)}
        read = functools.partial(model.apply, method="read", mutable=["params"])
        return read(known, maps, 224, rngs=key)[1]["params"]

    params = jax.eval_shape(init, maps)
    find = lambda params, maps: model.apply(  # noqa: E731
        {"params": params, **known}, maps, method="find"
    )
    work = token_mixing.multiply_adds(find, params, maps)
    return sum(leaf.size for leaf in jax.tree.leaves(params)), work / 1e9


@pytest.mark.parametrize(
    "row, size, work",
    [
        ("fastmetro_s", 9_179_782, None),
        ("fastmetro_m", 16_999_046, None),
        ("fastmetro", 24_818_310, 3.41),
        ("itp_all", 26_713_658, 1.113),
        ("table8_tore", 26_702_128, 0.990),
        ("table4_r50_24", 26_684_833, 0.809),
    ],
)
def test_heads_have_the_published_parameters_and_cost(row, size, work):
    """All but the backbone: 1x1 convolution, transformers, heads."""
    found, billions = head(row)
    assert found == size
    if work:  # to the last digit that is given
        assert billions == pytest.approx(work, abs=0.005 if work > 3 else 0.0005)


def test_metro_has_the_parameters_of_its_release_that_something_reads():
    """Blocks (`tests/nn/test_bert.py`), upsampling, and three layers of the camera."""
    size, work = head("metro")
    camera_layers = (3 + 1) + (216 * 150 + 150) + (150 * 3 + 3)
    assert size == 58_347_398 + (195 * 778 + 778) + camera_layers
    assert 12.9 < work < 13.1  # the paper's table has 13.1


# --- Predictions ------------------------------------------------------------------


def test_a_hand_is_relative_to_its_wrist_and_seen_by_its_camera(narrow):
    model, batch, init = narrow()
    variables = drawn(init())
    found = run(model, variables, batch.image, method="predict")
    output = found.output
    regressor = np.asarray(variables["constants"]["hand"]["joint_regressor"])
    joints = np.einsum("jv,bvx->bjx", regressor, output.vertices)
    np.testing.assert_allclose(joints, output.joints3d, atol=1e-5)
    for points in (output.joints3d, found.joints3d):
        np.testing.assert_allclose(points[:, 0], 0, atol=1e-6)
    scale, offset = output.cam[:, None, :1], output.cam[:, None, 1:]
    in_crop = scale * (output.joints3d[..., :2] + offset)
    size = batch.image.shape[1]
    np.testing.assert_allclose(output.joints2d, (in_crop + 1) / 2 * size, rtol=1e-4)
    # The mesh is the coarse one, upsampled.
    coarse, full = found.levels
    assert coarse.shape == (2, 195, 3) and full.shape == (2, 778, 3)
    up = np.asarray(variables["constants"]["mesh"]["up1"])
    np.testing.assert_allclose(np.einsum("fc,bcx->bfx", up, coarse), full, atol=1e-5)
    # 4 places of the map, 0.8 of which are 3 whole tokens.
    assert found.clusters.shape == (2, 3, 2, 2)


def test_a_camera_that_begins_at_rest_sees_the_joints_at_rest_in_most_of_the_crop(
    narrow,
):
    """With weights of zero the camera is the one that it is added to."""
    model, batch, init = narrow(output_unit="hands")
    shapes = init()
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    known = zeros | {"constants": constants()}
    cam = run(model, known, batch.image, method="predict").output.cam
    rest = constants()["mesh"]["joints"]
    seen = camera.weak_project(rest[None], cam[:1])
    extent = np.ptp(np.asarray(rest), axis=0).argmax()
    across = np.ptp(rest[:, extent]) * cam[0, 0] / 2  # sides of the crop
    np.testing.assert_allclose(across, network.REST_FILL, rtol=1e-5)
    assert np.abs(seen).max() <= 2 * network.REST_FILL
    direct = run(model.clone(output_unit="metres"), known, batch.image).cam
    np.testing.assert_array_equal(direct, 0)


def test_outputs_in_hands_are_those_in_metres_in_other_units(narrow):
    model, batch, init = narrow(output_unit="hands")
    variables = drawn(init())
    hands = run(model, variables, batch.image, method="predict")
    metres = run(
        model.clone(output_unit="metres"), variables, batch.image, method="predict"
    )
    extent = np.ptp(np.asarray(constants()["mesh"]["joints"]), axis=0).max()
    for x, y in zip(
        (hands.joints3d, hands.output.vertices),
        (metres.joints3d, metres.output.vertices),
        strict=True,
    ):
        np.testing.assert_allclose(x, y * extent, atol=1e-6)
    scale = 2 * network.REST_FILL / extent
    cam = np.asarray(metres.output.cam)
    seen = np.stack([scale * (1 + cam[:, 0]), cam[:, 1] / scale, cam[:, 2] / scale], 1)
    np.testing.assert_allclose(hands.output.cam, seen, rtol=1e-5)
    assert np.std(cam) > 0.1


def test_tokens_that_begin_at_their_places_are_like_their_neighbours():
    rest = network._rest(constants()["mesh"])
    places = jnp.concatenate([rest.joints, rest.vertices])
    extent = np.ptp(np.asarray(rest.vertices), axis=0).max()
    code = np.asarray(mesh_transformers.place_code(places / extent, 128))
    assert np.mean(code**2) == pytest.approx(1, abs=0.1)
    apart = np.linalg.norm(places[:, None] - places[None], axis=-1)
    like = np.corrcoef(code)
    near, far = (apart > 0) & (apart < 0.01), apart > 0.15
    assert like[near].min() > 0.95 and like[far].mean() < 0.5

    # Joints and vertices share the code, whatever the seed; "normal" ones do not.
    def tokens(kind, seed):
        layers = dict(layers=1, heads=2, ratio=4, dropout=0.1, token_init=kind)
        regressor = network.NeuralShapeRegressor(**layers)
        head = FastMetro(
            128, 16, pruner="none", keep_ratio=1.0, regressor=regressor, **layers
        )
        init = functools.partial(head.init, train=False)
        maps = {"final": jnp.zeros((1, 2, 2, 8))}
        params = jax.jit(init, compiler_options=QUICK)(jax.random.key(seed), maps, rest)
        params = params["params"]
        return (
            params["joint_token_embed"],
            params["regressor"]["vertex_token_embed"],
            params["cam_token_embed"],
        )

    joints, vertices, camera_token = tokens("places", 0)
    np.testing.assert_allclose(joints, code[:21], atol=1e-5)
    narrow = mesh_transformers.place_code(rest.vertices / extent, 16)
    np.testing.assert_allclose(vertices, narrow, atol=1e-5)
    other = tokens("places", 1)
    np.testing.assert_array_equal(other[0], joints)
    assert not np.array_equal(other[2], camera_token)
    assert not np.array_equal(tokens("normal", 0)[0], tokens("normal", 1)[0])


def test_the_rest_mesh_is_the_coarse_one_relative_to_the_wrist():
    hand, mesh = tiny.hand(), constants()["mesh"]
    joints = hand.joint_regressor @ hand.v_template
    np.testing.assert_allclose(mesh["joints"], joints - joints[0], atol=1e-7)
    coarse = hand.v_template[np.asarray(mesh["kept1"])] - joints[0]
    np.testing.assert_allclose(mesh["vertices"], coarse, atol=1e-7)
    assert mesh["adjacency"].shape == (195, 195) and mesh["adjacency"].dtype == bool


@pytest.mark.parametrize("row", ["table8_tore", "gtr", "fastmetro", "metro"])
def test_explanations_are_of_the_full_mesh_and_of_the_map(narrow, row):
    model, batch, init = narrow(f"smoke,{row}")
    found = run(model, drawn(init()), batch.image, method="explain")
    assert found.joints.shape == (2, 778, 21)
    total = np.sum(found.joints, axis=-1)
    if model.gtr:
        np.testing.assert_allclose(total, 1, atol=1e-4)
    else:  # vertices see each other, too
        assert (total < 1).all() and (total > 0).all()
    assert (found.clusters is not None) == (row == "table8_tore")
    if found.clusters is not None:
        np.testing.assert_allclose(np.sum(found.clusters, (2, 3)), 1, atol=1e-5)


# --- Losses -----------------------------------------------------------------------


def perfect(batch, model):
    """A prediction that is right, and a batch whose 2-D joints it explains."""
    mesh = constants()["mesh"]
    cam = jnp.tile(jnp.float32([[5.0, 0.01, -0.02]]), (len(batch.index), 1))
    joints, size = jnp.asarray(batch.joints3d), batch.image.shape[1]
    seen = (np.asarray(camera.weak_project(joints, cam)) + 1) / 2 * size
    full = jnp.asarray(batch.vertices)
    output = network.HandOutput(full, joints, cam=cam)
    levels = [full[:, mesh["kept1"]], full]
    return network.Prediction(output, joints, levels, None), batch._replace(
        joints2d=seen
    )


def terms(model, found, batch):
    return {
        **losses._joint_terms(model, found, batch),
        "vertices": losses.vertex_loss(model, found, batch, constants()["mesh"]),
        **losses._surface_terms(found, batch, constants()["faces"]),
    }


@pytest.mark.parametrize("kind, power", [("l1", 1), ("mse", 2)])
def test_terms_are_means_over_what_is_known(kind, power):
    model = network.Model(**tiny.fields("tore", keypoint_loss=kind))
    found, batch = perfect(tiny.batch(2), model)
    for name, value in terms(model, found, batch).items():
        assert float(value) < 1e-6, name
    moved = found._replace(
        joints3d=found.joints3d + 0.01,
        levels=[found.levels[0] + 0.03, found.levels[1] + 0.01],
        output=found.output._replace(
            joints3d=found.output.joints3d + 0.02, vertices=1.1 * batch.vertices
        ),
    )
    known = np.array([True, False])
    batch = batch._replace(joints3d_valid=known, vertices_valid=known)
    values = terms(model, moved, batch)
    lengths = elementwise.edge_lengths(
        1.1 * batch.vertices, batch.vertices, constants()["faces"]
    )
    expected = dict(
        joints3d=0.01**power / 2,  # of one of the two hands
        joints3d_mesh=0.02**power / 2,
        vertices=(0.03 + 0.01) / 2 / 2,
        joints2d=(5 * 0.01) ** power,  # of both
        joints2d_mesh=(5 * 0.02) ** power,
        edges=float(jnp.mean(lengths[0])) / 2,
        normals=0.0,
    )
    assert set(values) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(values[name], value, rtol=1e-3, atol=1e-6)


def test_pruning_is_penalised_beside_the_mesh_that_the_camera_sees(narrow):
    model, batch, init = narrow()
    variables = drawn(init())
    found = run(model, variables, batch.image, method="predict")
    rngs = {"dropout": jax.random.key(0)}
    loss = jax.jit(functools.partial(losses.mesh_loss, model), compiler_options=QUICK)
    values, metrics, updates = loss(variables, batch, rngs)
    assert set(metrics) == {"mm"} and set(updates) == {"batch_stats"}
    assert 0 <= float(values["pruning"]) <= model.per_device * 3 * 4
    seen = camera.weak_project(batch.vertices, found.output.cam)
    assert token_pruner.covered(seen, (2, 2)).shape == (2, 2, 2)


# --- Rows ---------------------------------------------------------------------------

PARTS = {
    "fastmetro": {"transformer_1", "transformer_2", "dim_reduce_enc_img"},
    "gtr": {"transformer_1", "transformer_2", "regressor", "dim_reduce_enc"},
    "table8_tore": {"regressor", "pruner"},
    "table6_token_learner": {"regressor", "pruner"},
    "table7_mlp": {"regressor"},
    "table7_gcn": {"regressor"},
    "metro": {"trans_encoder_0", "trans_encoder_2", "cam_param_fc3"},
    "metro_gtr": {"trans_encoder_2", "token_mixer", "regressor", "cam_predictor"},
    "graphormer": {"trans_encoder_2", "grid_feat_dim"},
}


@pytest.mark.parametrize("row", PARTS)
def test_rows_have_their_parts_and_their_losses(narrow, row):
    model, batch, init = narrow(f"smoke,{row}", grid="final")
    shapes = init()
    parts = shapes["params"]["head"]
    assert set(parts) >= PARTS[row]
    for part in ("regressor", "pruner", "trans_encoder_0", "transformer_1"):
        host = {"trans_encoder_0": "metro", "transformer_1": "fastmetro"}.get(part)
        known = part in PARTS[row] or host == model.host.replace("graphormer", "metro")
        assert (part in parts) == known
    assert ("upsample" in shapes["params"]) == (model.upsampling == "learned")
    config = load_module().get_config(f"smoke,{row}")
    (stage,) = tore.stages(config)
    rngs = {"dropout": jax.random.key(0)}
    loss = functools.partial(stage.loss_fn, model)
    values, _, _ = jax.eval_shape(loss, shapes, batch, rngs)
    assert set(values) == set(config.stages.mesh.losses)
    assert sum(n for _, n in network.parameter_table(shapes)) == sum(
        leaf.size for leaf in jax.tree.leaves(shapes["params"])
    )


def test_recipes_are_those_of_the_hosts():
    get = load_module().get_config
    ours, metro = (get(row).stages.mesh for row in ("paper", "table8_metro"))
    assert ours.steps == 200 * 130_240 // 64 and ours.grad_clip == 0.3
    assert ours.ramps.pruning.to_dict() == dict(middle=3 * 2035, width=2035)
    assert metro.steps == 200 * 130_240 // 256 and metro.optimizer.name == "adam"
    assert metro.losses.joints3d == 1 and metro.losses.edges == 0
    gtr = get("table1_r50_gtr")
    assert gtr.stages.mesh.losses.edges == 1 and gtr.model.backbone == "resnet50"
    assert get("small,table1_r50_gtr").model.backbone == "fastvit_t8"
    assert "pruning" not in get("gtr").stages.mesh.losses
    assert get("unsupervised").stages.mesh.losses.pruning == 0
    paper = get("paper_losses")
    assert paper.model.pruning_reduction == "mean" and not paper.stages.mesh.ramps


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(host="hmr"), r"host='hmr' is not one of fastmetro, metro, graphormer"),
        (dict(regressor="gnn"), r"regressor='gnn' is not one of nsr, mlp, gcn"),
        (
            dict(pruner="top_k"),
            r"pruner='top_k' is not one of none, itp, token_learner",
        ),
        (dict(upsampling="none"), r"upsampling='none' is not one of fixed, learned"),
        (dict(output_unit="feet"), r"output_unit='feet' is not one of metres, hands"),
        (dict(token_init="x"), r"token_init='x' is not one of normal, places"),
        (dict(keypoint_loss="l2"), r"keypoint_loss='l2' is not one of l1, mse"),
        (dict(keep_ratio=0.0), r"keep_ratio=0.0 must be above 0 and at most 1"),
        (dict(coarse_level=0), r"coarse_level=0 must be at least 1"),
        (dict(host="metro"), r"pruner='itp' with host='metro': it clusters what an"),
        (
            dict(host="graphormer", pruner="none"),
            r"gtr=True with host='graphormer': it is of fastmetro and metro",
        ),
        (
            dict(host="metro", pruner="none", regressor="mlp"),
            r"regressor='mlp' with host='metro': it leaves no token of the camera",
        ),
    ],
)
def test_values_that_do_not_go_together_are_refused(narrow, fields, message):
    with pytest.raises(ValueError, match=message):
        narrow(**fields)[2]()


def test_a_map_that_the_backbone_lacks_and_another_root_are_refused(narrow):
    with pytest.raises(ValueError, match=r"no map 'stride32'; it has final"):
        narrow("smoke,graphormer")[2]()
    config = load_module().get_config("smoke")
    config.data.root = "middle_mcp"
    with pytest.raises(ValueError, match=r"root='wrist' is not config\.data\.root"):
        tore.stages(config)


def test_bodies_have_their_counts(narrow, tmp_path):
    np.savez(tmp_path / "body.npz", **body_mesh.arrays())
    file = model_files.load(tmp_path / "body.npz")
    config = load_module().get_config("smoke,body")
    model = workdir.build_model(tore, config)
    batch, hand = (
        run_data.example_batch(config, file),
        hand_constants.hand_constants(file),
    )
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), batch, hand, method="init_all")
    )
    found = jax.eval_shape(
        functools.partial(model.apply, method="predict"), shapes, batch.image
    )
    counts = len(file.v_template), len(hand.joint_regressor)
    assert found.output.vertices.shape == (2, counts[0], 3)
    assert found.output.joints2d.shape == (2, counts[1], 2)
    assert [x.shape[1] for x in found.levels] == [156, 624]
    # What `models.skeleton_of` reads.
    kept = shapes["constants"]["hand"]
    assert set(kept) == {"joint_regressor", "weights", "parents"}


def test_coarser_meshes_go_up_level_by_level(narrow):
    model, batch, init = narrow(coarse_level=2)
    predict = functools.partial(model.apply, method="predict")
    found = jax.eval_shape(predict, init(), batch.image)
    assert [x.shape[1] for x in found.levels] == [49, 195, 778]
    explained = functools.partial(model.apply, method="explain")
    assert jax.eval_shape(explained, init(), batch.image).joints.shape == (2, 778, 21)
    config = load_module().get_config("smoke")
    (stage,) = tore.stages(config)
    loss = functools.partial(stage.loss_fn, model)
    terms, _, _ = jax.eval_shape(loss, init(), batch, {"dropout": jax.random.key(0)})
    assert set(terms) == set(config.stages.mesh.losses)
