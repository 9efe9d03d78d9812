"""The loop: stages, freezing, exact resume."""

import json
import types

import chex
import fake_family
import jax
import numpy as np
import pytest

from handjax import models
from handjax.checkpoints.workdir import load_for_inference, load_variables, stage_steps
from handjax.config import schema
from handjax.distributed.sharding import make_mesh
from handjax.training import loop
from handjax.training import step as train_state
from handjax.training.nonfinite import NonFiniteError
from handjax.training.run import Hooks, Run, Stop


def _run(workdir, *, stop=None, hooks=Hooks(), family=fake_family, **changes):  # noqa: B008
    config = fake_family.get_config()
    config.update_from_flattened_dict(changes)
    workdir.mkdir(exist_ok=True)
    return Run(
        config=config,
        workdir=workdir,
        family=family,
        model=fake_family.Model(**config.model.to_dict()),
        hand=fake_family.HAND,
        hand_info={"name": "open", "sha256": "0"},
        example=fake_family.batch(2, (0,)),
        data=fake_family.Data(),
        mesh=make_mesh(config.mesh, jax.devices()[:1]),
        hooks=hooks,
        stop=Stop(stop),
    )


def _lines(workdir):
    text = (workdir / "metrics.jsonl").read_text()
    # Speed and waiting are of the machine, not of the run.
    return [
        {
            k: v
            for k, v in json.loads(x).items()
            if not k.startswith(("images_per_s", "share_"))
        }
        for x in text.splitlines()
    ]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "unbroken"
    seen = []

    def evaluate(run, stage, variables, step):
        seen.append((stage.name, step))
        return {"eval_step": float(step)}

    run = _run(workdir, hooks=Hooks(evaluate), **{"train.eval_every": 4})
    variables, meta = loop.fit(run)
    return workdir, jax.device_get(variables), meta, seen


def test_stages_run_in_order_and_log_every_step_once(unbroken):
    workdir, _, _, seen = unbroken
    steps = [(x["stage"], x["step"]) for x in _lines(workdir) if "loss" in x]
    assert steps == [(s, n) for s in ("tokenizer", "mesh") for n in range(1, 7)]
    assert seen == [(s, n) for s in ("tokenizer", "mesh") for n in (4, 6)]
    assert stage_steps(workdir) == {"mesh": [4, 6], "tokenizer": [4, 6]}


def test_the_rates_of_groups_are_logged(unbroken):
    first, *_ = (x for x in _lines(unbroken[0]) if x["stage"] == "mesh")
    assert (first["lr"], first["lr_head"]) == (pytest.approx(1e-3), 0.5)
    assert "lr_head" not in _lines(unbroken[0])[0]


def test_the_loss_is_the_weighted_sum(unbroken):
    for line in _lines(unbroken[0]):
        if line["stage"] == "mesh" and "loss" in line:
            total = 10 * line["loss_vertices"] + 0.1 * line["loss_size"]
            np.testing.assert_allclose(line["loss"], total, rtol=1e-6)


@pytest.mark.parametrize("log_every", [1, 4])
def test_a_run_stopped_anywhere_ends_as_the_unbroken_one(tmp_path, unbroken, log_every):
    changes = {"train.eval_every": 4, "train.log_every": log_every}
    hooks = Hooks(lambda run, stage, variables, step: {"eval_step": float(step)})
    finished, stops = None, [3, 2, 5] if log_every == 1 else [3]
    while finished is None:
        stop = stops.pop(0) if stops else None
        finished = loop.fit(_run(tmp_path / "w", stop=stop, hooks=hooks, **changes))
    chex.assert_trees_all_equal(finished[0], unbroken[1])
    if log_every == 1:
        assert _lines(tmp_path / "w") == _lines(unbroken[0])
    else:  # means over the steps since the last line, however the run was cut
        losses = [x["loss"] for x in _lines(unbroken[0]) if "loss" in x]
        lines = [x for x in _lines(tmp_path / "w") if "loss" in x]
        assert [x["step"] for x in lines] == [4, 6, 4, 6]
        assert lines[0]["loss"] == sum(losses[:4]) / 4


