"""From a config to a finished workdir: everything around the training loop."""

import contextlib
import hashlib
from pathlib import Path

import jax
import ml_collections

from handjax import models
from handjax.checkpoints import store
from handjax.checkpoints.workdir import build_model, stage_steps
from handjax.config import schema as configs
from handjax.distributed import processes, sharding
from handjax.errors import UserError
from handjax.family import hand_constants
from handjax.io import atomic_files, compile_cache, locks
from handjax.training import init_from, loop, parameter_table
from handjax.training.environment import _commit, _write_environment, versions
from handjax.training.nonfinite import NonFiniteError
from handjax.training.run import Hooks, Run, Stop


def train(
    config: ml_collections.ConfigDict,
    workdir: str,
    *,
    force_config: bool = False,
    stop_after: int | None = None,
    cluster: processes.Cluster | None = None,
    profile: bool = False,
) -> int:
    """Train or resume; returns the exit code.

    Args:
        config: of the run.
        workdir: of the run.
        force_config: go on in a workdir of another config.
        stop_after: save and stop after so many steps.
        cluster: the other processes; None where this is the only one.
        profile: write a trace of some updates of each stage.

    Raises:
        UserError: for what the user can put right; the message says how.
        CheckpointError: if a checkpoint is damaged or cannot be written.
        NonFiniteError: if an update is not finite.
    """
    stop = Stop(stop_after)
    stop.listen()
    if cluster is not None:
        processes.join(cluster)
        stop.listen()  # joining takes SIGTERM for itself
    compile_cache.use(config.train.compile_cache)
    # One process holds the workdir for all of its run.
    first = jax.process_index() == 0
    with locks.held(Path(workdir)) if first else contextlib.nullcontext():
        return _train(config, workdir, stop, force_config, profile)


def _train(
    config: ml_collections.ConfigDict,
    workdir: str,
    stop: Stop,
    force_config: bool,
    profile: bool,
) -> int:
    try:
        run = prepare(config, workdir, force_config=force_config, stop=stop)
        finished = loop.fit(run._replace(profile=profile))
    except (store.CheckpointError, NonFiniteError, jax.errors.JaxRuntimeError) as error:
        processes.leave_if_alone(error, _last_checkpoint(workdir, config))
        raise
    if finished is None:
        return 130 if run.stop.reason == "SIGINT" else 0
    if run.first:
        _finish(run)
    return 0


def dry_run(
    config: ml_collections.ConfigDict,
    workdir: str | None,
    *,
    force_config: bool = False,
    num_processes: int = 1,
) -> None:
    """Say what a run would do, on the devices that are here; nothing is written.

    Raises:
        UserError: for what the user can put right; the message says how.
    """
    from handjax.training import memory_plan

    run = prepare(config, workdir, force_config=force_config, create=False)
    run.say(memory_plan.describe(run, run.family.stages(config), num_processes))


def _last_checkpoint(workdir: str, config: ml_collections.ConfigDict) -> str:
    """Name the last checkpoint of the last stage that has one, in a sentence."""
    steps = stage_steps(Path(workdir))
    order = [stage.name for stage in models.load(config.family).stages(config)]
    saved = [f"{stage} {max(steps[stage])}" for stage in order if steps.get(stage)]
    return f"The last checkpoint: {saved[-1] if saved else 'none yet'}."


def compute_dtype(precision: str) -> str:
    """Name of the dtype that `config.train.precision` means on these devices."""
    if precision != "auto":
        return precision
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


# --- Before training ---------------------------------------------------------


