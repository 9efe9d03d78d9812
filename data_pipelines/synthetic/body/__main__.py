"""Writes the synthetic body, and annotated pictures of it or of another body model.

python -m data_pipelines.synthetic.body --out DIR                       DIR/body.npz
python -m data_pipelines.synthetic.body --out DIR --num 2000 --num_test 200
python -m data_pipelines.synthetic.body --out DIR --num 2000 --source SMPL_NEUTRAL.pkl
"""

import argparse
import sys
from pathlib import Path


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m data_pipelines.synthetic.body",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Train on it with --config.hand.source=DIR/body.npz "
        "--config.data.name=synthetic_body --config.data.dir=DIR "
        "--config.data.root=pelvis.",
    )
    add = parser.add_argument
    add("--out", required=True, help="directory to write to")
    add("--num", type=int, default=0, help="training pictures; 0: the model alone")
    add("--num_test", type=int, default=0, help="test pictures")
    add("--source", default="", help="body model in SMPL's format; default: built in")
    add("--seed", type=int, default=0)
    add("--image_size", type=int, default=128, help="pixels")
    return parser.parse_args()


def main() -> int:
    """Run the command; returns its exit status."""
    arguments = _arguments()
    from data_pipelines.storage.shards import ShardError
    from data_pipelines.synthetic.body import pictures

    directory = Path(arguments.out).expanduser()
    try:
        if not arguments.num:
            directory.mkdir(parents=True, exist_ok=True)
            print(f"The body model is {pictures.built_in(directory)}.")
            return 0
        pictures.ensure(
            directory,
            arguments.num,
            arguments.num_test,
            source=arguments.source,
            seed=arguments.seed,
            image_size=arguments.image_size,
        )
    except (OSError, ValueError, ShardError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped; the same command goes on from here.", file=sys.stderr)
        return 130
    print(f"{directory}: complete. See {directory / 'contact_sheet.png'}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
