"""Render the example photo that comes with handjax.

    python scripts/example_picture.py --output handjax/assets/example.jpg

It is a picture of the built-in generator, since the photographs of hands that we know
of carry research-only licences. No model was trained on it: its seed is its own.
"""

import argparse
from pathlib import Path

from data_pipelines.synthetic.records import Generator

SEED, INDEX, SIZE = 11, 15, 480


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="JPEG to write")
    output = parser.parse_args().output
    generator = Generator(
        seed=SEED, image_size=SIZE, left_fraction=0.5, recipe="photos"
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(generator("test", INDEX)["image"])
    print(f"{output}: {SIZE} x {SIZE} pixels, one left hand")


if __name__ == "__main__":
    main()
