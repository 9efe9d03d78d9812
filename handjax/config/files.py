"""Load config files and apply overrides to them."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from handjax.config import schema as configs
from handjax.errors import UserError


def load_config(spec: str) -> ml_collections.ConfigDict:
    """The config of `FILE.py` or `FILE.py:variant`, locked against new keys.

    A relative path is looked for in the current directory, then beside the package.
    """
    if not spec:
        raise UserError(
            f"--config is missing; pass one of {_known_configs()}, with :smoke or "
            ":small behind it for a smaller run."
        )
    name, _, variant = spec.partition(":")
    path = Path(name)
    if not path.is_file():
        path = _root() / name
    if not path.is_file():
        raise UserError(
            f"--config={name!r}: there is no such file here or under {_root()}; the "
            f"ones that come with handjax are {_known_configs()}."
        )
    loader = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    if loader is None or loader.loader is None:
        raise UserError(f"--config={name!r} is no Python file.")
    module = importlib.util.module_from_spec(loader)
    loader.loader.exec_module(module)
    try:
        config = module.get_config(variant) if variant else module.get_config()
    except ValueError as error:
        raise UserError(f"--config={spec!r}: {error}") from error
    return config.lock()


def _root() -> Path:
    return Path(__file__).resolve().parents[2]


def _known_configs() -> str:
    found = sorted(p.name for p in (_root() / "configs").glob("[a-z]*.py"))
    return ", ".join(f"configs/{name}" for name in found) or "(none found)"


def override(
    config: ml_collections.ConfigDict, overrides: Sequence[tuple[str, str]]
) -> ml_collections.ConfigDict:
    """The config with `--config.KEY=VALUE` applied, values parsed by the old types."""
    known = _paths(config)
    for key, _ in overrides:
        if key not in known:
            raise UserError(f"config has no key {key!r}{configs.suggest(key, known)}")
    values, argv = flags.FlagValues(), [f"--config.{k}={v}" for k, v in overrides]
    config_flags.DEFINE_config_dict(
        "config", config, flag_values=values, sys_argv=["", *argv]
    )
    try:
        values(["", *argv])
    except (flags.Error, TypeError, ValueError) as error:
        raise UserError(_plain(str(error), config)) from error
    return values.config


def _paths(config: Any, prefix: str = "") -> list[str]:
    paths = []
    for key, value in config.items():
        paths.append(prefix + key)
        if isinstance(value, ml_collections.ConfigDict):
            paths += _paths(value, f"{prefix}{key}.")
    return paths


def _plain(message: str, config: ml_collections.ConfigDict) -> str:
    """What absl says about a value, with the type that is expected."""
    text = " ".join(message.split()).removeprefix("flag --")
    key = text.partition("=")[0].removeprefix("config.")
    if key not in _paths(config):
        return text
    old: Any = config
    for part in key.split("."):
        old = old[part]
    if isinstance(old, ml_collections.ConfigDict):
        return f"config.{key} is a group of keys; set one of {sorted(old)}."
    given = text.partition("=")[2].partition(": ")[0]
    return f"config.{key}={given} is no {type(old).__name__} (it is {old!r} now)."