SCORES = {1: 5.0, 2: 3.0, 3: 4.0, 4: 3.0}


def test_a_stage_that_gets_no_better_stops_and_its_best_is_kept(tmp_path, capsys):
    changes = {
        "stages.tokenizer.patience": 2,
        "stages.mesh.steps": 1,
        "train.eval_every": 1,
        "train.log_every": 3,
        "train.checkpoint_every": 100,
        "train.keep": 1,
    }
    hooks = Hooks(lambda run, stage, v, step: {"eval_pa_mpjpe_mm": SCORES[step]})
    assert loop.fit(_run(tmp_path / "w", stop=3, hooks=hooks, **changes)) is None
    variables, _ = loop.fit(_run(tmp_path / "w", hooks=hooks, **changes))
    kept = stage_steps(tmp_path / "w")
    assert kept == {"tokenizer": [2, 4], "mesh": [1]}
    said = "step 4, 2 evaluations in a row were not below the pa_mpjpe_mm 3.00 of step"
    assert f"stage tokenizer: stopped at {said} 2" in capsys.readouterr().out
    lines = [x for x in _lines(tmp_path / "w") if "loss" in x]
    assert [(x["stage"], x["step"]) for x in lines] == [
        ("tokenizer", 3), ("tokenizer", 4), ("mesh", 1),
    ]  # fmt: skip
    last, meta = load_variables(tmp_path / "w", "tokenizer", 4)
    assert len(meta["trained_sha256"]) == 64
    jax.tree.map(
        np.testing.assert_array_equal,
        variables["params"]["tokenizer"],
        last["params"]["tokenizer"],
    )
    only_tokenizer = _only_first(fake_family)
    again = _run(tmp_path / "w", hooks=hooks, family=only_tokenizer, **changes)
    del again.config.stages.mesh
    loop.fit(again)
    assert f"stage tokenizer: finished at {said}" in capsys.readouterr().out


def _only_first(family):
    stages = lambda config: family.stages(config)[:1]  # noqa: E731
    return types.SimpleNamespace(stages=stages)


def test_what_a_stage_does_not_train_stays_bit_equal(unbroken):
    workdir, final, meta, _ = unbroken
    before, _ = load_variables(workdir, "tokenizer", 6)
    stages = fake_family.stages(None)
    frozen = train_state.frozen(final, stages[1])
    assert {"params/tokenizer/encoder/kernel", "codebook/tokenizer/embedding"} <= set(
        frozen
    )
    old = train_state.frozen(before, stages[1])
    for name in frozen:
        np.testing.assert_array_equal(frozen[name], old[name], err_msg=name)
    for name, value in train_state.trained(final, stages[1]).items():
        if "faces" not in name:
            assert np.any(value != train_state.trained(before, stages[1])[name]), name
    assert len(meta["frozen_sha256"]) == 64


def test_a_loss_that_moves_a_frozen_collection_is_found_out(tmp_path):
    def cheat(model, variables, batch, rngs):
        losses, metrics, updates = fake_family.mesh_loss(model, variables, batch, rngs)
        moved = jax.tree.map(lambda x: x + 1, variables["codebook"])
        return losses, metrics, {**updates, "codebook": moved}

    class Family:
        @staticmethod
        def stages(config):
            first, second = fake_family.stages(config)
            return first, second._replace(loss_fn=cheat)

    short = {"stages.tokenizer.steps": 1, "stages.mesh.steps": 1}
    with pytest.raises(RuntimeError, match="changed arrays outside"):
        loop.fit(_run(tmp_path / "w", family=Family, **short))


