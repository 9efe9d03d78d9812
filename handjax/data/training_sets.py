"""Open the data sets that a run trains on, filter them, and count their examples."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections

from data_pipelines.loading import filters, mixtures, selections
from data_pipelines.loading.loader import Source
from data_pipelines.loading.mixtures import Drawn
from data_pipelines.loading.recipes import Filters
from data_pipelines.loading.selections import Selection
from data_pipelines.storage import shards
from handjax.data import directories
from handjax.distributed import processes
from handjax.mano.model_files import ManoFile


class TrainingSet(NamedTuple):
    """A data set with its filtered records."""

    name: str
    source: Source
    selection: Selection


class TrainingSets:
    """The training data sets of a run, opened lazily."""

    def __init__(
        self,
        data: ml_collections.ConfigDict,
        weights: Mapping[Path, float],
        hand_file: ManoFile,
        *,
        unmade: Path | None = None,
        keep: bool = True,
    ):
        """Remember what to open.

        Args:
            data: `config.data`.
            weights: Directory -> weight in the mixture.
            hand_file: Hands without a mesh are posed with it.
            unmade: Directory of built-in data that may not be rendered yet.
            keep: Whether to keep the selections for the next run.

        Raises:
            UserError: A filter is out of range.
        """
        self.weights = dict(weights)
        self.filters = filters.from_config(data.filters.to_dict())
        self._data, self._hand_file, self._keep = data, hand_file, keep
        self._unmade = unmade

    @functools.cached_property
    def opened(self) -> dict[Path, TrainingSet]:
        """The data sets by directory; without one that is yet to be rendered.

        Process 0 filters all records first; the others read its result.

        Raises:
            MissingFileError: Data sets are missing.
            UserError: The filters leave no record of one.
        """
        there = [path for path in self.weights if not self._to_be_rendered(path)]
        directories.check_there(self._data, there)
        splits = {path: shards.open_split(path, "train") for path in there}
        first, looks = jax.process_index() == 0, self.filters != Filters()
        if looks and not first:
            processes.wait_for_all("filters")
        found = {path: self._opened(path, split) for path, split in splits.items()}
        if looks and first:
            processes.wait_for_all("filters")
        return found

    def _opened(self, path: Path, split: shards.Split) -> TrainingSet:
        cache = directories.cache_root() / "selections"
        kept = selections.select(split, self.filters, cache, keep=self._keep)
        source = Source(
            split,
            weight=self.weights[path],
            rows=kept.rows,
            filters=self.filters,
            posable=is_annotators_hand(split.metadata, self._hand_file),
        )
        return TrainingSet(split.metadata["name"], source, kept)

    def _to_be_rendered(self, path: Path) -> bool:
        return path == self._unmade and not (path / "metadata.json").is_file()

    @property
    def sources(self) -> list[Source]:
        """The sources of the loader."""
        return [each.source for each in self.opened.values()]

    def drawn(self, examples: int) -> list[Drawn]:
        """Return how many of the first training examples come from each data set."""
        opened = self.opened
        names = [each.name for each in opened.values()]
        counts = mixtures.Order(list(self.weights.values())).drawn(examples)
        found = []
        for path, count in zip(self.weights, counts, strict=True):
            if path not in opened:
                size = self._data.num_train
                found.append(Drawn(directories.BUILT_IN, count, size))
                continue
            name = opened[path].name
            # Two data sets of one name are told apart by where they are.
            label = name if names.count(name) == 1 else str(path)
            found.append(Drawn(label, count, opened[path].source.size))
        return found

    def describe(self) -> str:
        """Return the directories, their sizes and their weights."""
        alone = len(self.weights) == 1
        return "; ".join(
            self.describe_one(path) + ("" if alone else f", weight {weight:g}")
            for path, weight in self.weights.items()
        )

    def describe_one(self, path: Path) -> str:
        """Return a directory and the sizes of its splits."""
        if (path / "metadata.json").is_file():
            splits = shards.read_metadata(path)["splits"]
            sizes = ", ".join(f"{n:,} {split}" for split, n in splits.items())
        elif self._to_be_rendered(path):
            data = self._data
            sizes = (
                f"{data.num_train:,} train, {data.num_test:,} test, not rendered yet"
            )
        else:
            sizes = "not there"
        return f"{path} ({sizes})"

    def describe_filters(self) -> list[str]:
        """Describe how filters change each data set, a line each; [] without any."""
        if self.filters == Filters():
            return []
        return [
            f"filters: {self.filters.describe()}",
            *(f"  {s.name}: {s.selection.describe()}" for s in self.opened.values()),
        ]


def is_annotators_hand(metadata: Mapping[str, Any], hand_file: ManoFile) -> bool:
    """Return whether a data set's MANO parameters belong to the hand model of the run.

    Args:
        metadata: Metadata of the data set. If it names no model, the data set was
            prepared without one, and its parameters are MANO's.
        hand_file: Hand model of the run.
    """
    name = metadata.get("hand", {}).get("name") or "mano"
    return hand_file.name == name and hand_file.is_right
