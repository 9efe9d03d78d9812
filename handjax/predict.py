"""Reconstruct hands from photos.

    python -m handjax.predict photo.jpg
    python -m handjax.predict left.jpg right.jpg 'more/*.png' folder --output D
    python -m handjax.predict photo.jpg --workdir W --output D
    python -m handjax.predict folder --workdir W --output D --boxes boxes.json

Without --workdir it is the model that comes with handjax. Without --box and --boxes all
hands of a photo are found, with their sides. Hands marked "not sure" are mostly wrong.

Writes `<stem>.json`, `<stem>_overlay.png`, `<stem>_<i>.glb` and `.obj` per photo, with
--explain also explanation sheets, `<stem>_<i>_clusters.png` and
`<stem>_<i>_attention.png`. The exit code is 0 when every photo was reconstructed, 1
when one was skipped, and 2 when nothing could start.

`--boxes` names a JSON file for many photos or several hands, file name -> hand(s):

    {"a.jpg": {"box": [x0, y0, x1, y1], "side": "left"},
     "b.jpg": {"hands": [{"box": [...]}, {"box": [...], "side": "left"}],
               "intrinsics": [fx, fy, cx, cy]}}

Photos that it does not name are treated as without it.
"""

import argparse
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from handjax.errors import UserError, suggest
from handjax.io import command_line
from handjax.io.command_line import Parser, at_least

if TYPE_CHECKING:
    from handjax.inference.photo_predictor import PhotoPredictor
    from handjax.inference.photos import Annotation, HandBox, Photo
    from handjax.inference.prediction import HandPrediction, Request
    from handjax.inference.predictor import HandPredictor


class Options(NamedTuple):
    """What holds for every photo of a run."""

    box: "tuple[float, ...] | None"
    is_right: bool
    intrinsics: "tuple[float, ...] | None"
    boxes: "dict[str, Annotation]"
    detector: Any
    hypotheses: int
    """Hands drawn for each box besides the answer."""
    seed: int
    """Of the hypotheses."""
    explain: bool
    """Whether to write explanation sheets."""
    finds_hands: bool = False
    """Whether the model has a detector of its own: a photo without hands is skipped."""


