r"""Compare handjax's hand detector with MediaPipe's own pipeline on a folder of photos.

    python -m venv venv-mediapipe
    venv-mediapipe/bin/pip install mediapipe==0.10.21
    python scripts/compare_detectors.py PHOTOS \
        --mediapipe venv-mediapipe/bin/python [--truth truth.json]

MediaPipe needs another numpy, so it runs in an environment of its own. Without
`--mediapipe` only handjax runs. The table has, for each photo and pipeline, the number
of sure hands (handjax: presence of 0.9; MediaPipe: what it returns), the milliseconds
of CPU time, the side of the first hand, and the mean distance of its points to the
truth and of the two pipelines' points to each other, in % of the larger side of the
box. `--truth` is a JSON file, name of a photo -> list of hands, each a list of 21 x, y.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from handjax.io.folders import visible

SUFFIXES = (".jpg", ".jpeg", ".png")


class Hand(NamedTuple):
    """A hand, as both pipelines give it."""

    points_px: list[list[float]]
    is_right: float
    score: float


def main() -> int:
    """Run both pipelines and print the table; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", type=Path)
    parser.add_argument("--mediapipe", help="python of an environment that has it")
    parser.add_argument("--truth", type=Path)
    parser.add_argument("--variant", default="mediapipe_hand_full")
    parser.add_argument("--inside-mediapipe", action="store_true", help="internal")
    arguments = parser.parse_args()
    paths = [p for p in visible(arguments.photos) if p.suffix.lower() in SUFFIXES]
    if not paths:
        print(f"error: {arguments.photos} has no photo.", file=sys.stderr)
        return 2
    if arguments.inside_mediapipe:
        print(json.dumps(_measured(paths, _mediapipe())))
        return 0
    results = {"handjax": _measured(paths, _handjax(arguments.variant))}
    if arguments.mediapipe:
        command = [arguments.mediapipe, __file__, str(arguments.photos)]
        ran = subprocess.run(
            [*command, "--inside-mediapipe"], capture_output=True, text=True
        )
        if ran.returncode:
            print(f"error: {ran.stderr[-2000:]}", file=sys.stderr)
            return 2
        results["mediapipe"] = json.loads(ran.stdout)
    truth = json.loads(arguments.truth.read_text()) if arguments.truth else {}
    print(table(results, truth))
    return 0


def _measured(paths: list[Path], find: Any) -> dict[str, Any]:
    """Hands and CPU milliseconds of every photo."""
    results = {}
    for i, path in enumerate(paths):
        image = np.ascontiguousarray(cv2.imread(str(path))[..., ::-1])
        if i == 0:
            find(image)  # compiles, and loads
        start = time.process_time()
        hands = find(image)
        spent = 1000 * (time.process_time() - start)
        results[path.name] = {"hands": [tuple(h) for h in hands], "ms": spent}
    return results


def _handjax(variant: str) -> Any:
    from handjax.detection.hand_detector import HandDetector

    detector = HandDetector(variant)

    def find(image: np.ndarray) -> list[Hand]:
        return [
            Hand(hand.landmarks2d_px.tolist(), hand.is_right, hand.presence)
            for hand in detector.find(image)
            if hand.sure
        ]

    return find


def _mediapipe() -> Any:
    import mediapipe as mp

    hands = mp.solutions.hands.Hands(static_image_mode=True, max_num_hands=8)

    def find(image: np.ndarray) -> list[Hand]:
        result = hands.process(image)
        size = np.array(image.shape[1::-1])
        found = []
        for points, side in zip(
            result.multi_hand_landmarks or (),
            result.multi_handedness or (),
            strict=True,
        ):
            xy = np.array([[p.x, p.y] for p in points.landmark]) * size - 0.5
            label = side.classification[0]
            # Its labels are for mirror images.
            right = label.score if label.label == "Left" else 1 - label.score
            found.append(Hand(xy.tolist(), right, label.score))
        return found

    return find


def table(results: dict[str, Any], truth: dict[str, Any]) -> str:
    """Return the comparison as a Markdown table."""
    names = list(results)
    columns = [
        f"{n}: {c}" for n in names for c in ("hands", "side", "ms", "to truth %")
    ]
    lines = [["photo", *columns, "apart %"]]
    errors: dict[str, list[float]] = {name: [] for name in names}
    for photo in results[names[0]]:
        row, found = [photo], {}
        for name in names:
            entry = results[name][photo]
            found[name] = [np.array(hand[0]) for hand in entry["hands"]]
            error = [_nearest(np.array(t), found[name]) for t in truth.get(photo, ())]
            errors[name] += [e for e in error if e is not None]
            side = f"{entry['hands'][0][1]:.2f}" if found[name] else ""
            row += [str(len(found[name])), side, f"{entry['ms']:.0f}", _shown(error)]
        apart = [_nearest(p, found[names[-1]]) for p in found[names[0]]]
        lines.append([*row, _shown(apart) if len(names) > 1 else ""])
    lines.insert(1, ["---"] * len(lines[0]))
    text = ["| " + " | ".join(line) + " |" for line in lines]
    for name in names:
        entries = results[name].values()
        some = sum(bool(entry["hands"]) for entry in entries)
        median = np.median([entry["ms"] for entry in entries])
        mean = f"{np.mean(errors[name]):.1f} %" if errors[name] else "not known"
        text.append(
            f"{name}: a hand in {some} of {len(entries)} photos, median {median:.0f} "
            f"CPU ms; mean error on {len(errors[name])} annotated hands: {mean}"
        )
    return "\n".join(text)


def _nearest(points: np.ndarray, others: list[np.ndarray]) -> float | None:
    """Mean distance to the nearest hand, in % of the box; None if it is missed."""
    side = np.ptp(points, axis=0).max()
    apart = [np.linalg.norm(points - o, axis=1).mean() / side * 100 for o in others]
    return min(apart) if apart and min(apart) < 50 else None


def _shown(values: list[float | None]) -> str:
    return ", ".join("missed" if v is None else f"{v:.1f}" for v in values)


if __name__ == "__main__":
    sys.exit(main())
