"""Converters of published weights: one source, one file, found by listing this folder.

Every module whose name has no leading underscore is a source. It has `LICENCE`,
`SOURCE` (where the weights are) and

    convert(state_dict: Mapping[str, np.ndarray], options: Options) -> Converted

which is strict: every entry is used, or skipped by a rule that the result names, or the
whole conversion is refused (`weight_matching.ConversionError`).
"""

import importlib
import pkgutil
from collections.abc import Mapping
from types import ModuleType
from typing import Any, NamedTuple

from handjax.errors import UserError
from handjax.types import Variables


class Options(NamedTuple):
    """Options of a conversion beside the weights."""

    name: str = ""
    """Name of the backbone; "" finds it from the weights."""
    hand: str = ""
    """Hand model: a MANO file, or "open"; "" if none was given."""
    hierarchy: str = ""
    """Mesh hierarchy: METRO's file of it, or "built"; "" if none was given."""
    epoch: int | None = None
    """Epochs of training, as the file says."""


class Converted(NamedTuple):
    """Weights in handjax's layout."""

    variables: Variables
    backbone: str
    """Name of the backbone that they are or contain, or of the encoder of texts."""
    licence: str
    """One line."""
    skipped: Mapping[str, list[str]]
    """Rule -> names in the file."""
    notes: tuple[str, ...] = ()
    config: Any = None
    """Config of a whole model (`ml_collections.ConfigDict`); None for a backbone."""
    stage: str = ""
    step: int = 0
    part: str = "image_encoder"
    """Submodule that the weights become if they are not a whole model."""
    hand_info: Mapping[str, str] = {}
    """Name and sha256 of the hand model of a whole model."""


def names() -> tuple[str, ...]:
    """Return the names of the sources."""
    found = (module.name for module in pkgutil.iter_modules(__path__))
    return tuple(sorted(n for n in found if not n.startswith("_") and n != "directory"))


def load(name: str) -> ModuleType:
    """Import a source.

    Raises:
        UserError: No source has that name; lists those that exist.
    """
    if name not in names():
        raise UserError(
            f"--from={name!r} is not one of {', '.join(names())}"
            f"{'' if name else '; say where the weights come from'}."
        )
    return importlib.import_module(f"{__name__}.{name}")
