"""Makes annotated pictures of the built-in hand.

python -m data_pipelines.synthetic --out DIR --num 2000 --num_test 200 --seed 0
python -m data_pipelines.synthetic --out DIR --preset demo
"""

import argparse
import sys

_PRESETS = ("smoke", "demo", "small", "paper")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m data_pipelines.synthetic",
        description="Make annotated pictures of the built-in hand. The same command "
        "goes on where an interrupted one stopped.",
    )
    parser.add_argument("--out", required=True, help="directory of the data set")
    parser.add_argument("--num", type=int, help="training examples")
    parser.add_argument("--num_test", type=int, help="test examples (default 0)")
    parser.add_argument(
        "--preset",
        choices=_PRESETS,
        help="sizes: smoke 64 + 16, demo 2,000 + 200, small 20,000 + 1,000, paper "
        "100,000 + 4,000",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0, help="0: one per core")
    parser.add_argument("--image_size", type=int, default=224, help="pixels")
    parser.add_argument(
        "--left_fraction", type=float, default=0.0, help="share of left hands, 0 to 1"
    )
    parser.add_argument(
        "--max_turn",
        type=float,
        default=180.0,
        help="degrees from fingers up, palm to the camera; 180: any view",
    )
    arguments = parser.parse_args()
    if (arguments.num is None) == (arguments.preset is None):
        parser.error("give either --num (and --num_test) or --preset")
    return arguments


def main() -> int:
    """Run the command; returns its exit status."""
    arguments = _arguments()
    from data_pipelines.synthetic import generate

    num, num_test = arguments.num, arguments.num_test or 0
    if arguments.preset:
        num, preset_test = generate.PRESETS[arguments.preset]
        num_test = preset_test if arguments.num_test is None else num_test
    try:
        directory = generate.ensure(
            arguments.out,
            num,
            num_test,
            seed=arguments.seed,
            workers=arguments.workers,
            image_size=arguments.image_size,
            left_fraction=arguments.left_fraction,
            max_turn=arguments.max_turn,
        )
    except (ValueError, generate.shards.ShardError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped; the same command goes on from here.", file=sys.stderr)
        return 130
    print(f"{directory}: complete. See {directory / 'contact_sheet.png'}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
