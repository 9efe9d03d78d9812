import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from places import CONFIGS

from handjax.analysis import codebook as cb
from handjax.checkpoints import workdir
from handjax.geometry import rotations, skeleton
from handjax.mano import hand_model
from handjax.mano.hand_model import HandModel
from handjax.models import mmhmr
from handjax.models.mmhmr import losses, tokenizer
from handjax.models.mmhmr import model as network
from handjax.nn import backbones, mano_head, vq
from handjax.training import step

QUICK = {"xla_backend_optimization_level": 0}
"""Compiling is most of what these tests do."""


@pytest.fixture(autouse=True)
def backbone(request, monkeypatch):
    if "parameters" not in request.node.name:
        tiny.patch_backbone(monkeypatch)


@functools.cache
def load_module():
    path = CONFIGS / "mmhmr.py"
    spec = importlib.util.spec_from_file_location("mmhmr_config", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_config(variant):
    return load_module().get_config(variant)


def built(variant="smoke", **fields):
    """Model of a config, a batch, and a function that makes its variables' shapes."""
    config = load_config(variant)
    config.model.update(fields)
    model = workdir.build_model(mmhmr, config)
    batch = posed_batch(4, crop=config.data.crop_size)
    init = lambda: model.init(jax.random.key(0), batch, tiny.hand(), method="init_all")  # noqa: E731
    return model, batch, lambda: jax.eval_shape(init)


@functools.cache
def posed_batch(size, crop=64):
    """Bent and turned hands of many shapes, all annotations valid."""
    rng = np.random.default_rng(1)
    pose = np.float32(rng.normal(0, 0.4, (size, 16, 3)))
    pose[:, 0] *= 4
    betas = np.float32(rng.normal(size=(size, 10)))
    hand = HandModel.load("open")
    vertices, _ = jax.jit(hand_model.skin)(hand, pose, betas)
    joints = np.einsum("jv,bvx->bjx", hand.joint_regressor, vertices)
    root = joints[:, 9][:, None]
    return tiny.batch(size, crop=crop)._replace(
        vertices=np.float32(vertices - root),
        joints3d=np.float32(joints - root),
        mano_pose=pose,
        betas=betas,
    )


@functools.cache
def constants():
    hand = {k: jnp.asarray(v) for k, v in tiny.hand().arrays().items()}
    mean = jax.jit(lambda hand: mano_head.mean_parameters(HandModel(**hand)))(hand)
    return {"hand": hand, "mean": mean._asdict(), "faces": hand["faces"]}


def drawn(shapes):
    """Variables of ordinary size (to draw them in JAX is much to compile)."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        normal = rng.standard_normal(leaf.shape)
        if leaf.dtype == bool:
            return jnp.ones(leaf.shape, bool)
        if leaf.ndim > 1:
            fan = np.prod(leaf.shape[:-1]) if path[-1].key == "kernel" else 1
            return jnp.float32(normal / np.sqrt(fan))
        return jnp.float32((path[-1].key == "scale") + 0.1 * np.abs(normal))

    found = {k: v for k, v in shapes.items() if k != "constants"}
    return jax.tree_util.tree_map_with_path(draw, found) | {"constants": constants()}


def quick(function):
    return jax.jit(function, compiler_options=QUICK)


def rngs(seed=0):
    keys = jax.random.split(jax.random.key(seed), len(tiny.RNG_STREAMS))
    return dict(zip(tiny.RNG_STREAMS, keys, strict=True))


def true_matrices(batch):
    return rotations.axis_angle_to_matrix(batch.mano_pose)


# --- Representations ---------------------------------------------------------------


@pytest.mark.parametrize("name", tokenizer.REPRESENTATIONS)
def test_a_rotation_that_is_written_is_read_again(name):
    numbers, write, read = tokenizer.REPRESENTATIONS[name]
    R = rotations.random_rotation(jax.random.key(0), (50,))
    written = write(R)
    assert written.shape == (50, numbers)
    np.testing.assert_allclose(read(written), R, atol=1e-5)


@pytest.mark.parametrize("name", tokenizer.REPRESENTATIONS)
def test_any_numbers_are_read_as_a_rotation(name):
    numbers, _, read = tokenizer.REPRESENTATIONS[name]
    any_numbers = np.random.default_rng(0).normal(size=(50, numbers))
    R = read(jnp.float32(any_numbers))
    np.testing.assert_allclose(R @ R.mT, np.tile(np.eye(3), (50, 1, 1)), atol=1e-5)
    np.testing.assert_allclose(jnp.linalg.det(R), 1, atol=1e-5)
    slope = jax.grad(lambda x: jnp.sum(read(x) * jnp.arange(9.0).reshape(1, 3, 3)))
    assert np.isfinite(slope(jnp.float32(any_numbers))).all()


# --- The tokenizer -------------------------------------------------------------------


def test_parameters_by_part_are_those_of_the_formulae():
    """Width 512: kernels of 3 (or 4, or 1) taps and biases, added up by hand."""
    _, _, init = built("paper")
    wide, block = 3 * 512 * 512 + 512, (3 + 1) * 512 * 512 + 2 * 512
    rows = dict(network.parameter_table(init()))
    assert rows.pop("backbone") == 630_912_000
    others = {
        "pyramid",
        "x-attention head",
        "detector",
        "graph transformer",
        "synthesizer",
    }
    assert others < set(rows)
    assert {name: rows[name] for name in set(rows) - others} == {
        "encoder": (3 * 6 * 512 + 512)
        + 3 * wide
        + (4 * 512 * 512 + 512)
        + 2 * block
        + (3 * 512 * 256 + 256),
        "decoder": (3 * 256 * 512 + 512)
        + 3 * wide
        + 2 * block
        + wide
        + (3 * 512 * 6 + 6),
        "codebook": 2048 * 256,
    }


@pytest.mark.parametrize("rotation", tokenizer.REPRESENTATIONS)
def test_decoding_the_indices_of_a_pose_is_its_reconstruction(rotation):
    model, batch, init = built(rotation=rotation)
    variables = drawn(init())

    @quick
    def both(variables, batch):
        apply = functools.partial(model.apply, variables)
        indices = apply(batch.mano_pose, method="encode")
        again = apply(indices, batch.betas, method="decode")
        _, tokens, quantized = apply(true_matrices(batch), method="reconstruct")
        direct = apply(batch.mano_pose, batch.betas, method="autoencode")
        return indices, again, direct, tokens, quantized

    indices, again, direct, tokens, quantized = both(variables, batch)
    assert tokens.shape == (4, 16, model.code_dim)
    np.testing.assert_array_equal(indices, quantized.indices)
    book = variables["codebook"]["tokenizer"]["vq"]["embedding"]
    np.testing.assert_array_equal(indices, vq.nearest_code(tokens, book))
    for a, b in zip(again[:2], direct[:2], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    root = skeleton.root_joint("middle_mcp")
    np.testing.assert_allclose(again.joints3d[:, root], 0, atol=1e-7)


def test_hands_are_posed_in_the_shape_that_is_given():
    """The pose of any tokens in a shape is the hand model's."""
    model, batch, init = built()
    variables = drawn(init())

    @quick
    def posed(variables, batch):
        apply = functools.partial(model.apply, variables)
        matrices = true_matrices(batch)
        mean = apply(matrices, None, method="output")
        zero = apply(matrices, 0 * batch.betas, method="output")
        return apply(matrices, batch.betas, method="output"), mean, zero

    own, mean, zero = posed(variables, batch)
    np.testing.assert_allclose(own.vertices, batch.vertices, atol=1e-5)
    np.testing.assert_allclose(own.joints3d, batch.joints3d, atol=1e-5)
    np.testing.assert_array_equal(mean.vertices, zero.vertices)
    assert np.abs(mean.vertices - own.vertices).max() > 1e-3


def test_codebook_tools_read_poses():
    model, batch, init = built()
    variables = drawn(init())
    book = cb.of_model(model, variables)
    hands = cb.TokenizedHands(batch.vertices, batch.mano_pose)
    indices = book.encode(hands)
    direct = model.apply(variables, batch.mano_pose, method="encode")
    np.testing.assert_array_equal(indices, direct)
    meshes = cb.decode_indices(book, indices)
    expected = model.apply(variables, indices, method="decode").vertices
    np.testing.assert_allclose(meshes, expected, atol=1e-5)


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(rotation="euler"), r"rotation='euler' is not one of rotation_6d, axis_a"),
        (dict(commitment="max"), r"commitment='max' is not one of mean, sum"),
        (dict(codec_reduction="max"), r"codec_reduction='max' is not one of mean, sum"),
        (dict(dilation_order="up"), r"dilation_order='up' is not one of falling, ris"),
        (dict(num_tokens=48), r"num_tokens=48 is not the number of joints, 16, doubl"),
    ],
)
def test_values_that_are_none_of_those_there_are_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        built(**fields)[2]()


