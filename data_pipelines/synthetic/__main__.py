"""Make annotated pictures of the built-in hand.

python -m data_pipelines.synthetic --out DIR --num 2000 --num_test 200 --seed 0
python -m data_pipelines.synthetic --out DIR --preset demo

The same command continues an interrupted one.
"""

import argparse
import sys
from collections.abc import Sequence

from data_pipelines.synthetic.recipes import RECIPES
from handjax.errors import UserError
from handjax.io import command_line
from handjax.io.command_line import Parser, at_least

_PRESETS = ("smoke", "demo", "small", "paper")


def _parser() -> Parser:
    parser = Parser("data synthetic", __doc__)
    parser.add_argument("--out", required=True, help="directory of the data set")
    parser.add_argument("--num", type=at_least(0), help="training examples")
    parser.add_argument(
        "--num_test", type=at_least(0), help="test examples (default 0)"
    )
    parser.add_argument(
        "--preset",
        choices=_PRESETS,
        help="sizes: smoke 64 + 16, demo 2,000 + 200, small 20,000 + 1,000, paper "
        "100,000 + 4,000",
    )
    parser.add_argument("--seed", type=at_least(0), default=0)
    parser.add_argument(
        "--workers", type=at_least(0), default=0, help="0: one per core"
    )
    parser.add_argument("--image_size", type=at_least(1), default=224, help="pixels")
    parser.add_argument(
        "--left_fraction",
        type=at_least(0, float, most=1),
        default=0.0,
        help="share of left hands, 0 to 1",
    )
    parser.add_argument(
        "--max_turn",
        type=at_least(0, float, most=180),
        default=180.0,
        help="degrees from fingers up, palm to the camera; 180: any view",
    )
    parser.add_argument(
        "--recipe",
        choices=tuple(RECIPES),
        default="default",
        help="of the training examples; photos: fewer things in the way, more hands "
        "seen edge-on, fingers of their own sizes",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Make the data set; return the exit code."""
    return command_line.run(lambda: _make(_parser().parse_args(argv)), goes_on=True)


def _make(arguments: argparse.Namespace) -> None:
    if (arguments.num is None) == (arguments.preset is None):
        raise UserError("give either --num (and --num_test) or --preset.")
    from data_pipelines.synthetic import generate

    num, num_test = arguments.num, arguments.num_test or 0
    if arguments.preset:
        num, preset_test = generate.PRESETS[arguments.preset]
        num_test = preset_test if arguments.num_test is None else num_test
    directory = generate.ensure(
        arguments.out,
        num,
        num_test,
        seed=arguments.seed,
        workers=arguments.workers,
        image_size=arguments.image_size,
        left_fraction=arguments.left_fraction,
        max_turn=arguments.max_turn,
        recipe=arguments.recipe,
    )
    print(f"{directory}: complete. See {directory / 'contact_sheet.png'}.")


if __name__ == "__main__":
    sys.exit(main())
