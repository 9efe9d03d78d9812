"""Time of each formulation of the convolutions in `nn.ops`, forward and backward."""

import statistics
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from handjax.nn import ops

FORMS = ("lax", "cpu")


class Case(NamedTuple):
    """One operation at one size."""

    name: str
    function: Callable
    """(x, kernel, impl) -> array."""
    x: tuple[int, ...]
    kernel: tuple[int, ...]


class Timing(NamedTuple):
    """Median time of one formulation."""

    case: str
    form: str
    metric: str
    """"forward" or "gradient" (of input and kernel, with the forward pass)."""
    milliseconds: float


def cases(batch: int = 8) -> list[Case]:
    """Convolutions of FastViT at 128 and 224 pixels, and of the token generator."""

    def depthwise(taps, dim, size, stride=1, multiplier=1):
        name = f"depthwise {taps}x{taps} stride {stride} {dim}@{size}"
        return Case(
            name + f" x{multiplier}" * (multiplier > 1),
            lambda x, k, impl: ops.depthwise_conv(x, k, stride=stride, impl=impl),
            (batch, size, size, dim),
            (taps, taps, 1, dim * multiplier),
        )

    return [
        depthwise(7, 48, 32),
        depthwise(3, 48, 32),
        depthwise(7, 192, 8),
        depthwise(7, 76, 56),
        depthwise(7, 304, 14),
        depthwise(7, 48, 32, stride=2, multiplier=2),
        Case(
            "grouped 3x3 32 groups 256@28",
            lambda x, k, impl: ops.grouped_conv(x, k, groups=32, impl=impl),
            (batch, 28, 28, 256),
            (3, 3, 8, 256),
        ),
        Case(
            "transposed 4x4 stride 4 768->256@4",
            lambda x, k, impl: ops.conv_transpose(x, k, stride=4, impl=impl),
            (batch, 4, 4, 768),
            (4, 4, 768, 256),
        ),
        Case(
            "transposed 4x4 stride 2 256@16",
            lambda x, k, impl: ops.conv_transpose(x, k, stride=2, padding=1, impl=impl),
            (batch, 16, 16, 256),
            (4, 4, 256, 256),
        ),
        Case(
            "patches 16x16 3->768@224",
            lambda x, k, impl: ops.patch_conv(x, k, impl=impl),
            (batch, 224, 224, 3),
            (16, 16, 3, 768),
        ),
        Case(
            "image 3x3 stride 2 3->76@224",
            lambda x, k, impl: ops.image_conv(x, k, stride=2, impl=impl),
            (batch, 224, 224, 3),
            (3, 3, 3, 76),
        ),
    ]


def measure(seconds: float, chosen: list[Case] | None = None) -> Iterator[Timing]:
    """Time every case, form and direction.

    Args:
        seconds: how long to repeat each, once at least.
        chosen: what to time; None for `cases()`.
    """
    rng = np.random.default_rng(0)
    for case in cases() if chosen is None else chosen:
        x, kernel = (
            jnp.asarray(rng.standard_normal(shape), jnp.float32)
            for shape in (case.x, case.kernel)
        )
        for form in FORMS:
            forward, gradient = _programs(case, form)
            for metric, program in (("forward", forward), ("gradient", gradient)):
                value = 1e3 * _median(program, x, kernel, seconds)
                yield Timing(case.name, form, metric, round(value, 3))


def _programs(case, form):
    def forward(x, kernel):
        return case.function(x, kernel, form)

    def gradient(x, kernel):
        out, pull = jax.vjp(forward, x, kernel)
        return pull(out)

    return jax.jit(forward), jax.jit(gradient)


def _median(program, x, kernel, seconds):
    jax.block_until_ready(program(x, kernel))
    times: list[float] = []
    while not times or sum(times) < seconds:
        start = time.perf_counter()
        jax.block_until_ready(program(x, kernel))
        times.append(time.perf_counter() - start)
    return statistics.median(times)
