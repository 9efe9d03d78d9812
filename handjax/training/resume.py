"""Where a stage goes on from: its own checkpoint, the stage before it, or nothing."""

import functools
from typing import Any, NamedTuple

import jax

from handjax.checkpoints.store import Checkpoints, Restored, abstract
from handjax.distributed import sharding
from handjax.family.stage import Stage
from handjax.io import console
from handjax.training import init_from, logs, step
from handjax.training.early_stopping import Patience
from handjax.training.run import Run
from handjax.training.step import TrainState

Carried = tuple[Any, dict[str, Any]]
"""Variables of a finished stage and the metadata of its checkpoint."""


class Start(NamedTuple):
    """What a stage goes on with."""

    state: TrainState
    metrics: logs.Metrics
    """Those that were not logged yet."""
    patience: Patience


def initial_state(
    run: Run, stage: Stage, index: int, carried: Carried | None, store: Checkpoints
) -> Start:
    """Return what a stage goes on with, from its checkpoint or its beginning.

    Args:
        run: shared by the stages.
        stage: to be trained.
        index: of the stage in the family's order; seeds its random keys.
        carried: of the stage before, None where there is none.
        store: checkpoints of the stage.
    """
    config, root = run.config.stages[stage.name], jax.random.key(run.config.seed)
    make = functools.partial(
        step.create,
        stage=stage,
        config=config,
        rng=jax.random.fold_in(root, index + 1),
    )
    init = functools.partial(initial_variables, run)
    shapes = jax.eval_shape(lambda: make(init()))
    shardings = sharding.state_sharding(run.mesh, shapes)
    target = abstract(shapes, shardings)
    found = store.restore(target.variables, saved_parts(target), run.say)
    if found is not None:
        run.say(f"stage {stage.name}: going on from step {found.step}")
        patience = Patience(config.patience, found.meta.get("patience", {}))
        store.keep_best(patience.step)
        metrics = logs.Metrics(found.meta["metrics"])
        return Start(_from_checkpoint(found), metrics, patience)
    if carried is None:
        with console.timed("initialising the model", active=run.first):
            variables = jax.jit(init, out_shardings=_variables_only(shardings))()
            jax.block_until_ready(variables)
        carried = variables, {}
        if run.config.init_from:
            carried = init_from.take_over(run, index, variables)
    variables, info = carried
    if stage.check is not None:
        stage.check(run.config, run.model, variables, info)
    state = jax.jit(make, out_shardings=shardings)(variables)
    return Start(state, logs.Metrics(), Patience(config.patience, {}))


def saved_parts(state: TrainState) -> dict[str, Any]:
    """Return what a checkpoint holds of a state besides its variables."""
    return {
        "opt_state": state.opt_state,
        "rng": state.rng,
        "step": state.step,
        "skipped": state.skipped,
    }


def _from_checkpoint(found: Restored) -> TrainState:
    collections = {k: v for k, v in found.variables.items() if k != "params"}
    params = found.variables["params"]
    return TrainState(params=params, collections=collections, **found.train)


def _variables_only(state: TrainState) -> dict[str, Any]:
    return {"params": state.params, **state.collections}


def initial_variables(run: Run) -> Any:
    """Make fresh variables; to be called inside jit or eval_shape."""
    rng = jax.random.fold_in(jax.random.key(run.config.seed), 0)
    names = ("params", *step.RNG_STREAMS)
    rngs = {name: jax.random.fold_in(rng, i) for i, name in enumerate(names)}
    return run.model.init(rngs, run.example, run.hand, method="init_all")
