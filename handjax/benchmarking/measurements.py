"""What `python -m handjax.benchmark` measures, and how.

Every timing runs a compiled program, waits for its result on the host, and is the
median of repetitions after one that does not count. Nothing is read from disk and
nothing is trained further: data loading has a benchmark of its own
(`python -m data_pipelines.benchmark`).
"""

import dataclasses
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from rich.console import Console
from rich.table import Column, Table

from handjax import models
from handjax.benchmarking import (
    against_torch,
    clock,
    ops,
    scaling,
    token_mixing,
    token_reduction,
)
from handjax.checkpoints import workdir
from handjax.data import run_data
from handjax.errors import UserError
from handjax.family import hand_constants
from handjax.family.capabilities import Family, HasParts, SamplesInSteps
from handjax.family.stage import Stage
from handjax.mano import model_files
from handjax.training import environment, launch
from handjax.training import step as train_state

SAMPLING_STEPS = (1, 3, 5, 10)
"""Of MMHMR's Table 6."""


class Measurement(NamedTuple):
    """One line of the report."""

    name: str
    """Program that was measured, such as "tokenhand/predict"."""
    metric: str
    value: float
    unit: str
    method: str
    """How the value came about, in words."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """The model to measure, with everything that its programs take."""

    config: ml_collections.ConfigDict
    family: Family
    model: Any
    variables: Any
    example: Callable[[int], Any]
    """Batch of a size."""

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Training stages of the family."""
        return self.family.stages(self.config)

    @functools.cached_property
    def served(self) -> tuple[Any, Any]:
        """Return model and variables for inference, as predictions use them."""
        return models.for_inference(self.model, self.variables)


def run(
    config: ml_collections.ConfigDict,
    what: tuple[str, ...],
    *,
    seconds: float = 5.0,
    max_batch: int = 256,
    batch_sizes: tuple[int, ...] = (1, 8),
) -> list[Measurement]:
    """Measure, print each result as it comes, and return them all.

    Args:
        config: of the model.
        what: keys of `benchmark.MEASURES`, in order.
        seconds: how long to repeat each timing.
        max_batch: largest batch that throughput tries.
        batch_sizes: images at once when compared with PyTorch, or with each other.
    """
    context = {
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "platform": jax.default_backend(),
        "versions": environment.versions(),
    }
    found = []
    alone = {"ops", "tokens", "scaling", "cost"}  # need no weights
    subject = prepare(config) if set(what) - alone else None
    for name in what:
        if name == "ops":
            results = _ops(seconds / 10)
        elif name == "tokens":
            results = _tokens(config, seconds)
        elif name == "scaling":
            results = [Measurement(*row) for row in scaling.rows(config)]
        elif name == "cost":
            results = _cost(config, seconds, batch_sizes)
        else:
            results = _measure(name, subject, seconds, max_batch, batch_sizes)
        for result in results:
            print(json.dumps({**result._asdict(), **context}), flush=True)
            found.append(result)
    _print_table(found, context)
    return found


def prepare(config: ml_collections.ConfigDict) -> Subject:
    """Build the model of a config with random weights."""
    family = models.load(config.family)
    dtype = launch.compute_dtype(config.train.precision)
    hand_file = model_files.load(
        config.hand.source, side=config.hand.side, tips=config.hand.tips or None
    )
    model = workdir.build_model(
        family, config, dtype=dtype, edges=hand_file.skeleton.bones
    )
    example = functools.partial(run_data.example_batch, config, hand_file)
    hand = hand_constants.hand_constants(hand_file)

    def init():
        keys = jax.random.split(jax.random.key(0), 1 + len(train_state.RNG_STREAMS))
        rngs = dict(zip(("params", *train_state.RNG_STREAMS), keys, strict=True))
        return model.init(rngs, example(2), hand, method="init_all")

    return Subject(config, family, model, jax.jit(init)(), example)


def _measure(
    name: str,
    subject: Any,
    seconds: float,
    max_batch: int,
    batch_sizes: tuple[int, ...],
) -> Iterator[Measurement]:
    measure = globals()[f"_{name}"]
    options: dict[str, Any] = {}
    if name == "throughput":
        options["max_batch"] = max_batch
    if name == "peer":
        options["batch_sizes"] = batch_sizes
    if name not in ("compile", "memory", "flops"):
        options["seconds"] = seconds
    yield from measure(subject, **options)


# --- Programs ----------------------------------------------------------------


def _predict_program(subject, batch_size):
    model, variables = subject.served
    image = jax.device_put(subject.example(batch_size).image)
    return jax.jit(model.apply), (variables, image)