def _parser() -> Parser:
    parser = Parser("predict", __doc__)
    add = parser.add_argument
    add("photo", nargs="+", help="photos, folders of photos, or patterns")
    add("--workdir", help="directory of a trained model of your own")
    add("--output", default="hands", help="directory for the results; default: hands")
    add(
        "--min_score",
        type=at_least(0, float, most=1),
        default=0.9,
        help="presence below which a detected hand is not sure; default: 0.9",
    )
    add("--stage", help="training stage; default: the last one")
    add("--step", type=at_least(0), help="checkpoint; default: the newest one")
    add("--box", help="box of the hand: x0,y0,x1,y1 in pixels")
    add("--left", action="store_true", help="all hands are left ones")
    add(
        "--intrinsics",
        help="camera of the photo: fx,fy,cx,cy in pixels; default: EXIF's focal "
        "length, else the photo's diagonal",
    )
    add("--boxes", help="JSON file of boxes; see above")
    add(
        "--detector",
        default="auto",
        help="where boxes come from if none is given: auto (handjax's detector), "
        "mediapipe, or none (the middle square of the photo)",
    )
    add("--detector_model", default="", help="MediaPipe's hand_landmarker.task")
    add("--batch_size", type=at_least(1), help="hands at a time")
    add(
        "--tta",
        choices=("released", "mean"),
        help="test-time augmentation: 95 views of each crop, fused as in Hamba's "
        "release or averaged; places of joints in the photo stay those of one view",
    )
    add(
        "--hypotheses",
        type=at_least(0),
        default=0,
        metavar="N",
        help="N hands drawn for each box besides the answer, with confidences, and how "
        "far they are apart; for families that sample, such as mmhmr",
    )
    add(
        "--explain",
        action="store_true",
        help="explanation sheets: heat maps of the clusters of image tokens, attention "
        "of the mesh to the joints; for families that have them, such as tore",
    )
    add("--seed", type=at_least(0), default=0, help="of the hypotheses; default: 0")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Reconstruct the hands of photos; return the exit code."""
    return command_line.run(lambda: _predict(_parser().parse_args(argv)))


def _predict(arguments: argparse.Namespace) -> int:
    from handjax.inference import photos
    from handjax.io import compile_cache

    paths = photos.listed_all(arguments.photo)
    folders = [Path(name) for name in arguments.photo if Path(name).is_dir()]
    _check_flags(arguments)
    _check_output(Path(arguments.output), folders)
    options, word = _options(arguments)
    _check_names(arguments.boxes, options.boxes, paths)
    if not arguments.workdir:
        word = "" if options.box else "; boxes by handjax's detector"
    other = [name for folder in folders for name in photos.passed_over(folder)]
    if other:
        print(
            f"{len(other)} pictures are left out for their format, first {other[0]}; "
            f"convert them to one of {', '.join(photos.SUFFIXES)}.",
            file=sys.stderr,
        )
    single = len(paths) == 1 and not folders
    if single:
        photos.read(paths[0])  # before the model is loaded: mistakes show at once
    if compile_cache.use():
        print("compiling for this machine (about 20 s, once)", flush=True)
    predictor = _load(arguments, 1 if single else 8)
    if not arguments.workdir and options.box is None:
        options = options._replace(detector=predictor.find, finds_hands=True)
    # Before any photo: a family that has none fails at once.
    if options.hypotheses:
        predictor.check_hypotheses(options.hypotheses)
    if options.explain:
        predictor.check_explains()
    print(f"model: {predictor.name}{word}")
    failed = predict_paths(predictor, paths, options, arguments.output)
    if failed:
        print(f"{failed} of {len(paths)} photos were skipped.", file=sys.stderr)
    return 1 if failed else 0


def _check_flags(arguments: argparse.Namespace) -> None:
    """Refuse flags that another one makes meaningless."""
    for name in ("stage", "step", "tta", "batch_size"):
        if not arguments.workdir and getattr(arguments, name) is not None:
            raise UserError(f"--{name} is of a model of your own; give --workdir.")
    if not arguments.workdir and arguments.detector != "auto":
        raise UserError("--detector is of a model of your own; give --workdir.")
    for name in ("box", "left"):
        if arguments.boxes and getattr(arguments, name):
            raise UserError(
                f"--{name} and --boxes say the same of a photo; leave one of them out."
            )


def _check_output(output: Path, folders: list[Path]) -> None:
    """Refuse folders that cannot be written, and those of the photos themselves."""
    if output.resolve() in [folder.resolve() for folder in folders]:
        raise UserError(
            f"--output {output} is the folder of the photos, where results would be "
            "taken for photos; give another one."
        )
    nearest = next(p for p in (output, *output.absolute().parents) if p.exists())
    if not nearest.is_dir():
        raise UserError(f"--output {output}: {nearest} is not a directory.")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"--output {output}: no permission to write in {nearest}.")


def _check_names(
    file: str | None, boxes: "dict[str, Annotation]", paths: list[Path]
) -> None:
    """Refuse entries of --boxes that name no photo: a typo would mean another box."""
    names = {path.name for path in paths}
    unused = [name for name in boxes if name not in names]
    # A file of many photos may be used for one of them.
    if unused and (len(paths) > 1 or not names & set(boxes)):
        others = f" and {len(unused) - 1} more" if len(unused) > 1 else ""
        raise UserError(
            f"--boxes {file}: {unused[0]!r}{others} names no photo"
            f"{suggest(unused[0], names)}"
        )


def _options(arguments: argparse.Namespace) -> tuple[Options, str]:
    from handjax.inference import photos
    from handjax.inference.box_detectors import make

    box = intrinsics = None
    if arguments.box is not None:
        box = photos.parse_numbers(arguments.box, "x0,y0,x1,y1")
    if arguments.intrinsics is not None:
        intrinsics = photos.parse_numbers(arguments.intrinsics, "fx,fy,cx,cy")
        photos.intrinsics_matrix(intrinsics)
    boxes = photos.read_boxes(arguments.boxes) if arguments.boxes else {}
    detector, word = None, ""
    if box is None:
        detector, word = make(
            arguments.detector,
            arguments.detector_model,
            min_score=arguments.min_score,
        )
        word = f"; where no box is given: {word}"
    options = Options(
        box=box,
        is_right=not arguments.left,
        intrinsics=intrinsics,
        boxes=boxes,
        detector=detector,
        hypotheses=arguments.hypotheses,
        seed=arguments.seed,
        explain=arguments.explain,
    )
    return options, word


def _load(
    arguments: argparse.Namespace, batch_size: int
) -> "HandPredictor | PhotoPredictor":
    from handjax.inference.predictor import HandPredictor

    if not arguments.workdir:
        from handjax.inference.load import load

        predictor = load(min_score=arguments.min_score)
        predictor.compile()
        return predictor
    return HandPredictor.from_workdir(
        arguments.workdir,
        stage=arguments.stage,
        step=arguments.step,
        batch_size=arguments.batch_size or batch_size,
        tta=arguments.tta,
        min_score=arguments.min_score,
    )


# --- photos -------------------------------------------------------------------------


def predict_paths(
    predictor: "HandPredictor", paths: list[Path], options: Options, output: str
) -> int:
    """Reconstruct photo after photo in batches; returns how many were skipped."""
    failed, stems = 0, _stems(paths)
    for start in range(0, len(paths), predictor.batch_size):
        group = paths[start : start + predictor.batch_size]
        opened, queue = [], []
        for path in group:
            clock = Clock()
            try:
                wanted = _requests(path, options, clock)
            except (UserError, OSError) as error:
                failed += 1
                command_line.say_error(error)
                continue
            opened.append((path, wanted, clock))
            queue += wanted
        together = Clock()
        predictions = _predictions(predictor, queue, options)
        together.lap("network")
        for path, wanted, clock in opened:
            share = len(wanted) / len(queue)
            clock.seconds["network"] = share * together.seconds["network"]
            clock.start()
            hands, predictions = predictions[: len(wanted)], predictions[len(wanted) :]
            failed += _write(predictor, stems[path], hands, wanted, output, clock)
        if len(paths) > 1:
            print(f"{start + len(group)}/{len(paths)} photos", flush=True)
    return failed


def _predictions(
    predictor: "HandPredictor", queue: "list[Request]", options: Options
) -> "list[HandPrediction]":
    """Reconstruct hands; add the requested hypotheses and explanations."""
    hands = predictor.run(queue)
    if options.hypotheses:
        drawn = predictor.run_hypotheses(queue, options.hypotheses, seed=options.seed)
        pairs = zip(hands, drawn, strict=True)
        hands = [hand._replace(hypotheses=others) for hand, others in pairs]
    if options.explain:
        views = predictor.run_explanations(queue, hands)
        pairs = zip(hands, views, strict=True)
        hands = [hand._replace(explanation=view) for hand, view in pairs]
    return hands


class Clock:
    """Seconds that the steps of a photo took, by name."""

    def __init__(self) -> None:
        """Begin the first step."""
        self.seconds: dict[str, float] = {}
        self.start()

    def start(self) -> None:
        """Begin a step."""
        self._since = time.perf_counter()

    def lap(self, step: str) -> None:
        """End a step and begin the next one."""
        self.seconds[step] = time.perf_counter() - self._since
        self.start()

    def __str__(self) -> str:
        """Name the steps with their milliseconds."""
        steps = (f"{step} {1e3 * s:.0f}" for step, s in self.seconds.items())
        return f"{', '.join(steps)} ms"


def _requests(path: Path, options: Options, clock: Clock) -> "list[Request]":
    """Find one photo's hands: by --box, --boxes, the detector, or the middle."""
    from handjax.inference import photos
    from handjax.inference.predictor import requests

    opened = photos.read(path)
    clock.lap("read")
    noted = options.boxes.get(path.name)
    intrinsics = options.intrinsics
    if noted and noted.intrinsics and intrinsics is None:
        intrinsics = noted.intrinsics
    boxes = _boxes(opened, noted, options)
    clock.lap("detect")
    return requests(opened, boxes, intrinsics=intrinsics)


