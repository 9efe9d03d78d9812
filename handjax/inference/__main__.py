"""List the models that come with handjax, with their numbers.

    python -m handjax.inference
    python -m handjax.inference --json

`handjax models` is the same. The numbers are those of the file that ships: errors on
the 1,000 test pictures of `:small`, in millimetres.
"""

import argparse
import json
import sys
from collections.abc import Sequence

from handjax.io import command_line
from handjax.io.command_line import Parser


def _parser() -> Parser:
    parser = Parser("models", __doc__)
    parser.add_argument("--json", action="store_true", help="one JSON array")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the models; return the exit code."""
    return command_line.run(lambda: _list(_parser().parse_args(argv)))


def _list(arguments: argparse.Namespace) -> None:
    from handjax.inference import released

    rows = []
    for name in released.names():
        about = released.about(released.path_of(name))
        rows.append(
            {
                "name": name,
                "family": about["family"],
                "metrics": json.loads(about["metrics"]),
                "licence": about["licence"],
                "data": about["data"],
                "command": about["command"],
            }
        )
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        numbers = ", ".join(f"{key} {value}" for key, value in row["metrics"].items())
        print(f"{row['name']} ({row['licence']}): {numbers}")


if __name__ == "__main__":
    sys.exit(main())