def _step_program(subject, stage):
    """Build the update of a stage as the trainer compiles it, on one device."""
    config = subject.config.stages[stage.name]
    step = train_state.make_step(subject.model, stage, config)
    create = functools.partial(train_state.create, stage=stage, config=config)
    state = jax.jit(create)(subject.variables, rng=jax.random.key(0))
    batch = run_data.for_stage(subject.example(config.batch_size), stage)
    return jax.jit(step), (state, jax.device_put(batch))


def _programs(subject):
    """Name, program, arguments and images of inference and of every update."""
    yield "predict", *_predict_program(subject, 1), 1
    for stage in subject.stages:
        size = subject.config.stages[stage.name].batch_size
        yield f"{stage.name} step", *_step_program(subject, stage), size


# --- Measures ----------------------------------------------------------------


def _compile(subject):
    with _no_compile_cache():
        for name, program, arguments, size in _programs(subject):
            start = time.perf_counter()
            lowered = program.lower(*arguments)
            middle = time.perf_counter()
            lowered.compile()
            spent = {
                "trace": middle - start,
                "compile": time.perf_counter() - middle,
            }
            for metric, value in spent.items():
                yield Measurement(
                    f"{subject.config.family}/{name}",
                    f"{metric}_time",
                    round(value, 2),
                    "s",
                    f"batch {size}, once, without the compilation cache",
                )


def _latency(subject, seconds):
    program, arguments = _predict_program(subject, 1)
    times = clock.repeat(program, arguments, seconds)
    name = f"{subject.config.family}/predict"
    for metric, value in (
        ("latency", statistics.median(times)),
        ("latency_p95", float(np.percentile(times, 95))),
    ):
        method = f"batch 1, image on the device, {len(times)} runs"
        yield Measurement(name, metric, round(1e3 * value, 3), "ms", method)


def _throughput(subject, seconds, max_batch):
    """Double the batch until two sizes in a row gain nothing, or memory runs out."""
    best, best_size, size, worse = 0.0, 0, 1, 0
    while size <= max_batch and worse < 2:
        program, arguments = _predict_program(subject, size)
        try:
            rate = size / statistics.median(
                clock.repeat(program, arguments, seconds / 4)
            )
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            break
        worse = 0 if rate > 1.02 * best else worse + 1
        if rate > best:
            best, best_size = rate, size
        size *= 2
    yield Measurement(
        f"{subject.config.family}/predict",
        "throughput",
        round(best, 2),
        "images/s",
        f"batch {best_size}, the best of 1 to {size // 2} in powers of two",
    )


def _train_step(subject, seconds):
    for name, program, arguments, size in _programs(subject):
        if name == "predict":
            continue
        times = clock.repeat(program, arguments, seconds)
        step = statistics.median(times)
        method = f"batch {size}, without data loading, {len(times)} runs"
        name = f"{subject.config.family}/{name}"
        yield Measurement(name, "step_time", round(1e3 * step, 2), "ms", method)
        yield Measurement(name, "rate", round(size / step, 2), "examples/s", method)


def _waiting(subject, seconds):
    """Share of the time of updates in which the trainer stands and waits for data."""
    config = subject.config
    hand_file = model_files.load(
        config.hand.source, side=config.hand.side, tips=config.hand.tips or None
    )
    opened = run_data.open_data(config, hand_file)
    for stage in subject.stages:
        program, (state, _) = _step_program(subject, stage)
        size = config.stages[stage.name].batch_size
        batches = opened.train(stage, size, 0)
        batch, updates, waited = next(batches), 0, 0.0
        jax.block_until_ready(program(state, batch))  # compiles
        begin = time.perf_counter()
        while time.perf_counter() - begin < seconds:
            state, metrics = program(state, batch)
            start = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - start
            jax.block_until_ready(metrics)
            updates += 1
        share = waited / (time.perf_counter() - begin)
        method = f"batch {size}, {updates} updates with batches of the loader"
        name = f"{config.family}/{stage.name} step"
        yield Measurement(name, "waiting", round(100 * share, 2), "%", method)


def _peer(subject, seconds, batch_sizes):
    """Yield the times of handjax and PyTorch, and the ratios of the two."""
    family = subject.config.family
    for found in against_torch.measure(subject, family, batch_sizes, seconds):
        name, method = f"{family}/{found.program}", f"median of {found.rounds} rounds"
        yield Measurement(name, "latency", found.milliseconds, "ms", method)
        if not name.endswith("/handjax"):
            method = "time of handjax over this one's, measured in turn"
            yield Measurement(name, "ratio", found.ratio, "", method)


def _memory(subject):
    for name, program, arguments, size in _programs(subject):
        compiled = program.lower(*arguments).compile()
        name = f"{subject.config.family}/{name}"
        size_mib = clock.mebibytes(compiled)
        if size_mib is not None:
            method = f"batch {size}, arguments, results and temporaries (compiler)"
            yield Measurement(name, "memory", size_mib, "MiB", method)
        jax.block_until_ready(compiled(*arguments))
        peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
        if peak:  # CPUs keep no such statistics
            method = "device's peak since the start, this program included"
            yield Measurement(name, "peak", round(peak / 2**20, 1), "MiB", method)


