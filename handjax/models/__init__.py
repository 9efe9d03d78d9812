"""Families of models: one paper, one module, found by listing this folder."""

import importlib
import pkgutil
from typing import Any

from handjax.errors import UserError
from handjax.family.capabilities import Family, Folds, HasMeasures
from handjax.nn import backbones
from handjax.types import Variables


def names() -> tuple[str, ...]:
    """Return the names of the families of models, one for each published system.

    >>> import handjax
    >>> handjax.families()
    ('hamba', 'hamer', 'landmarks', 'mmhmr', 'simplehand', 'tokenhand', 'tore')
    """
    found = (module.name for module in pkgutil.iter_modules(__path__))
    return tuple(sorted(name for name in found if not name.startswith("_")))


def load(name: str) -> Family:
    """Import a family.

    Raises:
        UserError: There is no such family.
    """
    if name not in names():
        raise UserError(
            f"config.family={name!r} is not one of {', '.join(names())}. Add "
            f"handjax/models/{name}.py or fix the config."
        )
    family = importlib.import_module(f"{__name__}.{name}")
    assert isinstance(family, Family), f"{name}: PAPER, Model or stages is missing"
    return family


def measures(name: str, what: str) -> Any:
    """Return the table of a family's paper that `handjax.benchmark --what` measures.

    Args:
        name: Of the family.
        what: Key of its `MEASURES`.

    Raises:
        UserError: The family has no such table; names those that have.
    """
    family = load(name)
    if isinstance(family, HasMeasures) and what in family.MEASURES:
        return family.MEASURES[what]
    others = [(other, load(other)) for other in names()]
    others = [
        other
        for other, module in others
        if isinstance(module, HasMeasures) and what in module.MEASURES
    ]
    raise UserError(
        f"--what={what} is a table of {', '.join(others)}, but config.family={name!r}; "
        f"use --config configs/{others[0]}.py."
    )


def for_inference(model: Any, variables: Variables) -> tuple[Any, Variables]:
    """Return the model for inference, with foldable backbone branches folded.

    Answers stay the same to float rounding; the result cannot be trained.

    Args:
        model: A family's; one that `Folds` has its backbone folded.
        variables: Of that model.
    """
    import jax

    if not isinstance(model, Folds) or model.fused:
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
