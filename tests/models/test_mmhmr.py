import functools
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from handjax import checkpoints, mano, rotations, skeleton
from handjax import codebook as cb
from handjax.mano import HandModel
from handjax.models import mmhmr
from handjax.nn import mano_head, vq

ROOT = Path(__file__).parents[2]
QUICK = {"xla_backend_optimization_level": 0}
"""Compiling is most of what these tests do."""


@functools.cache
def load_module():
    path = ROOT / "configs" / "mmhmr.py"
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
    model = checkpoints.build_model(mmhmr, config)
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
    vertices, _ = jax.jit(mano.skin)(hand, pose, betas)
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


@pytest.mark.parametrize("name", mmhmr.REPRESENTATIONS)
def test_a_rotation_that_is_written_is_read_again(name):
    numbers, write, read = mmhmr.REPRESENTATIONS[name]
    R = rotations.random_rotation(jax.random.key(0), (50,))
    written = write(R)
    assert written.shape == (50, numbers)
    np.testing.assert_allclose(read(written), R, atol=1e-5)


@pytest.mark.parametrize("name", mmhmr.REPRESENTATIONS)
def test_any_numbers_are_read_as_a_rotation(name):
    numbers, _, read = mmhmr.REPRESENTATIONS[name]
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
    assert dict(mmhmr.parameter_table(init())) == {
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


@pytest.mark.parametrize("rotation", mmhmr.REPRESENTATIONS)
def test_decoding_the_indices_of_a_pose_is_its_reconstruction(rotation):
    model, batch, init = built(rotation=rotation)
    variables = drawn(init())

    @quick
    def both(variables, batch):
        apply = functools.partial(model.apply, variables)
        indices = apply(batch.mano_pose, method="encode")
        again = apply(indices, batch.betas, method="decode")
        _, tokens, quantized = apply(true_matrices(batch), method="reconstruct")
        return indices, again, apply(batch.mano_pose, batch.betas), tokens, quantized

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
    hands = cb.Hands(batch.vertices, batch.mano_pose)
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


@pytest.mark.parametrize(
    "row", [r for r in load_module().ROWS if r[:6] in ("table8", "table9")]
)
def test_rows_of_the_tokenizers_tables_build(row):
    model, _, init = built(row)
    numbers = [int(x) for x in row.split("_")[1:]]
    expected = (numbers[0], 2048, 256) if len(numbers) == 1 else (64, *numbers)
    assert (model.num_tokens, model.num_codes, model.code_dim) == expected
    assert init()["codebook"]["tokenizer"]["vq"]["embedding"].shape == expected[1:]


# --- The tokenizer's losses ----------------------------------------------------


def terms_of(found, batch, **options):
    hand = HandModel.load("open")
    posed = hand.with_shape(batch.betas).with_pose(
        found[:, 0], found[:, 1:], form="matrix"
    )
    return mmhmr.reconstruction_terms(
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
        mmhmr,
        "reconstruction_terms",
        lambda regressor, found, true, valid, **_: seen.update(true=true) or {},
    )
    mmhmr.tokenizer_loss(model, drawn(init()), batch, rngs())
    matrices, vertices = seen["true"]
    np.testing.assert_array_equal(matrices[:, 1:], true_matrices(batch)[:, 1:])
    turns = matrices[:, 0] @ true_matrices(batch)[:, 0].mT
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
    loss = quick(functools.partial(mmhmr.tokenizer_loss, model))
    a, b, full = (loss(variables, x, rngs()) for x in (masked, other, batch))
    for name in a[0]:
        np.testing.assert_allclose(a[0][name], b[0][name], rtol=1e-6)
        assert float(a[0][name]) < float(full[0][name])
    books = [x[2]["codebook"]["tokenizer"]["vq"]["embedding"] for x in (a, b)]
    np.testing.assert_array_equal(*books)


def test_losses_are_those_that_the_config_weighs():
    model, batch, init = built()
    config = load_config("smoke")
    for stage in mmhmr.stages(config):
        terms, metrics, updates = jax.eval_shape(
            functools.partial(stage.loss_fn, model), init(), batch, rngs()
        )
        assert set(terms) == set(config.stages[stage.name].losses)
        assert {x.shape for x in (terms | metrics).values()} == {()}
        assert set(updates) == {"codebook"}
    config.data.root = "wrist"
    with pytest.raises(
        ValueError, match=r"root='middle_mcp' is not config\.data\.root"
    ):
        mmhmr.stages(config)