def _boxes(
    opened: "Photo", noted: "Annotation | None", options: Options
) -> "list[HandBox]":
    from handjax.inference.photos import HandBox, whole_image_box

    if options.box is not None:
        x0, y0, x1, y1 = options.box
        left = not options.is_right
        return [HandBox((x0, y0, x1, y1), not left, "given", side_given=left)]
    if noted:
        return [box._replace(side_given=True) for box in noted.hands]
    if options.detector:
        found = options.detector(opened.image)
        if found and not options.is_right:
            return [b._replace(is_right=False, side_given=True) for b in found]
        if found:
            return found
        if options.finds_hands:
            raise UserError(f"{opened.path}: no hand was found; give --box.")
        print(f"{opened.path}: no hand was detected; the middle square is used.")
    return [HandBox(whole_image_box(opened), options.is_right, "whole_image")]


def _write(predictor, stem: str, hands, wanted, output: str, clock: Clock) -> int:
    from handjax.inference import output_files

    opened, intrinsics = wanted[0].photo, wanted[0].intrinsics
    try:
        output_files.write(
            output,
            stem,
            opened,
            hands,
            intrinsics=intrinsics,
            model=predictor.name,
            root=predictor.config.data.root,
            licence=predictor.licence,
        )
    except OSError as error:
        command_line.say_error(
            f"{opened.path}: results could not be written to {output}: {error}"
        )
        return 1
    clock.lap("files")
    camera = f"camera {intrinsics.source}"
    where = Path(output) / f"{stem}.json"
    print(f"{opened.path.name} -> {where}; {camera}; {clock}", flush=True)
    for hand in hands:
        print(f"  {_described(hand)}", flush=True)
    return 0


