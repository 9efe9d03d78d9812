"""Say what this machine has, and what keeps handjax from using it.

    handjax doctor
    handjax doctor --json

One line for each check, and below each that is not well what to do about it. The exit
code is 0 when nothing is broken and 1 otherwise; what is merely not installed is a
note.
"""

import argparse
import json
import sys
from collections.abc import Sequence

from handjax.io import command_line
from handjax.io.command_line import Parser


def _parser() -> Parser:
    parser = Parser("doctor", __doc__)
    parser.add_argument("--json", action="store_true", help="one JSON array")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the checks; return the exit code."""
    return command_line.run(lambda: _report(_parser().parse_args(argv)))


def _report(arguments: argparse.Namespace) -> int:
    from handjax.doctor import checks

    rows = []
    for row in checks.run():
        rows.append(row)
        if not arguments.json:
            print(f"{row.state:<8} {row.name:<16} {row.found}", flush=True)
            if row.advice:
                print(f"{'':<25} -> {row.advice}", flush=True)
    if arguments.json:
        print(json.dumps([row._asdict() for row in rows], indent=1))
    return 1 if any(row.state == checks.PROBLEM for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
