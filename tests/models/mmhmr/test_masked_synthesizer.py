import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from handjax.geometry import skeleton
from handjax.models.mmhmr.masked_synthesizer import CameraShapeHead, MaskedSynthesizer

BATCH, TOKENS, CODES, WIDTH, JOINTS = 2, 8, 11, 16, 21
PAPER = dict(
    num_tokens=64,
    num_codes=2048,
    width=256,
    layers=4,
    heads=8,
    points=4,
    mlp_ratio=4,
    dropout=0.0,
    ggpm_blocks=2,
    adjacency="bias",
    ggpm_residual=False,
    reduction=4,
    pose="linear",
    reference="joints2d",
)
SMALL = PAPER | dict(
    num_tokens=TOKENS, num_codes=CODES, width=WIDTH, layers=1, heads=2, points=2
)
HEAD = dict(width=8, layers=2, heads=2, mlp_ratio=4)


def small(**options):
    return MaskedSynthesizer(**{**SMALL, "ggpm_blocks": 1, **options})


def given(text=False, seed=1):
    """Half of the tokens masked; an image with its joints, or a text."""
    rng = np.random.default_rng(seed)
    tokens = (
        jnp.asarray(rng.integers(0, CODES, (BATCH, TOKENS)), jnp.int32),
        jnp.asarray(np.arange(BATCH * TOKENS).reshape(BATCH, TOKENS) % 2 == 0),
    )
    normal = lambda *shape: jnp.float32(rng.normal(size=shape))  # noqa: E731
    if text:
        valid = jnp.asarray(np.arange(6)[None] < np.array([[6], [4]]))
        return tokens, dict(context=normal(BATCH, 6, 5), context_valid=valid)
    return tokens, dict(
        maps=(normal(BATCH, 4, 3, 5), normal(BATCH, 16, 12, 5)),
        joints2d=jnp.float32(rng.uniform(size=(BATCH, JOINTS, 2))),
        joints2d_confidence=jnp.float32(rng.uniform(0.2, 1, (BATCH, JOINTS))),
    )


def shapes(module, tokens, options):
    return jax.eval_shape(
        lambda: module.init_with_output(jax.random.key(0), *tokens, **options)
    )


@functools.cache
def prepared(text=False, **fields):
    """A synthesizer's function, with variables drawn from a normal distribution."""
    module = small(**(dict(pose="none", **fields) if text else fields))
    _, found = shapes(module, *given(text))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: jnp.float32(0.3 * rng.normal(size=leaf.shape)), found
    )
    return jax.jit(lambda tokens, options: module.apply(variables, *tokens, **options))


def change(out, other):
    """Largest difference of each token of each example."""
    return np.abs(np.asarray(out - other)).max(axis=-1)


# --- Shapes --------------------------------------------------------------------


def test_the_papers_size_takes_the_papers_shapes():
    tokens = jnp.zeros((2, 64), jnp.int32), jnp.ones((2, 64), bool)
    maps = jnp.zeros((2, 16, 12, 256)), jnp.zeros((2, 64, 48, 256))
    joints2d = jnp.zeros((2, 21, 2))
    logits, variables = shapes(
        MaskedSynthesizer(**PAPER), tokens, dict(maps=maps, joints2d=joints2d)
    )
    assert (logits.shape, logits.dtype) == ((2, 64, 2048), jnp.float32)
    params = variables["params"]
    assert params["codes"]["embedding"].shape == (2048, 256)
    assert params["mask"].shape == (1, 1, 256)
    assert params["ggpm1"]["adjacency"].shape == (8, 85, 85)
    assert params["reference"].shape == (85, 2)
    assert params["layer3"]["deformable"]["offsets"]["kernel"].shape == (256, 128)
    assert "layer4" not in params and "ggpm2" not in params


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("layers", [2, 4, 6, 8])
def test_bfloat16_inside_has_float32_logits_and_parameters(text, layers):
    options = dict(layers=layers, dtype=jnp.bfloat16, ggpm_blocks=0)
    module = small(**options, pose="none" if text else "gcn")
    logits, variables = shapes(module, *given(text))
    assert (logits.shape, logits.dtype) == ((BATCH, TOKENS, CODES), jnp.float32)
    assert {v.dtype for v in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    names = [name for name in variables["params"] if name.startswith("layer")]
    assert len(names) == layers


def test_half_precision_is_close():
    full, half = (run(*given()) for run in (prepared(), prepared(dtype=jnp.bfloat16)))
    assert change(full, half).max() < 0.1 * np.abs(np.asarray(full)).max()


# --- Tokens ----------------------------------------------------------------------


def test_the_code_under_a_mask_changes_nothing():
    run, ((indices, masked), options) = prepared(), given()
    expected = run((indices, masked), options)
    for other in (CODES - 1 - indices, jnp.full_like(indices, CODES), -indices - 1):
        hidden = jnp.where(masked, other, indices)
        np.testing.assert_array_equal(run((hidden, masked), options), expected)


def test_a_known_code_and_where_it_stands_change_all_logits_of_its_example():
    run, ((indices, masked), options) = prepared(), given()
    expected = run((indices, masked), options)
    other = indices.at[0, 1].add(1) % CODES  # token 1 is known
    changed = change(run((other, masked), options), expected)
    assert (changed[0] > 1e-6).all() and (changed[1] == 0).all()
    hidden = change(run((indices, masked.at[0, 1].set(True)), options), expected)
    assert (hidden[0] > 1e-6).all()
    rolled = (jnp.roll(indices, 1, axis=1), jnp.roll(masked, 1, axis=1))
    moved = run(rolled, options)
    assert change(jnp.roll(moved, -1, axis=1), expected).min() > 1e-6


def test_examples_do_not_see_each_other():
    run, (tokens, options) = prepared(), given()
    turned = jax.tree.map(lambda a: a[::-1], (tokens, options))
    np.testing.assert_allclose(
        run(*turned)[::-1], run(tokens, options), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("text", [False, True])
def test_gradients_reach_everything_that_is_used(text):
    module = small(pose="none" if text else "linear")
    tokens, options = given(text)
    _, found = shapes(module, tokens, options)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.float32(0.3 * rng.normal(size=leaf.shape)), found["params"]
    )
    mix = jnp.float32(rng.normal(size=(BATCH, TOKENS, CODES)))

    @jax.jit
    @jax.grad
    def slopes(params):
        return jnp.sum(mix * module.apply({"params": params}, *tokens, **options))

    grads = slopes(params)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads))
    used = np.unique(np.asarray(tokens[0])[~np.asarray(tokens[1])])
    rows = np.abs(grads["codes"]["embedding"]).max(axis=1) > 0
    np.testing.assert_array_equal(np.flatnonzero(rows), used)


