"""The loop: stages in order, each resumed where it stopped.

The run is straight: for each stage, state (restored, carried over from the stage
before, or new) -> compiled step -> loop with logs, evaluation, pictures, checkpoints.
Nothing here knows a family; see `stages.Stage` for what one has to say.
"""

from collections.abc import Callable
from contextlib import closing
from typing import Any

import jax

from handjax.checkpoints import integrity
from handjax.checkpoints.store import Checkpoints
from handjax.checkpoints.workdir import stage_steps
from handjax.distributed import processes, sharding
from handjax.errors import UserError
from handjax.family.stage import Stage
from handjax.io import console
from handjax.training import init_from, logs, nonfinite, resume
from handjax.training.nonfinite import NonFiniteError
from handjax.training.profiling import Profile
from handjax.training.recorder import Recorder
from handjax.training.resume import Carried
from handjax.training.run import Run
from handjax.training.step import TrainState, frozen, make_step
from handjax.types import Batch


def fit(run: Run) -> Carried | None:
    """Train every stage that is not finished.

    Returns:
        The final variables and metadata; None if told to stop before the end.

    Raises:
        UserError: from a stage's own check or a mismatch of stages and config.
        NonFiniteError: when a loss or gradient is inf or nan, once too often.
        checkpoints.CheckpointError: when a checkpoint cannot be written.
    """
    stages = run.family.stages(run.config)
    _check_stages(run, stages)
    done = stage_steps(run.workdir)
    started = [i for i, stage in enumerate(stages) if done.get(stage.name)]
    first = max(started) if started else init_from.first_stage(run)
    for stage in stages[:first]:
        run.say(f"stage {stage.name}: finished, skipped")
    carried: Carried | None = None
    for index, stage in enumerate(stages[first:], start=first):
        carried = train_stage(run, stage, index, carried)
        if carried is None:
            return None
    return carried


def _check_stages(run: Run, stages: tuple[Stage, ...]) -> None:
    names, given = [stage.name for stage in stages], sorted(run.config.stages)
    if sorted(names) != given:
        raise UserError(
            f"config.stages names {given}, but family {run.config.family!r} trains "
            f"{names}; they must be the same."
        )


def train_stage(
    run: Run, stage: Stage, index: int, carried: Carried | None
) -> Carried | None:
    """Train one stage from wherever it stands.

    Args:
        run: shared by the stages.
        stage: to train.
        index: of the stage in the family's order.
        carried: of the stage before; None where there is none.

    Returns:
        What the next stage starts from, or None if told to stop.
    """
    config, options = run.config.stages[stage.name], run.config.train
    # ---- state --------------------------------------------------------------
    store = Checkpoints(
        run.workdir, stage.name, keep=options.keep, keep_every=options.keep_every
    )
    state, sums, patience = resume.initial_state(run, stage, index, carried, store)
    begin, meta = int(state.step), _metadata(run, stage, state)
    if begin >= config.steps or patience.exhausted:
        why = f", {patience.reason}" if patience.exhausted else ""
        run.say(f"stage {stage.name}: finished at step {begin}{why}")
        store.close()
        return state.variables, meta
    if run.stop.asked():  # while the run was prepared
        run.say(f"stopped by {run.stop.reason} before training; nothing is lost")
        store.close()
        return None
    _forget_later(run, stage, begin)
    # ---- data and compiled step ---------------------------------------------
    size = sharding.per_process(config, run.mesh, f"stages.{stage.name}")
    batches = run.data.train(stage, size, begin)
    batch = sharding.global_batch(run.mesh, next(batches))
    with console.timed("compiling train step", active=run.first):
        step_fn = _compiled(run, stage, state, batch)
        processes.wait_for_all("compiled")  # before devices wait for each other
    # ---- loop ---------------------------------------------------------------
    recording = Recorder(run, stage, store, sums, patience, begin, meta)
    with recording as recorder, closing(Profile(run, stage.name, begin)) as profile:
        for step in range(begin + 1, config.steps + 1):
            profile.before(step)
            state, metrics = step_fn(state, batch)
            profile.after(step, state)
            last = step == config.steps
            try:
                recorder.fetch_later(step, metrics)
                if not last:  # while the device computes
                    batch = recorder.timed_load(
                        lambda: sharding.global_batch(run.mesh, next(batches))
                    )
                stopping = run.stop.step(after=metrics)
                ended = recorder.at_intervals(step, state, last=last, stopping=stopping)
            except NonFiniteError as error:
                raise _kept(run, stage, state, store, error) from error
            if ended:
                break
            if stopping:
                recorder.wait_for_disk()
                run.say(
                    f"stopped by {run.stop.reason} at step {step} of stage "
                    f"{stage.name!r}; everything is saved, and the same command goes "
                    "on from here"
                )
                return None
        recorder.wait_for_disk()
    if patience.exhausted:
        run.say(f"stage {stage.name}: stopped at step {state.step}, {patience.reason}")
    _check_frozen(stage, state, meta)
    return state.variables, meta


def _kept(
    run: Run, stage: Stage, state: TrainState, store: Checkpoints, error: NonFiniteError
) -> NonFiniteError:
    """Write the state and batch of the error's update to disk; return the error."""
    size = sharding.per_process(run.config.stages[stage.name], run.mesh, "")
    batch = next(run.data.train(stage, size, error.step - 1))
    directory = nonfinite.keep(run, stage, state, batch, error)
    return error.kept_in(directory, store.steps())


def _compiled(run: Run, stage: Stage, state: TrainState, batch: Batch) -> Callable:
    step = make_step(
        run.model,
        stage,
        run.config.stages[stage.name],
        devices=run.mesh.size,
        batch_norm=run.config.train.batch_norm,
        max_skipped=run.config.train.max_skipped,
    )
    same = jax.tree.map(lambda x: x.sharding, state)
    jitted = jax.jit(
        step,
        donate_argnums=(0,) if run.config.train.donate else (),
        out_shardings=(same, sharding.replicated(run.mesh)),
    )
    return jitted.lower(state, batch).compile()


def _metadata(run: Run, stage: Stage, state: TrainState) -> dict[str, Any]:
    return {
        "stage": stage.name,
        "family": run.config.family,
        "config": run.config.to_dict(),
        "hand": run.hand_info,
        "frozen_sha256": integrity.sha256(frozen(state.variables, stage)),
    }


def _check_frozen(stage: Stage, state: TrainState, meta: dict[str, Any]) -> None:
    now = integrity.sha256(frozen(state.variables, stage))
    if now != meta["frozen_sha256"]:
        raise RuntimeError(
            f"Stage {stage.name!r} changed arrays outside {stage.trainable!r}; its "
            "loss_fn must not return updates of frozen collections."
        )


def _forget_later(run: Run, stage: Stage, step: int) -> None:
    """Drop logged lines that the run is about to write again."""
    if not run.first:
        return
    names = [s.name for s in run.family.stages(run.config)]
    here = names.index(stage.name)

    def keep(line: dict[str, Any]) -> bool:
        if line["stage"] not in names:
            return False
        at = names.index(line["stage"])
        return at < here or (at == here and line["step"] <= step)

    logs.truncate(run.workdir / "metrics.jsonl", keep)
