"""Where a stage goes on from: its own checkpoint, the stage before it, or nothing."""

import functools
import re
from pathlib import Path
from typing import Any

import jax

from handjax import checkpoints, logs, sharding, train_state
from handjax.checkpoints import Checkpoints
from handjax.run import Run
from handjax.stages import Stage
from handjax.train_state import TrainState

Carried = tuple[Any, dict[str, Any]]
"""Variables of a finished stage and the metadata of its checkpoint."""


def initial_state(
    run: Run, stage: Stage, index: int, carried: Carried | None, store: Checkpoints
) -> tuple[TrainState, logs.Metrics]:
    """State to go on from, and the metrics that were not logged yet.

    Args:
        run: shared by the stages.
        stage: to be trained.
        index: of the stage in the family's order; seeds its random keys.
        carried: of the stage before, None where there is none.
        store: checkpoints of the stage.
    """
    config, root = run.config.stages[stage.name], jax.random.key(run.config.seed)
    make = functools.partial(
        train_state.create,
        stage=stage,
        config=config,
        rng=jax.random.fold_in(root, index + 1),
    )
    init = functools.partial(initial_variables, run)
    shapes = jax.eval_shape(lambda: make(init()))
    shardings = sharding.state_sharding(run.mesh, shapes)
    target = checkpoints.abstract(shapes, shardings)
    found = store.restore(target.variables, saved_parts(target), run.say)
    if found is not None:
        run.say(f"stage {stage.name}: going on from step {found.step}")
        return _from_checkpoint(found), logs.Metrics(found.meta["metrics"])
    if carried is None:
        with logs.timed("initialising the model", active=run.first):
            variables = jax.jit(init, out_shardings=_variables_only(shardings))()
            jax.block_until_ready(variables)
        carried = variables, {}
        if run.config.train.init_from:
            carried = _take_over(run, index, variables)
    variables, info = carried
    if stage.check is not None:
        stage.check(run.config, run.model, variables, info)
    return jax.jit(make, out_shardings=shardings)(variables), logs.Metrics()


def saved_parts(state: TrainState) -> dict[str, Any]:
    """What a checkpoint holds of a state besides its variables."""
    return {"opt_state": state.opt_state, "rng": state.rng, "step": state.step}


def _from_checkpoint(found: checkpoints.Restored) -> TrainState:
    collections = {k: v for k, v in found.variables.items() if k != "params"}
    params = found.variables["params"]
    return TrainState(params=params, collections=collections, **found.train)


def _variables_only(state: TrainState) -> dict[str, Any]:
    return {"params": state.params, **state.collections}


def initial_variables(run: Run) -> Any:
    """Freshly made variables; to be called inside jit or eval_shape."""
    rng = jax.random.fold_in(jax.random.key(run.config.seed), 0)
    names = ("params", *train_state.RNG_STREAMS)
    rngs = {name: jax.random.fold_in(rng, i) for i, name in enumerate(names)}
    return run.model.init(rngs, run.example, run.hand, method="init_all")


# --- From another workdir ----------------------------------------------------


def first_stage(run: Run) -> int:
    """Index of the first stage to train: later ones if `train.init_from` has them.

    The last stage is always trained.
    """
    source = run.config.train.init_from
    if not source:
        return 0
    done = checkpoints.stage_steps(Path(source))
    names = [s.name for s in run.family.stages(run.config)][:-1]
    finished = [done.get(name) for name in names]
    count = finished.index(None) if None in finished else len(finished)
    if not count:
        raise ValueError(
            f"config.train.init_from={source!r} has no checkpoint of stage "
            f"{names[0] if names else 'any'!r}; it has {sorted(done) or 'none'}."
        )
    return count


def _take_over(run: Run, index: int, variables: Any) -> Carried:
    """Variables in which the earlier stages' part comes from `train.init_from`.

    Raises:
        ValueError: if that part does not have the names and shapes of this model's.
    """
    source = Path(run.config.train.init_from)
    earlier = run.family.stages(run.config)[:index]
    step = checkpoints.stage_steps(source)[earlier[-1].name][-1]
    theirs, info = checkpoints.load_variables(source, earlier[-1].name, step)
    pattern = "|".join(f"(?:{s.trainable})" for s in earlier)
    later = run.family.stages(run.config)[index]
    if later.check is not None:  # says more than a list of shapes
        later.check(run.config, run.model, theirs, info)
    mine, taken = _named(variables), _named(theirs)
    wanted = {k for k in mine if re.search(pattern, k.split("/", 1)[1])}
    given = {k for k in taken if re.search(pattern, k.split("/", 1)[1])}
    shapes = {
        k: (taken[k].shape, mine[k].shape)
        for k in wanted & given
        if taken[k].shape != mine[k].shape
    }
    if wanted != given or shapes:
        raise ValueError(
            f"{source} (stage {earlier[-1].name!r}, step {step}) does not fit this "
            f"config: missing there {sorted(wanted - given)[:5]}, unknown here "
            f"{sorted(given - wanted)[:5]}, other shapes {sorted(shapes.items())[:5]}."
        )
    merged = {
        k: jax.device_put(taken[k], v.sharding) if k in wanted else v
        for k, v in mine.items()
    }
    run.say(f"took stage {earlier[-1].name!r} at step {step} from {source}")
    return train_state.nested(merged), info


def _named(variables: Any) -> dict[str, Any]:
    return train_state.flat(dict(variables))
