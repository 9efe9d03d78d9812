"""What every family must do; families and their smoke configs are found by listing."""

import functools
import importlib.util

import jax
import numpy as np
import pytest
import tiny
from places import CONFIGS

from handjax import models
from handjax.benchmarking import scaling
from handjax.checkpoints import workdir
from handjax.data import run_data
from handjax.distributed import sharding
from handjax.training import step as train_state
from handjax.types import HandOutput

STEPS = 8
QUICK = {"xla_backend_optimization_level": 0}
"""Compiling is most of what these tests do."""


@pytest.fixture(autouse=True)
def backbone(monkeypatch):
    tiny.patch_backbone(monkeypatch)


def smoke(family):
    spec = importlib.util.spec_from_file_location(family, CONFIGS / f"{family}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config("smoke")


def built(family, config, batch):
    model = workdir.build_model(models.load(family), config)
    init = functools.partial(model.init, jax.random.key(0), method="init_all")
    return model, lambda: init(batch, tiny.hand())


@pytest.mark.parametrize("family", models.names())
def test_image_to_hand_has_the_shapes_of_the_contract(family):
    config = smoke(family)
    batch = tiny.batch(2, crop=config.data.crop_size)
    model, init = built(family, config, batch)
    output = jax.eval_shape(model.apply, jax.eval_shape(init), batch.image)
    assert isinstance(output, HandOutput)
    assert output.vertices.shape == (2, 778, 3)
    assert output.joints3d.shape == (2, 21, 3)
    assert {output.vertices.dtype, output.joints3d.dtype} == {np.dtype("float32")}
    if output.joints2d is not None:
        assert output.joints2d.shape == (2, 21, 2)


@pytest.mark.parametrize("family", models.names())
def test_stages_learn_a_batch_on_eight_devices_and_leave_the_rest_alone(family):
    config = smoke(family)
    mesh = sharding.make_mesh(config.mesh)
    batch = tiny.batch(8, crop=config.data.crop_size)
    model, init = built(family, config, batch)
    variables = jax.jit(init, compiler_options=QUICK)()
    info = {}
    for stage in models.load(family).stages(config):
        if stage.check:
            stage.check(config, model, variables, info)
        options = config.stages[stage.name]
        with options.unlocked():
            options.schedule.update(name="constant", warmup_steps=0)
        frozen = jax.device_get(train_state.frozen(variables, stage))
        state = jax.device_put(
            train_state.create(variables, stage, options, jax.random.key(1)),
            sharding.replicated(mesh),
        )
        fed = sharding.global_batch(mesh, run_data.for_stage(batch, stage))
        step = train_state.make_step(model, stage, options)
        step = jax.jit(step).lower(state, fed).compile(compiler_options=QUICK)
        sent = scaling.collectives(step.as_text())
        # Examples stay where they are: devices sum gradients, and little else.
        assert sum(sent.values()) < 2 * sent["all-reduce"], sent
        history = []
        for _ in range(STEPS):
            state, metrics = step(state, fed)
            history.append(float(metrics["loss"]))
        assert np.isfinite(history).all()
        assert history[-1] < history[0], stage.name
        variables = jax.device_get(state.variables)
        after = train_state.frozen(variables, stage)
        assert after.keys() == frozen.keys()
        for name, leaf in after.items():
            np.testing.assert_array_equal(leaf, frozen[name], err_msg=name)
        predict = functools.partial(stage.predict_fn, model)
        output = jax.eval_shape(predict, variables, batch)
        assert output.vertices.shape == (8, 778, 3)
        info = {"config": config.to_dict(), "stage": stage.name}


def test_unknown_family_is_refused_with_the_list():
    with pytest.raises(ValueError, match=r"family='handnet' is not one of .*tokenhand"):
        models.load("handnet")
