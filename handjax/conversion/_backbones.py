"""Identify and convert any published backbone.

To learn where every variable comes from, a family's `import_torch` is run on arrays
that are filled with the number of their entry: the numbers in its result name the
sources, and missing numbers are skipped entries.
"""

import re
from collections.abc import Mapping
from types import ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np

from handjax.conversion import _apple_names
from handjax.errors import UserError
from handjax.io.weight_matching import ConversionError
from handjax.nn import backbones
from handjax.nn.backbones import _weights
from handjax.types import Variables

StateDict = Mapping[str, np.ndarray]

RULES = (
    (r"(^|\.)num_batches_tracked$", "counters of torch's batch norms"),
    (r"^(head|fc|classifier|fc_norm|norm)\.", "the classifier"),
)
"""Entries that may be skipped, and why."""


class Imported(NamedTuple):
    """A backbone."""

    name: str
    variables: Variables
    skipped: tuple[str, ...]


def import_backbone(state_dict: StateDict, name: str = "") -> Imported:
    """Convert the state dict of a backbone, as timm (or for FastViT, Apple) names it.

    Args:
        state_dict: Entries of the file.
        name: The backbone that it must be; "" to find it.

    Raises:
        ConversionError: They do not fit the nearest backbone.
        UserError: The weights are of an unknown backbone, of another one than `name`,
            or fused.
    """
    state_dict = _unfused(_apple_names.renamed(state_dict))
    probe = {
        key: np.broadcast_to(np.float32(i), np.shape(value))
        for i, (key, value) in enumerate(state_dict.items())
    }
    family, found, origins = _probed(probe, name)
    if name and found != name:
        raise UserError(
            f"The weights are those of {found}, not of --name={name}. Leave --name out "
            "or pass the file of that backbone."
        )
    used = {key for keys in origins.values() for key in keys}
    skipped = tuple(key for key in state_dict if key not in used)
    unruled = [key for key in skipped if not _rule(key)]
    if unruled:
        raise ConversionError(
            found,
            "Pass the file as it was published.",
            only_in_file=unruled,
            missing=(),
            other_shapes={},
            skipped=[key for key in skipped if _rule(key)],
        )
    return Imported(found, family.import_torch(_float32(state_dict)), skipped)


def by_rule(skipped: tuple[str, ...], prefix: str = "") -> dict[str, list[str]]:
    """Return skipped entries under the rule that skipped each."""
    rules: dict[str, list[str]] = {}
    for key in skipped:
        rules.setdefault(_rule(key), []).append(prefix + key)
    return rules


def _rule(key: str) -> str:
    return next((why for pattern, why in RULES if re.search(pattern, key)), "")


def _unfused(state_dict: StateDict) -> StateDict:
    fused = [key for key in state_dict if "reparam_conv" in key]
    if fused:
        raise UserError(
            f"The weights are of a fused network ({fused[0]} and {len(fused) - 1} "
            "more), whose branches cannot be taken apart again. Pass the unfused file; "
            "handjax fuses by itself."
        )
    return state_dict


def _float32(state_dict: StateDict) -> dict[str, np.ndarray]:
    return {
        key: np.asarray(value)
        if np.asarray(value).dtype.kind in "iub"
        else np.asarray(value).astype(np.float32, copy=False)
        for key, value in state_dict.items()
    }


def _probed(
    probe: StateDict, name: str
) -> tuple[ModuleType, str, dict[str, tuple[str, ...]]]:
    """Return family, name and the entries that each variable comes from."""
    families = [backbones.family(name)] if name else list(_families())
    errors: list[ConversionError] = []
    for family in families:
        try:
            with _weights.found_names() as found:
                variables = family.import_torch(probe)
            return family, found[-1], _origins(variables, list(probe))
        except ConversionError as error:
            errors.append(error)
        except Exception:
            # Another family's names: its renaming may stumble over them anywhere.
            continue
    if not errors:
        raise UserError(
            "handjax knows no backbone with these weights; they begin with "
            f"{', '.join(list(probe)[:4])}. It knows {', '.join(_names())}."
        )
    nearest = min(errors, key=lambda error: error.count)
    origins = _origins(nearest.given, list(probe))
    used = {key for keys in origins.values() for key in keys}
    raise nearest.renamed(
        lambda path: ", ".join(origins.get(path, (path,))),
        [key for key in probe if key not in used],
    ) from None


def _families():
    return {id(f): f for f in map(backbones.family, _names())}.values()


def _names():
    """Backbones that have weights of PyTorch's."""
    known = backbones.names()
    return [n for n in known if hasattr(backbones.family(n), "import_torch")]


def _origins(variables: Any, keys: list[str]) -> dict[str, tuple[str, ...]]:
    """Return names of the entries whose numbers each variable holds."""
    origins = {}
    for path, leaf in jax.tree.leaves_with_path(variables):
        leaf = np.asarray(leaf)
        # Most are views of one number, whatever their shape.
        one = leaf.size and not any(leaf.strides)
        numbers = leaf.reshape(-1)[:1] if one else np.unique(leaf)
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        origins[name] = tuple(keys[int(number)] for number in numbers)
    return origins
