"""What token reduction saves: multiplications and images per second, row by row.

Rows are those of TORE's tables, with one backbone for all of them, the config's. Work
is counted as papers do, a multiplication with its addition ("MAC"); what the papers
call FLOPs is that number, not twice it. The head is what leads from the backbone's map
to the coarse mesh and the camera, the 1x1 convolution included. Upsampling the mesh,
half a million multiplications, is in the parameters and in the times.
"""

import dataclasses
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
from handjax.benchmarking.token_mixing import Value, multiply_adds
from handjax.checkpoints import workdir
from handjax.errors import UserError
from handjax.family import hand_constants
from handjax.geometry import skeleton
from handjax.mano import model_files
from handjax.models.tore import model as tore

_FASTMETRO = dict(host="fastmetro", gtr=False, pruner="none", upsampling="fixed")
_GTR = dict(_FASTMETRO, gtr=True, regressor="nsr")
_ITP = dict(_GTR, pruner="itp")
_METRO = dict(
    host="metro", gtr=False, pruner="none", regressor="nsr", upsampling="learned"
)


class Row(NamedTuple):
    """A network, and the one whose speed its own is compared with."""

    name: str
    fields: dict[str, Any]
    """Of `config.model`."""
    host: str


ROWS = (
    Row("METRO", _METRO, "METRO"),
    Row("METRO + GTR", dict(_METRO, gtr=True), "METRO"),
    Row("MeshGraphormer", dict(_METRO, host="graphormer"), "METRO"),
    Row("FastMETRO-S", dict(_FASTMETRO, layers=1), "FastMETRO-S"),
    Row("FastMETRO-S + GTR", dict(_GTR, layers=1), "FastMETRO-S"),
    Row("FastMETRO-M", dict(_FASTMETRO, layers=2), "FastMETRO-M"),
    Row("FastMETRO", _FASTMETRO, "FastMETRO"),
    Row("FastMETRO + GTR", _GTR, "FastMETRO"),
    Row("FastMETRO + GTR (MLP)", dict(_GTR, regressor="mlp"), "FastMETRO"),
    Row("FastMETRO + GTR (GCN)", dict(_GTR, regressor="gcn"), "FastMETRO"),
    Row("FastMETRO + GTR + ITP@0%", dict(_ITP, keep_ratio=1.0), "FastMETRO"),
    Row("FastMETRO + GTR + ITP@20%", dict(_ITP, keep_ratio=0.8), "FastMETRO"),
    Row("FastMETRO + GTR + ITP@50%", dict(_ITP, keep_ratio=0.5), "FastMETRO"),
    Row(
        "FastMETRO + GTR + TokenLearner@20%",
        dict(_ITP, pruner="token_learner", keep_ratio=0.8),
        "FastMETRO",
    ),
)
"""Of tables 1, 2, 4, 6, 7 and 8. "FastMETRO" has as many layers as the config says."""


def measure(
    config: ml_collections.ConfigDict,
    dtype: str,
    batch_sizes: tuple[int, ...],
    seconds: float,
) -> Iterator[Value]:
    """All entries: what can be counted row by row, then the times.

    Args:
        config: of a TORE: backbone, sizes and crop.
        dtype: to compute in.
        batch_sizes: images at once.
        seconds: how long to repeat the timing of each row and batch.

    Raises:
        UserError: The config is of another family.
    """
    if config.family != "tore":
        raise UserError(
            f"--what=cost compares networks of tore, but config.family="
            f"{config.family!r}; use --config configs/tore.py."
        )
    backbone = _backbone(config, dtype)
    heads = {row.name: _head(config, row.fields, dtype, backbone) for row in ROWS}
    image = _image(backbone, 1)
    maps = jax.eval_shape(backbone.see, backbone.variables, image)
    before = multiply_adds(backbone.see, backbone.variables, image)
    for name, head in heads.items():
        for value in _counted(head, maps, before):
            yield Value(name, *value)
    for batch in batch_sizes:
        yield from _timed(backbone, heads, batch, seconds)


@dataclasses.dataclass(frozen=True, eq=False)
class _Part:
    """Backbone or head: a model, and the variables that it needs."""

    model: tore.Model
    variables: Any
    size_px: int

    def see(self, variables: Any, image: Any) -> Any:
        return self.model.apply(variables, image, method="see")

    def find(self, variables: Any, maps: Any) -> Any:
        return self.model.apply(variables, maps, method="find")

    def read(self, variables: Any, maps: Any) -> Any:
        return self.model.apply(variables, maps, self.size_px, method="read").output

    def parameters(self) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(self.variables["params"]))


def _image(part: _Part, batch: int) -> np.ndarray:
    return np.zeros((batch, part.size_px, part.size_px, 3), np.uint8)


def _backbone(config: ml_collections.ConfigDict, dtype: str) -> _Part:
    model = workdir.build_model(tore, config, dtype=dtype)
    part = _Part(model, {}, config.data.crop_size)
    made = _made(model, {}, _image(part, 1), method="see")
    model, variables = models.for_inference(model, made)
    return dataclasses.replace(part, model=model, variables=variables)


def _head(
    config: ml_collections.ConfigDict,
    fields: dict[str, Any],
    dtype: str,
    backbone: _Part,
) -> _Part:
    config = ml_collections.ConfigDict(config.to_dict())
    config.model.update(fields)
    model = workdir.build_model(tore, config, dtype=dtype)
    file = model_files.load(
        config.hand.source, side=config.hand.side, tips=config.hand.tips or None
    )
    root = skeleton.root_joint(model.root)
    kept = tore.constants(hand_constants.hand_constants(file), model.coarse_level, root)
    constants = {"constants": jax.tree.map(jnp.asarray, kept)}
    maps = jax.eval_shape(backbone.see, backbone.variables, _image(backbone, 1))
    size_px = backbone.size_px
    made = _made(model, constants, maps, size_px=size_px, method="read")
    return _Part(model, {**made, **constants}, size_px)


def _made(model: Any, known: Any, x: Any, **options: Any) -> Any:
    """Variables that a method makes; what the weights are changes no timing."""

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
    """Column, value, unit and method of what needs no clock.

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
    backbone: _Part, heads: dict[str, _Part], batch: int, seconds: float
) -> Iterator[Value]:
    """Images per second of all rows in turn, and how much more than their hosts'.

    Backbone and head are two programs, so that the backbone is compiled once.
    """
    image = jax.device_put(_image(backbone, batch))
    see = functools.partial(jax.jit(backbone.see), backbone.variables, image)

    def run(read: Callable, variables: Any) -> Any:
        return jax.block_until_ready(read(variables, see()))

    runs = {
        name: functools.partial(run, jax.jit(head.read), head.variables)
        for name, head in heads.items()
    }
    # The more rows, the longer a round through all of them.
    times = clock.in_turn(runs, seconds * len(runs))
    rates = {name: batch / statistics.median(found) for name, found in times.items()}
    hosts = {row.name: row.host for row in ROWS}
    for name, rate in rates.items():
        method = f"batch {batch}, all rows in turn, {len(times[name])} rounds"
        shown = float(f"{rate:.4g}")
        yield Value(name, f"throughput_{batch}", shown, "images/s", method)
        gain = round(100 * (rate / rates[hosts[name]] - 1), 1)
        method = f"throughput over that of {hosts[name]}"
        yield Value(name, f"gain_{batch}", gain, "%", method)
