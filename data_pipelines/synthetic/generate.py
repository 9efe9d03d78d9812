"""Make the data set: on all cores, resumable, the same for any number of workers."""

import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

from data_pipelines.storage import contact_sheet, progress, shards
from data_pipelines.storage.directories import check_same, locked
from data_pipelines.synthetic.recipes import RECIPES
from data_pipelines.synthetic.workers import Workers
from handjax.errors import UserError
from handjax.io.console import duration
from handjax.mano import model_files

NAME = "synthetic"
_OF_PICTURES = ("seed", "image_size", "left_fraction", "max_turn", "recipe")
VERSION = 1
"""Version of the pictures, raised whenever a seed gives different ones."""
DESCRIPTION = (
    "Rendered pictures of the open hand with exact annotations. Hand derived from "
    "MakeHuman (CC0 1.0); environment maps from Poly Haven (CC0 1.0)."
)
_PER_SHARD, _MOST_SHARDS = 250, 128
_SHEET = 32
_IMAGES_PER_SECOND = 10.0
"""Rate of one process, to estimate how long the job takes."""


class Size(NamedTuple):
    """Examples of the two splits."""

    num_train: int
    num_test: int


PRESETS = {
    "smoke": Size(64, 16),
    "demo": Size(2_000, 200),
    "small": Size(20_000, 1_000),
    "paper": Size(100_000, 4_000),
}


def ensure(
    directory: str | os.PathLike,
    num: int,
    num_test: int = 0,
    *,
    seed: int = 0,
    workers: int = 0,
    image_size: int = 224,
    left_fraction: int | float = 0.0,
    max_turn: int | float = 180.0,
    recipe: str = "default",
) -> Path:
    """Make a data set unless it exists already.

    An interrupted job continues at the first missing shard when it is called again; a
    second process that needs the same data waits for the first.

    Args:
        directory: Directory of the data set.
        num: Examples of the split "train".
        num_test: Examples of the split "test"; none of them is in "train".
        seed: Decides every picture, together with its split and number.
        workers: Processes; 0 for one per core.
        image_size: Side of the pictures, pixels.
        left_fraction: Share of left hands.
        max_turn: Degrees that hands are turned at most from fingers up, palm to the
            camera; 180 for any view.
        recipe: One of `recipes.RECIPES`, for the training examples; test examples are
            always drawn by "default".

    Returns:
        The directory.

    Raises:
        UserError: A number is out of range, or the directory has other contents.
        shards.ShardError: The disk is full or cannot be written.
    """
    directory = Path(directory).expanduser()
    _check_range("num", num, 1, None)
    _check_range("num_test", num_test, 0, None)
    _check_range("seed", seed, 0, None)
    _check_range("image_size", image_size, 32, 2048)
    _check_range("left_fraction", left_fraction, 0, 1)
    _check_range("max_turn", max_turn, 1, 180)
    if recipe not in RECIPES:
        raise UserError(f"recipe={recipe!r}; allowed are {', '.join(RECIPES)}.")
    file = model_files.load("open")
    settings = {
        "version": VERSION,
        "seed": seed,
        "image_size": image_size,
        "left_fraction": left_fraction,
        "num": num,
        "num_test": num_test,
        "hand_sha256": file.sha256,
        "max_turn": max_turn,
    }
    if recipe != "default":  # data sets made before there were recipes say nothing
        settings["recipe"] = recipe
    with locked(directory):
        check_same(directory, settings)
        missing = _missing(directory, settings)
        sheet = directory / "contact_sheet.png"
        if missing or not (directory / "metadata.json").is_file():
            _make(directory, settings, missing, workers or os.cpu_count() or 1)
        if missing or not sheet.is_file():
            _write_sheet(sheet, directory)
    return directory


def _check_range(name: str, value: int | float, low: int, high: int | None) -> None:
    if value < low or (high is not None and value > high):
        allowed = f"{low} or more" if high is None else f"from {low} to {high}"
        raise UserError(f"{name}={value!r}; allowed is {allowed}.")


def _splits(settings: dict[str, Any]) -> dict[str, int]:
    counts = {"train": settings["num"], "test": settings["num_test"]}
    return {split: count for split, count in counts.items() if count}


def _num_shards(count: int) -> int:
    return min(_MOST_SHARDS, -(-count // _PER_SHARD))


def _missing(directory: Path, settings: dict[str, Any]) -> int:
    """Count the examples whose shard does not exist."""
    missing = 0
    for split, count in _splits(settings).items():
        total = _num_shards(count)
        for index, (first, last) in enumerate(shards.shard_ranges(count, total)):
            path = shards.shard_path(directory, NAME, split, index, total)
            missing += 0 if path.is_file() else last - first
    return missing


def _make(directory: Path, settings: dict[str, Any], missing: int, count: int) -> None:
    splits = _splits(settings)
    counts = " + ".join(f"{n:,} {split}" for split, n in splits.items())
    guess = duration(missing / (_IMAGES_PER_SECOND * count))
    print(
        f"Making {missing:,} pictures of hands ({counts}; seed {settings['seed']}) in "
        f"{directory}: about {guess} with {count} processes, once.",
        file=sys.stderr,
        flush=True,
    )
    for leftover in directory.glob(".*.partial-*"):  # of a run that was killed
        leftover.unlink()
    generator = {key: settings[key] for key in _OF_PICTURES if key in settings}
    with Workers(count, generator) as pool, progress.Report("images", missing) as bar:

        def records(split):
            def of_shard(first, last):
                for record in pool.examples(split, first, last):
                    bar.add(1)
                    yield record

            return of_shard

        for split, num in splits.items():
            shards.write_split(
                directory,
                name=NAME,
                split=split,
                count=num,
                records=records(split),
                shards=_num_shards(num),
            )
    shards.write_metadata(
        directory,
        name=NAME,
        splits=splits,
        description=DESCRIPTION,
        hand={"name": "open", "sha256": settings["hand_sha256"]},
        made_by=settings,
    )


def _write_sheet(path: Path, directory: Path) -> None:
    split = "test" if "test" in shards.read_metadata(directory)["splits"] else "train"
    source = shards.open_split(directory, split)
    examples = (source[i] for i in range(min(_SHEET, len(source))))
    contact_sheet.write(path, examples)