def test_the_optimizer_holds_nothing_of_frozen_parameters():
    config = fake_family.get_config()
    stage = fake_family.stages(config)[1]
    model = fake_family.Model()
    variables = model.init(
        jax.random.key(0),
        fake_family.batch(2, (0,)),
        fake_family.HAND,
        method="init_all",
    )
    state = train_state.create(variables, stage, config.stages.mesh, jax.random.key(1))
    paths = [
        jax.tree_util.keystr(p) for p, _ in jax.tree.leaves_with_path(state.opt_state)
    ]
    assert any("head/kernel" in p for p in paths)
    assert not any("tokenizer" in p for p in paths)


def test_a_loss_that_explodes_is_named_and_nothing_of_it_is_saved(tmp_path):
    with pytest.raises(
        NonFiniteError, match=r"'tokenizer', step \d+: .*(inf|nan)"
    ) as e:
        loop.fit(
            _run(
                tmp_path / "w",
                **{
                    "stages.tokenizer.optimizer.lr": 1e30,
                    "stages.tokenizer.grad_clip": 0.0,
                    "train.checkpoint_every": 1,
                },
            )
        )
    kept = stage_steps(tmp_path / "w")["tokenizer"]
    assert "optimizer.lr" in str(e.value)
    for step in kept:
        variables, _ = load_variables(tmp_path / "w", "tokenizer", step)
        chex.assert_tree_all_finite(variables["params"])


def test_losses_and_weights_must_have_the_same_names(tmp_path):
    run = _run(tmp_path / "w")
    run.config.stages.tokenizer.losses = {"vertices": 1.0, "commitmnt": 1.0}
    with pytest.raises(
        ValueError, match=r"returns losses \['vertices'\] but .* weighs"
    ):
        loop.fit(run)


def test_a_pattern_that_matches_nothing_lists_the_parts():
    stage = fake_family.stages(None)[0]._replace(trainable="^tokeniser/")
    with pytest.raises(ValueError, match="begin with head, tokenizer"):
        train_state.partition({"tokenizer": {"k": 1}, "head": {"k": 1}}, stage)


def test_stages_come_from_another_workdir(tmp_path, unbroken):
    source = unbroken[0]
    run = _run(tmp_path / "w", **{"init_from": str(source), "seed": 5})
    variables, _ = loop.fit(run)
    theirs, _ = load_variables(source, "tokenizer", 6)
    np.testing.assert_array_equal(
        variables["params"]["tokenizer"]["encoder"]["kernel"],
        theirs["params"]["tokenizer"]["encoder"]["kernel"],
    )
    assert list(stage_steps(tmp_path / "w")) == ["mesh"]


def test_a_foreign_stage_that_does_not_fit_is_refused_by_the_family(tmp_path, unbroken):
    run = _run(tmp_path / "w", **{"init_from": str(unbroken[0]), "model.width": 4})
    with pytest.raises(ValueError, match="another width"):
        loop.fit(run)


def test_inference_needs_only_the_workdir(tmp_path, unbroken, monkeypatch):
    workdir = unbroken[0]
    monkeypatch.setattr(models, "load", lambda name: fake_family)
    config = fake_family.get_config()
    (workdir / "config.json").write_text(schema.to_json(config))
    _, model, variables, stage, step = load_for_inference(workdir)
    assert (stage, step) == ("mesh", 6)
    chex.assert_trees_all_equal(variables, unbroken[1])
    assert (
        model.apply(variables, fake_family.batch(1, (3,)).image).vertices.shape[0] == 1
    )
    with pytest.raises(FileNotFoundError, match=r"stage 'mesh' at step 5; it has"):
        load_for_inference(workdir, "mesh", 5)


def test_a_changed_config_is_the_one_the_model_is_built_of(
    tmp_path, unbroken, monkeypatch
):
    workdir = unbroken[0]
    monkeypatch.setattr(models, "load", lambda name: fake_family)
    config = fake_family.get_config()
    (workdir / "config.json").write_text(schema.to_json(config))

    def change(config):
        config.model.width = 5
        return config

    found, model, *_ = load_for_inference(workdir, change=change)
    assert found.model.width == model.width == 5
