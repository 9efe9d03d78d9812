"""A page of examples, every second one with its joints drawn."""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from handjax.skeleton import BONES

_COLOURS = ("#e6b800", "#e6194b", "#3cb44b", "#4363d8", "#c44fd9")
"""Thumb to little finger; every four bones of a body."""


def write(
    path: Path,
    records: Iterable[dict],
    *,
    bones: Sequence[tuple[int, int]] = BONES,
    columns: int = 8,
    tile: int = 160,
):
    """Draw records (`image` bytes and `joints2d`) side by side into a PNG.

    Args:
        path: The PNG to write.
        records: Examples, in the order of the page.
        bones: Lines between joints, e.g. of a body.
        columns: Pictures in a row.
        tile: Pixels along each side of one picture.
    """
    tiles = [_tile(r, tile, bones if i % 2 else ()) for i, r in enumerate(records)]
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (min(columns, len(tiles)) * tile, rows * tile), "white")
    for i, picture in enumerate(tiles):
        sheet.paste(picture, (i % columns * tile, i // columns * tile))
    partial = path.with_suffix(".partial.png")
    sheet.save(partial)
    partial.replace(path)


def _tile(record: dict, size: int, bones: Sequence[tuple[int, int]]) -> Image.Image:
    image = Image.open(io.BytesIO(record["image"])).convert("RGB")
    scale = size / image.width
    picture = image.resize((size, size), Image.Resampling.LANCZOS)
    pen = ImageDraw.Draw(picture)
    points = (np.asarray(record["joints2d"])[:, :2] + 0.5) * scale
    for number, (parent, child) in enumerate(bones):
        line = [tuple(points[parent].tolist()), tuple(points[child].tolist())]
        pen.line(line, fill=_COLOURS[number // 4 % len(_COLOURS)], width=2)
    return picture
