"""Published data sets, one file each.

A file is a data set because it lies here. It has

    BUILDER: Builder                        what it is, its licence, how to get it
    def index(source, split) -> Index       read annotations that many examples share
    def example(source, index, row, models) -> dict      one record, or `DroppedError`

`example` is pure: the same row gives the same record in every process.
"""

import importlib
import pkgutil
from types import ModuleType


def names() -> list[str]:
    """Names of the data sets, in the order of `schema.DATASETS`."""
    from data_pipelines.schema import DATASETS

    found = {module.name for module in pkgutil.iter_modules(__path__)}
    return sorted(found, key=DATASETS.index)


def load(name: str) -> ModuleType:
    """Import a data set's file.

    Raises:
        ValueError: There is none of that name.
    """
    if name not in names():
        raise ValueError(f"{name!r} is not one of the data sets: {', '.join(names())}.")
    return importlib.import_module(f"{__name__}.{name}")
