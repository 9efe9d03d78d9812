"""Builders of tensorflow_datasets for the published data sets.

    builder = tfds_builders.builder("freihand", data_dir=DIR)
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=SOURCE)
    )
    builder.as_data_source("train")

They make the same records with the same functions, for users of tfds; TensorFlow is not
needed. `python -m data_pipelines.prepare` is the way of
this package: it goes on after an interruption, works in parallel, keeps the published
order and accounts for what it drops.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from data_pipelines import datasets
from data_pipelines.sources import conventions, reposing
from data_pipelines.sources.description import DroppedError
from data_pipelines.storage import schema


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """One data set; subclasses name it."""

    VERSION = tfds.core.Version(f"{schema.SCHEMA_VERSION}.0.0")
    url_infos: ClassVar[dict[str, Any]] = {}
    """Return nothing: without downloads there are no checksums beside the code."""
    dataset: str
    hand = ""

    def _info(self) -> tfds.core.DatasetInfo:
        about = datasets.load(self.dataset).BUILDER
        return tfds.core.DatasetInfo(
            builder=self,
            description=about.describe(),
            homepage=about.url,
            license=about.licence,
            features=schema.features(),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
        root = Path(dl_manager.manual_dir)
        _, source, _ = datasets.open_source(self.dataset, root)
        splits = source.builder.default_splits or tuple(source.builder.splits)
        return {split: self._generate_examples(root, split) for split in splits}

    def _generate_examples(self, root: Path, split: str) -> Iterator[tuple[str, Any]]:
        module, source, _ = datasets.open_source(self.dataset, root)
        models = conventions.load_models(self.dataset, self.hand)
        index = datasets.index(module, source, split)
        for row in range(index.count):
            try:
                example = datasets.example(module, source, index, row, models)
            except DroppedError:
                continue
            apart = reposing.apart_mm(example, models)
            example = {"dataset": self.dataset, "repose_mm": apart, **example}
            yield example["key"], schema.complete(example)


def builder(
    name: str, *, data_dir: str | os.PathLike, hand: str = ""
) -> tfds.core.GeneratorBasedBuilder:
    """Return the builder of a data set.

    Args:
        name: Name of the data set, one of `datasets.names()`.
        data_dir: Where tfds keeps its data sets.
        hand: MANO for poses that need it (`conventions.load_models`), "" for none.

    Raises:
        ValueError: The name is not that of a data set.
    """
    about = datasets.load(name).BUILDER
    fields = {
        "__module__": __name__,
        "__doc__": about.title,
        "MANUAL_DOWNLOAD_INSTRUCTIONS": about.download,
        "name": name,
        "dataset": name,
        "hand": hand,
    }
    made = type(name, (_Builder,), fields, skip_registration=True)
    return made(data_dir=os.fspath(data_dir), file_format="array_record")