def test_rows_of_the_tokenizers_tables_are_its_sizes():
    for row in load_module().ROWS:
        if row.startswith(("table8", "table9")):
            numbers = [int(x) for x in row.split("_")[1:]]
            expected = (numbers[0], 2048, 256) if len(numbers) == 1 else (64, *numbers)
            fields = load_config(row).model
            found = fields.num_tokens, fields.num_codes, fields.code_dim
            assert found == expected


# --- The tokenizer's losses ----------------------------------------------------


def terms_of(found, batch, **options):
    hand = HandModel.load("open")
    posed = hand.with_shape(batch.betas).with_pose(
        found[:, 0], found[:, 1:], form="matrix"
    )
    return losses.reconstruction_terms(
        hand.joint_regressor,
        (found, posed.vertices),
        (true_matrices(batch), jnp.asarray(batch.vertices)),
        options.pop("valid", jnp.ones(len(found), bool)),
        root=9,
        **{"reduction": "mean"} | options,
    )


def test_reconstruction_terms_are_l1_in_radians_and_metres():
    batch = posed_batch(4)
    same = terms_of(true_matrices(batch), batch)
    for name, value in same.items():
        np.testing.assert_allclose(value, 0, atol=2e-6, err_msg=name)
    other = true_matrices(batch).at[:, 3].set(jnp.eye(3))
    mean, total = (terms_of(other, batch, reduction=r) for r in ("mean", "sum"))
    counts = {"rotations": 16 * 9, "vertices": 778 * 3, "joints3d": 21 * 3}
    for name, count in counts.items():
        assert float(mean[name]) > 0
        np.testing.assert_allclose(total[name], mean[name] * count, rtol=1e-5)
    wrong = np.abs(np.eye(3) - np.array(true_matrices(batch)[:, 3])).sum((1, 2)).mean()
    np.testing.assert_allclose(total["rotations"], wrong, rtol=1e-5)
    half = terms_of(other, batch, valid=jnp.array([True, False, False, True]))
    expected = (terms_of(other[::3], jax.tree.map(lambda x: x[::3], batch)))["vertices"]
    np.testing.assert_allclose(half["vertices"], expected / 2, rtol=1e-5)