def _described(hand: "HandPrediction") -> str:
    """Say of one hand which it is, how sure that is, and how far away."""
    from handjax.inference import output_files

    parts = [f"{hand.box.source} box"]
    if hand.confidence:
        parts.append(f"confidence {hand.confidence:.2f}")
    if hand.presence is not None:
        parts.append(f"presence {hand.presence:.2f}")
    parts.append(f"{math.hypot(*hand.translation):.2f} m away")
    if hand.not_sure:
        parts.append("NOT SURE: such meshes are mostly wrong")
    return f"{output_files.named(hand)}: {', '.join(parts)}{_spread(hand)}"


def _spread(hand) -> str:
    """Describe how far apart a hand's hypotheses are."""
    if hand.hypotheses is None:
        return ""
    number, apart = len(hand.hypotheses.hands), hand.hypotheses.joint_uncertainty_mm
    return (
        f", {number} hypotheses, joints uncertain by {apart.mean():.1f} mm (at most "
        f"{apart.max():.1f})"
    )


def _stems(paths: list[Path]) -> dict[Path, str]:
    """Name the results; no two photos share a name, whatever the case of letters.

    Photos that differ in suffix alone keep it: `a_jpg`, `a_png`.
    """
    counts = Counter(path.stem.casefold() for path in paths)
    stems: dict[Path, str] = {}
    taken: set[str] = set()
    # Names that are theirs alone come first: they stay as they are.
    for path in sorted(paths, key=lambda path: counts[path.stem.casefold()] > 1):
        alone = counts[path.stem.casefold()] == 1
        wanted = path.stem if alone else path.name.replace(".", "_")
        tries = (wanted, *(f"{wanted}-{number}" for number in range(2, len(paths) + 2)))
        stems[path] = next(name for name in tries if name.casefold() not in taken)
        taken.add(stems[path].casefold())
    return stems


if __name__ == "__main__":
    sys.exit(main())
