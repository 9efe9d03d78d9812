"""Optimisers and learning rates from a config."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from handjax.config import schema as configs
from handjax.training import optimizers


def _stage(steps=100, clip=0.0, optimizer=None, schedule=None, groups=None):
    return ml_collections.ConfigDict(
        configs.stage(
            steps=steps,
            batch_size=1,
            losses={"a": 1.0},
            optimizer=optimizer,
            schedule=schedule,
            grad_clip=clip,
            groups=groups,
        )
    )


def test_cosine_warms_up_from_its_factor_and_ends_at_its_factor():
    options = dict(warmup_steps=10, warmup_factor=0.1, end_factor=0.01)
    lr = optimizers.schedule(_stage(optimizer=dict(lr=2.0), schedule=options))
    np.testing.assert_allclose(lr(0), 0.2, rtol=1e-6)
    np.testing.assert_allclose(lr(5), 1.1, rtol=1e-6)
    np.testing.assert_allclose(lr(10), 2.0, rtol=1e-6)
    half = 2.0 * (0.01 + 0.99 * 0.5)  # (1 + cos(pi / 2)) / 2
    np.testing.assert_allclose(lr(55), half, rtol=1e-5)
    np.testing.assert_allclose(lr(100), 0.02, rtol=1e-5)


def test_step_drops_at_fractions_of_the_whole_run():
    options = dict(name="step", warmup_steps=10, boundaries=(0.5, 0.8))
    lr = optimizers.schedule(_stage(optimizer=dict(lr=1.0), schedule=options))
    at = [float(lr(step)) for step in (10, 49, 51, 79, 81, 99)]
    np.testing.assert_allclose(at, [1, 1, 0.1, 0.1, 0.01, 0.01], rtol=1e-5)


def test_adamw_equals_optax():
    options = dict(lr=0.1, weight_decay=0.2, decay_mask="all")
    stage = _stage(optimizer=options, schedule=dict(name="constant"))
    params = {"a/kernel": jnp.ones((2, 2)), "a/bias": jnp.ones(2)}
    grads = {"a/kernel": jnp.full((2, 2), 0.3), "a/bias": jnp.array([1.0, -2.0])}
    ours, theirs = optimizers.optimizer(stage), optax.adamw(0.1, weight_decay=0.2)
    for mine, other in zip(
        ours.update(grads, ours.init(params), params)[0].values(),
        theirs.update(grads, theirs.init(params), params)[0].values(),
        strict=True,
    ):
        np.testing.assert_allclose(mine, other, rtol=1e-6)


def test_gradients_are_clipped_by_their_global_norm():
    stage = _stage(
        clip=1.0,
        optimizer=dict(name="sgd", lr=1.0, momentum=0.0, weight_decay=0.0),
        schedule=dict(name="constant"),
    )
    tx = optimizers.optimizer(stage)
    grads = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    updates, _ = tx.update(grads, tx.init(grads), grads)
    np.testing.assert_allclose([updates["a"][0], updates["b"][0]], [-0.6, -0.8])


@pytest.mark.parametrize(
    ("name", "decayed"),
    [
        ("no_1d", {"head/kernel", "bn/scale2d"}),
        ("paper", {"head/kernel", "norm/scale"}),
        ("all", {"head/kernel", "head/bias", "norm/scale", "bn/scale2d"}),
    ],
)
def test_decay_masks(name, decayed):
    params = {
        "head/kernel": jnp.ones((2, 2)),
        "head/bias": jnp.ones(2),
        "norm/scale": jnp.ones(2),
        "bn/scale2d": jnp.ones((2, 2)),
    }
    mask = optimizers.decay_mask(params, name)
    assert {key for key, value in mask.items() if value} == decayed


def test_an_unknown_key_of_a_stage_names_a_near_one():
    with pytest.raises(ValueError, match=r"no key 'wamup_steps'.*'warmup_steps'"):
        _stage(schedule=dict(wamup_steps=3))


# --- groups -------------------------------------------------------------------------

PARAMS = {
    "head/kernel": jnp.full((2, 2), 0.5),
    "head/bias": jnp.ones(2),
    "judge/kernel": jnp.full((2, 2), -0.5),
    "judge/bias": jnp.ones(2),
}
GRADS = {path: (1 + i) * jnp.ones_like(x) for i, (path, x) in enumerate(PARAMS.items())}


def _steps(stage, params, grads, num=3):
    tx = optimizers.optimizer(stage)
    state = tx.init(params)
    for _ in range(num):
        changes, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, changes)
    return params


def test_a_group_moves_as_if_its_parameters_were_alone():
    """Its own lr, decay and clipping; the stage's schedule; the rest untouched."""
    shared = dict(clip=1.0, schedule=dict(warmup_steps=2, warmup_factor=0.5), steps=8)
    own = dict(lr=0.3, weight_decay=0.2, b1=0.5)
    group = dict(pattern="^judge/", grad_clip=0.1, **own)
    moved = _steps(_stage(**shared, groups={"judge": group}), PARAMS, GRADS)
    alone = {"head": _stage(**shared)}
    alone["judge"] = _stage(**(shared | dict(clip=0.1)), optimizer=own)
    for part, stage in alone.items():
        params, grads = (
            {k: v for k, v in tree.items() if k.startswith(part)}
            for tree in (PARAMS, GRADS)
        )
        for path, value in _steps(stage, params, grads).items():
            np.testing.assert_array_equal(moved[path], value, err_msg=path)


def test_drops_that_fall_on_one_step_all_count():
    options = dict(name="step", boundaries=(0.5, 0.501, 0.9), decay_factor=0.1)
    lr = optimizers.schedule(_stage(optimizer=dict(lr=1.0), schedule=options))
    found = [float(lr(step)) for step in (49, 51, 89, 91)]
    np.testing.assert_allclose(found, [1, 1e-2, 1e-2, 1e-3], rtol=1e-5)
    options |= dict(warmup_steps=60, boundaries=(0.1, 0.5))  # both inside the warm-up
    lr = optimizers.schedule(_stage(optimizer=dict(lr=1.0), schedule=options))
    assert float(lr(99)) == pytest.approx(1e-2)


def test_a_group_follows_the_schedule_unless_it_has_its_own():
    groups = {
        "judge": dict(pattern="^judge/", lr=0.1),
        "head": dict(pattern="^head/", schedule=dict(name="constant")),
    }
    rates = optimizers.schedules(_stage(optimizer=dict(lr=2.0), groups=groups))
    assert set(rates) == {"lr", "lr_judge", "lr_head"}
    at = {name: float(rate(50)) for name, rate in rates.items()}
    assert at == pytest.approx({"lr": 1.0, "lr_judge": 0.05, "lr_head": 2.0})


def test_without_groups_the_state_is_that_of_older_checkpoints():
    stage = _stage(clip=1.0)
    older = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(),
        optax.add_decayed_weights(0.01, lambda p: optimizers.decay_mask(p, "no_1d")),
        optax.scale_by_learning_rate(optimizers.schedule(stage)),
    )
    ours, theirs = optimizers.optimizer(stage).init(PARAMS), older.init(PARAMS)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (
            ["^judge/", "^jugde/"],
            r"groups.b.pattern='\^jugde/' .* begin with head, judge",
        ),
        (["^judge/", "kernel$"], "groups a and b both match parameter 'judge/kernel'"),
    ],
)
def test_patterns_that_miss_or_overlap_are_refused(patterns, message):
    groups = {name: dict(pattern=p) for name, p in zip("ab", patterns, strict=True)}
    with pytest.raises(ValueError, match=message):
        optimizers.optimizer(_stage(groups=groups)).init(PARAMS)
