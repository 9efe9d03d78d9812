"""Families of models: one paper, one file, found by listing this folder."""

import importlib
import pkgutil
from types import ModuleType
from typing import Any

from handjax.errors import UserError
from handjax.nn import backbones
from handjax.types import Variables


def names() -> tuple[str, ...]:
    """Return the names of the families of models, one for each published system.

    >>> import handjax
    >>> handjax.families()
    ('hamba', 'hamer', 'mmhmr', 'simplehand', 'tokenhand', 'tore')
    """
    found = (module.name for module in pkgutil.iter_modules(__path__))
    return tuple(sorted(name for name in found if not name.startswith("_")))


def load(name: str) -> ModuleType:
    """Import a family: a module with `PAPER`, `Model` and `stages`."""
    if name not in names():
        raise UserError(
            f"config.family={name!r} is not one of {', '.join(names())}. Add "
            f"handjax/models/{name}.py or fix the config."
        )
    return importlib.import_module(f"{__name__}.{name}")


def for_inference(model: Any, variables: Variables) -> tuple[Any, Variables]:
    """The model as it is served: branches of its backbone folded where it can.

    Answers stay the same to float rounding; the result cannot be trained.

    Args:
        model: A family's; with fields `backbone` and `fused` and a submodule
            `image_encoder` to have anything folded.
        variables: Of that model.
    """
    import jax

    if not hasattr(model, "fused") or model.fused:
        return model, variables
    part = {
        name: jax.device_get(tree["image_encoder"])
        for name, tree in variables.items()
        if "image_encoder" in tree
    }
    folded = backbones.fuse(model.backbone, part)
    if folded is None:
        return model, variables
    rest = {
        name: {key: tree[key] for key in tree if key != "image_encoder"}
        for name, tree in variables.items()
    }
    for name, tree in folded.items():
        rest[name] = {**rest[name], "image_encoder": jax.device_put(tree)}
    return model.clone(fused=True), rest
