"""List the variables of every smoke model, so that no change renames one unseen.

    python tests/golden/make_parameter_paths.py

Flax names variables after modules and fields, and checkpoints hang on the names. Each
line is one variable: its path, the collection first, and its shape. Nothing is
computed; a model that is changed on purpose needs a new list, and old checkpoints of it
a reader.
"""

import functools
import sys
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "support"))

import tiny  # noqa: E402

from handjax import models  # noqa: E402
from handjax.checkpoints.workdir import build_model  # noqa: E402
from handjax.config.files import load_config  # noqa: E402

LISTS = HERE / "parameter_paths"
ROWS = {"mmhmr": ("text",), "tore": ("metro_gtr", "graphormer")}
"""Rows of a family's tables that have modules which its smoke model has not."""
CASES = [
    (family, variant)
    for family in models.names()
    for variant in ("smoke", *(f"smoke,{row}" for row in ROWS.get(family, ())))
]


def file_of(family: str, variant: str) -> Path:
    """Return the path of a list."""
    return LISTS / f"{family}_{variant.replace(',', '_')}.txt"


def variables(family: str, variant: str) -> str:
    """Return the lines "path shape" of all variables of a model, sorted."""
    config = load_config(f"configs/{family}.py:{variant}")
    model = build_model(models.load(family), config)
    batch = tiny.batch(2, crop=config.data.crop_size)
    batch = batch._replace(text=np.zeros((2, 1), np.int32))
    init = functools.partial(model.init, jax.random.key(0), method="init_all")
    leaves = flatten_dict(jax.eval_shape(lambda: init(batch, tiny.hand())), sep="/")
    return "".join(
        f"{path} {'x'.join(map(str, leaf.shape)) or 'scalar'}\n"
        for path, leaf in sorted(leaves.items())
    )


def main() -> None:
    """Write all lists."""
    LISTS.mkdir(exist_ok=True)
    for family, variant in CASES:
        file_of(family, variant).write_text(variables(family, variant))


if __name__ == "__main__":
    main()
