"""Time of each formulation of an operation, forward and backward.

Convolutions of `nn.ops`, the paths of `nn.ssm`'s scan, the layer made of it beside
self-attention on the same tokens, and deformable attention by gathers and by products.
"""

import functools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from handjax.nn import ssm
from handjax.nn.deformable_attention import deformable_sample
from handjax.nn.metaformer import SelfAttention
from handjax.nn.ops.convolutions import (
    conv_transpose,
    depthwise_conv,
    grouped_conv,
    image_conv,
    patch_conv,
)
from handjax.nn.token_sampler import sample_pixels


class Case(NamedTuple):
    """One operation at one size."""

    name: str
    function: Callable
    """(*arguments, form) -> array."""
    arguments: Callable[[], tuple[Any, ...]]
    """Makes arrays, or trees of them; gradients are of all."""
    forms: tuple[str, ...]


class Timing(NamedTuple):
    """Median time of one formulation."""

    case: str
    form: str
    metric: str
    """"forward" or "gradient" (of all arguments, with the forward pass)."""
    milliseconds: float


def cases() -> list[Case]:
    """Return every case that is timed."""
    return [*convolutions(), *scans(), *token_mixers(), *samplers()]


def convolutions(batch: int = 8) -> list[Case]:
    """Return FastViT's convolutions at 128 and 224 pixels, and the generator's."""

    def case(name, function, *shapes):
        arguments = functools.partial(_normal, *shapes)
        return Case(name, function, arguments, ("lax", "cpu"))

    def depthwise(taps, dim, size, stride=1, multiplier=1):
        name = f"depthwise {taps}x{taps} stride {stride} {dim}@{size}"
        return case(
            name + f" x{multiplier}" * (multiplier > 1),
            lambda x, k, impl: depthwise_conv(x, k, stride=stride, impl=impl),
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
        case(
            "grouped 3x3 32 groups 256@28",
            lambda x, k, impl: grouped_conv(x, k, groups=32, impl=impl),
            (batch, 28, 28, 256),
            (3, 3, 8, 256),
        ),
        case(
            "transposed 4x4 stride 4 768->256@4",
            lambda x, k, impl: conv_transpose(x, k, stride=4, impl=impl),
            (batch, 4, 4, 768),
            (4, 4, 768, 256),
        ),
        case(
            "transposed 4x4 stride 2 256@16",
            lambda x, k, impl: conv_transpose(x, k, stride=2, padding=1, impl=impl),
            (batch, 16, 16, 256),
            (4, 4, 256, 256),
        ),
        case(
            "patches 16x16 3->768@224",
            lambda x, k, impl: patch_conv(x, k, impl=impl),
            (batch, 224, 224, 3),
            (16, 16, 3, 768),
        ),
        case(
            "image 3x3 stride 2 3->76@224",
            lambda x, k, impl: image_conv(x, k, stride=2, impl=impl),
            (batch, 224, 224, 3),
            (3, 3, 3, 76),
        ),
    ]


MAPS = ((22, 1), (16, 12))
"""Hamba's joint tokens, and the image tokens of HaMeR's backbone."""
BATCHES = (1, 8)


def scans(dim: int = 1024, state: int = 1) -> list[Case]:
    """Return the scan of Hamba's four directions, by each path."""

    def scan(x, dt, A, B, C, D, path):
        return ssm.selective_scan(x, jnp.abs(dt), -jnp.exp(A), B, C, D, path=path)

    def case(length, batch):
        sequences, per_direction = (4, batch, length), (4, 1, dim)
        shapes = (
            *((*sequences, dim), (*sequences, dim), (*per_direction, state)),
            *((*sequences, state), (*sequences, state), per_direction),
        )
        name = f"scan 4 x {length} tokens of {dim}, batch {batch}"
        return Case(name, scan, functools.partial(_normal, *shapes), ssm.PATHS[1:])

    return [case(h * w, batch) for h, w in MAPS for batch in BATCHES]