# --- What it is given --------------------------------------------------------------


def test_every_map_and_joint_matters_to_its_example():
    run, (tokens, options) = prepared(), given()
    expected = run(tokens, options)
    for level in range(2):
        maps = list(options["maps"])
        maps[level] = maps[level].at[0].add(1.0)
        changed = change(run(tokens, {**options, "maps": tuple(maps)}), expected)
        assert changed[0].max() > 1e-6 and changed[1].max() == 0
    moved = options["joints2d"].at[0, 20].add(0.1)
    changed = change(run(tokens, {**options, "joints2d": moved}), expected)
    assert changed[0].max() > 1e-6 and changed[1].max() == 0


def test_words_matter_but_for_padding_and_have_no_order():
    run, (tokens, options) = prepared(True), given(True)
    context, valid = options["context"], options["context_valid"]
    expected = run(tokens, options)
    for word in (3, 5):  # the second text has four
        other = {**options, "context": context.at[:, word].add(1.0)}
        changed = change(run(tokens, other), expected)
        assert changed[0].min() > 1e-6
        assert (changed[1] > 1e-6).all() if word == 3 else (changed[1] == 0).all()
    turned = dict(context=context[:, ::-1], context_valid=valid[:, ::-1])
    np.testing.assert_allclose(run(tokens, turned), expected, rtol=1e-4, atol=1e-5)
    nothing = {**options, "context_valid": jnp.zeros_like(valid)}
    assert np.isfinite(run(tokens, nothing)).all()


@pytest.mark.parametrize("fields", [{}, dict(pose="gcn", reference="learned")])
def test_joints_that_are_not_seen_may_be_anywhere(fields):
    run = prepared(**fields)
    tokens, options = given()
    none = jnp.zeros((BATCH, JOINTS))
    blind = {**options, "joints2d_confidence": none}
    expected = run(tokens, blind)
    lost = {**blind, "joints2d": jnp.full((BATCH, JOINTS, 2), jnp.nan)}
    np.testing.assert_array_equal(run(tokens, lost), expected)
    absent = run(tokens, dict(maps=options["maps"]))
    np.testing.assert_allclose(absent, expected, rtol=1e-5, atol=1e-5)
    assert change(run(tokens, options), expected).min() > 1e-6


def test_joints_without_a_confidence_are_sure():
    run, (tokens, options) = prepared(), given()
    sure = {**options, "joints2d_confidence": jnp.ones((BATCH, JOINTS))}
    whole = dict(maps=options["maps"], joints2d=options["joints2d"])
    np.testing.assert_allclose(
        run(tokens, sure), run(tokens, whole), rtol=1e-5, atol=1e-5
    )


def test_queries_look_where_their_joints_are():
    """Without pose tokens, joints enter by the places alone."""
    run = prepared(pose="none")
    tokens, options = given()
    expected = run(tokens, options)
    # Eight tokens stand at every other of MANO's joints: 0, 2, ... 14.
    assert skeleton.JOINTS[7] == "index3"
    for joint, matters in ((0, True), (6, True), (7, False), (20, False)):
        moved = {**options, "joints2d": options["joints2d"].at[:, joint].add(0.2)}
        assert (change(run(tokens, moved), expected).max() > 1e-6) == matters
    learned = prepared(pose="none", reference="learned")
    moved = {**options, "joints2d": options["joints2d"] + 0.2}
    np.testing.assert_array_equal(learned(tokens, moved), learned(tokens, options))