def test_turned_poses_are_other_ones_of_the_same_fingers(monkeypatch):
    model, batch, init = built(turned=True)
    seen = {}
    monkeypatch.setattr(
        losses,
        "reconstruction_terms",
        lambda regressor, found, true, valid, **_: seen.update(true=true) or {},
    )

    @quick
    def turned(variables):
        losses.tokenizer_loss(model, variables, batch, rngs())
        return seen["true"]

    matrices, vertices = (np.asarray(x) for x in turned(drawn(init())))
    before = np.asarray(true_matrices(batch))
    np.testing.assert_allclose(matrices[:, 1:], before[:, 1:], atol=1e-6)
    turns = matrices[:, 0] @ before[:, 0].swapaxes(1, 2)
    assert np.abs(turns[0] - turns[1]).max() > 0.1
    np.testing.assert_allclose(
        vertices, np.einsum("bij,bvj->bvi", turns, batch.vertices), atol=1e-5
    )
    # The mesh that is turned is the mesh of the turned pose.
    hand = HandModel.load("open")
    posed = hand.with_shape(batch.betas).with_pose(
        matrices[:, 0], matrices[:, 1:], form="matrix"
    )
    place = posed.joints3d[:, 9][:, None]
    np.testing.assert_allclose(posed.vertices - place, vertices, atol=1e-5)


