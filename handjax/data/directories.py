"""Find the data sets of a run: the one to evaluate on, and those to train on.

Training takes `config.data.dir` alone, or the mixture of `config.data.mixture` instead,
and in both cases the directories of `config.data.mix`. The built-in data set is made on
first use.
"""

import hashlib
import math
import os
from collections.abc import Iterable
from pathlib import Path

import jax
import ml_collections

from data_pipelines import datasets
from data_pipelines.storage import schema, shards
from handjax.distributed import processes
from handjax.errors import MissingFileError, UserError
from handjax.mano import model_files
from handjax.mano.model_files import ManoFile

BUILT_IN = "synthetic"

Data = ml_collections.ConfigDict
"""`config.data`."""


def cache_root() -> Path:
    """Return the directory of built-in data and of results that are kept."""
    root = os.environ.get("HANDJAX_DATA") or Path.home() / ".cache" / "handjax"
    return Path(root)


def default_directory(data: Data) -> Path:
    """Return the directory of built-in data where `config.data.dir` is empty.

    Its name has all that decides the pictures, including the hand model, so that a
    newer handjax makes its own data beside the old.
    """
    from data_pipelines.synthetic import generate

    size = "" if data.image_size == 224 else f"-{data.image_size}px"
    view = "" if data.max_turn == 180 else f"-turn{data.max_turn:g}"
    view += "" if data.recipe == "default" else f"-{data.recipe}"
    hand = model_files.load("open").sha256[:6]
    return cache_root() / (
        f"synthetic-{data.num_train}-{data.num_test}-seed{data.seed}{size}{view}"
        f"-v{schema.SCHEMA_VERSION}.{generate.VERSION}-{hand}"
    )


def features_directory(data_set: Path, split: str, *settings: tuple) -> Path:
    """Return where features of a split are kept: named by its data and the settings.

    Args:
        data_set: Directory of the data set.
        split: Of that data set.
        *settings: What else decides the features, such as `frozen_features.Views`.
    """
    digest = hashlib.sha256((data_set / "metadata.json").read_bytes())
    digest.update(repr((split, *map(tuple, settings))).encode())
    name = f"{data_set.name}-{split}-{digest.hexdigest()[:10]}"
    return cache_root() / "features" / name


def is_built_in(data: Data) -> bool:
    """Return whether the evaluated data set is rendered on first use."""
    return data.name == BUILT_IN and not data.dir


def evaluated(data: Data, hand_file: ManoFile, *, create: bool) -> Path:
    """Return the directory of `config.data.name`.

    Args:
        data: `config.data`.
        hand_file: Hand model of the run.
        create: Whether to render the built-in data if they do not exist.

    Raises:
        UserError: A named data set without a directory, or built-in data of a body.
        MissingFileError: A directory without that data set.
    """
    if not is_built_in(data):
        return _named(data)
    if not hand_file.is_hand:
        raise UserError(
            "The built-in data are of hands. Make pictures of a body with `python "
            "-m data_pipelines.synthetic.body --out DIR`, and name them: "
            "--config.data.name=synthetic_body --config.data.dir=DIR."
        )
    directory = default_directory(data)
    if create:
        _render(data, directory)
    return directory


def _render(data: Data, directory: Path) -> None:
    """Make the built-in data set unless it exists; one process does the work."""
    from data_pipelines import synthetic

    if jax.process_index() == 0:
        synthetic.ensure(
            directory,
            num=data.num_train,
            num_test=data.num_test,
            seed=data.seed,
            image_size=data.image_size,
            max_turn=data.max_turn,
            recipe=data.recipe,
        )
    processes.wait_for_all("built-in data")


def _named(data: Data) -> Path:
    """Return the directory of a data set that has to exist."""
    how = (
        "Write its records with data_pipelines.storage.shards "
        "(data_pipelines/README.md has the schema), or use the built-in data: "
        f"--config.data.name={BUILT_IN} --config.data.dir=''."
    )
    if data.name == BUILT_IN:
        how = "Make it with `python -m data_pipelines.synthetic --out DIR`."
    elif data.name in datasets.names():
        how = f"Make it with `{_preparing(data.name, 'DIR')}`."
    if data.dir:
        key, directory = "dir", Path(data.dir).expanduser()
    elif shares(data):
        key, directory = "mixture.dir", _in_mixture(data, data.name)
    else:
        raise UserError(f"config.data.name={data.name!r} needs config.data.dir. {how}")
    if not _is_there(directory):
        given = data.dir or data.mixture.dir
        raise MissingFileError(
            f"config.data.{key}={given!r} holds no data set {data.name!r}. {how}"
        )
    return directory


