"""Checking imported weights against the network that is to hold them."""

import contextlib
import contextvars
import functools
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from handjax.io import weight_matching
from handjax.types import Variables

_found: contextvars.ContextVar[list[str] | None] = contextvars.ContextVar(
    "found", default=None
)


def shapes(variables: Variables) -> dict[str, tuple[int, ...]]:
    """Shape of every array by its path, such as "params/stem_0/conv/kernel"."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in jax.tree.leaves_with_path(variables)
    }


def check_fits(variables: Variables, module: nn.Module, name: str, source: str) -> None:
    """Refuse weights with an entry too many, one too few or one of another shape.

    Args:
        variables: Imported weights.
        module: Backbone that they are for.
        name: What to call the backbone.
        source: What the user should have passed.

    Raises:
        weight_matching.ConversionError: They do not fit; says which entries.
    """
    weight_matching.check(
        shapes(variables),
        _expected(module),
        name=name,
        advice=f"Pass {source}.",
        variables=variables,
    )
    found = _found.get()
    if found is not None:
        found.append(name)


@contextlib.contextmanager
def found_names() -> Iterator[list[str]]:
    """Collect the names of the backbones whose weights `check_fits` accepts inside.

    A family's `import_torch` finds the size that the weights are of; this tells.
    """
    names: list[str] = []
    token = _found.set(names)
    try:
        yield names
    finally:
        _found.reset(token)


@functools.lru_cache(maxsize=8)
def _expected(module: nn.Module) -> dict[str, tuple[int, ...]]:
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    variables: Any = jax.eval_shape(module.init, jax.random.key(0), image)
    return shapes(variables)
