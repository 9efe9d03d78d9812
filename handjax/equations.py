"""Find the code of a paper's equations.

    python -m handjax.equations              # papers, and how many equations each has
    python -m handjax.equations TokenHand    # key, file:line and meaning of each

The tables are those of `PAPER` in handjax/models; an equation's code is the one place
whose docstring has its tag: paper, "Eq." and key in brackets, on one line.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from handjax.errors import UserError, suggest
from handjax.io import command_line
from handjax.io.command_line import Parser
from handjax.io.folders import visible

if TYPE_CHECKING:
    from handjax.types import Paper


class Equation(NamedTuple):
    """One equation of a paper and where its code is."""

    key: int | str
    meaning: str
    place: str
    """`file:line` of the tag, from the directory that holds the package."""


def papers() -> "dict[str, Paper]":
    """Return the papers by the name that their tags have."""
    from handjax import models

    found = (models.load(name).PAPER for name in models.names())
    return {paper.name: paper for paper in found}


def equations(paper: "Paper") -> Iterator[Equation]:
    """Yield the equations of a paper that are code, in the paper's order."""
    places = dict(_tags(f"({paper.name} Eq. "))
    for key, meaning in paper.equations.items():
        yield Equation(key, meaning, places.get(str(key), "has no tag"))


def _tags(start: str) -> Iterator[tuple[str, str]]:
    package = Path(__file__).resolve().parent
    for path in visible(package, "**/*.py"):
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            for part in line.split(start)[1:]:
                place = f"{path.relative_to(package.parent)}:{number}"
                yield part.partition(")")[0], place


def _parser() -> Parser:
    parser = Parser("equations", __doc__)
    parser.add_argument("paper", nargs="?", help="name of a paper; default: list them")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print equations and their places; return the exit code."""
    return command_line.run(lambda: _print(_parser().parse_args(argv)))


def _print(arguments: argparse.Namespace) -> None:
    known = papers()
    if arguments.paper is None:
        for paper in known.values():
            print(f"{paper.name:<12} {len(paper.equations):>3}  {paper.title}")
        return
    names = {name.lower(): name for name in known}
    name = names.get(arguments.paper.lower())
    if name is None:
        near = suggest(arguments.paper, known)
        raise UserError(f"{arguments.paper!r} is not a paper of handjax{near}")
    for key, meaning, place in equations(known[name]):
        print(f"{key!s:<24} {place:<48} {meaning}")
    for key, reason in known[name].not_code.items():
        print(f"{key!s:<24} {'not code':<48} {reason}")


if __name__ == "__main__":
    sys.exit(main())
