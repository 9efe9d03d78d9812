"""What is not annotated teaches nothing: every loss of every family, any annotations.

Each of sixteen hands of a batch has another subset of the four kinds of annotations.
"""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from places import CONFIGS

from handjax import models
from handjax.checkpoints import workdir
from handjax.data import run_data
from handjax.losses import supervision
from handjax.training import step

QUICK = {"xla_backend_optimization_level": 0}
KINDS = ("joints2d", "joints3d", "vertices", "mano")
SUBSETS = np.array([[row >> bit & 1 for bit in range(4)] for row in range(16)], bool)
VARIANTS = {"simplehand": "smoke,table5_coarse"}
"""The generator that looks at projected vertices, too."""
FIELDS = {
    "simplehand": dict(root_depth=True),
    # Compiling scans takes long, and they see no annotations.
    "hamba": dict(width=16, regressor_depths=(), decoder_depths=()),
}


def load_config(family):
    spec = importlib.util.spec_from_file_location(family, CONFIGS / f"{family}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(VARIANTS.get(family, "smoke"))
    config.model.update(FIELDS.get(family, {}))
    return config


CASES = [
    (family, name) for family in models.names() for name in load_config(family).stages
]


def teachers(family, stage, loss):
    """Kinds of annotations one of which a loss cannot do without; None: no kind."""
    loss = loss.removeprefix("regressor_").removesuffix("_mesh")
    if loss in ("adversarial", "discriminator"):
        return None
    if (family, stage) == ("mmhmr", "tokenizer"):
        return {"mano"}
    if loss == "tokens":
        return {"mano"} if family == "mmhmr" else {"vertices"}
    if (family, loss) == ("simplehand", "joints2d"):
        return {"joints2d", "vertices"}
    return {
        kind
        for kind, losses in {
            "joints2d": ("joints2d", "detector"),
            "joints3d": ("joints3d", "root_depth"),
            "vertices": ("vertices", "edges", "normals", "pruning", "commitment"),
            "mano": ("global_orient", "hand_pose", "betas"),
        }.items()
        if loss in losses
    }


def annotated(config, known, *, noise=1.0):
    """Hands of which each has the annotations that it is known to have.

    Args:
        config: Of the run.
        known: (16, kind).
        noise: Strength of what stands where nothing is known; 0 as a loader leaves it.
    """
    rng, count = np.random.default_rng(0), len(known)
    full = tiny.batch(count, crop=config.data.crop_size)
    K = np.tile(np.eye(3), (count, 1, 1))
    K[:, [0, 1], [0, 1]], K[:, :2, 2] = 100, config.data.crop_size / 2
    full = full._replace(
        intrinsics=K.astype(np.float32),
        root3d=np.tile(np.float32([0, 0, 0.5]), (count, 1)),
        mano_pose=rng.normal(0, 0.4, (count, 16, 3)).astype(np.float32),
        betas=rng.normal(size=(count, 10)).astype(np.float32),
    )
    have = dict(zip(KINDS, known.T, strict=True))
    strange = np.random.default_rng(1)

    def field(values, which, size):
        shape = which.shape + (1,) * (values.ndim - which.ndim)
        other = noise * strange.normal(0, size, values.shape)
        return np.where(which.reshape(shape), values, other).astype(np.float32)

    joints = np.ones((count, 21), bool)
    known3d = joints & have["joints3d"][:, None]
    known3d[1::2, [4, 12]] = False
    return full._replace(
        joints2d=field(full.joints2d, have["joints2d"], 50.0),
        joints2d_valid=joints & have["joints2d"][:, None],
        joints2d_confidence=field(
            rng.uniform(0.3, 1, (count, 21)), have["joints2d"], 1.0
        ),
        joints3d=field(full.joints3d, known3d, 0.3),
        joints3d_valid=known3d.all(axis=1),
        joints3d_known=known3d,
        root3d=field(full.root3d, have["joints3d"] | have["vertices"], 0.3),
        vertices=field(full.vertices, have["vertices"], 0.3),
        vertices_valid=have["vertices"],
        mano_pose=field(full.mano_pose, have["mano"], 1.0),
        betas=field(full.betas, have["mano"], 3.0),
        mano_valid=have["mano"],
        betas_valid=have["mano"],
    )


def drawn(shapes):
    """Variables of ordinary size (to draw them in JAX is much to compile)."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if leaf.dtype == bool:
            return jnp.ones(leaf.shape, bool)
        normal = rng.standard_normal(leaf.shape)
        if leaf.ndim > 1:
            return jnp.float32(normal / np.sqrt(leaf.shape[-2]))
        positive = path[-1].key in ("scale", "var", "ema_count")
        return jnp.float32(positive + 0.1 * np.abs(normal))

    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture(scope="module")
def learner():
    """(family, stage) -> config and a function from a batch to all that it teaches."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        tiny.patch_backbone(monkeypatch)
        yield functools.cache(_learner)


def _learner(family, name):
    config, module = load_config(family), models.load(family)
    stage = next(s for s in module.stages(config) if s.name == name)
    model = workdir.build_model(module, config)
    example = tiny.batch(2, crop=config.data.crop_size)
    init = functools.partial(model.init, jax.random.key(0), method="init_all")
    shapes = jax.eval_shape(lambda: init(example, tiny.hand()))
    kept = jax.jit(
        lambda: init(example, tiny.hand())["constants"], compiler_options=QUICK
    )()
    variables = drawn({k: v for k, v in shapes.items() if k != "constants"})
    variables["constants"] = kept
    trainable, rest = step.partition(variables["params"], stage)
    streams = enumerate(step.RNG_STREAMS)
    rngs = {stream: jax.random.key(i) for i, stream in streams}

    @functools.partial(jax.jit, compiler_options=QUICK)
    @functools.partial(jax.value_and_grad, has_aux=True)
    def teach(trainable, batch):
        params = step.nested({**rest, **trainable})
        losses, metrics, updates = stage.loss_fn(
            model, {**variables, "params": params}, batch, rngs
        )
        return sum(losses.values()), (losses, metrics, updates)

    def taught(batch):
        (_, (losses, metrics, updates)), grads = teach(
            trainable, run_data.for_stage(batch, stage)
        )
        found = dict(losses=losses, metrics=metrics, grads=grads)
        updates = step.flat(updates) if updates else {}
        return jax.device_get(found | {"updates": updates})

    taught.collections = step.flat(variables)
    return config, taught


def same(a, b):
    """Whether two batches teach the same, to the last bit."""
    for what in a:
        for name, value in a[what].items():
            assert np.isfinite(value).all(), (what, name)
            np.testing.assert_array_equal(
                value, b[what][name], err_msg=f"{what} {name}"
            )


@pytest.mark.parametrize("family, stage", CASES)
def test_what_is_not_known_teaches_nothing(learner, family, stage):
    """Whatever stands in fields that are not valid."""
    config, taught = learner(family, stage)
    plain = taught(annotated(config, SUBSETS, noise=0.0))
    same(plain, taught(annotated(config, SUBSETS, noise=1.0)))
    strange = annotated(config, SUBSETS, noise=np.nan)
    assert np.isnan(strange.vertices).any() and np.isnan(strange.joints3d).any()
    same(plain, taught(supervision.zero_unannotated(strange)))
    assert any(np.any(grad) for grad in plain["grads"].values())


@pytest.mark.parametrize("family, stage", CASES)
def test_each_loss_needs_its_own_annotation(learner, family, stage):
    config, taught = learner(family, stage)
    everything, nothing = np.ones((16, 4), bool), np.zeros((16, 4), bool)
    for name, value in taught(annotated(config, everything))["losses"].items():
        assert value > 0, name
    for known in (nothing, *(nothing | (np.array(KINDS) == kind) for kind in KINDS)):
        found = taught(annotated(config, known))
        have = {kind for kind, has in zip(KINDS, known[0], strict=True) if has}
        for name, value in found["losses"].items():
            needed = teachers(family, stage, name)
            assert np.isfinite(value)
            if needed is not None and not needed & have:
                assert value == 0, (name, have)
        judged = any(teachers(family, stage, name) is None for name in found["losses"])
        for name, grad in found["grads"].items():
            assert np.isfinite(grad).all(), (name, have)
            if not (have or judged):
                assert not np.any(grad), name
        for name, value in found["updates"].items():
            assert np.isfinite(value).all(), (name, have)


@pytest.mark.parametrize("family, stage", CASES)
def test_2d_joints_teach_by_their_confidence(learner, family, stage):
    config, taught = learner(family, stage)
    batch = annotated(config, np.ones((16, 1), bool) & (np.array(KINDS) == "joints2d"))
    unsure = batch._replace(joints2d_confidence=batch.joints2d_confidence / 4)
    sure, unsure = (taught(b)["losses"] for b in (batch, unsure))
    for name in sure:
        if teachers(family, stage, name) in ({"joints2d"}, {"joints2d", "vertices"}):
            np.testing.assert_allclose(unsure[name], sure[name] / 4, rtol=1e-5)


def test_a_mesh_is_not_projected_from_nowhere(learner):
    """Without a camera nobody knows where a hand is."""
    config, taught = learner("simplehand", "mesh")
    batch = annotated(config, np.ones((16, 1), bool) & (np.array(KINDS) == "vertices"))
    assert taught(batch)["losses"]["joints2d"] > 0
    nowhere = batch._replace(root3d=np.zeros_like(batch.root3d))
    assert taught(nowhere)["losses"]["joints2d"] == 0


@pytest.mark.parametrize(
    "family, stage", [("tokenhand", "tokenizer"), ("mmhmr", "tokenizer")]
)
def test_a_batch_without_a_mesh_moves_no_codebook(learner, family, stage):
    config, taught = learner(family, stage)
    a, b = (np.full((16, 4), known) for known in (False, True))
    a, b = (taught(annotated(config, known))["updates"] for known in (a, b))
    first = learner(family, stage)[1].collections
    for name, value in a.items():
        np.testing.assert_array_equal(value, first[name], err_msg=name)
    assert any(np.any(b[name] != first[name]) for name in b)


# --- parts --------------------------------------------------------------------------


def test_clearing_takes_what_is_not_known_and_nothing_else():
    config = load_config("hamer")
    whole = annotated(config, SUBSETS, noise=np.nan)
    found = supervision.zero_unannotated(whole)
    for name, value in zip(whole._fields, whole, strict=True):
        if value is not None:
            np.testing.assert_array_equal(
                getattr(found, name), np.nan_to_num(value), err_msg=name
            )
    bare = whole._replace(
        joints2d_confidence=None, joints3d_known=None, betas_valid=None
    )
    found = supervision.zero_unannotated(bare)
    assert found.joints2d_confidence is None and found.joints3d_known is None
    np.testing.assert_array_equal(
        np.any(found.joints3d, axis=(1, 2)), whole.joints3d_valid
    )
    np.testing.assert_array_equal(np.any(found.betas, axis=1), whole.mano_valid)


@pytest.mark.parametrize(
    "valid, expected",
    [
        ([1, 1, 1], [0, 1, 2]),
        ([0, 1, 0, 1, 0], [1, 1, 3, 3, 1]),
        ([0, 0, 1], [2, 2, 2]),
        ([0, 0], [0, 0]),
    ],
)
def test_valid_examples_stand_in_for_the_others_in_turn(valid, expected):
    found = supervision.valid_replacements(np.array(valid, bool))
    assert found.tolist() == expected
