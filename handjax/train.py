r"""Train a model: the same command starts a run and resumes it.

    python -m handjax.train --config configs/tokenhand.py:smoke --workdir /tmp/smoke
    python -m handjax.train --config configs/tokenhand.py:small --workdir runs/small \
        --config.train.log_every=10 --config.stages.mesh.optimizer.lr=2e-4

Stages run in order; finished ones are skipped. The work directory gets config.json,
environment.json, metrics.jsonl, tensorboard/, checkpoints/<stage>/<step>/,
eval/<step>/, images/, codebook/ and, at the end, DONE. Without --config.data.name the
built-in hand is rendered on first use; nothing has to be downloaded.
"""

import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from handjax.config.flags import run
from handjax.errors import UserError

VALUES = flags.FlagValues()
flags.DEFINE_string(
    "config",
    None,
    "config file, with :variant; --config.KEY=VALUE changes a key of it",
    flag_values=VALUES,
)
flags.DEFINE_string(
    "workdir", None, "directory of the run, made if need be", flag_values=VALUES
)
flags.DEFINE_bool(
    "dry_run",
    False,
    "print what would be done, and what each device and process would hold, and stop",
    flag_values=VALUES,
)
flags.DEFINE_integer(
    "devices",
    None,
    "with --dry_run: plan for so many devices; --num_processes may go with it",
    lower_bound=1,
    flag_values=VALUES,
)
flags.DEFINE_bool(
    "force_config",
    False,
    "go on in a workdir that was started with another config",
    flag_values=VALUES,
)
flags.DEFINE_integer(
    "stop_after", None, "save and stop after so many steps", flag_values=VALUES
)
flags.DEFINE_bool(
    "profile",
    False,
    "write a trace of five updates of each stage to WORKDIR/profile",
    flag_values=VALUES,
)
flags.DEFINE_bool(
    "distributed",
    False,
    "this is one of several processes, on Cloud TPU, Slurm, Kubernetes or MPI, which "
    "tell it about the others",
    flag_values=VALUES,
)
flags.DEFINE_string(
    "coordinator",
    "",
    "HOST:PORT of process 0 where nothing else tells it (plain hosts)",
    flag_values=VALUES,
)
flags.DEFINE_integer(
    "num_processes", None, "with --coordinator: how many there are", flag_values=VALUES
)
flags.DEFINE_integer(
    "process_id", None, "with --coordinator: which one this is", flag_values=VALUES
)
flags.DEFINE_integer(
    "heartbeat_s",
    100,
    "seconds after which a silent process is taken for dead",
    lower_bound=2,
    flag_values=VALUES,
)


def main(values: flags.FlagValues) -> int:
    """Train as the parsed flags say; returns the exit code."""
    from handjax.config import schema as configs

    if not values.workdir and not values.dry_run:
        raise UserError("--workdir is missing; pass the directory of the run.")
    try:
        configs.check(values.config)
    except ValueError as error:
        raise UserError(str(error)) from error
    if values.devices and not values.dry_run:
        raise UserError("--devices plans a run and needs --dry_run.")
    if values.dry_run:
        return _plan(values)
    from handjax.training import launch  # imports jax, flax and orbax

    return launch.train(
        values.config,
        values.workdir,
        force_config=values.force_config,
        stop_after=values.stop_after,
        cluster=_cluster(values),
        profile=values.profile,
    )


def _plan(values: flags.FlagValues) -> int:
    """Say what would be done; no accelerator is needed or touched."""
    import jax

    if values.devices:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", values.devices)
    from handjax.training import launch

    launch.dry_run(
        values.config,
        values.workdir,
        force_config=values.force_config,
        num_processes=values.num_processes or 1,
    )
    return 0


def _cluster(values: flags.FlagValues) -> Any:
    """What the flags say of other processes; None for a run of one process."""
    from handjax.distributed.processes import Cluster

    told = Cluster(values.coordinator, values.num_processes, values.process_id)
    if not values.distributed and told == Cluster():
        return None
    return told._replace(heartbeat_s=values.heartbeat_s)


def cli(argv: Sequence[str] | None = None) -> int:
    """Entry: flags from the command line."""
    return run(main, VALUES, __doc__ or "", argv)


if __name__ == "__main__":
    sys.exit(cli())
