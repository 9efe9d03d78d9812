"""Reconstruct hand meshes from photos, and train the models that do it.

handjax COMMAND ...          the same as python -m handjax.COMMAND ...
handjax COMMAND --help       what a command takes
"""

import ast
import importlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from handjax import __version__
from handjax.errors import UserError, suggest
from handjax.io import command_line

_NAMES = {"inference": "models"}  # handjax.models is the room of the families
_PACKAGES = {"": "handjax", "data": "data_pipelines"}
"""First word of a command -> the package whose entries follow it."""


class Command(NamedTuple):
    """One entry: a module with a function `main`."""

    name: str
    """As typed, such as "text-to-mesh"."""
    module: str
    summary: str
    """First line of the module's docstring."""


def commands(group: str = "") -> dict[str, Command]:
    """Return the commands of a group by name, read from their files without imports.

    An entry is a module of a package, or a folder with a `__main__.py`, that defines a
    function `main`.

    Args:
        group: "" or "data".
    """
    package = _PACKAGES[group]
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0])
    found = sorted(_entries(folder, package))
    return {command.name: command for command in found}


def _entries(folder: Path, package: str) -> Iterator[Command]:
    for path in (*folder.glob("[!_.]*.py"), *folder.glob("*/__main__.py")):
        text = path.read_text(encoding="utf-8")
        if "\ndef main(" not in text:  # parsing takes longer than this
            continue
        parts = path.relative_to(folder).with_suffix("").parts
        summary = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
        name = _NAMES.get(parts[0], parts[0].replace("_", "-"))
        yield Command(name, ".".join((package, *parts)), summary)


def overview(groups: Sequence[str] = tuple(_PACKAGES)) -> str:
    """Return what `handjax --help` prints: every command with one line about it."""
    lines = [(__doc__ or "").strip(), ""]
    for group in groups:
        lines += ["Data:" if group else "Commands:"]
        for command in commands(group).values():
            name = f"{group} {command.name}".strip()
            lines.append(f"  {name:<16} {command.summary}")
        lines.append("")
    return "\n".join(lines).rstrip()


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return command_line.run(lambda: _dispatch(arguments))


def _dispatch(arguments: list[str]) -> int:
    group = arguments[0] if arguments and arguments[0] in _PACKAGES else ""
    rest = arguments[1:] if group else arguments
    if not rest or rest[0] in ("-h", "--help", "help"):
        print(overview([group] if group else tuple(_PACKAGES)))
        return 0
    if rest[0] == "--version":
        print(f"handjax {__version__}")
        return 0
    found = commands(group)
    name = rest[0].replace("_", "-")
    if name not in found:
        known = [*found, *(word for word in _PACKAGES if word and not group)]
        raise UserError(
            f"{' '.join(arguments[: 2 if group else 1])!r} is not a command"
            f"{suggest(name, known)} See handjax --help."
        )
    return importlib.import_module(found[name].module).main(rest[1:])


if __name__ == "__main__":
    sys.exit(main())