def prepare(
    config: ml_collections.ConfigDict,
    workdir: str | None,
    *,
    force_config: bool = False,
    stop: Stop | None = None,
    create: bool = True,
) -> Run:
    """Build and check everything, and say what will be done.

    Args:
        config: of the run.
        workdir: of the run; "." if none is needed.
        force_config: go on in a workdir of another config.
        stop: what ends the run early.
        create: whether to make what is missing: the built-in data, files of the run.
    """
    from handjax.data import run_data
    from handjax.mano import model_files
    from handjax.training.evaluation_hooks import Reports

    if workdir:
        init_from.refuse_converted(workdir)
    family = models.load(config.family)
    stages = family.stages(config)
    mesh = sharding.make_mesh(config.mesh)
    for stage in stages:
        key = f"stages.{stage.name}"
        sharding.per_process(config.stages[stage.name], mesh, key)
    dtype = compute_dtype(config.train.precision)
    hand_file = model_files.load(
        config.hand.source, side=config.hand.side, tips=config.hand.tips or None
    )
    model = build_model(family, config, dtype=dtype, edges=hand_file.skeleton.bones)
    if workdir and not force_config:
        _compare_with(Path(workdir), config)
    reports = Reports()
    opened = run_data.open_data(config, hand_file, create=create)
    run = Run(
        config=config,
        workdir=Path(workdir or "."),
        family=family,
        model=model,
        hand=hand_constants.hand_constants(hand_file),
        hand_info={"name": hand_file.name, "sha256": hand_file.sha256},
        example=run_data.example_batch(config, hand_file),
        data=opened,
        mesh=mesh,
        hooks=Hooks(reports.evaluate, reports.draw),
        stop=stop or Stop(),
        skeleton=hand_file.skeleton,
    )
    processes.compare(
        {
            "versions": versions(),
            "commit": _commit(),
            "config": hashlib.sha256(configs.to_json(config).encode()).hexdigest()[:12],
            "hand model": hand_file.sha256[:12],
            "data": opened.fingerprint(),
        },
        run.say,
    )
    _print_summary(run, stages, dtype)
    if run.first and create:
        _write_run_files(run)
    return run


def _print_summary(run: Run, stages: tuple, dtype: str) -> None:
    """Print what is about to happen."""
    from data_pipelines.loading import mixtures

    config, device = run.config, jax.devices()[0]
    run.say(
        f"{config.family} on {jax.device_count()} x {device.device_kind} "
        f"({jax.process_count()} process{'es' * (jax.process_count() > 1)}, mesh "
        f"{dict(run.mesh.shape)}), {dtype}, jax {jax.__version__}, seed {config.seed}"
    )
    run.say(f"hand model: {run.hand_info['name']} ({run.hand_info['sha256'][:12]})")
    run.say(f"data: {run.data.describe()}")
    for line in run.data.describe_filters(stages):
        run.say(line)
    if any(config.stages[stage.name].data == "poses" for stage in stages):
        run.say(f"poses without pictures: {run.data.describe_poses()}")
    if any(config.stages[s.name].data == configs.LABELLED_POSES for s in stages):
        run.say(f"labelled poses: {run.data.describe_letters()}")
    if any(stage.real_poses for stage in stages):
        run.say(f"real poses: {run.data.describe_poses()}")
    run.say(parameter_table.table(run, stages))
    for stage in stages:
        options = config.stages[stage.name]
        parts = f" in {options.accumulate} parts" if options.accumulate > 1 else ""
        run.say(
            f"stage {stage.name}: {options.steps} steps of {options.batch_size}{parts} "
            f"({options.data}), {options.optimizer.name} lr {options.optimizer.lr:g} "
            f"{options.schedule.name}, losses "
            + ", ".join(f"{w:g} {name}" for name, w in options.losses.items())
            + (f", patience {options.patience}" if options.patience else "")
        )
        for name in options.groups:
            own = configs.of_group(options, name)
            run.say(
                f"stage {stage.name}, group {name}: {own.optimizer.name} lr "
                f"{own.optimizer.lr:g} {own.schedule.name}"
            )
        seen = run.data.drawn(stage, options.steps * options.batch_size)
        if seen:
            run.say(f"stage {stage.name} sees {mixtures.describe(seen)}")


def _compare_with(workdir: Path, config: ml_collections.ConfigDict) -> None:
    """Refuse a workdir of another config."""
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir={str(workdir)!r} is a file; name a directory.")
    path = workdir / "config.json"
    if not path.exists():
        return
    changes = configs.difference(configs.read_json(path), config)
    if changes:
        raise UserError(
            f"{workdir} was started with another config: "
            + "; ".join(change.strip() for change in changes)
            + ". Use another --workdir, or --force_config to go on with the new values."
        )


def _write_run_files(run: Run) -> None:
    """Make the workdir this run's: config.json and environment.json."""
    try:
        atomic_files.write_bytes(
            run.workdir / "config.json", configs.to_json(run.config).encode()
        )
        _write_environment(run)
    except OSError as error:
        raise UserError(
            f"--workdir={str(run.workdir)!r} cannot be written: {error.strerror}."
        ) from error


# --- After training ----------------------------------------------------------


def _finish(run: Run) -> None:
    """Print the table of all stages and write DONE."""
    from handjax.training import evaluation_hooks

    table = evaluation_hooks.final_table(run)
    run.say(table)
    atomic_files.write_bytes(run.workdir / "DONE", (table + "\n").encode())
    run.say(f"done; results, pictures and checkpoints are in {run.workdir}")
