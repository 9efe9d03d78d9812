"""Write the synthetic body, and annotated pictures of it or of another body model.

python -m data_pipelines.synthetic.body --out DIR                       DIR/body.npz
python -m data_pipelines.synthetic.body --out DIR --num 2000 --num_test 200
python -m data_pipelines.synthetic.body --out DIR --num 2000 --source SMPL_NEUTRAL.pkl
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from handjax.io import command_line
from handjax.io.command_line import Parser, at_least


def _parser() -> Parser:
    parser = Parser(
        "data synthetic body",
        __doc__,
        epilog="Train on it with --config.hand.source=DIR/body.npz "
        "--config.data.name=synthetic_body --config.data.dir=DIR "
        "--config.data.root=pelvis.",
    )
    add = parser.add_argument
    add("--out", required=True, help="directory to write to")
    add(
        "--num",
        type=at_least(0),
        default=0,
        help="training pictures; 0: the model alone",
    )
    add("--num_test", type=at_least(0), default=0, help="test pictures")
    add("--source", default="", help="body model in SMPL's format; default: built in")
    add("--seed", type=at_least(0), default=0)
    add("--image_size", type=at_least(1), default=128, help="pixels")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write the body or its pictures; return the exit code."""
    return command_line.run(lambda: _write(_parser().parse_args(argv)), goes_on=True)


def _write(arguments: argparse.Namespace) -> None:
    from data_pipelines.synthetic.body import pictures

    directory = Path(arguments.out).expanduser()
    if not arguments.num:
        directory.mkdir(parents=True, exist_ok=True)
        print(f"The body model is {pictures.built_in(directory)}.")
        return
    pictures.ensure(
        directory,
        arguments.num,
        arguments.num_test,
        source=arguments.source,
        seed=arguments.seed,
        image_size=arguments.image_size,
    )
    print(f"{directory}: complete. See {directory / 'contact_sheet.png'}.")


if __name__ == "__main__":
    sys.exit(main())
