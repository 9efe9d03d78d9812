"""Checking imported weights against the network that is to hold them."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from handjax.types import Variables


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
    """
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    expected: Any = jax.eval_shape(module.init, jax.random.key(0), image)
    differing = set(shapes(variables).items()) ^ set(shapes(expected).items())
    if differing:
        paths = sorted({path for path, _ in differing})
        raise ValueError(
            f"The weights do not fit {name}: {len(paths)} entries differ, "
            f"{paths[:8]}. Pass {source}."
        )
