"""From torch's names and layouts to Flax's, for backbones that keep torch's names.

Those backbones call a module `blocks_0` where torch has `blocks.0`, and nothing else
differs but the last part of a name and the order of a kernel's axes.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from handjax.types import Variables


def convert(
    state_dict: Mapping[str, np.ndarray], heads: tuple[str, ...] = ()
) -> Variables:
    """Convert every entry but the classifier's.

    Args:
        state_dict: torch's names to numpy arrays.
        heads: Beginnings of the names to skip; batch counters are skipped too.

    Returns:
        "params", and "batch_stats" if there are any.
    """
    variables: dict[str, Any] = {"params": {}}
    for key, value in state_dict.items():
        if key.startswith(heads) or key.endswith(".num_batches_tracked"):
            continue
        *path, leaf = re.sub(r"\.(\d+)(?=\.)", r"_\1", key).split(".")
        collection, leaf, array = _entry(leaf, np.asarray(value))
        node = variables.setdefault(collection, {})
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = array
    return variables


def _entry(leaf, value):
    if leaf.startswith("running_"):
        return "batch_stats", leaf.removeprefix("running_"), value
    if leaf != "weight":
        return "params", leaf, value
    if value.ndim == 4:
        return "params", "kernel", value.transpose(2, 3, 1, 0)
    if value.ndim == 2:
        return "params", "kernel", value.T
    return "params", "scale", value
