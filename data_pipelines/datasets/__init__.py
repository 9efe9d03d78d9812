"""Published data sets, one file each.

Every file in this folder is a data set. It has

    BUILDER: Builder                        what it is, its licence, how to get it
    def index(source, split) -> Index       read annotations that many examples share
    def example(source, index, row, models) -> dict      one record, or `DroppedError`

`example` is pure: the same row gives the same record in every process.
"""

import contextlib
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from data_pipelines.sources import hamer_tars
from data_pipelines.sources.conventions import HandModels
from data_pipelines.sources.description import Index
from data_pipelines.sources.reading import DownloadedFiles, SourceError
from handjax.errors import HandjaxError, UserError

PUBLISHED = "published files"
"""Kind of a source that is not `hamer_tars.KIND`."""


def names() -> list[str]:
    """Return the data sets' names, in the order of `dataset_names.DATASETS`."""
    from data_pipelines.storage.dataset_names import DATASETS

    found = {module.name for module in pkgutil.iter_modules(__path__)}
    return sorted(found, key=DATASETS.index)


def load(name: str) -> ModuleType:
    """Import a data set's file.

    Raises:
        UserError: No data set has that name.
    """
    if name not in names():
        raise UserError(f"{name!r} is not one of the data sets: {', '.join(names())}.")
    return importlib.import_module(f"{__name__}.{name}")


def open_source(name: str, root: Path) -> tuple[ModuleType, DownloadedFiles, str]:
    """Return the reader of a directory with a data set, the directory, and its kind.

    Args:
        name: Name of the data set.
        root: Directory that the user gave; if it has HaMeR's tars, these are read.
    """
    module = load(name)
    tars = hamer_tars.folder(root, name)
    if tars is not None:
        builder = hamer_tars.builder(module.BUILDER)
        return hamer_tars, DownloadedFiles(tars, builder), hamer_tars.KIND
    return module, DownloadedFiles(root, module.BUILDER), PUBLISHED


def index(module: ModuleType, source: DownloadedFiles, split: str) -> Index:
    """Call `module.index`.

    Raises:
        SourceError: A file is missing or damaged, or holds something else.
    """
    with _known_damage(source):
        return module.index(source, split)


def example(
    module: ModuleType,
    source: DownloadedFiles,
    found: Index,
    row: int,
    models: HandModels,
) -> dict[str, Any]:
    """Call `module.example`.

    Raises:
        DroppedError: The example is left out.
        SourceError: A file is missing or damaged, or holds something else.
    """
    with _known_damage(source):
        return module.example(source, found, row, models)


@contextlib.contextmanager
def _known_damage(source: DownloadedFiles) -> Iterator[None]:
    """Blame the files for what Python says of values of unexpected types.

    Annotations hold millions of values; a text where a number belongs is met anywhere.
    """
    try:
        yield
    except HandjaxError:
        raise
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
    ) as error:
        raise SourceError(
            f"{str(source.root)!r}: annotations of {source.builder.title} are damaged "
            f"or of another one ({type(error).__name__}: {str(error)[:200]}), among "
            f"{', '.join(source.last_read())}. Unpack or download them again."
        ) from error