@pytest.mark.parametrize("adjacency", ["graph_conv", "none"])
def test_blocks_of_the_graph_transformer_can_be_chosen(adjacency):
    options = dict(adjacency=adjacency, ggpm_residual=True, ggpm_blocks=2)
    _, variables = shapes(small(**options), *given())
    params = variables["params"]
    assert "adjacency" not in params["ggpm1"]
    assert ("graph" in params["ggpm0"]) == (adjacency == "graph_conv")
    _, variables = shapes(small(ggpm_blocks=0), *given())
    assert not [name for name in variables["params"] if name.startswith("ggpm")]


def test_dropout_is_of_training_alone():
    module, (tokens, options) = small(dropout=0.5, ggpm_blocks=0), given()
    _, found = shapes(module, tokens, options)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda a: jnp.float32(rng.normal(size=a.shape)), found)

    @jax.jit
    def each(keys):
        def apply(key, train):
            rngs = {"dropout": key}
            return module.apply(variables, *tokens, **options, train=train, rngs=rngs)

        return jax.lax.map(lambda key: (apply(key, False), apply(key, True)), keys)

    still, dropped = each(jax.random.split(jax.random.key(0), 2))
    np.testing.assert_array_equal(still[0], still[1])
    assert change(dropped[0], dropped[1]).max() > 1e-3


@pytest.mark.parametrize(
    ("options", "without", "message"),
    [
        (dict(pose="sine"), (), r"pose='sine' is not one of linear, gcn, none"),
        (dict(reference="grid"), (), r"reference='grid' is not one of joints2d"),
        (dict(num_tokens=16), (), r"8 tokens, but config.model.num_tokens=16"),
        (dict(edges=skeleton.BONES[:8]), (), r"21 2-D joints, but .* are of 9"),
        (dict(adjacency="fixed"), (), r"adjacency='fixed' is not one of bias"),
        ({}, ("maps",), r"neither maps nor a text; give either maps="),
    ],
)
def test_what_does_not_fit_is_refused(options, without, message):
    tokens, inputs = given()
    kept = {k: v for k, v in inputs.items() if k not in without}
    with pytest.raises(ValueError, match=message):
        shapes(small(**options), tokens, kept)


def test_maps_and_a_text_at_once_are_refused():
    (tokens, image), (_, text) = given(), given(True)
    with pytest.raises(ValueError, match="was given maps and a text"):
        shapes(small(), tokens, {**image, **text})


# --- Betas and camera ---------------------------------------------------------------


def head_of(module, features):
    found = jax.eval_shape(lambda: module.init(jax.random.key(0), features))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: jnp.float32(0.3 * rng.normal(size=leaf.shape)), found
    )
    return jax.jit(functools.partial(module.apply, variables)), variables


def test_shape_head_reads_the_map_as_a_set_of_pixels():
    features = jnp.float32(np.random.default_rng(1).normal(size=(BATCH, 4, 3, 5)))
    run, variables = head_of(CameraShapeHead("attention", **HEAD), features)
    out = run(features)
    assert out.shape == (BATCH, 8)
    np.testing.assert_allclose(run(features[:, ::-1]), out, rtol=1e-4, atol=1e-5)
    other = change(run(features.at[0, 2, 1].add(1.0)), out)
    assert other[0] > 1e-6 and other[1] == 0
    assert "layer1_cross" in variables["params"]
    assert "layer2_cross" not in variables["params"]


def test_shape_head_without_attention_is_the_mean():
    features = jnp.float32(np.random.default_rng(1).normal(size=(BATCH, 4, 3, 5)))
    run, variables = head_of(CameraShapeHead("mean", **HEAD), features)
    assert not jax.tree.leaves(variables)
    np.testing.assert_allclose(run(features), features.mean((1, 2)), atol=1e-6)


@pytest.mark.parametrize("kind", ["attention", "mean"])
def test_shape_head_of_a_bfloat16_map_is_float32(kind):
    head = CameraShapeHead(kind, **HEAD, dtype=jnp.bfloat16)
    features = jnp.zeros((BATCH, 4, 3, 5), jnp.bfloat16)
    init = functools.partial(head.init_with_output, jax.random.key(0))
    out, _ = jax.eval_shape(init, features)
    assert out.dtype == jnp.float32


def test_unknown_shape_head_is_refused():
    with pytest.raises(ValueError, match="shape_head='max' is not one of attention, m"):
        head = CameraShapeHead("max", **HEAD)
        head.init(jax.random.key(0), jnp.zeros((1, 2, 2, 5)))
