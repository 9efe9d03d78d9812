"""What mixing tokens costs, row by row: size, work, memory, time.

A family brings the rows, blocks that mix tokens (`capabilities.MixingTable`).
"""

import functools
import statistics
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from handjax import models
from handjax.benchmarking import clock
from handjax.family.capabilities import MixingRow

TRAINING_BATCH = 8
"""Examples of which a gradient is taken, to see its memory."""


class Value(NamedTuple):
    """An entry of the table."""

    row: str
    column: str
    value: float
    unit: str
    method: str


def measure(config: ml_collections.ConfigDict, seconds: float) -> Iterator[Value]:
    """Yield every entry: first what can be counted row by row, then the times.

    Args:
        config: of a family with such a table; decides the width of the rows.
        seconds: how long to repeat the timing of each row.

    Raises:
        UserError: The family has no such table.
    """
    rows = models.measures(config.family, "tokens").rows(config.model)
    table = {
        f"{row.tokens} {row.name}": _programs(row, config.model.width) for row in rows
    }
    for name, programs in table.items():
        for value in _counted(programs):
            yield Value(name, *value)
    runs = {name: programs.run for name, programs in table.items()}
    # The more rows, the longer a round through all of them.
    times = clock.in_turn(runs, seconds * len(runs))
    for name, found in times.items():
        value = _rounded(1e3 * statistics.median(found))
        method = f"batch 1, all rows in turn, {len(found)} rounds"
        yield Value(name, "latency", value, "ms", method)


class _Programs(NamedTuple):
    """What of a row is measured."""

    tokens: int
    parameters: int
    multiply_adds: int
    flops: float
    answer: Any
    """Compiled, for one example."""
    gradient: Any
    """Compiled, of the weights and of the tokens of `TRAINING_BATCH` examples."""
    run: Callable[[], Any]
    """Answers, and waits."""


def _programs(row: MixingRow, width: int) -> _Programs:
    one, many = (jnp.ones((n, *row.grid, width)) for n in (1, TRAINING_BATCH))
    init = functools.partial(row.trunk.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), one)
    # What the weights are changes no timing.
    variables = jax.tree.map(lambda x: jnp.full(x.shape, 0.01, x.dtype), shapes)
    forward = jax.jit(functools.partial(row.trunk.apply, train=False))

    def loss(variables, x):
        return jnp.sum(forward(variables, x) ** 2)

    answer = forward.lower(variables, one).compile()
    return _Programs(
        tokens=row.tokens,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(variables["params"])),
        multiply_adds=multiply_adds(forward, variables, one),
        flops=clock.flops(forward, (variables, one)),
        answer=answer,
        gradient=jax.jit(jax.grad(loss, (0, 1))).lower(variables, many).compile(),
        run=lambda: jax.block_until_ready(answer(variables, one)),
    )


def _counted(programs: _Programs) -> Iterator[tuple[str, float, str, str]]:
    """Yield what needs no clock: column, value, unit and method."""
    exact = "batch 1, of matrices and convolutions"
    every = "batch 1, before optimisation, an addition being one"
    yield "tokens", programs.tokens, "", "that are mixed"
    yield "parameters", _rounded(programs.parameters / 1e6), "M", "of the blocks"
    yield "multiply_adds", _rounded(programs.multiply_adds / 1e6), "M", exact
    yield "flops", _rounded(programs.flops / 1e6), "MFLOP", every
    for column, compiled, batch in (
        ("memory", programs.answer, 1),
        ("training_memory", programs.gradient, TRAINING_BATCH),
    ):
        size = clock.mebibytes(compiled)
        if size is not None:
            method = f"batch {batch}, arguments, results and temporaries (compiler)"
            yield column, size, "MiB", method


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def multiply_adds(program: Callable, *arguments: Any) -> int:
    """Count the multiply-adds of a program's matrix products and convolutions.

    What papers count as FLOPs more often than not. Bodies of loops count as often as
    they run (`while` loops, whose number of runs no one knows, once), and of several
    branches, such as formulations for several platforms, the dearest.
    """
    return _count(jax.make_jaxpr(program)(*arguments).jaxpr)


def _count(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        inner = [_count(inner) for inner in _inside(parameters)]
        if name == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            left = equation.invars[0].aval.shape
            depth = np.prod([left[axis] for axis in contracted], dtype=int)
            total += equation.outvars[0].aval.size * int(depth)
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            features = kernel.shape[parameters["dimension_numbers"].rhs_spec[0]]
            total += equation.outvars[0].aval.size * kernel.size // features
        elif name == "cond":
            total += max(inner)
        elif name == "scan":
            total += parameters["length"] * sum(inner)
        else:
            total += sum(inner)
    return total


def _inside(parameters: dict[str, Any]) -> list[Any]:
    """Return the programs that an equation calls."""
    leaves = jax.tree.leaves(
        list(parameters.values()), is_leaf=lambda x: hasattr(x, "jaxpr")
    )
    closed = [getattr(leaf, "jaxpr", leaf) for leaf in leaves]
    return [jaxpr for jaxpr in closed if hasattr(jaxpr, "eqns")]