def test_loss_does_not_depend_on_hands_without_known_pose():
    model, batch, init = built()
    variables = drawn(init())
    known = np.array([True, False, True, True])
    masked = batch._replace(mano_valid=known)
    other = masked._replace(
        mano_pose=np.where(known[:, None, None], batch.mano_pose, 1.0),
        vertices=np.where(known[:, None, None], batch.vertices, 7.0),
    )
    loss = quick(functools.partial(losses.tokenizer_loss, model))
    a, b, full = (loss(variables, x, rngs()) for x in (masked, other, batch))
    for name in a[0]:
        np.testing.assert_allclose(a[0][name], b[0][name], rtol=1e-6)
        assert float(a[0][name]) < float(full[0][name])
    books = [x[2]["codebook"]["tokenizer"]["vq"]["embedding"] for x in (a, b)]
    np.testing.assert_array_equal(*books)


def test_losses_are_those_that_the_config_weighs():
    model, batch, init = built()
    config = load_config("smoke")
    moved = {"tokenizer": {"codebook"}, "mesh": {"batch_stats"}}
    for stage in mmhmr.stages(config):
        terms, metrics, updates = jax.eval_shape(
            functools.partial(stage.loss_fn, model), init(), batch, rngs()
        )
        assert set(terms) == set(config.stages[stage.name].losses)
        assert {x.shape for x in (terms | metrics).values()} == {()}
        assert set(updates) == moved[stage.name]
    config.data.root = "wrist"
    with pytest.raises(
        ValueError, match=r"root='middle_mcp' is not config\.data\.root"
    ):
        mmhmr.stages(config)


# --- Where 2-D joints are on the maps ------------------------------------------


@pytest.mark.parametrize(
    "crop, patch, padding", [(256, 16, 2), (128, 16, 2), (256, 32, 0)]
)
def test_places_on_maps_are_those_of_the_crop(crop, patch, padding):
    """The centre of each patch is the centre of its pixel on the map."""
    rows, columns = crop // patch, 3 * crop // 4 // patch
    middle = (patch - 1) / 2 - padding
    x = crop // 8 + patch * np.arange(columns) + middle
    y = patch * np.arange(rows) + middle
    pixels = np.float32(np.stack(np.meshgrid(x, y), axis=-1)).reshape(1, -1, 2)
    expected = np.meshgrid(
        (np.arange(columns) + 0.5) / columns, (np.arange(rows) + 0.5) / rows
    )
    sizes = dict(crop_px=crop, edge_px=-padding - 0.5)
    found = network.crop_to_map(jnp.asarray(pixels), **sizes)
    np.testing.assert_allclose(
        found[0], np.stack(expected, axis=-1).reshape(-1, 2), atol=1e-6
    )
    np.testing.assert_allclose(network.map_to_crop(found, **sizes), pixels, atol=1e-3)


def test_detector_finds_the_hottest_pixel():
    features = np.zeros((2, 4, 3, 2), np.float32)
    features[0, 1, 2] = features[1, 3, 0] = (1.0, 0.0)
    kernel = jnp.array([[50.0] * 21, [0.0] * 21])
    params = {"params": {"heat": {"kernel": kernel, "bias": jnp.zeros(21)}}}
    found = network.Detector().apply(params, jnp.asarray(features))
    for example, place in enumerate([(2.5 / 3, 1.5 / 4), (0.5 / 3, 3.5 / 4)]):
        np.testing.assert_allclose(found[example], np.tile(place, (21, 1)), atol=1e-6)


