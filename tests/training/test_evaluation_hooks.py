"""Evaluations in training: every device does its part, and the numbers stay."""

import fake_family
import jax
import numpy as np
import pytest

from handjax.distributed.sharding import make_mesh
from handjax.training import evaluation_hooks


@pytest.fixture(scope="module")
def model_and_variables():
    config = fake_family.get_config()
    model = fake_family.Model(width=64)
    example = fake_family.batch(2, (0,))
    variables = model.init(
        jax.random.key(0), example, fake_family.HAND, method="init_all"
    )
    return model, fake_family.stages(config), jax.device_get(variables)


def _predicted(model, stage, variables, *, devices, size):
    config = fake_family.get_config()
    mesh = make_mesh(config.mesh, jax.devices()[:devices])
    predict = evaluation_hooks.Predict(model, stage, mesh)
    output = jax.device_get(predict(variables, fake_family.batch(size, (3,))))
    return output, predict._compiled.cost_analysis()["flops"]


@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize("size", [16, 13])
def test_devices_share_a_batch_and_answer_as_one(model_and_variables, stage, size):
    model, stages, variables = model_and_variables
    one, whole = _predicted(model, stages[stage], variables, devices=1, size=size)
    many, part = _predicted(model, stages[stage], variables, devices=8, size=size)
    assert len(many.vertices) == size
    jax.tree.map(lambda x, y: np.testing.assert_allclose(y, x, atol=1e-6), one, many)
    # 13 are filled up to 16, so that each device has two in either case.
    np.testing.assert_allclose(part, whole * 2 / size, rtol=0.1)


def test_logits_stay_on_the_device(model_and_variables):
    model, (_, stage), variables = model_and_variables

    def predict_fn(*arguments):
        output = stage.predict_fn(*arguments)
        return output._replace(logits=output.joints3d)

    scored = stage._replace(predict_fn=predict_fn)
    output, _ = _predicted(model, scored, variables, devices=2, size=4)
    assert output.logits is None and len(output.joints3d) == 4
