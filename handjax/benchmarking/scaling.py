"""What the devices of a run send each other, and how well it will scale for it.

The update is compiled for so many simulated devices, partitioned as it would be on real
ones, and the collective operations of the compiled program are counted. Times follow
from published figures of chips and links, not from measurements.
"""

import contextlib
import math
import re
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from handjax.checkpoints import store
from handjax.data import run_data
from handjax.distributed import sharding
from handjax.family.stage import Stage
from handjax.training import launch, resume
from handjax.training.run import Run
from handjax.training.step import create, make_step

MFU = 0.4
"""Share of a chip's peak that an update is taken to reach: what well-tuned vision
transformers report. A lower one hides more of the communication."""


class Chip(NamedTuple):
    """Published figures of an accelerator."""

    flops: float
    """bfloat16, dense, a second."""
    link: float
    """Bytes a second that a chip sends to the others, one direction."""
    source: str


CHIPS = {
    "TPU v5e": Chip(197e12, 100e9, "Google Cloud, TPU v5e: 197 TFLOP/s, 1,600 Gbit/s"),
    "H100 SXM": Chip(989e12, 450e9, "NVIDIA, H100 SXM5: 989 TFLOP/s, NVLink 900 GB/s"),
}
"""Links are given for both directions together; half of it is one."""


class Traffic(NamedTuple):
    """What one device of a compiled program does in one call."""

    bytes_by_kind: dict[str, int]
    """Result bytes of each kind of collective operation."""
    flops: float
    temporary: int
    """Bytes of activations and scratch space, as XLA:CPU lays them out."""


class Efficiency(NamedTuple):
    """Share of an update that is spent computing."""

    alone: float
    """If nothing computes while the devices talk."""
    overlapped: float
    """If as much as possible is computed meanwhile."""


_COLLECTIVE = re.compile(
    r"= (?P<shape>\(.*?\)|\S+) (?P<kind>all-reduce|all-gather|reduce-scatter|"
    r"all-to-all|collective-permute)(?:-start)?\("
)
_ARRAY = re.compile(r"(?P<type>[a-z]+[0-9]*)\[(?P<sizes>[0-9,]*)\]")


def collectives(program: str) -> dict[str, int]:
    """Count the bytes of each kind of collective in a compiled program's text.

    One inside of a loop counts once.
    """
    found: dict[str, int] = {}
    for match in _COLLECTIVE.finditer(program):
        kind = match["kind"]
        found[kind] = found.get(kind, 0) + sum(
            _itemsize(array["type"])
            * math.prod(map(int, filter(None, array["sizes"].split(","))))
            for array in _ARRAY.finditer(match["shape"])
        )
    return found


def _itemsize(name: str) -> int:
    if name == "pred":
        return 1
    return max(int(re.sub(r"\D", "", name)) // 8, 1)


def efficiency(traffic: Traffic, chip: Chip, devices: int) -> Efficiency:
    """Share of the time of an update that is spent computing, on so many chips.

    A ring of n devices sends 2 (n - 1) / n of the bytes of an all-reduce over each
    link, and (n - 1) / n of those of other collectives. Bytes are counted in results,
    and that of a reduce-scatter is an n-th of what goes round.
    """
    rounds = {"all-reduce": 2, "reduce-scatter": devices}
    sent = sum(
        (devices - 1) / devices * count * rounds.get(kind, 1)
        for kind, count in traffic.bytes_by_kind.items()
    )
    talking = sent / chip.link
    computing = traffic.flops / (MFU * chip.flops)
    whole = computing + talking
    return Efficiency(
        alone=computing / whole if whole else 1.0,
        overlapped=computing / max(computing, talking) if computing else 1.0,
    )


def traffic(run: Run, stage: Stage) -> Traffic:
    """Compile one update of a stage over the mesh of a run, and read it."""
    config = run.config.stages[stage.name]

    def make() -> Any:
        variables = resume.initial_variables(run)
        return create(variables, stage, config, jax.random.key(0))

    shapes = jax.eval_shape(make)
    where = sharding.state_sharding(run.mesh, shapes)
    state = store.abstract(shapes, where)
    rows = sharding.batch_sharding(run.mesh)
    example = run_data.for_stage(run.example, stage)
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            (x.shape[0] * config.batch_size // len(example.index), *x.shape[1:]),
            jnp.asarray(x).dtype,
            sharding=rows,
        ),
        example,
    )
    step = make_step(run.model, stage, config, devices=run.mesh.size)
    outputs = where, sharding.replicated(run.mesh)
    jitted = jax.jit(step, donate_argnums=(0,), out_shardings=outputs)
    # Machine code is of no interest here, and takes most of the time to make.
    quick = {"xla_backend_optimization_level": 0}
    compiled = jitted.lower(state, batch).compile(compiler_options=quick)
    costs, memory = compiled.cost_analysis(), compiled.memory_analysis()
    assert costs is not None and memory is not None  # XLA:CPU tells both
    return Traffic(
        collectives(compiled.as_text()),
        float(costs.get("flops", 0.0)),
        int(memory.temp_size_in_bytes),
    )


def rows(config: ml_collections.ConfigDict) -> list[tuple[str, str, float, str, str]]:
    """Return (name, metric, value, unit, method) of every stage on these devices.

    Raises:
        ValueError: Devices cannot share the batch.
    """
    with contextlib.redirect_stdout(sys.stderr):  # standard output is for the numbers
        run = launch.prepare(config, None, create=False)
    devices, found = run.mesh.size, []
    for stage in run.family.stages(config):
        name = f"{config.family}/{stage.name}"
        seen = traffic(run, stage)
        size = config.stages[stage.name].batch_size
        told = f"compiled for {devices} devices, batch {size}"
        for kind, count in sorted(seen.bytes_by_kind.items()):
            found.append((name, kind, round(count / 1e6, 2), "MB", told))
        work, memory = round(seen.flops / 1e9, 2), round(seen.temporary / 1e6, 1)
        found.append((name, "work", work, "GFLOP a device", told))
        found.append((name, "temporary", memory, "MB a device", told))
        for chip_name, chip in CHIPS.items():
            share = efficiency(seen, chip, devices)
            how = f"{told}; {chip.source}; {MFU:.0%} of the peak"
            metric = f"efficiency on {devices} x {chip_name}"
            alone, overlapped = round(share.alone, 3), round(share.overlapped, 3)
            found.append((name, metric, alone, "nothing overlapped", how))
            found.append((name, metric, overlapped, "all overlapped", how))
    return found
