"""Repeated runs of programs on the clock, and the memory of compiled ones."""

import time
from collections.abc import Callable
from typing import Any

import jax


def repeat(program: Callable, arguments: tuple, seconds: float) -> list[float]:
    """Return the seconds of each run, at least three, after one warm-up run."""
    jax.block_until_ready(program(*arguments))
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        start = time.perf_counter()
        jax.block_until_ready(program(*arguments))
        times.append(time.perf_counter() - start)
    return times


def in_turn(
    programs: dict[str, Callable[[], Any]], seconds: float
) -> dict[str, list[float]]:
    """Time blocking programs in turn; return the seconds of each run, three or more.

    Rounds go through all programs one after the other, so that a busy machine slows all
    of them.
    """
    for program in programs.values():  # compile and warm up
        program()
        program()
    times: dict[str, list[float]] = {name: [] for name in programs}
    rounds, start = 0, time.perf_counter()
    while rounds < 3 or time.perf_counter() - start < seconds:
        for name, program in programs.items():
            before = time.perf_counter()
            program()
            times[name].append(time.perf_counter() - before)
        rounds += 1
    return times


def mebibytes(compiled: Any) -> float | None:
    """Return MiB of arguments, results and temporaries; None if not reported."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return None
    total = (
        analysis.temp_size_in_bytes
        + analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
    )
    return round(total / 2**20, 1)


def flops(program: Any, arguments: tuple) -> float:
    """Count floating-point operations of a jitted program, an addition being one.

    Counted on the plain formulation, before XLA rewrites it. The count of a compiled
    program is of little use: XLA counts the body of a loop once, and the CPU
    formulations have loops.
    """
    lowered = program.trace(*arguments).lower(lowering_platforms=("tpu",))
    return (lowered.cost_analysis() or {}).get("flops", float("nan"))
