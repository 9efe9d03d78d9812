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

from absl import flags

from handjax import command_line
from handjax.command_line import UsageError

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
    "print config, parameters, devices, data and steps, and stop there",
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
    "distributed",
    False,
    "several processes: call jax.distributed.initialize(), which knows Cloud TPU, "
    "Slurm, Kubernetes and MPI",
    flag_values=VALUES,
)


def main(values: flags.FlagValues) -> int:
    """Train as the parsed flags say; returns the exit code."""
    from handjax import config as configs

    if not values.workdir and not values.dry_run:
        raise UsageError("--workdir is missing; pass the directory of the run.")
    try:
        configs.check(values.config)
    except ValueError as error:
        raise UsageError(str(error)) from error
    from handjax import launch  # imports jax, flax and orbax

    return launch.train(
        values.config,
        values.workdir,
        dry_run=values.dry_run,
        force_config=values.force_config,
        stop_after=values.stop_after,
        distributed=values.distributed,
    )


def cli(argv: Sequence[str] | None = None) -> int:
    """Entry: flags from the command line."""
    return command_line.run(main, VALUES, __doc__ or "", argv)


if __name__ == "__main__":
    sys.exit(cli())
