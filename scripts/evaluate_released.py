r"""Measure a model that comes with handjax on pictures with annotated hands.

    handjax data synthetic --out data/test --num 1 --num_test 1000
    python scripts/evaluate_released.py landmarks --data data/test
    python scripts/evaluate_released.py landmarks --photos PHOTOS --truth truth.json

`--data` is a prepared data set; its test split is predicted twice: with the annotated
box and side, and found by the detector alone, where the hand whose box overlaps most
counts and pictures without any are left out and counted. Errors are in millimetres,
with a bootstrap interval of 95 % over hands. `--truth` is a JSON file, name of a photo
-> list of hands, each a list of 21 x, y; errors are in % of the larger side of the box
around them.
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import cv2
import numpy as np

import handjax
from data_pipelines.storage import shards
from handjax.geometry.skeleton import MIDDLE_MCP
from handjax.inference.photos import HandBox, Photo
from handjax.inference.predictor import requests
from handjax.metrics.mesh_errors import procrustes_align


def main() -> None:
    """Print a table for each kind of pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="its name, or a workdir")
    parser.add_argument("--data", type=Path, help="prepared data set with a test split")
    parser.add_argument("--num", type=int, help="test pictures; default: all")
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--truth", type=Path)
    arguments = parser.parse_args()
    predictor = handjax.load(arguments.model)
    if arguments.data:
        records = shards.open_split(arguments.data, "test")
        count = min(len(records), arguments.num or len(records))
        for found in (False, True):
            rows = [_errors(predictor, records[i], found) for i in range(count)]
            _print_errors("found" if found else "box and side given", rows)
    if arguments.photos and arguments.truth:
        truth = json.loads(arguments.truth.read_text())
        errors = list(_photo_errors(predictor, arguments.photos, truth))
        for name, error in errors:
            print(f"{name}: {error:.1f} % of the box")
        print(f"mean {np.mean([error for _, error in errors]):.1f} %")


def _errors(predictor, record: Mapping, found: bool) -> dict[str, float]:
    """Return the errors of one picture in millimetres; nan if no hand is found."""
    image = cv2.imdecode(np.frombuffer(record["image"], np.uint8), cv2.IMREAD_COLOR_RGB)
    photo = Photo(Path("picture"), image, None)
    low = np.asarray(record["bbox_center"]) - np.asarray(record["bbox_size"]) / 2
    box = (*low.tolist(), *(low + record["bbox_size"]).tolist())
    boxes = [HandBox(box, bool(record["is_right"]), "given", side_given=True)]
    if found:
        seen = predictor.find(image)
        boxes = sorted(seen, key=lambda one: -_overlap(one.box_px, box))[:1]
    names = ("pa_mpjpe", "pa_mpvpe", "mpjpe")
    if not boxes:
        return dict.fromkeys(names, np.nan)
    K = record["K"]
    camera = [K[0, 0], K[1, 1], K[0, 2], K[1, 2]]
    (hand,) = predictor.run(requests(photo, boxes, intrinsics=camera))
    joints3d, vertices = record["joints3d"][:, :3], record["vertices"]
    moved = joints3d - joints3d[MIDDLE_MCP] + hand.joints3d[MIDDLE_MCP]
    pairs = {
        "pa_mpjpe": (procrustes_align(joints3d, hand.joints3d), joints3d),
        "pa_mpvpe": (procrustes_align(vertices, hand.vertices), vertices),
        "mpjpe": (hand.joints3d, moved),
    }
    return {
        name: 1e3 * float(np.linalg.norm(a - b, axis=-1).mean())
        for name, (a, b) in pairs.items()
    }


def _print_errors(title: str, rows: list[dict[str, float]]) -> None:
    rng = np.random.default_rng(0)
    print(f"{title}: {len(rows)} pictures")
    for name in rows[0]:
        values = np.array([row[name] for row in rows])
        known = values[np.isfinite(values)]
        drawn = rng.choice(known, (1000, len(known))).mean(axis=1)
        low, high = np.percentile(drawn, [2.5, 97.5])
        missing = len(values) - len(known)
        print(f"  {name:<9} {known.mean():6.2f} mm ({low:.2f} to {high:.2f})", end="")
        print(f", {missing} not found" if missing else "")


def _photo_errors(predictor, folder: Path, truth: Mapping) -> Iterator[tuple]:
    """Yield photo names and the 2-D error of the hand that lies best."""
    for name, annotated in truth.items():
        hands = predictor.hands(folder / name)
        for points in map(np.asarray, annotated):
            side = np.ptp(points, axis=0).max()
            apart = [
                np.linalg.norm(hand.joints2d - points, axis=1).mean() for hand in hands
            ]
            yield name, 100 * min(apart, default=np.nan) / side


def _overlap(a, b) -> float:
    """Return the intersection of two boxes over their union."""
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    inner = np.prod(np.maximum(high - low, 0))
    areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    return float(inner / (sum(areas) - inner))


if __name__ == "__main__":
    main()
