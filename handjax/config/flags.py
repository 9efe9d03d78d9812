"""Flags of the entries, and errors that fit on one line.

Only absl and ml_collections are imported here, so that `--help` and a misspelt key are
answered at once.
"""

import importlib.util
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from handjax.config import schema as configs


class UsageError(Exception):
    """The user gave something that cannot work; the message is all they need."""


def run(
    main: Callable[[flags.FlagValues], int | None],
    values: flags.FlagValues,
    doc: str,
    argv: Sequence[str] | None = None,
) -> int:
    """Parse the command line, call `main`, and turn expected errors into one line.

    Args:
        main: gets the parsed flags, with `config` where there is one.
        values: the flags that are defined.
        doc: what `--help` says first.
        argv: as `sys.argv`, which is the default.

    Returns:
        Exit code: 0, 1 for what went wrong on the way, 2 for what was typed.
    """
    # Orbax tells absl's log about every default it takes.
    logging.getLogger("absl").setLevel(logging.ERROR)
    argv = list(sys.argv if argv is None else argv)
    if any(arg in ("--help", "-h", "-help", "--helpshort") for arg in argv[1:]):
        print(f"{doc.strip()}\n\nFlags:\n{_flag_help(values)}")
        return 0
    try:
        parse(argv, values)
        return main(values) or 0
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _flag_help(values: flags.FlagValues) -> str:
    lines = [
        f"  --{name}: {values[name].help} (default: {values[name].default!r})"
        for name in sorted(values)
    ]
    return "\n".join(lines)


def parse(argv: Sequence[str], values: flags.FlagValues) -> None:
    """Parse flags; `--config FILE[:variant]` becomes the ConfigDict `values.config`.

    Raises:
        UsageError: for an unknown flag or key, or a value of another type.
    """
    rest, spec, overrides = [argv[0]], "", []
    for arg, value in _paired(argv[1:]):
        name = arg.lstrip("-")
        if arg.startswith("-") and name == "config":
            spec = value or ""
        elif arg.startswith("-") and name.startswith("config."):
            # As with any absl flag, a bare boolean is set.
            key = name.removeprefix("config.")
            overrides.append((key, "true" if value is None else value))
        else:
            rest += [arg] if value is None else [f"{arg}={value}"]
    try:
        extra = values(rest)[1:]
    except flags.Error as error:
        raise UsageError(f"{error}. See --help.") from error
    if extra:
        raise UsageError(f"{extra[0]!r} belongs to no flag. See --help.")
    if "config" in values:
        values["config"].value = override(load_config(spec), overrides)


def _paired(arguments: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Flags with their values, whether written `--a=1` or `--a 1`."""
    position = 0
    while position < len(arguments):
        name, equals, value = arguments[position].partition("=")
        after = arguments[position + 1 : position + 2]
        if equals:
            yield name, value
        elif name.lstrip("-").startswith("config") and after and after[0][:2] != "--":
            yield name, after[0]
            position += 1
        else:
            yield name, None
        position += 1


def load_config(spec: str) -> ml_collections.ConfigDict:
    """The config of `FILE.py` or `FILE.py:variant`, locked against new keys.

    A relative path is looked for in the current directory, then beside the package.
    """
    if not spec:
        raise UsageError(
            f"--config is missing; pass one of {_known_configs()}, with :smoke or "
            ":small behind it for a smaller run."
        )
    name, _, variant = spec.partition(":")
    path = Path(name)
    if not path.is_file():
        path = _root() / name
    if not path.is_file():
        raise UsageError(
            f"--config={name!r}: there is no such file here or under {_root()}; the "
            f"ones that come with handjax are {_known_configs()}."
        )
    loader = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    if loader is None or loader.loader is None:
        raise UsageError(f"--config={name!r} is no Python file.")
    module = importlib.util.module_from_spec(loader)
    loader.loader.exec_module(module)
    try:
        config = module.get_config(variant) if variant else module.get_config()
    except ValueError as error:
        raise UsageError(f"--config={spec!r}: {error}") from error
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
            raise UsageError(f"config has no key {key!r}{configs.suggest(key, known)}")
    values, argv = flags.FlagValues(), [f"--config.{k}={v}" for k, v in overrides]
    config_flags.DEFINE_config_dict(
        "config", config, flag_values=values, sys_argv=["", *argv]
    )
    try:
        values(["", *argv])
    except (flags.Error, TypeError, ValueError) as error:
        raise UsageError(_plain(str(error), config)) from error
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