def test_training_is_told_of_moved_joints_and_of_none():
    model, batch, _ = built(joints2d_train="truth", joints2d_noise=0.05)
    hidden = np.ones((4, 21), bool)
    hidden[:, 3] = False
    batch = batch._replace(joints2d_valid=hidden)
    crop = batch.image.shape[1]
    for drop in (0.0, 1.0):
        told = model.clone(joints2d_drop=drop)
        joints, seen = losses.condition_joints2d(told, batch, jax.random.key(0))
        np.testing.assert_array_equal(seen, hidden * (1 - drop))
        spread = float(jnp.std((joints - batch.joints2d) / crop))
        assert 0.04 < spread < 0.06
    own = model.clone(joints2d_train="predicted", joints2d_drop=0.0)
    joints, seen = losses.condition_joints2d(own, batch, jax.random.key(0))
    assert joints is None and (seen == 1).all()
    none = model.clone(joints2d_train="none")
    assert losses.condition_joints2d(none, batch, jax.random.key(0)) == (None, None)


def test_there_is_a_detector_where_one_is_asked():
    model, *_ = built()
    for train in network.JOINTS2D_TRAIN:
        for test in network.JOINTS2D_TEST:
            asked = model.clone(joints2d_train=train, joints2d_test=test)
            assert network.detects(asked) == ("predicted" in (train, test))
    for test in ("predicted", "none"):
        _, _, init = built(joints2d_train="truth", joints2d_test=test)
        assert ("detector" in init()["params"]) == (test == "predicted")


def test_joints_that_are_given_are_looked_at():
    model, batch, init = built(joints2d_test="given")
    variables = drawn(init())

    @quick
    def answers(variables, image, joints2d):
        stage = functools.partial(losses.predict_image, model, variables)
        told = stage(batch._replace(image=image, joints2d=joints2d))
        seen = model.apply(variables, image, joints2d, method="encode_condition")
        return told.logits, model.apply(variables, image).logits, seen

    joints2d = np.full((4, 21, 2), 30.0, np.float32)
    told, untold, seen = answers(variables, batch.image, joints2d)
    assert np.abs(told - untold).max() > 1e-4
    expected = network.crop_to_map(jnp.asarray(joints2d), crop_px=128, edge_px=-0.5)
    padding = backbones.family(model.backbone).VARIANTS[model.backbone].padding
    expected = expected + jnp.array([[[padding / 96, padding / 128]]])
    np.testing.assert_allclose(seen.joints2d, expected, atol=1e-5)


# --- Stage "mesh" ----------------------------------------------------------------