def _flops(subject):
    for name, program, arguments, size in _programs(subject):
        yield Measurement(
            f"{subject.config.family}/{name}",
            "flops",
            float(f"{clock.flops(program, arguments) / 1e9:.4g}"),
            "GFLOP",
            f"batch {size}, counted before optimisation, an addition being one",
        )


def _parts(subject, seconds):
    """Yield the time that each part of a model adds to the parts before it."""
    family = subject.config.family
    if not isinstance(subject.family, HasParts):
        raise UserError(
            f"--what=parts: {family!r} names no parts that run one by one; give "
            f"handjax/models/{family}.py a table PARTS, name -> method, as hamba has."
        )
    model, variables = subject.served
    image = jax.device_put(subject.example(1).image)

    def program(method):
        run = jax.jit(functools.partial(model.apply, method=method, train=False))
        return lambda: jax.block_until_ready(run(variables, image))

    programs = {name: program(m) for name, m in subject.family.PARTS.items()}
    before = 0.0
    for name, times in clock.in_turn(programs, seconds).items():
        median = 1e3 * statistics.median(times)
        method = f"batch 1, more than with the parts above, {len(times)} rounds"
        value = round(median - before, 3)
        yield Measurement(f"{family}/{name}", "latency", value, "ms", method)
        before = median


def _sampling(subject, seconds):
    """Time of an image by how many steps its tokens are drawn in."""
    family = subject.config.family
    model, variables = subject.served
    if not isinstance(model, SamplesInSteps):
        raise UserError(
            f"--what=sampling: {family!r} draws no tokens step by step; measure a "
            "family whose model has a field `steps`, such as mmhmr."
        )
    image = jax.device_put(subject.example(1).image)

    def program(steps):
        run = jax.jit(model.clone(steps=steps).apply)
        return lambda: jax.block_until_ready(run(variables, image))

    programs = {f"{steps}": program(steps) for steps in SAMPLING_STEPS}
    for steps, times in clock.in_turn(programs, seconds).items():
        method = f"batch 1, steps of sampling: {steps}, {len(times)} rounds in turn"
        value = round(1e3 * statistics.median(times), 3)
        name = f"{family}/predict/steps{steps}"
        yield Measurement(name, "latency", value, "ms", method)


def _ops(seconds):
    for result in ops.measure(seconds):
        yield Measurement(
            f"ops/{result.case}/{result.form}",
            result.metric,
            result.milliseconds,
            "ms",
            "median of one compiled operation",
        )


def _tokens(config, seconds):
    for row, metric, value, unit, method in token_mixing.measure(config, seconds):
        yield Measurement(f"tokens/{row}", metric, value, unit, method)


def _cost(config, seconds, batch_sizes):
    dtype = launch.compute_dtype(config.train.precision)
    for row, *rest in token_reduction.measure(config, dtype, batch_sizes, seconds):
        yield Measurement(f"cost/{row}", *rest)


# --- Helpers ----------------------------------------------------------------


@contextmanager
def _no_compile_cache() -> Iterator[None]:
    """Compile afresh within the block."""
    before = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)


def _print_table(results: list[Measurement], context: dict[str, Any]) -> None:
    title = f"{context['device']}, jax {context['versions']['jax']}"
    tables = []
    tabled = [x for x in results if x.name.startswith(("tokens/", "cost/"))]
    rest = [result for result in results if result not in tabled]
    if rest:
        tables.append(table := Table(title=title))
        for header in ("program", *Measurement._fields[1:]):
            table.add_column(header, justify="right" if header == "value" else "left")
        for result in rest:
            table.add_row(*(str(value) for value in result))
    for kind in ("tokens/", "cost/"):
        if rows := [x for x in tabled if x.name.startswith(kind)]:
            tables.append(_wide_table(rows, title))
    # Pipes have no width; wide enough for every column but the last on one line.
    width = None if sys.stderr.isatty() else 140
    for table in tables:
        Console(file=sys.stderr, width=width).print(table)


def _wide_table(results: list[Measurement], title: str) -> Table:
    """Build a table with one row per name and one column per metric."""
    values: dict[str, dict[str, float]] = {}
    for result in results:
        values.setdefault(result.name, {})[result.metric] = result.value
    units = {result.metric: result.unit for result in results}
    table = Table(
        Column("", no_wrap=True),
        *(f"{metric}\n{unit}" for metric, unit in units.items()),
        title=title,
    )
    for name, row in values.items():
        table.add_row(name, *(str(row.get(metric, "")) for metric in units))
    return table
