r"""Train a model; the same command starts a run and resumes it.

    python -m handjax.train --config configs/tokenhand.py:smoke --workdir /tmp/smoke
    python -m handjax.train --config configs/tokenhand.py:small --workdir runs/small \
        --config.train.log_every=10 --config.stages.mesh.optimizer.lr=2e-4

Stages run in order; finished ones are skipped. The work directory gets config.json,
environment.json, metrics.jsonl, tensorboard/, checkpoints/<stage>/<step>/,
eval/<step>/, images/, codebook/ and, at the end, DONE. Without --config.data.name the
built-in hand is rendered on first use; nothing has to be downloaded.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from handjax.config import flags
from handjax.errors import UserError
from handjax.io import command_line
from handjax.io.command_line import Parser, at_least

if TYPE_CHECKING:
    import ml_collections

    from handjax.distributed.processes import Cluster


def parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser("train", __doc__)
    flags.add_config(parser)
    run = parser.add_argument_group("run").add_argument
    run("--workdir", help="directory of the run, made if need be")
    run(
        "--force_config",
        action="store_true",
        help="go on in a workdir that was started with another config",
    )
    run("--stop_after", type=at_least(1), help="save and stop after so many steps")
    run(
        "--profile",
        action="store_true",
        help="write a trace of five updates of each stage to WORKDIR/profile",
    )
    plan = parser.add_argument_group("plan").add_argument
    plan(
        "--dry_run",
        action="store_true",
        help="print what would be done, and what each device and process would hold, "
        "and stop",
    )
    plan(
        "--devices",
        type=at_least(1),
        help="with --dry_run: plan for so many devices; --num_processes may go with it",
    )
    many = parser.add_argument_group("several processes").add_argument
    many(
        "--distributed",
        action="store_true",
        help="this is one of several processes, on Cloud TPU, Slurm, Kubernetes or "
        "MPI, which tell it about the others",
    )
    many(
        "--coordinator",
        default="",
        help="HOST:PORT of process 0 where nothing else tells it (plain hosts)",
    )
    many(
        "--num_processes",
        type=at_least(1),
        help="with --coordinator: how many there are",
    )
    many("--process_id", type=at_least(0), help="with --coordinator: which one this is")
    many(
        "--heartbeat_s",
        type=at_least(2),
        default=100,
        help="seconds after which a silent process is taken for dead; default: 100",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Train as the command line says; return the exit code."""
    return command_line.run(lambda: _train(flags.parse(parser(), argv)), goes_on=True)


def _train(values: argparse.Namespace) -> int:
    if not values.workdir and not values.dry_run:
        raise UserError("--workdir is missing; pass the directory of the run.")
    if values.devices and not values.dry_run:
        raise UserError("--devices plans a run and needs --dry_run.")
    config = flags.read(values)
    if values.dry_run:
        return _plan(values, config)
    from handjax.training import launch  # imports jax, flax and orbax

    return launch.train(
        config,
        values.workdir,
        force_config=values.force_config,
        stop_after=values.stop_after,
        cluster=_cluster(values),
        profile=values.profile,
    )


def train(
    config: "ml_collections.ConfigDict",
    workdir: str | Path,
    *,
    force_config: bool = False,
    stop_after: int | None = None,
    profile: bool = False,
) -> None:
    """Train a model in this process, or continue where an interrupted run stopped.

    >>> import handjax
    >>> few = {"stages.mesh.steps": 2, "train.compile_cache": ""}
    >>> config = handjax.load_config("simplehand:smoke", few)
    >>> handjax.train(config, "runs/few")  # doctest: +ELLIPSIS
    simplehand on ...
    done; results, pictures and checkpoints are in runs/few

    Call it in the main thread: Ctrl-C and SIGTERM save a checkpoint before they end it.

    Args:
        config: Of `load_config`.
        workdir: Directory of the run, made if need be.
        force_config: Continue in a workdir that was started with another config.
        stop_after: Save and stop after so many steps.
        profile: Write a trace of five updates of each stage to `workdir`/profile.

    Raises:
        UserError: The config, the data or the workdir cannot work; says what to do.
        HandjaxError: A checkpoint is damaged, or an update is not finite.
        KeyboardInterrupt: After Ctrl-C, when everything is saved.
    """
    from handjax.config import schema
    from handjax.training import launch

    schema.check(config)
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = [signal.getsignal(number) for number in numbers]
    try:
        code = launch.train(
            config,
            str(workdir),
            force_config=force_config,
            stop_after=stop_after,
            profile=profile,
        )
    finally:
        # The run's own handlers would keep a notebook from being interrupted.
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)
    if code:
        raise KeyboardInterrupt


def _plan(values: argparse.Namespace, config: "ml_collections.ConfigDict") -> int:
    """Say what would be done; no accelerator is needed or touched."""
    import jax

    if values.devices:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", values.devices)
    from handjax.training import launch

    launch.dry_run(
        config,
        values.workdir,
        force_config=values.force_config,
        num_processes=values.num_processes or 1,
    )
    return 0


def _cluster(values: argparse.Namespace) -> "Cluster | None":
    """Return what the flags say of other processes; None for a run of one process."""
    from handjax.distributed.processes import Cluster

    told = Cluster(values.coordinator, values.num_processes, values.process_id)
    if not values.distributed and told == Cluster():
        return None
    return told._replace(heartbeat_s=values.heartbeat_s)


# `handjax.train(config, workdir)` is `train` above.
sys.modules[__name__].__class__ = command_line.CallableEntry

if __name__ == "__main__":
    sys.exit(main())
