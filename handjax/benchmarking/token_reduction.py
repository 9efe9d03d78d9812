"""What token reduction saves: multiplications and images per second, row by row.

A family brings the rows (`capabilities.ReductionTable`), with one backbone for all of
them, the config's. Work is counted as papers do, a multiplication with its addition
("MAC"); what the papers call FLOPs is that number, not twice it. The head is what leads
from the backbone's map to the coarse mesh and the camera, the 1x1 convolution included.
Upsampling the mesh, half a million multiplications, is in the parameters and in the
times.
"""

import dataclasses
import functools
import statistics
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from handjax import models
from handjax.benchmarking import clock
from handjax.benchmarking.token_mixing import Value, multiply_adds
from handjax.checkpoints import workdir
from handjax.family import hand_constants
from handjax.family.capabilities import ReductionTable
from handjax.mano import model_files


def measure(
    config: ml_collections.ConfigDict,
    dtype: str,
    batch_sizes: tuple[int, ...],
    seconds: float,
) -> Iterator[Value]:
    """Yield every entry: first what can be counted row by row, then the times.

    Args:
        config: of a family with such a table: backbone, sizes and crop.
        dtype: to compute in.
        batch_sizes: images at once.
        seconds: how long to repeat the timing of each row and batch.

    Raises:
        UserError: The family has no such table.
    """
    table = models.measures(config.family, "cost")
    backbone = _backbone(config, table, dtype)
    heads = {
        row.name: _head(config, table, row.fields, dtype, backbone)
        for row in table.rows
    }
    image = _image(backbone, 1)
    maps = jax.eval_shape(backbone.encode, backbone.variables, image)
    before = multiply_adds(backbone.encode, backbone.variables, image)
    for name, head in heads.items():
        for value in _counted(head, maps, before):
            yield Value(name, *value)
    for batch in batch_sizes:
        yield from _timed(table, backbone, heads, batch, seconds)


@dataclasses.dataclass(frozen=True, eq=False)
class _Part:
    """Backbone or head: a model, and the variables that it needs."""

    table: ReductionTable
    model: Any
    variables: Any
    size_px: int

    def encode(self, variables: Any, image: Any) -> Any:
        return self.model.apply(variables, image, method=self.table.backbone)

    def find(self, variables: Any, maps: Any) -> Any:
        return self.model.apply(variables, maps, method=self.table.head)

    def read(self, variables: Any, maps: Any) -> Any:
        method = self.table.answer
        return self.model.apply(variables, maps, self.size_px, method=method).output

    def parameters(self) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(self.variables["params"]))


def _image(part: _Part, batch: int) -> np.ndarray:
    return np.zeros((batch, part.size_px, part.size_px, 3), np.uint8)


def _backbone(
    config: ml_collections.ConfigDict, table: ReductionTable, dtype: str
) -> _Part:
    family = models.load(config.family)
    model = workdir.build_model(family, config, dtype=dtype)
    part = _Part(table, model, {}, config.data.crop_size)
    made = _made(model, {}, _image(part, 1), method=table.backbone)
    model, variables = models.for_inference(model, made)
    return dataclasses.replace(part, model=model, variables=variables)


def _head(
    config: ml_collections.ConfigDict,
    table: ReductionTable,
    fields: Mapping[str, Any],
    dtype: str,
    backbone: _Part,
) -> _Part:
    config = ml_collections.ConfigDict(config.to_dict())
    config.model.update(fields)
    family = models.load(config.family)
    model = workdir.build_model(family, config, dtype=dtype)
    file = model_files.load(
        config.hand.source, side=config.hand.side, tips=config.hand.tips or None
    )
    kept = table.constants(model, hand_constants.hand_constants(file))
    constants = {"constants": jax.tree.map(jnp.asarray, kept)}
    maps = jax.eval_shape(backbone.encode, backbone.variables, _image(backbone, 1))
    size_px = backbone.size_px
    made = _made(model, constants, maps, size_px=size_px, method=table.answer)
    return _Part(table, model, {**made, **constants}, size_px)


def _made(model: Any, known: Any, x: Any, **options: Any) -> Any:
    """Make constant variables for a method; their values change no timing."""

    def init(x: Any) -> Any:
        rngs = {"params": jax.random.key(0)}
        made = ["params", "batch_stats"]
        return model.apply(known, x, mutable=made, rngs=rngs, **options)[1]

    return jax.tree.map(
        lambda x: jnp.full(x.shape, 0.01, x.dtype), jax.eval_shape(init, x)
    )


def _counted(
    head: _Part, maps: Any, before: int
) -> Iterator[tuple[str, float, str, str]]:
    """Yield what needs no clock: column, value, unit and method.

    Args:
        head: Of a row.
        maps: Their shapes.
        before: Multiplications of the backbone.
    """
    work = multiply_adds(head.find, head.variables, maps)
    exact = "batch 1, of matrices and convolutions"
    size = round(head.parameters() / 1e6, 3)
    yield "parameters", size, "M", "all but the backbone"
    yield "head_mac", round(work / 1e9, 3), "GMAC", exact
    yield "head_flops", round(2 * work / 1e9, 3), "GFLOP", "twice the multiply-adds"
    yield "mac", round((before + work) / 1e9, 2), "GMAC", f"{exact}, with the backbone"


def _timed(
    table: ReductionTable,
    backbone: _Part,
    heads: dict[str, _Part],
    batch: int,
    seconds: float,
) -> Iterator[Value]:
    """Yield the images per second of all rows, and the gain over their hosts.

    Backbone and head are two programs, so that the backbone is compiled once.
    """
    image = jax.device_put(_image(backbone, batch))
    see = functools.partial(jax.jit(backbone.encode), backbone.variables, image)

    def run(read: Callable, variables: Any) -> Any:
        return jax.block_until_ready(read(variables, see()))

    runs = {
        name: functools.partial(run, jax.jit(head.read), head.variables)
        for name, head in heads.items()
    }
    # The more rows, the longer a round through all of them.
    times = clock.in_turn(runs, seconds * len(runs))
    rates = {name: batch / statistics.median(found) for name, found in times.items()}
    hosts = {row.name: row.host for row in table.rows}
    for name, rate in rates.items():
        method = f"batch {batch}, all rows in turn, {len(times[name])} rounds"
        shown = float(f"{rate:.4g}")
        yield Value(name, f"throughput_{batch}", shown, "images/s", method)
        gain = round(100 * (rate / rates[hosts[name]] - 1), 1)
        method = f"throughput over that of {hosts[name]}"
        yield Value(name, f"gain_{batch}", gain, "%", method)
