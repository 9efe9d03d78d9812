"""Updates that are inf or nan: kept, made again, left out."""

import json
import types

import chex
import fake_family
import jax
import numpy as np
import optax
import pytest
from poisoned import BAD, Poisoned, poisoned_run

from handjax import models, replay
from handjax.checkpoints.workdir import load_variables, stage_steps
from handjax.family import hand_constants
from handjax.training import loop, nonfinite
from handjax.training.nonfinite import NonFiniteError
from handjax.training.step import create, make_step


@pytest.fixture
def stopped(tmp_path):
    """A run that met its first bad update."""
    with pytest.raises(NonFiniteError) as caught:
        loop.fit(poisoned_run(tmp_path / "w", **{"train.checkpoint_every": 1}))
    return tmp_path / "w", str(caught.value)


def _variables(workdir, stage, step):
    return jax.device_get(load_variables(workdir, stage, step)[0])


def _same(a, b):
    chex.assert_trees_all_equal(a, b)


def test_state_and_batch_of_the_update_are_kept(stopped, tmp_path):
    workdir, message = stopped
    directory = workdir / "nonfinite" / "tokenizer-3"
    assert "step 3: loss 'vertices' is nan" in message
    assert f"handjax.replay --update {directory}" in message
    assert (
        "--config.train.max_skipped=1" in message
        and "(last checkpoint: step 2)" in message
    )
    good = fake_family.Data()
    loop.fit(poisoned_run(tmp_path / "good", good, stop=2))
    before = _variables(tmp_path / "good", "tokenizer", 2)
    _same(_variables(directory, "tokenizer", 2), before)
    assert stage_steps(workdir)["tokenizer"][-1] == 2
    kept, batch = nonfinite.read(directory)
    assert (kept.stage, kept.step, kept.processes) == ("tokenizer", 3, 1)
    assert np.isnan(batch.vertices[1, 2]).all() and batch.image is None
    batch.vertices[1, 2] = 0
    expected = fake_family.batch(8, (0, 2))
    expected.vertices[1, 2] = 0
    np.testing.assert_array_equal(batch.vertices, expected.vertices)


def _replayed(workdir, monkeypatch, capsys):
    monkeypatch.setattr(models, "load", lambda name: fake_family)
    monkeypatch.setattr(
        hand_constants, "skeleton_of", lambda variables: types.SimpleNamespace(bones=())
    )
    update = str(workdir / "nonfinite" / "tokenizer-3")
    assert replay.main(["--update", update]) == 1
    return capsys.readouterr().out


def test_it_is_made_again_and_the_batch_is_named(stopped, monkeypatch, capsys):
    text = _replayed(stopped[0], monkeypatch, capsys)
    assert "here, too: loss 'vertices' is nan" in text
    assert "it came with the batch: vertices of example 1\n" in text


def test_it_is_made_again_and_the_operation_is_named(tmp_path, monkeypatch, capsys):
    huge = Poisoned(value=3e38)  # finite, but not the sum of three of it
    changes = {"train.checkpoint_every": 1}
    with pytest.raises(NonFiniteError):
        loop.fit(poisoned_run(tmp_path / "w", huge, **changes))
    text = _replayed(tmp_path / "w", monkeypatch, capsys)
    assert "first made in tests/support/fake_family.py" in text


def test_without_an_update_it_says_what_to_pass(tmp_path, capsys):
    assert replay.main(["--update", str(tmp_path)]) == 2
    assert "no update.json" in capsys.readouterr().err


def test_as_many_as_allowed_are_left_out_and_the_next_one_stops(tmp_path, capsys):
    with pytest.raises(NonFiniteError, match="step 5"):
        loop.fit(poisoned_run(tmp_path / "w", **{"train.max_skipped": 1}))
    assert "the update is left out (1 of at most 1)" in capsys.readouterr().out
    # The same command with another one allowed goes on.
    variables, _ = loop.fit(poisoned_run(tmp_path / "w", **{"train.max_skipped": 4}))
    chex.assert_tree_all_finite(variables["params"])
    lines = [
        json.loads(x) for x in (tmp_path / "w/metrics.jsonl").read_text().splitlines()
    ]
    steps = [x["step"] for x in lines if x["stage"] == "tokenizer"]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert [x.get("loss") is None for x in lines[:6]] == [
        n + 1 in BAD for n in range(6)
    ]


def test_a_skipped_update_changes_nothing_but_the_step(tmp_path):
    # Both may skip: only one and the same program gives the same bits.
    may = {"train.max_skipped": 1}
    assert loop.fit(poisoned_run(tmp_path / "w", Poisoned((3,)), stop=3, **may)) is None
    loop.fit(poisoned_run(tmp_path / "good", fake_family.Data(), stop=2, **may))
    _same(
        _variables(tmp_path / "w", "tokenizer", 3),
        _variables(tmp_path / "good", "tokenizer", 2),
    )


@pytest.mark.parametrize("limit", [0, 1])
def test_a_state_that_may_skip_no_more_never_moves_again(limit):
    config = fake_family.get_config()
    stage, options = fake_family.stages(config)[1], config.stages.mesh
    model, example = fake_family.Model(width=8), fake_family.batch(2, (0,))
    init = model.init(jax.random.key(0), example, fake_family.HAND, method="init_all")
    state = create(init, stage, options, jax.random.key(1))
    step = jax.jit(make_step(model, stage, options, max_skipped=limit))
    good = fake_family.batch(8, (1,))
    bad = good._replace(vertices=good.vertices * np.inf)
    for _ in range(limit):
        state, metrics = step(state, bad)
    assert (int(state.step), int(state.skipped)) == (limit, limit)
    before = state
    state, metrics = step(state, bad)
    assert int(metrics["skipped"]) == limit + 1
    for batch in (good, bad, good):
        state, _ = step(state, batch)
    _same(before._replace(skipped=state.skipped), state)


def test_the_rate_that_is_logged_is_used_after_skipped_updates_and_ends():
    config = fake_family.get_config()
    stage, options = fake_family.stages(config)[1], config.stages.mesh
    with options.unlocked():
        options.steps, options.grad_clip, options.optimizer.weight_decay = 10, 0.0, 0.0
        options.optimizer.update(name="adam", lr=0.5)
        options.schedule.update(name="cosine", warmup_steps=0, end_factor=0.0)
    model, example = fake_family.Model(width=8), fake_family.batch(2, (0,))
    init = model.init(jax.random.key(0), example, fake_family.HAND, method="init_all")
    state = create(init, stage, options, jax.random.key(1))
    step = jax.jit(make_step(model, stage, options, max_skipped=4))
    good = fake_family.batch(8, (1,))
    bad = good._replace(vertices=good.vertices * np.inf)
    for number in range(10):
        before = [
            int(node.count)
            for node in jax.tree.leaves(
                state.opt_state,
                is_leaf=lambda x: isinstance(x, optax.ScaleByScheduleState),
            )
            if isinstance(node, optax.ScaleByScheduleState)
        ]
        state, metrics = step(state, bad if number in (1, 2, 5, 6) else good)
        # What optax uses is the schedule at its own count.
        assert before and set(before) == {number}
        used = 0.25 * (1 + np.cos(np.pi * number / 10))
        assert float(metrics["lr"]) == pytest.approx(used, abs=1e-6)
    assert int(state.skipped) == 4 and int(state.step) == 10
    moments = [
        node
        for node in jax.tree.leaves(
            state.opt_state, is_leaf=lambda x: isinstance(x, optax.ScaleByAdamState)
        )
        if isinstance(node, optax.ScaleByAdamState)
    ]
    assert moments and all(int(node.count) == 6 for node in moments)
