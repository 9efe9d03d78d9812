"""One update: gradients accumulated over parts of the batch."""

import functools
import re

import chex
import fake_family
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from handjax.config import schema as configs
from handjax.distributed import sharding
from handjax.family.stage import Stage
from handjax.training.step import RNG_STREAMS, create, make_step

TOKENIZER, MESH = fake_family.stages(None)


@functools.cache
def _variables():
    example, hand = fake_family.batch(2, (0,)), fake_family.HAND
    init = functools.partial(fake_family.Model().init, method="init_all")
    return jax.jit(lambda key: init(key, example, hand))(jax.random.key(0))


def _start(stage, accumulate):
    """Model, config of the stage and state before its first update."""
    config = fake_family.get_config()
    options = config.stages[stage.name]
    options.accumulate = accumulate
    options.optimizer.update(name="sgd", lr=1.0)  # moves by the very gradient
    state = create(_variables(), stage, options, jax.random.key(1))
    return fake_family.Model(), options, state


@functools.cache
def _jitted(stage, accumulate, **options_of_step):
    model, options, state = _start(stage, accumulate)
    step = jax.jit(make_step(model, stage, options, **options_of_step))
    return functools.partial(step, state)


def _step(stage, batch, accumulate, **options_of_step):
    return jax.device_get(_jitted(stage, accumulate, **options_of_step)(batch))


def _assert_close(a, b):
    chex.assert_trees_all_close(a, b, rtol=2e-5, atol=1e-6)


def _rows(batch, rows):
    return jax.tree.map(lambda x: x[rows], batch)


def test_means_over_the_batch_do_not_depend_on_the_parts():
    batch = fake_family.batch(6, (3,))
    whole, together = _step(TOKENIZER, batch, 1)
    state, metrics = _step(TOKENIZER, batch, 3)
    _assert_close(metrics, together)
    _assert_close(state.params, whole.params)
    again, _ = _step(TOKENIZER, batch, 3)
    chex.assert_trees_all_equal(state, again)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_step_is_traced_once_for_all_updates(accumulate):
    """A state that comes back with other types would compile every update anew."""
    model, options, state = _start(TOKENIZER, accumulate)
    chex.clear_trace_counter()  # it counts by place in the source
    step = chex.assert_max_traces(make_step(model, TOKENIZER, options), n=1)
    step = jax.jit(step)
    for seed in range(3):
        state, metrics = step(state, fake_family.batch(6, (seed,)))
    chex.assert_tree_all_finite((state.params, metrics))
    assert int(state.step) == 3


def test_what_is_not_annotated_is_cleared_before_a_loss_sees_it():
    batch = fake_family.batch(6, (3,))
    known = np.arange(6) < 4
    strange = batch.vertices.copy()
    strange[~known] = np.nan
    state, metrics = _step(
        MESH, batch._replace(vertices=strange, vertices_valid=known), 1
    )
    strange[~known] = 0
    again, expected = _step(MESH, batch._replace(vertices=strange), 1)
    assert np.isfinite(metrics["loss_vertices"]) and metrics["loss_vertices"] > 0
    _assert_close((metrics, state.params), (expected, again.params))


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_weight_of_a_loss_grows_along_its_ramp(accumulate):
    model, options, state = _start(MESH, accumulate)
    options.ramps = dict(vertices=dict(middle=7, width=2))
    step = jax.jit(make_step(model, MESH, options))
    for done, share in ((0, 1 / (1 + np.exp(3.5))), (7, 0.5), (100, 1.0)):
        after = state._replace(step=jnp.int32(done))
        metrics = step(after, fake_family.batch(6, (3,)))[1]
        expected = 10 * share * metrics["loss_vertices"] + 0.1 * metrics["loss_size"]
        np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)


def _collections_after(stage, parts_in_turn):
    """Each round, the mean of what the parts make of the collections, by hand."""
    model, _, state = _start(stage, 1)
    collections = state.collections
    rngs = {name: jax.random.key(0) for name in RNG_STREAMS}
    updates = jax.jit(lambda v, part: stage.loss_fn(model, v, part, rngs)[2])
    for parts in parts_in_turn:
        variables = {"params": state.params, **collections}
        moved = [updates(variables, part) for part in parts]
        mean = jax.tree.map(lambda *x: sum(x) / len(x), *moved)
        collections = {**collections, **mean}
    return collections


@pytest.mark.parametrize("stage", [TOKENIZER, MESH], ids=["codebook", "batch_stats"])
def test_collections_move_from_part_to_part(stage):
    batch = fake_family.batch(6, (3,))
    state, _ = _step(stage, batch, 3)
    by_hand = [[_rows(batch, slice(i, i + 2))] for i in (0, 2, 4)]
    _assert_close(state.collections, _collections_after(stage, by_hand))


def test_every_device_has_its_rows_in_every_part():
    """Rows 0 to 3 are of the first of two devices, which cuts them in two."""
    batch = fake_family.batch(8, (3,))
    own = dict(devices=2, batch_norm="device")
    state, _ = _step(MESH, batch, 2, **own)
    of_part = [[[0, 1], [4, 5]], [[2, 3], [6, 7]]]
    by_hand = [[_rows(batch, np.array(x)) for x in devices] for devices in of_part]
    _assert_close(state.collections, _collections_after(MESH, by_hand))


def _two_devices(accumulate, devices):
    """The compiled update over a mesh, and its arguments."""
    mesh = sharding.make_mesh(fake_family.get_config().mesh, jax.devices()[:2])
    model, options, state = _start(MESH, accumulate)
    state = jax.device_put(state, sharding.replicated(mesh))
    batch = sharding.global_batch(mesh, fake_family.batch(8, (3,)))
    step = make_step(model, MESH, options, devices=devices)
    return jax.jit(step).lower(state, batch).compile(), (state, batch)


def _moved_pictures(compiled):
    """Lines of the program that send bytes (only pictures have uint8)."""
    sends = re.compile(r"= .*u8.* (all-gather|all-to-all|collective-permute)")
    return [line for line in compiled.as_text().splitlines() if sends.search(line)]


def test_devices_accumulate_without_sending_pictures_to_each_other():
    compiled, arguments = _two_devices(2, devices=2)
    assert not _moved_pictures(compiled)
    many = jax.device_get(compiled(*arguments))
    one = _step(MESH, fake_family.batch(8, (3,)), 2, devices=2)
    _assert_close((many[0].collections, many[1]), (one[0].collections, one[1]))
    # Parts of consecutive rows would be a few devices' alone.
    assert _moved_pictures(_two_devices(2, devices=1)[0])


def test_activations_are_those_of_one_part():
    def loss_fn(model, variables, batch, rngs):
        del model, rngs
        x = batch.mano_pose.reshape(-1, 48)
        for _ in range(4):
            x = jnp.sin(x @ variables["params"]["kernel"])
        return {"size": jnp.mean(x**2)}, {}, {}

    stage = Stage(
        name="wide",
        loss_fn=loss_fn,
        predict_fn=lambda *_: None,
        trainable="",
        needs_image=False,
    )
    kernel, batch = jnp.ones((48, 48)), fake_family.batch(4096, (0,))

    def temporaries(accumulate):
        options = ml_collections.ConfigDict(
            configs.stage(
                steps=1, batch_size=4096, losses={"size": 1.0}, accumulate=accumulate
            )
        )
        state = create(
            {"params": {"kernel": kernel}}, stage, options, jax.random.key(0)
        )
        step = make_step(None, stage, options)
        compiled = jax.jit(step).lower(state, batch).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(8) < temporaries(1) / 3
