"""`--config FILE[:variant]` and `--config.KEY=VALUE` of the entries.

Nothing heavy is imported before a command line is parsed, so that `--help` and a
misspelt flag are answered at once.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from handjax.io.command_line import Parser

if TYPE_CHECKING:
    import ml_collections


def add_config(parser: Parser) -> None:
    """Add a help group with `--config` to a parser; `parse` and `read` go with it."""
    group = parser.add_argument_group("config")
    group.add_argument(
        "--config",
        metavar="NAME[:VARIANT]",
        help="a config that comes with handjax, such as tokenhand:small, or a file, "
        "such as configs/tokenhand.py:small",
    )
    add_overrides(group)


def add_overrides(group: "argparse._ActionsContainer") -> None:
    """Describe `--config.KEY=VALUE`, which `parse` reads."""
    group.add_argument(
        "--config.KEY",
        dest="overrides",
        metavar="VALUE",
        help="another value of a key, such as --config.train.log_every=10",
    )


def parse(parser: Parser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse a command line.

    Args:
        parser: Of the entry.
        argv: Arguments without the command; None takes those of this process.

    Returns:
        The parser's values, and `overrides`: pairs of a config key and a text.

    Raises:
        UserError: An argument is unknown or missing, or its value is not allowed.
    """
    rest, overrides = [], []
    for argument, value in _paired(sys.argv[1:] if argv is None else argv):
        if argument.startswith("--config."):
            # A boolean key may stand without a value, as other switches do.
            text = "true" if value is None else value
            overrides.append((argument.removeprefix("--config."), text))
        else:
            rest.append(argument)
    values = parser.parse_args(rest)
    values.overrides = overrides
    return values


def read(values: argparse.Namespace) -> "ml_collections.ConfigDict":
    """Load, change and check the config that a command line asks for; it is locked.

    Args:
        values: Of `parse`.

    Raises:
        UserError: There is no such config or key, or a value that cannot work.
    """
    from handjax.config import files, schema

    config = files.override(files.load_config(values.config or ""), values.overrides)
    schema.check(config)
    return config


def _paired(arguments: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Yield arguments; those of config keys with the value after `=` or a space."""
    position = 0
    while position < len(arguments):
        argument = arguments[position]
        name, equals, value = argument.partition("=")
        after = arguments[position + 1 : position + 2]
        position += 1
        if not argument.startswith("--config."):
            yield argument, None
        elif equals:
            yield name, value
        elif after and not after[0].startswith("--"):
            yield name, after[0]
            position += 1
        else:
            yield name, None
