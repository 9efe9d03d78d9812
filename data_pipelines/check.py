"""Check a prepared data set: files, records, poses against joints.

python -m data_pipelines.check DIR
python -m data_pipelines.check DIR --hand MANO_FOLDER --num 0

Files are compared with the checksums of `manifest.json`. Of a sample of the records,
spread over each split, it reports by side:

    inside      share of the known joints that lie in the picture
    reproject   pixels between 2-D joints and projected 3-D ones
    repose      millimetres between 3-D joints and those of the mesh that MANO makes of
                the stored pose, shape and translation, with the finger tips and the
                left-hand model of the data set (`conventions.ROWS`); hands without a
                translation are laid wrist on wrist
    vertices    the same between stored and re-posed mesh

Records whose joints are more than --max_repose_mm from those of their own pose (mean,
wrist on wrist) contradict themselves, and count as damaged.
"""

import argparse
import hashlib
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from handjax.io import command_line
from handjax.io.command_line import Parser, at_least

_JOINT_GROUPS = {
    "wrist": [0],
    "fingers": [j for j in range(1, 21) if j % 4],
    "tips": [4, 8, 12, 16, 20],
}


class Finding(NamedTuple):
    """Mean and largest value of one quantity of one side."""

    split: str
    side: str
    quantity: str
    unit: str
    mean: float
    largest: float
    count: int
    """Number of hands that have the quantity."""

    def line(self) -> str:
        """Return one line for people to read."""
        numbers = f"{self.mean:9.3f} {self.unit:3} mean {self.largest:9.3f} max"
        hands = f"{self.count:,} hands"
        return f"{self.split} {self.side:5} {self.quantity:18} {numbers}  ({hands})"


