"""Elements of long JSON lists one at a time, without the list in memory.

Annotation files of a gigabyte hold millions of small elements; as Python objects they
would take ten times their size.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from handjax.errors import UserError

_CHUNK = 1 << 22
_SPACE = re.compile(r"[\s,]*")
_AFTER = re.compile(r"[\s,\]]")
_DECODER = json.JSONDecoder()


def elements(path: Path, key: str = "", *, chunk: int = _CHUNK) -> Iterator[Any]:
    """Yield the elements of a list.

    Args:
        path: JSON file: a list, or an object with the list under `key`.
        key: of the object; "" for a file that is a list. The first `"key": [` of the
            file counts.
        chunk: characters to read at a time.

    Raises:
        UserError: The file has no such list, or ends before it.
    """
    with open(path, encoding="utf-8") as file:
        buffer, at, count = _skip_to_list(file, key, chunk), 0, 0
        while True:
            at = _SPACE.match(buffer, at).end()  # type: ignore[union-attr]
            if buffer.startswith("]", at):
                return
            value, end = _next(buffer, at)
            # A number may go on in the next chunk, so the list has to.
            if _AFTER.match(buffer, end):
                yield value
                at, count = end, count + 1
                continue
            more = file.read(max(chunk, len(buffer) - at))
            if not more:
                raise UserError(f"it ends inside its element {count}")
            buffer, at = buffer[at:] + more, 0


def _next(buffer: str, at: int) -> tuple[Any, int]:
    """The value that begins there and its end; the buffer's if it is not complete."""
    try:
        return _DECODER.raw_decode(buffer, at)
    except json.JSONDecodeError:
        return None, len(buffer)


def _skip_to_list(file: Any, key: str, chunk: int) -> str:
    """Text from after the bracket that opens the list."""
    opening = re.compile(rf'"{re.escape(key)}"\s*:\s*\[' if key else r"\s*\[")
    find = opening.search if key else opening.match
    buffer = ""
    while True:
        more = file.read(chunk)
        buffer += more
        found = find(buffer)
        if found:
            return buffer[found.end() :]
        if not more:
            what = f"no list {key!r}" if key else "no list"
            raise UserError(f"there is {what} in it")
        if key:  # the key may be cut in two
            buffer = buffer[-(len(key) + 64) :]