def test_loss_is_at_the_true_pose_when_logits_are_the_one_hot_truth(monkeypatch):
    """A hand that the tokenizer can say, named rightly, leaves nothing to lose."""
    model, batch, init = built(joints="mesh", reduction="mean")
    variables = drawn(init())
    labels = jnp.asarray(np.random.default_rng(3).integers(0, 256, (4, 16)))

    @quick
    def said(variables):
        seen, _ = model.apply(
            variables,
            batch.image,
            predicts=True,
            train=True,  # as in training, by the statistics of the batch
            method="encode_condition",
            mutable=["batch_stats"],
        )
        codes = variables["codebook"]["tokenizer"]["vq"]["embedding"][labels]
        parameters = model.apply(variables, codes, seen, method="_parameters")
        posed = model.apply(variables, parameters, method="_posed")
        return parameters, posed

    parameters, posed = said(variables)
    matrices = jnp.concatenate([parameters.global_orient, parameters.hand_pose], 1)
    batch = batch._replace(
        mano_pose=np.asarray(rotations.matrix_to_axis_angle(matrices)),
        betas=np.asarray(parameters.betas),
        joints3d=np.asarray(posed.joints3d - posed.joints3d[:, 9][:, None]),
        vertices=np.asarray(posed.vertices - posed.joints3d[:, 9][:, None]),
        joints2d=np.asarray((posed.joints2d + 0.5) * 128),
    )
    sharp = {}
    monkeypatch.setattr(network.Model, "encode", lambda *_: labels)
    monkeypatch.setattr(
        network.Model,
        "score",
        lambda *_, **__: sharp["right"] * jax.nn.one_hot(labels, 256),
    )

    @quick
    def loss(variables, right):
        sharp.update(right=right)
        return losses.mesh_loss(model, variables, batch, rngs())[:2]

    terms, metrics = loss(variables, 200.0)
    for name in set(terms) - {"detector"}:
        np.testing.assert_allclose(terms[name], 0, atol=1e-5, err_msg=name)
    assert float(metrics["mm"]) < 1e-2 and float(metrics["token_accuracy"]) == 1
    terms, _ = loss(variables, 0.0)
    np.testing.assert_allclose(terms["tokens"], np.log(256), rtol=1e-5)
    assert float(terms["hand_pose"]) > 1e-3 and float(terms["joints3d"]) > 1e-4


def test_geometry_alone_teaches_the_synthesizer_and_no_part_of_the_tokenizer():
    """Expectation-approximated sampling: losses of joints go through the decoder."""
    model, batch, init = built()
    variables = drawn(init())

    def geometry(params, variables):
        terms, _, _ = losses.mesh_loss(
            model, {**variables, "params": params}, batch, rngs()
        )
        return terms["joints3d"]

    slopes = quick(jax.grad(geometry))(variables["params"], variables)
    for part in ("synthesizer", "pyramid", "image_encoder", "shape_camera"):
        assert max(np.abs(x).max() for x in jax.tree.leaves(slopes[part])) > 0
    (mesh,) = mmhmr.stages(load_config("smoke"))[1:]
    trained, frozen = step.partition(variables["params"], mesh)
    assert {path.split("/")[0] for path in frozen} == {"tokenizer"}
    assert {path.split("/")[0] for path in trained} == set(variables["params"]) - {
        "tokenizer"
    }


def test_tokens_of_hands_without_known_pose_are_neither_told_nor_asked(monkeypatch):
    model, batch, init = built()
    told = {}

    def score(self, seen, labels, masked, *, train=False):
        told.update(masked=masked)
        return jnp.zeros((*labels.shape, 256)).at[:, :, 0].set(100.0)

    monkeypatch.setattr(network.Model, "score", score)
    known = np.array([True, False, True, True])
    batch = batch._replace(mano_valid=known)

    @quick
    def masks(variables):
        losses.mesh_loss(model, variables, batch, rngs())
        return told["masked"]

    hidden = np.asarray(masks(drawn(init())))
    assert hidden[1].all() and not hidden[known].all()
    labels, mask = jnp.ones((4, 16), int), jnp.zeros((4, 16), bool)
    logits = jnp.zeros((4, 16, 8))
    term = losses.mask_term(
        model, logits, losses.MaskedTokens(labels, mask, jnp.asarray(known))
    )
    np.testing.assert_allclose(term, 3 / 4 * np.log(8), rtol=1e-6)


def test_mask_loss_counts_tokens_as_it_is_told():
    model, *_ = built()
    logits = jnp.zeros((2, 4, 8)).at[:, 0, 1].set(jnp.log(7.0))
    labels = jnp.ones((2, 4), int)
    masked = jnp.array([[True, True, False, False], [False, False, False, True]])
    known, first, other = jnp.ones(2, bool), np.log(2), np.log(8)
    for loss, reduction, expected in (
        ("all", "sum", first + 3 * other),
        ("all", "mean", (first + 3 * other) / 4),
        ("masked", "sum", (first + 2 * other) / 2),
        ("masked", "mean", ((first + other) / 2 + other) / 2),
    ):
        told = model.clone(mask_loss=loss, mask_reduction=reduction)
        term = losses.mask_term(
            told, logits, losses.MaskedTokens(labels, masked, known)
        )
        np.testing.assert_allclose(term, expected, rtol=1e-6)


