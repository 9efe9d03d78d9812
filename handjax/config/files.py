"""Load config files and apply overrides to them."""

import ast
import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_collections

from handjax.errors import MissingFileError, UserError, suggest

_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


def load_config(
    spec: str, changes: Mapping[str, Any] | None = None
) -> ml_collections.ConfigDict:
    """Load a config, locked against new keys.

    >>> import handjax
    >>> config = handjax.load_config("tokenhand:smoke", {"train.log_every": 10})
    >>> config.family, config.train.log_every
    ('tokenhand', 10)

    Args:
        spec: A name such as "tokenhand:small", of a config that comes with handjax, or
            a file such as "configs/tokenhand.py:small", here or beside the package.
            What stands behind the colon is the variant.
        changes: Other values of keys.

    Raises:
        UserError: There is no such config, variant or key, or a value is of another
            type than the config's.
    """
    name, _, variant = spec.partition(":")
    if not name:
        raise UserError(
            f"--config is missing; pass a name ({', '.join(names())}) or a file, with "
            "a variant behind it for a smaller run, such as tokenhand:small."
        )
    module = _module(_path(name))
    try:
        config = module.get_config(variant) if variant else module.get_config()
    except UserError as error:
        raise UserError(f"--config={spec!r}: {error}") from error
    return override(config.lock(), changes or {})


def names() -> tuple[str, ...]:
    """Return the names of the configs that come with handjax."""
    return tuple(sorted(path.stem for path in folder().glob("[a-z]*.py")))


def folder() -> Path:
    """Return the directory of the configs that come with handjax."""
    package = Path(__file__).resolve().parents[1]
    # A wheel holds them in the package, a checkout beside it.
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def _path(name: str) -> Path:
    """Return the file of a name, or of a path here or beside the package."""
    if not (name.endswith(".py") or "/" in name or "\\" in name):
        if name not in names():
            raise UserError(
                f"--config={name!r} is not a config of handjax"
                f"{suggest(name, names())} A file ends in .py."
            )
        return folder() / f"{name}.py"
    for path in (Path(name), folder().parent / name):
        if path.is_file():
            return path
    raise MissingFileError(
        f"--config={name!r}: there is no such file here or in {folder().parent}; by "
        f"name there are {', '.join(names())}."
    )


def _module(path: Path) -> ModuleType:
    loader = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    if loader is None or loader.loader is None:
        raise UserError(f"--config={str(path)!r} is not a Python file.")
    module = importlib.util.module_from_spec(loader)
    loader.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(f"--config={str(path)!r} has no function get_config(variant).")
    return module


# --- Other values --------------------------------------------------------------------


def override(
    config: ml_collections.ConfigDict,
    changes: Mapping[str, Any] | Iterable[tuple[str, Any]],
) -> ml_collections.ConfigDict:
    """Return a copy of a config with other values.

    Args:
        config: Stays as it is.
        changes: By key, such as "train.log_every". A text is parsed by the type of the
            old value, as `--config.KEY=VALUE` needs it; other values must be of that
            type.

    Raises:
        UserError: There is no such key, or the value is of another type.
    """
    config = config.copy_and_resolve_references()
    known = dict(_leaves(config))
    for key, given in dict(changes).items():
        if key not in known:
            raise UserError(f"config has no key {key!r}{suggest(key, known)}")
        config.update_from_flattened_dict({key: _typed(key, given, known[key])})
    return config


def _leaves(config: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Yield all keys with their values, groups of keys as well."""
    for key, value in config.items():
        yield prefix + key, value
        if isinstance(value, ml_collections.ConfigDict):
            yield from _leaves(value, f"{prefix}{key}.")


def _typed(key: str, given: Any, old: Any) -> Any:
    """Return a value with the type of the old one."""
    if isinstance(old, ml_collections.ConfigDict):
        inside = ", ".join(sorted(old)) or "it is empty"
        raise UserError(f"config.{key} is a group of keys; set one of them: {inside}.")
    try:
        return _converted(given, old)
    except (ValueError, SyntaxError, TypeError):
        kind = type(old).__name__
        article = "an" if kind[0] in "aeiou" else "a"
        parts = {type(part).__name__ for part in old} if kind == "tuple" else ()
        of = f" of {parts.pop()}" if len(parts) == 1 else ""
        raise UserError(
            f"config.{key}={given!r} is not {article} {kind}{of} (current value: "
            f"{old!r})."
        ) from None


def _converted(given: Any, old: Any) -> Any:
    """Convert to the type of `old`, or raise what Python raises for it."""
    text = isinstance(given, str)
    match old:
        case bool():
            value = _BOOLEANS.get(given.lower()) if text else given
        case int():
            value = int(given) if text else given
        case float():
            whole = isinstance(given, int) and not isinstance(given, bool)
            value = float(given) if text or whole else given
        case tuple():
            values = ast.literal_eval(given) if text else given
            values = values if isinstance(values, tuple | list) else (values,)
            alike = len({type(part) for part in old}) == 1
            value = tuple(_converted(v, old[0]) if alike else v for v in values)
        case _:
            value = given
    # `True` is an int to Python, but not to a config.
    if old is not None and type(value) is not type(old):
        raise TypeError(value)
    return value
