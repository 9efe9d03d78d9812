"""Weights that are handed on: one safetensors file, with all that they need to be used.

A file holds a model's parameters in float16 and, as text in its header, the config and
what a reader has to know: the hand model's hash, how it was trained, on what, how good
it is, and the licence (`KEYS`). What prediction needs beside the parameters (the hand
model, networks that come with handjax) is made anew from the config on loading.
"""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import numpy as np
import safetensors
import safetensors.numpy

from handjax import models
from handjax.checkpoints import workdir
from handjax.config import schema as configs
from handjax.data import run_data
from handjax.errors import MissingFileError, UserError
from handjax.family import hand_constants
from handjax.io import atomic_files, json_files, torch_files
from handjax.mano import model_files
from handjax.types import Variables

ASSETS = Path(__file__).parents[1] / "assets"
DEFAULT = "landmarks"
"""The model that is best on photos of the ones that come with handjax."""
KEYS = ("command", "data", "metrics", "licence")
"""What `save` wants to be told, besides what it finds out."""


def names() -> tuple[str, ...]:
    """Return the names of the models that come with handjax, the default first."""
    return (DEFAULT,)


def path_of(name: str) -> Path:
    """Return the file that holds a model which comes with handjax."""
    return ASSETS / f"{name}.safetensors"


class Released(NamedTuple):
    """A model that is ready to predict."""

    config: Any
    model: Any
    variables: Variables
    about: dict[str, str]
    """The header: `KEYS`, "family", "config", "hand_sha256", "handjax"."""


def save(path: Path, config: Any, variables: Variables, about: dict[str, str]) -> None:
    """Write the parameters of a model, completely or not at all.

    Args:
        path: File to write.
        config: Of the run.
        variables: Of its model; only "params" are kept.
        about: A text for each of `KEYS`; "metrics" is JSON.

    Raises:
        UserError: A key is missing or unknown.
    """
    if set(about) != set(KEYS):
        raise UserError(f"about has keys {sorted(about)}; it needs {sorted(KEYS)}.")
    flat = flax.traverse_util.flatten_dict(variables["params"], sep="/")
    small = {k: np.asarray(v).astype(np.float16) for k, v in flat.items()}
    header = about | {
        "family": config.family,
        "config": configs.to_json(config),
        "hand_sha256": model_files.load(config.hand.source).sha256,
    }
    atomic_files.write_bytes(path, safetensors.numpy.save(small, header))


def about(path: str | Path) -> dict[str, str]:
    """Return the header of a file, without its weights.

    Raises:
        MissingFileError: There is no such file.
        UserError: It is not a file of released weights.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file of weights.")
    try:
        with safetensors.safe_open(path, "numpy") as opened:
            found = opened.metadata() or {}
    except safetensors.SafetensorError as error:
        raise UserError(f"{path}: not a safetensors file ({error}).") from None
    missing = sorted({"family", "config", "hand_sha256", *KEYS} - set(found))
    if missing:
        raise UserError(
            f"{path}: not weights released by handjax; the header lacks "
            f"{', '.join(missing)}."
        )
    return found


def load(path: str | Path) -> Released:
    """Load released weights and build their model.

    Raises:
        MissingFileError: There is no such file.
        UserError: The file is damaged, or made for another hand model.
    """
    found = about(path)
    config = configs.from_json(found["config"])
    hand_file = model_files.load(config.hand.source)
    if hand_file.sha256 != found["hand_sha256"]:
        raise UserError(
            f"{path}: made for the hand model {found['hand_sha256'][:12]}, and "
            f"{config.hand.source!r} is {hand_file.sha256[:12]}; load them with the "
            "version of handjax that they came with."
        )
    model = workdir.build_model(models.load(config.family), config)
    init = functools.partial(model.init, jax.random.key(0), method="init_all")
    example = run_data.example_batch(config, hand_file)
    # Compiled without "params", so that nothing of them is computed to be thrown away.
    shapes = {}

    def constants():
        variables = init(example, hand_constants.hand_constants(hand_file))
        shapes.update(flax.traverse_util.flatten_dict(variables.pop("params"), sep="/"))
        return variables

    variables = jax.jit(constants)()
    stored = torch_files.read(path)
    expected = {name: value.shape for name, value in shapes.items()}
    if {name: value.shape for name, value in stored.items()} != expected:
        raise UserError(f"{path}: its arrays are not those of its own config.")
    params = {name: np.asarray(value, np.float32) for name, value in stored.items()}
    variables = {
        **variables,
        "params": flax.traverse_util.unflatten_dict(params, sep="/"),
    }
    return Released(config, model, variables, found)


def metrics(path: str | Path) -> dict[str, float]:
    """Return the numbers in a file's header."""
    text = about(path)["metrics"]
    return json_files.checked(json_files.parse(text, path), path, {})