# --- Inference -------------------------------------------------------------------


def test_one_step_takes_the_best_code_of_each_token_and_poses_its_hand():
    model, batch, init = built(steps=1, decoded="codes")
    variables = drawn(init())

    @quick
    def both(variables, image):
        output = model.apply(variables, image)
        seen = model.apply(variables, image, predicts=True, method="encode_condition")
        hidden = jnp.ones((4, 16), bool)
        logits = model.apply(variables, seen, 0 * hidden, hidden, method="score")
        mean = model.clone(decoded="expectation").apply(variables, image)
        third = model.clone(nth=3).apply(variables, image)
        expected = model.apply(variables, logits, method="expected")
        return output, seen, logits, mean, third, expected

    output, seen, logits, mean, third, expected = both(variables, batch.image)
    np.testing.assert_allclose(output.logits, logits, atol=1e-4)
    np.testing.assert_array_equal(output.indices, jnp.argmax(output.logits, -1))
    order = jnp.argsort(-output.logits, axis=-1)
    np.testing.assert_array_equal(third.indices, order[:, :, 2])
    sure = jnp.max(jax.nn.softmax(output.logits, axis=-1), axis=-1)
    np.testing.assert_allclose(output.confidence, sure.mean(1), rtol=1e-4)
    decode = functools.partial(model.apply, variables)
    posed = decode(output.indices, seen.betas, method="decode")
    np.testing.assert_allclose(output.vertices, posed.vertices, atol=1e-5)
    posed = decode(expected, seen.betas, method="decode_codes")
    np.testing.assert_allclose(mean.vertices, posed.vertices, atol=1e-5)
    assert np.abs(mean.vertices - output.vertices).max() > 1e-5


def test_hypotheses_differ_and_the_answer_does_not():
    model, batch, init = built(steps=2)
    variables = drawn(init())
    draw = quick(
        functools.partial(model.apply, variables, method="hypotheses", count=3)
    )
    hands = draw(batch.image, jax.random.key(0))
    again = draw(batch.image, jax.random.key(0))
    others = draw(batch.image, jax.random.key(1))
    assert hands.vertices.shape == (4, 3, 778, 3)
    np.testing.assert_array_equal(hands.indices, again.indices)
    assert np.any(hands.indices != others.indices)
    assert np.any(hands.indices[:, 0] != hands.indices[:, 1])
    assert (np.diff(hands.confidence, axis=1) <= 0).all()


def test_crops_are_square_and_divide_by_eight():
    model, _, init = built()
    for size in ((128, 96), (124, 124)):
        image = jnp.zeros((1, *size, 3))
        with pytest.raises(ValueError, match=rf"images of {size[0]} x {size[1]} \(he"):
            jax.eval_shape(model.apply, init(), image)


STRUCTURAL = ("table5_no", "table15_1_4_8", "table15_1_8", "table16_2")


@pytest.mark.parametrize(
    "row", [r for r in load_module().ROWS if r.startswith(STRUCTURAL)]
)
def test_rows_that_change_parts_build(row):
    config = load_config(f"smoke,{row}")
    model = workdir.build_model(mmhmr, config)
    batch = posed_batch(4, crop=128)
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), batch, tiny.hand(), method="init_all")
    )
    params = shapes["params"]
    synthesizer = params["synthesizer"]
    assert ("ggpm0" in synthesizer) == (row != "table5_no_ggpm")
    assert ("pose" in synthesizer) == (row != "table5_no_pose")
    assert ("head" in params["shape_camera"]) == (row != "table5_no_attention")
    layers = sum(name.startswith("layer") for name in synthesizer)
    assert layers == (2 if row == "table16_2" else 1)
    levels = {name.split("_")[0] for name in params["pyramid"]}
    assert levels == {f"level{name}" for name in model.levels}
    assert ("detector" in params) == ("detector" in config.stages.mesh.losses)


