"""Draw a page of examples, every second one with its annotations."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from handjax.geometry import crop
from handjax.geometry.skeleton import BONES
from handjax.io import image_files

_COLOURS = ("#e6b800", "#e6194b", "#3cb44b", "#4363d8", "#c44fd9")
"""Thumb to little finger; every four bones of a body."""
_COLUMNS, _TILE = 8, 160
_HANDS = 16
"""Number of hands of a split on its page."""
_AROUND = 1.6
"""Side of a tile, relative to the hand's box."""

Record = dict[str, Any]


def write(
    path: Path, records: Iterable[Record], *, bones: Sequence[tuple[int, int]] = BONES
) -> None:
    """Draw square pictures side by side into a PNG, joints on every second one.

    Args:
        path: The PNG to write.
        records: Examples, in the order of the page.
        bones: Lines between joints, e.g. of a body.
    """
    tiles = []
    for number, record in enumerate(records):
        tile = _opened(record).resize((_TILE, _TILE), Image.Resampling.LANCZOS)
        if number % 2:
            scale = _TILE / int(record["image_size"][1])
            _draw_bones(tile, (record["joints2d"][:, :2] + 0.5) * scale - 0.5, bones)
        tiles.append(tile)
    _write(path, tiles)


def write_split(path: Path, split: Any, mesh_of: Callable[[Record], Any]) -> None:
    """Draw hands from all over a split, each with its joints and again with its mesh.

    Args:
        path: The PNG to write.
        split: A split from `shards.open_split`.
        mesh_of: Vertices (camera axes, metres) and faces of a record, or None. Without
            faces (None) vertices are drawn as dots.
    """
    count = min(_HANDS, len(split))
    tiles = []
    for number in range(count):
        record = split[number * len(split) // count]
        tiles.extend(_annotated(record, mesh_of(record)))
    _write(path, tiles)


def _write(path: Path, tiles: Sequence[Image.Image]) -> None:
    columns, rows = min(_COLUMNS, len(tiles)), -(-len(tiles) // _COLUMNS)
    sheet = Image.new("RGB", (columns * _TILE, rows * _TILE), "white")
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (i % _COLUMNS * _TILE, i // _COLUMNS * _TILE))
    partial = path.with_suffix(".partial.png")
    sheet.save(partial)
    partial.replace(path)


def _opened(record: Record) -> Image.Image:
    with image_files.opened(bytes(record["image"]), ("JPEG",)) as picture:
        return picture.convert("RGB")


def _draw_bones(
    tile: Image.Image,
    points: np.ndarray,
    bones: Sequence[tuple[int, int]],
    known: np.ndarray | None = None,
) -> None:
    pen = ImageDraw.Draw(tile)
    for number, (parent, child) in enumerate(bones):
        if known is None or (known[parent] and known[child]):
            line = [tuple(points[parent].tolist()), tuple(points[child].tolist())]
            pen.line(line, fill=_COLOURS[number // 4 % len(_COLOURS)], width=2)


def _annotated(record: Record, mesh: Any) -> list[Image.Image]:
    """Draw two tiles of a hand: joints, side and text; and the mesh."""
    whole = _opened(record)
    center, size = record["bbox_center"], float(np.max(record["bbox_size"]))
    if size <= 0:
        center, size = np.array(whole.size) / 2, max(whole.size) / _AROUND
    half = _AROUND / 2 * size
    low = center - half + 0.5
    scale = _TILE / (2 * half)
    # Outside of the picture it is black.
    shift = (1 / scale, 0, low[0], 0, 1 / scale, low[1])
    transform, bilinear = Image.Transform.AFFINE, Image.Resampling.BILINEAR
    tile = whole.transform((_TILE, _TILE), transform, shift, bilinear)
    points = (record["joints2d"][:, :2] + 0.5 - low) * scale - 0.5
    drawn = tile.copy()
    _draw_bones(drawn, points, BONES, record["joints2d"][:, 2] > 0)
    label = " ".join(["right" if record["is_right"] else "left", record["text"]])
    shade = {"stroke_width": 1, "stroke_fill": "black"}
    ImageDraw.Draw(drawn).text((3, 2), label, fill="white", **shade)
    if mesh is None or not record["has_K"]:
        return [tile, drawn]
    K = record["K"].astype(np.float64)
    K[:2, 2] = (K[:2, 2] + 0.5 - low) * scale - 0.5
    K[:2, :2] *= scale
    return [drawn, _draw_mesh(tile, K, *mesh)]


def _draw_mesh(
    tile: Image.Image, K: np.ndarray, vertices: np.ndarray, faces: np.ndarray | None
) -> Image.Image:
    if faces is not None:
        from handjax.visualization import render  # compiles its rasterizer

        color = render.TARGET_COLOR
        overlaid = render.draw_mesh(
            np.array(tile), vertices, faces, K, color=color, alpha=0.7
        )
        return Image.fromarray(overlaid)
    pen = ImageDraw.Draw(tile)
    for x, y in crop.project(vertices.astype(np.float64), K).tolist():
        pen.point((round(x), round(y)), fill="#f5c29e")
    return tile
