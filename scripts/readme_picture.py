"""Make the picture at the top of README: generated hands with their annotated meshes.

    python scripts/readme_picture.py --output docs/images/hands.png

Each row shows a picture of the built-in generator, its mesh drawn over it, and the mesh
alone, from the camera and from the side. Nothing is predicted: the meshes are labels of
the training data.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np

from data_pipelines.synthetic import hand, records
from handjax.visualization import render
from handjax.visualization.mesh_export import outward_faces


def main() -> None:
    """Render the examples and write the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="PNG file to write")
    parser.add_argument("--size", type=int, default=224, help="side of a cell, pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--examples",
        type=int,
        nargs="+",
        default=[0, 1],
        help="indices of test examples",
    )
    arguments = parser.parse_args()

    generator = records.Generator(
        seed=arguments.seed, image_size=arguments.size, left_fraction=0.5
    )
    cells = [
        cell for index in arguments.examples for cell in _row(generator("test", index))
    ]
    picture = render.side_by_side(cells, columns=4)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(arguments.output), picture[..., ::-1])
    print(f"{arguments.output}: {len(arguments.examples)} rows")


def _row(record: dict) -> list[np.ndarray]:
    """Return the picture, the mesh over it, and two views of the mesh."""
    image = cv2.imdecode(np.frombuffer(record["image"], np.uint8), cv2.IMREAD_COLOR_RGB)
    faces = outward_faces(hand.load().file.faces, is_right=record["is_right"])
    vertices = record["vertices"]
    size = image.shape[0]
    return [
        image,
        render.draw_mesh(image, vertices, faces, record["K"], alpha=0.9),
        render.turned_view(vertices, faces, size=size),
        render.turned_view(vertices, faces, size=size, yaw_deg=90.0),
    ]


if __name__ == "__main__":
    main()