def test_the_synthesizer_can_read_clusters_of_the_map():
    """They are attended to as a text is; camera and detector see the map."""
    model, batch, init = built(keep_ratio=0.5)
    shapes, whole = init(), built()[2]()
    assert "pruner" in shapes["params"] and "pruner" not in whole["params"]
    layers = [x["params"]["synthesizer"]["layer0"] for x in (shapes, whole)]
    assert ["cross_attention" in layer for layer in layers] == [True, False]
    assert ["deformable" in layer for layer in layers] == [False, True]
    see = functools.partial(model.apply, method="encode_condition")
    seen = jax.eval_shape(see, shapes, batch.image)
    # 4 x 3 places of the map "1x", half of which are tokens.
    assert seen.context.shape == (4, 6, model.width)
    output = jax.eval_shape(model.apply, shapes, batch.image)
    assert output.cam.shape == (4, 3) and output.joints2d.shape == (4, 21, 2)
    assert dict(network.parameter_table(shapes))["image token pruner"] > 0
    with pytest.raises(ValueError, match=r"keep_ratio=0.0 must be above 0 and at most"):
        built(keep_ratio=0)[2]()


def test_other_rows_are_values_and_weights():
    of = lambda row: load_config(row).model  # noqa: E731
    assert [of(f"table6_{n}").steps for n in (1, 3, 5, 10)] == [1, 3, 5, 10]
    tops = [of(f"table7_{n}").tau_range for n in ("03", "05", "07", "10")]
    assert tops == [(0.0, 0.3), (0.0, 0.5), (0.0, 0.7), (0.0, 1.0)]
    assert [of(f"table12_{n}").nth for n in (1, 3, 5, 10, 20)] == [1, 3, 5, 10, 20]
    assert of("table14_1024_256").num_codes == 1024
    assert of("table14_2048_128").code_dim == 128
    assert [of(f"table16_{n}").layers for n in (2, 4, 6, 8)] == [2, 4, 6, 8]
    assert of("table15_1_4").levels == ("1x", "4x")
    assert of("table15_1_8_16").levels == ("1x", "8x", "16x")
    weighed = {
        row: {k for k, v in load_config(row).stages.mesh.losses.items() if v}
        for row in load_module().ROWS
        if row.startswith("table11")
    }
    pose = {"global_orient", "hand_pose"}
    least = {"betas", "detector"}
    assert weighed == {
        "table11_mask": least | {"tokens"},
        "table11_mask_mano": least | {"tokens"} | pose,
        "table11_all": least | {"tokens", "joints3d", "joints2d"} | pose,
        "table11_3d": least | {"joints3d"},
        "table11_no_2d": least | {"tokens", "joints3d"} | pose,
    }


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(joints2d_train="gt"), r"joints2d_train='gt' is not one of truth, predi"),
        (dict(joints2d_test="gt"), r"joints2d_test='gt' is not one of predicted, non"),
        (dict(mask_loss="none"), r"mask_loss='none' is not one of all, masked"),
        (dict(mask_reduction="max"), r"mask_reduction='max' is not one of mean, sum"),
        (dict(decoded="mean"), r"decoded='mean' is not one of codes, expectation"),
        (dict(levels=("4x",)), r"levels=\('4x',\) has no '1x', which betas and cam"),
        (dict(shape_head="max"), r"shape_head='max' is not one of attention, mean"),
        (dict(head_init="zero"), r"head_init='zero' is not one of torch, xavier"),
    ],
)
def test_values_of_the_mesh_stage_are_those_there_are(fields, message):
    with pytest.raises(ValueError, match=message):
        built(**fields)[2]()