def _parser() -> Parser:
    parser = Parser("data check", __doc__)
    add = parser.add_argument
    add("directory", help="directory of the prepared data set")
    add(
        "--hand",
        default="",
        help="folder with MANO_RIGHT.pkl and MANO_LEFT.pkl; without it poses are not "
        "checked",
    )
    add(
        "--max_repose_mm",
        type=at_least(0, float),
        default=20.0,
        help="millimetres between a record's joints and those of its pose from which "
        "it is damaged; default: 20",
    )
    add("--split", action="append", default=[], help="default: all")
    add("--num", type=at_least(0), default=200, help="records of each split; 0: all")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Check a data set; return 0, 1 if something is damaged, 2 for a wrong command."""
    return command_line.run(lambda: _check(_parser().parse_args(argv)))


def _check(arguments: argparse.Namespace) -> int:
    damaged = _report(arguments)
    for line in damaged:
        print(f"damaged: {line}", file=sys.stderr)
    return 1 if damaged else 0


def _report(arguments: argparse.Namespace) -> list[str]:
    """Print findings; return what is damaged."""
    from data_pipelines.sources import conventions
    from data_pipelines.storage import shards

    directory = Path(arguments.directory).expanduser()
    metadata = shards.read_metadata(directory)
    damaged = wrong_checksums(directory)
    models = conventions.HandModels()
    if arguments.hand and metadata["name"] in conventions.ROWS:
        models = conventions.load_models(metadata["name"], arguments.hand)
    for name in arguments.split or metadata["splits"]:
        split = shards.open_split(directory, name)
        records, unreadable = _sample(split, arguments.num)
        damaged += unreadable
        for finding in findings(name, records, models):
            print(finding.line())
        damaged += contradictions(name, records, models, arguments.max_repose_mm)
    if not damaged:
        print(f"{directory}: nothing is damaged.")
    return damaged


def wrong_checksums(directory: Path) -> list[str]:
    """Return the shards of the manifest that are missing or have changed."""
    from data_pipelines.preparation import job

    wrong = []
    for made in job.read_manifest(directory)["splits"].values():
        for part in made["shards"]:
            path = directory / part["file"]
            if not path.is_file():
                wrong.append(f"{path} is missing")
            elif hashlib.sha256(path.read_bytes()).hexdigest() != part["sha256"]:
                wrong.append(f"{path} has another checksum than in manifest.json")
    return wrong


def _sample(split: Any, num: int) -> tuple[list[dict[str, Any]], list[str]]:
    """Return records spread over a split, without pictures, and the unreadable ones."""
    from data_pipelines.loading import examples

    count = min(num or len(split), len(split))
    records, unreadable = [], []
    for number in range(count):
        index = number * len(split) // count
        try:
            record = split[index]
            examples.decode_image(record.pop("image"))
        except ValueError as error:
            where = split.locate(index)
            unreadable.append(f"{where}: {str(error).removeprefix(f'{where}: ')}")
        else:
            records.append(record)
    return records, unreadable


def findings(
    split: str, records: Sequence[dict[str, Any]], models: Any
) -> Iterator[Finding]:
    """Measure records; see the module.

    Args:
        split: Their split.
        records: Decoded.
        models: `conventions.HandModels` to re-pose them with.
    """
    measured: dict[tuple[str, str, str], list[np.ndarray]] = defaultdict(list)
    for record in records:
        side = "right" if record["is_right"] else "left"
        for (quantity, unit), values in _of(record, models).items():
            measured[side, quantity, unit].append(values)
    for (side, quantity, unit), values in sorted(measured.items(), reverse=True):
        joined = np.concatenate(values)
        yield Finding(
            split,
            side,
            quantity,
            unit,
            mean=float(joined.mean()),
            largest=float(joined.max()),
            count=len(values),
        )


def contradictions(
    split: str, records: Sequence[dict[str, Any]], models: Any, max_mm: float
) -> list[str]:
    """Return a line about records whose pose is more than `max_mm` off their joints.

    Without hand models, what preparation measured is looked at.
    """
    from data_pipelines.sources import reposing

    off = {}
    for record in records:
        apart = max(reposing.apart_mm(record, models), float(record["repose_mm"]))
        if apart > max_mm:
            off[record["key"]] = apart
    if not off:
        return []
    worst = max(off, key=lambda key: off[key])
    return [
        f"{split}: the poses of {len(off):,} of {len(records):,} records are more than "
        f"{max_mm:g} mm off their own joints, the most in {worst} ({off[worst]:.0f} mm)"
    ]


def _of(record: dict[str, Any], models: Any) -> dict[tuple[str, str], np.ndarray]:
    from handjax.geometry import crop

    found: dict[tuple[str, str], np.ndarray] = {}
    points2d, points3d = record["joints2d"].astype(float), record["joints3d"]
    height, width = record["image_size"]
    known = points2d[:, 2] > 0
    if known.any():
        points = points2d[known, :2]
        inside = ((points >= -0.5) & (points <= [width - 0.5, height - 0.5])).all(-1)
        found["inside", ""] = inside.astype(float)
    both = known & (points3d[:, 3] > 0) & record["has_joints3d"] & record["has_K"]
    if both.any():
        pixels = crop.project(points3d[:, :3].astype(float), record["K"].astype(float))
        found["reproject", "px"] = _distance(pixels[both], points2d[both, :2])
    return found | _reposed(record, models)


def _reposed(record: dict[str, Any], models: Any) -> dict[tuple[str, str], np.ndarray]:
    from data_pipelines.sources import reposing

    hand = reposing.reposed(record, models)
    if hand is None:
        return {}
    found: dict[tuple[str, str], np.ndarray] = {}
    # Without a translation hands are compared wrist on wrist.
    shift = record["mano_transl"] - hand.wrist if record["has_transl"] else np.zeros(3)
    joints, mesh = hand.joints3d + shift, hand.vertices + shift
    for name, group in _JOINT_GROUPS.items():
        rows = [j for j in group if record["joints3d"][j, 3] > 0]
        if rows and record["has_joints3d"]:
            away = _distance(joints[rows], record["joints3d"][rows, :3])
            found[f"repose {name}", "mm"] = 1000 * away
    if record["has_vertices"]:
        found["repose vertices", "mm"] = 1000 * _distance(mesh, record["vertices"])
    return found


def _distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.linalg.norm(a - b, axis=-1)


if __name__ == "__main__":
    sys.exit(main())