def token_mixers(dim: int = 512) -> list[Case]:
    """Return the layer around the scan, and self-attention in its place."""
    scanning, attending = ssm.SS2D(dim), SelfAttention(num_heads=8)

    def mixed(variables, x, form):
        if form == "SS2D":
            return scanning.apply(variables, x)
        tokens = x.reshape(len(x), -1, dim)
        return attending.apply(variables, tokens, train=False)

    def arguments(shape, form):
        (x,) = _normal(shape)
        layer = functools.partial(attending.init, train=False)
        if form == "SS2D":
            return jax.jit(scanning.init)(jax.random.key(0), x), x
        return jax.jit(layer)(jax.random.key(0), x.reshape(len(x), -1, dim)), x

    return [
        Case(
            f"{h * w} tokens of {dim}, batch {batch}",
            mixed,
            functools.partial(arguments, (batch, h, w, dim), form),
            (form,),
        )
        for h, w in MAPS
        for batch in BATCHES
        for form in ("SS2D", "attention")
    ]


PYRAMID = ((16, 12), (64, 48))
"""The maps of MMHMR."""


def samplers(dim: int = 256, heads: int = 8, points: int = 4) -> list[Case]:
    """Return the sampling of MMHMR's 85 queries, by gathers and over whole maps."""
    queries = 85

    def sample(maps, places, weights, form):
        places = jax.nn.sigmoid(places)
        if form == "gather":
            return deformable_sample(maps, places, weights)
        return _by_products(maps, places, weights)

    def arguments(batch):
        maps = _normal(*((batch, h, w, heads, dim // heads) for h, w in PYRAMID))
        shape = (batch, queries, heads, len(PYRAMID), points)
        return maps, *_normal((*shape, 2), shape)

    return [
        Case(
            f"deformable attention, {queries} queries of {dim}, batch {batch}",
            sample,
            functools.partial(arguments, batch),
            ("gather", "products"),
        )
        for batch in BATCHES
    ]


def _by_products(maps, places, weights):
    """Sample as `deformable_sample`, each head as an example of `sample_pixels`."""
    batch, queries, heads, _, points, _ = places.shape
    out = 0.0
    for level, x in enumerate(maps):
        size = jnp.array(x.shape[2:0:-1]).reshape(1, 1, 1, 1, 2)
        pixels = (places[:, :, :, level] * size - 0.5).swapaxes(1, 2)
        pixels = pixels.reshape(batch * heads, queries * points, 2)
        x = jnp.moveaxis(x, 3, 1).reshape(batch * heads, *x.shape[1:3], -1)
        found = sample_pixels(x, pixels).reshape(batch, heads, queries, points, -1)
        out = out + jnp.einsum("bqhp,bhqpd->bqhd", weights[:, :, :, level], found)
    return out


def _normal(*shapes):
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(rng.standard_normal(s), jnp.float32) for s in shapes)


def measure(seconds: float, chosen: list[Case] | None = None) -> Iterator[Timing]:
    """Time every case, form and direction.

    Args:
        seconds: how long to repeat each, once at least.
        chosen: what to time; None for `cases()`.
    """
    for case in cases() if chosen is None else chosen:
        arguments = case.arguments()
        for form in case.forms:
            forward, gradient = _programs(case, form)
            for metric, program in (("forward", forward), ("gradient", gradient)):
                value = 1e3 * _median(program, arguments, seconds)
                yield Timing(case.name, form, metric, round(value, 3))


def _programs(case, form):
    def forward(*arguments):
        return case.function(*arguments, form)

    def gradient(*arguments):
        out, pull = jax.vjp(forward, *arguments)
        return pull(out)

    return jax.jit(forward), jax.jit(gradient)


def _median(program, arguments, seconds):
    jax.block_until_ready(program(*arguments))
    times: list[float] = []
    while not times or sum(times) < seconds:
        start = time.perf_counter()
        jax.block_until_ready(program(*arguments))
        times.append(time.perf_counter() - start)
    return statistics.median(times)
