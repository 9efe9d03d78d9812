"""Read JSON of a known form: one line says what is wrong with any other.

A file can be JSON and not ours, be cut off, not be text, or be empty after a power cut.
Numbers that no float holds are refused, since they break whatever computes with them.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_origin

from handjax.errors import UserError, shown

Kinds = Mapping[str, type | tuple[type, ...]]
"""Key of an object that has to be there -> types that its value may have."""

MAX_DIGITS = 300
"""Digits of a whole number; a float holds 308."""

_NAMES = {
    dict: "an object",
    list: "a list",
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    type(None): "null",
}


def read(
    path: str | Path,
    keys: Kinds | None = None,
    advice: str = "Write or copy it again.",
) -> dict[str, Any]:
    """Read a file that holds one object.

    Args:
        path: The file.
        keys: Keys that have to be there, with the types of their values.
        advice: What to do about a damaged file; ends the message.

    Raises:
        UserError: It is not complete JSON, or not of this form.
        OSError: It cannot be read.
    """
    value = parse(Path(path).read_bytes(), path, advice)
    return checked(value, path, keys or {}, advice)


def parse(
    data: bytes | str, name: object, advice: str = "Write or copy it again."
) -> Any:
    """Parse any JSON.

    Args:
        data: UTF-8.
        name: Of the file, begins messages.
        advice: What to do about a damaged file; ends the message.

    Raises:
        UserError: It is not complete JSON.
    """
    if not data.strip():
        raise UserError(f"{name}: the file is empty. {advice}")
    try:
        text = data if isinstance(data, str) else data.decode("utf-8-sig")
        return json.loads(text, parse_int=_whole)
    except RecursionError:
        raise UserError(f"{name}: lists in lists without end. {advice}") from None
    except MemoryError:
        raise UserError(f"{name}: it needs more memory than there is.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: not text in UTF-8 ({error}). {advice}") from error
    except ValueError as error:
        raise UserError(f"{name}: not complete JSON ({error}). {advice}") from error


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a whole number of {len(digits)} digits")
    return int(digits)


def checked(value: Any, name: object, keys: Kinds, advice: str = "") -> dict[str, Any]:
    """Return an object after checking that it has these keys.

    Raises:
        UserError: It is not an object, lacks a key, or a value is of another type.
    """
    if not isinstance(value, dict):
        raise UserError(f"{name}: holds {shown(value)}, not an object. {advice}")
    for key, kinds in keys.items():
        kinds = kinds if isinstance(kinds, tuple) else (kinds,)
        kinds = tuple(get_origin(kind) or kind for kind in kinds)  # dict[str, int]
        if key not in value:
            raise UserError(f"{name}: there is no {key!r} in it. {advice}")
        found = value[key]
        # In Python true is a whole number; in JSON it is not.
        right = isinstance(found, kinds) and (type(found) is not bool or bool in kinds)
        if not right:
            allowed = " or ".join(_NAMES.get(kind, kind.__name__) for kind in kinds)
            raise UserError(
                f"{name}: {key!r} is {shown(found)}; it has to be {allowed}. {advice}"
            )
    return value


def lines(path: str | Path, keys: Kinds | None = None) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file that holds one a line; a missing file has none.

    Lines that are not complete objects are left out: a program that was killed leaves
    half of one.
    """
    for _, value in raw_lines(path, keys):
        yield value


def raw_lines(
    path: str | Path, keys: Kinds | None = None
) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield each line with its object; see `lines`."""
    if not Path(path).is_file():
        return
    for line in Path(path).read_bytes().splitlines():
        try:
            yield line, checked(parse(line, path), path, keys or {})
        except UserError:
            continue
