"""What a run will put where: bytes on each device, rows of each process.

Shapes alone are looked at, so that a laptop can plan a pod's run: `python -m
handjax.train --dry_run --devices 64 --num_processes 16`.
"""

import functools
from typing import Any

import jax
import numpy as np

from handjax.data import run_data
from handjax.distributed import sharding
from handjax.errors import UserError
from handjax.family.stage import Stage
from handjax.training import resume, step
from handjax.training.run import Run


def describe(run: Run, stages: tuple[Stage, ...], num_processes: int) -> str:
    """Describe the plan in a few lines for each stage.

    Args:
        run: to be planned, on the devices of its mesh.
        stages: of the family.
        num_processes: that will share the devices; each has as many.

    Raises:
        UserError: processes cannot share devices or batch equally.
    """
    devices = run.mesh.size
    if devices % num_processes:
        raise UserError(
            f"--num_processes={num_processes} cannot share {devices} devices equally; "
            "--devices has to be a multiple of it."
        )
    lines = [
        f"plan: {devices} devices as data {run.mesh.shape['data']} x fsdp "
        f"{run.mesh.shape['fsdp']}, {devices // num_processes} in each of "
        f"{num_processes} process{'es' * (num_processes > 1)}"
    ]
    variables = jax.eval_shape(lambda: resume.initial_variables(run))
    for stage in stages:
        lines += _of_stage(run, stage, variables, num_processes)
    return "\n".join(lines)


def _of_stage(run: Run, stage: Stage, variables: Any, processes: int) -> list[str]:
    config = run.config.stages[stage.name]
    if config.batch_size % processes:
        raise UserError(
            f"config.stages.{stage.name}.batch_size={config.batch_size} cannot be "
            f"shared equally by {processes} processes; make it a multiple of them."
        )
    make = functools.partial(
        step.create, stage=stage, config=config, rng=jax.random.key(0)
    )
    state = jax.eval_shape(make, variables)
    where = sharding.state_sharding(run.mesh, state)
    trained, _ = step.partition(state.params, stage)
    paths = step.flat(where.params)
    split = [path for path, x in paths.items() if not x.is_fully_replicated]
    batch = run_data.for_stage(run.example, stage)
    rows = {k: v for k, v in batch._asdict().items() if v is not None}
    each = sum(np.asarray(v).nbytes / len(batch.index) for v in rows.values())
    parts = {
        "parameters": _bytes(state.params, where.params),
        "gradients": _bytes(trained, {path: paths[path] for path in trained}),
        "optimiser": _bytes(state.opt_state, where.opt_state),
        "other": _bytes(state.collections, where.collections),
        "batch": each * config.batch_size / run.mesh.size,
    }
    share = config.batch_size // processes
    return [
        f"stage {stage.name}, bytes on each device before activations: "
        + ", ".join(f"{name} {_size(n)}" for name, n in parts.items())
        + f"; together {_size(sum(parts.values()))}",
        f"stage {stage.name}, {len(split)} of {len(paths)} parameters are split over "
        f"fsdp; each batch of {config.batch_size} has {share} rows a process: "
        + ", ".join(_rows(share, processes)),
    ]


def _rows(share: int, processes: int) -> list[str]:
    """Format `process 0 rows 0-7`; of many processes, the first two and the last."""
    shown = [0, 1, processes - 1] if processes > 3 else list(range(processes))
    told = [f"process {n} rows {n * share}-{(n + 1) * share - 1}" for n in shown]
    return [*told[:-1], "...", told[-1]] if processes > 3 else told


def _bytes(shapes: Any, shardings: Any) -> float:
    """Count the bytes of the part that one device holds."""
    sizes = jax.tree.map(
        lambda x, s: int(np.prod(s.shard_shape(x.shape))) * x.dtype.itemsize,
        shapes,
        shardings,
    )
    return float(sum(jax.tree.leaves(sizes)))


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
