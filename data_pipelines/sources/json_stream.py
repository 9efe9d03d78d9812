"""Read the elements of long JSON lists one at a time, without the list in memory.

Annotation files of a gigabyte hold millions of small elements; as Python objects they
would take ten times their size.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ijson

from handjax.errors import UserError
from handjax.io import console


def elements(path: Path, key: str = "") -> Iterator[Any]:
    """Yield the elements of a list.

    Args:
        path: JSON file: a list, or an object with the list under `key`.
        key: Of the object; "" for a file that is a list.

    Raises:
        UserError: The file has no such list, or is not complete JSON.
    """
    count, prefix = 0, f"{key}.item" if key else "item"
    try:
        with open(path, "rb") as file:
            # The default, decimal numbers, is slow; doubles are what numpy stores.
            for element in ijson.items(file, prefix, use_float=True):
                yield element
                count += 1
        # For a list that does not exist ijson yields nothing, as for an empty one.
        if not count and not _has_list(path, key):
            raise UserError(f"there is no list {key!r} in it".replace(" ''", ""))
    except (ijson.JSONError, OverflowError, ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        reason = console.first_line(error)
        raise UserError(f"element {count} cannot be read ({reason})") from error


def _has_list(path: Path, key: str) -> bool:
    with open(path, "rb") as file:
        return (key, "start_array", None) in ijson.parse(file)