def _preparing(name: str, out: str | Path) -> str:
    return f"python -m data_pipelines.prepare {name} --source DIR --out {out}"


def _is_there(directory: Path) -> bool:
    return (directory / "metadata.json").is_file()


# --- training -----------------------------------------------------------------------


def shares(data: Data) -> dict[str, float]:
    """Return the mixture's data sets and shares, without those of share 0.

    Raises:
        UserError: Names a share that is not a number of at least 0.
    """
    for name, share in data.mixture.shares.items():
        if not 0 <= share < math.inf:
            raise UserError(
                f"config.data.mixture.shares.{name}={share!r} must be a number of at "
                "least 0, which leaves the data set out."
            )
    # Sorted, since the order decides how each is shuffled.
    return {n: float(x) for n, x in sorted(data.mixture.shares.items()) if x}


def _in_mixture(data: Data, name: str) -> Path:
    """Return the directory of a data set of the mixture."""
    if not data.mixture.dir:
        raise UserError(
            f"config.data.mixture.shares names {', '.join(shares(data))}, but nothing "
            "says where they are; pass --config.data.mixture.dir=DIR, which holds each "
            "under its name."
        )
    return Path(data.mixture.dir).expanduser() / name


def _mixed_in(data: Data) -> dict[Path, float]:
    """Return directories and weights of `config.data.mix`.

    Raises:
        UserError: Names a weight that is not positive.
    """
    for directory, weight in data.mix.items():
        if not 0 < weight < math.inf:
            raise UserError(
                f"config.data.mix[{directory!r}]={weight!r} must be a positive number; "
                "leave out a directory that is not to be trained on."
            )
    return {Path(d).expanduser(): float(w) for d, w in sorted(data.mix.items())}


def trained_on(data: Data, evaluated_on: Path) -> dict[Path, float]:
    """Return directories and weights of the data sets to train on.

    Args:
        data: `config.data`.
        evaluated_on: Result of `evaluated`.

    Raises:
        UserError: A weight is not positive, or shares lack their directory.
    """
    found = {_in_mixture(data, name): share for name, share in shares(data).items()}
    return (found or {evaluated_on: 1.0}) | _mixed_in(data)


def check_there(data: Data, directories: Iterable[Path]) -> None:
    """Refuse to train while data sets are missing.

    Raises:
        MissingFileError: Names all that are missing, and what makes them.
    """
    missing = [path for path in directories if not _is_there(path)]
    if not missing:
        return
    lines = [f"Data sets to train on are missing ({len(missing)}). Make them with:"]
    for path in missing:
        if path.name in datasets.names():
            lines.append(f"  {_preparing(path.name, path)}")
        else:
            lines.append(
                f"  data_pipelines.storage.shards (no published one), in {path}"
            )
    mixed = [path.name for path in missing if path.name in shares(data)]
    if mixed:
        lines.append(
            "--config.data.mixture.dir=DIR looks for them elsewhere; --config.data."
            f"mixture.shares.{mixed[0]}=0 trains without one."
        )
    raise MissingFileError("\n".join(lines))


def check_counts(directory: Path, hand_file: ManoFile) -> None:
    """Refuse a data set of another mesh or skeleton than the hand model's.

    Raises:
        UserError: Names both counts.
    """
    if not _is_there(directory):
        return  # reading it will say so, or it is yet to be made
    counts = schema.Counts.of(hand_file)
    found = shards.counts_of(shards.read_metadata(directory))
    if found != counts:
        raise UserError(
            f"The data in {str(directory)!r} have {_counted(found)}, the hand model "
            f"{hand_file.name!r} has {_counted(counts)}. Set config.hand.source to the "
            "model of the data, or config.data.dir to data of the model."
        )


def _counted(counts: schema.Counts) -> str:
    return ", ".join(f"{n} {name}" for name, n in counts._asdict().items())
