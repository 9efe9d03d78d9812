"""Show what a model that comes with handjax makes of generated pictures, unpicked.

    python scripts/gallery.py landmarks --output docs/images/gallery.jpg

Pictures 0, 1, 2, ... of a seed that no model was trained on, side by side: the boxes
that the detector found, and the meshes over the picture (right hands blue, left ones
violet). Hands of which the detector is not sure are left out.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

import handjax
from data_pipelines.synthetic.records import Generator
from handjax.inference import output_files, photos
from handjax.io import image_files
from handjax.visualization import render

SEED, SIZE = 11, 480


def main() -> None:
    """Predict the pictures and write one sheet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="its name, or a workdir")
    parser.add_argument("--output", type=Path, required=True, help="JPEG to write")
    parser.add_argument("--num", type=int, default=24, help="pictures")
    parser.add_argument("--columns", type=int, default=4, help="pictures in a row")
    parser.add_argument("--size", type=int, default=200, help="side of a cell, pixels")
    arguments = parser.parse_args()
    predictor = handjax.load(arguments.model)
    generator = Generator(
        seed=SEED, image_size=SIZE, left_fraction=0.5, recipe="photos"
    )
    cells = []
    for i in range(arguments.num):
        with image_files.opened(generator("test", i)["image"]) as picture:
            photo = photos.Photo(Path(f"{i}.jpg"), np.array(picture), None)
        hands = [hand for hand in predictor.hands(photo) if not hand.not_sure]
        drawn = output_files.overlay(photo, hands)
        height = drawn.shape[0]
        pair = drawn[:, : 2 * height]
        pair = render.draw_text(pair, [str(i)] if hands else [f"{i}: not found"])
        size = (2 * arguments.size, arguments.size)
        cells.append(cv2.resize(pair, size, interpolation=cv2.INTER_AREA))
        print(f"{i + 1}/{arguments.num}: {len(hands)} hands", flush=True)
    sheet = render.side_by_side(cells, columns=arguments.columns)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(arguments.output, quality=88)
    print(arguments.output)


if __name__ == "__main__":
    main()
