"""The device mesh, and that it does not change the numbers."""

import fake_family
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from handjax.distributed import sharding
from handjax.training.step import create, make_step


def _mesh(data, fsdp, num=8):
    config = ml_collections.ConfigDict(dict(data=data, fsdp=fsdp))
    return sharding.make_mesh(config, jax.devices()[:num])


def test_a_mesh_that_does_not_cover_the_devices_says_the_numbers():
    with pytest.raises(ValueError, match=r"fsdp=3 does not cover the 8 devices"):
        _mesh(-1, 3)


def test_a_batch_that_devices_cannot_share_says_the_numbers():
    stage = ml_collections.ConfigDict(dict(batch_size=16, accumulate=1))
    assert sharding.per_process(stage, _mesh(-1, 1), "stages.x") == 16
    stage.accumulate = 3
    with pytest.raises(
        ValueError,
        match=r"stages.x.batch_size=16 .* 8 devices .*accumulate=3.* multiple of 24",
    ):
        sharding.per_process(stage, _mesh(-1, 1), "stages.x")


def test_fsdp_splits_the_longest_axis_of_large_arrays_only():
    mesh = _mesh(-1, 4)
    tree = {"large": jnp.zeros((256, 512)), "odd": jnp.zeros((511, 513)), "b": 1.0}
    specs = jax.tree.map(lambda s: tuple(s.spec), sharding.state_sharding(mesh, tree))
    assert specs == {"large": (None, "fsdp"), "odd": (), "b": ()}


def _gradients(stage_index, mesh, rows=slice(None), **options_of_step):
    """Gradient norms and loss of one step, computed over a mesh."""
    config = fake_family.get_config()
    stage = fake_family.stages(config)[stage_index]
    model = fake_family.Model(width=8)
    example = fake_family.batch(2, (0,))
    variables = model.init(
        jax.random.key(0), example, fake_family.HAND, method="init_all"
    )
    options = config.stages[stage.name]
    state = create(variables, stage, options, jax.random.key(1))
    where = sharding.state_sharding(mesh, state)
    state = jax.device_put(state, where)
    made = next(fake_family.Data().train(stage, 16, 0))
    made = jax.tree.map(lambda x: x[rows], made)
    step = jax.jit(make_step(model, stage, options, **options_of_step))
    state, metrics = step(state, sharding.global_batch(mesh, made))
    return jax.device_get((metrics, state.collections))


@pytest.mark.parametrize("stage_index", [0, 1])
def test_eight_devices_compute_what_one_does(stage_index):
    one = _gradients(stage_index, _mesh(1, 1, num=1))
    for mesh in (_mesh(8, 1), _mesh(2, 4)):
        many = _gradients(stage_index, mesh)
        # Batch statistics and code sums are of the whole batch, not of a shard.
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6),
            one,
            many,
        )


OWN = dict(devices=2, batch_norm="device")


def test_statistics_of_each_device_are_those_of_its_examples():
    together, moved = _gradients(1, _mesh(2, 1, num=2), **OWN)
    one = _mesh(1, 1, num=1)
    halves = [_gradients(1, one, rows=slice(8 * i, 8 * i + 8)) for i in range(2)]
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *(half[1] for half in halves))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6),
        moved["batch_stats"],
        mean["batch_stats"],
    )
    alone, _ = _gradients(1, one, **OWN)
    for name in ("loss", "loss_size", "grad_norm"):
        np.testing.assert_allclose(together[name], alone[name], rtol=2e-5)
    assert abs(together["loss"] - _gradients(1, one)[0]["loss"]) > 1e-6


def test_statistics_of_each_device_are_not_for_codebooks():
    with pytest.raises(
        ValueError, match=r"'tokenizer', which moves codebook.*'global'"
    ):
        _gradients(0, _mesh(1, 1, num=1), **OWN)
