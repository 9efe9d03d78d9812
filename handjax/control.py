"""Write control images and captions to train a ControlNet with.

    python -m handjax.control --out OUT
    python -m handjax.control --out OUT --data DIR --what mesh,both --size 512
    python -m handjax.control --out OUT --data DIR --mesh workdir=runs/small

For every example of a split the hand's crop is the target image; beside it come
control images of the kinds of --what, drawn of the annotated mesh or of a model's, and
a caption made from the pose or read from --captions. The same command goes on where an
interrupted one stopped.

Layouts: "imagefolder" (default) is what diffusers' train_controlnet.py reads
(--train_data_dir OUT; the column conditioning_image is the first kind of --what,
further kinds have columns of their own names). "controlnet" is that of the tutorial of
lllyasviel/ControlNet (prompt.json is of the first kind, prompt_<kind>.json of others).

Training a diffusion model is no part of handjax; `python -m handjax.fid` compares what
such a model makes with real pictures.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from handjax.errors import UserError
from handjax.io import command_line
from handjax.io.command_line import Parser

if TYPE_CHECKING:
    from data_pipelines.storage.shards import Split
    from handjax.controlnet.folder import Folder
    from handjax.inference.predictor import HandPredictor

_KINDS = ("mesh", "depth", "normals", "pose2d", "both")
_LAYOUTS = ("imagefolder", "controlnet")
_NUM_TRAIN, _NUM_TEST = 2_000, 200
"""Of the built-in data set that is taken without --data: minutes to render."""


def _parser() -> Parser:
    parser = Parser("control", __doc__)
    add = parser.add_argument
    add("--out", required=True, help="directory that gets a folder for the split")
    add(
        "--data",
        default="",
        help=f"directory of a data set; default: the built-in one ({_NUM_TRAIN:,} "
        f"training and {_NUM_TEST} test pictures, made on first use)",
    )
    add("--split", default="train", help="split of the data set; default: train")
    add(
        "--what",
        default=",".join(_KINDS),
        help=f"some of {', '.join(_KINDS)}, the first of them is what training scripts "
        "take by default; each takes disk and reading time",
    )
    add("--size", type=int, default=256, help="side of the pictures; default: 256")
    add("--num", type=int, default=0, help="the first so many examples; default: all")
    add(
        "--mesh",
        default="truth",
        help="truth: the annotated meshes; workdir=W: those that a trained model sees",
    )
    add("--layout", default=_LAYOUTS[0], choices=_LAYOUTS, help="see above")
    add(
        "--captions",
        default="",
        help='JSON lines {"index": 12, "text": "..."} that replace captions; the list '
        "of a finished folder, with other texts, will do",
    )
    add(
        "--hand", default="open", help="hand model of the data's meshes: open or a file"
    )
    add("--workers", type=int, default=0, help="processes; 0: one per core")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Make or complete the folder; return the exit code."""
    return command_line.run(lambda: _control(_parser().parse_args(argv)), goes_on=True)


def _control(arguments: argparse.Namespace) -> None:
    print(run(arguments))


def run(arguments: argparse.Namespace) -> str:
    """Make the folder; returns what it holds, for people to read."""
    kinds = _checked(arguments)
    from data_pipelines.storage import shards
    from data_pipelines.storage.progress import Report
    from handjax.controlnet import captions
    from handjax.controlnet import workers as control_workers
    from handjax.controlnet.folder import Folder
    from handjax.geometry.crop import CropConfig

    given = captions.read(arguments.captions) if arguments.captions else {}
    meshes = _meshes(arguments)
    data = Path(arguments.data) if arguments.data else _built_in()
    split = shards.open_split(data, arguments.split)
    _check_hand(split, meshes)
    config = CropConfig(size=arguments.size)
    count = min(arguments.num or len(split), len(split))
    out = Path(arguments.out) / arguments.split
    folder = Folder(out, arguments.layout, kinds, count)
    folder.start(_settings(arguments, split, folder, meshes, config.box_scale))
    missing = folder.missing()
    if missing:
        folder.check_space(arguments.size)
        hand = str(meshes.hand)
        job = control_workers.Job(str(data), arguments.split, hand, folder, config)
        predict = meshes.predictor and _predict(meshes.predictor, split)
        done = count - sum(len(part) for part in missing)
        if done:
            print(f"{out}: going on after {done:,} examples", flush=True)
        workers = min(arguments.workers or os.cpu_count() or 1, len(missing))
        with Report("examples", count - done, unit="examples") as report:
            for finished in control_workers.run(job, missing, workers, predict):
                report.add(finished)
    return _described(folder, given, arguments)


def _checked(arguments: argparse.Namespace) -> tuple[str, ...]:
    """Check the arguments and return the kinds of control images."""
    kinds = tuple(dict.fromkeys(arguments.what.split(",")))
    unknown = [kind for kind in kinds if kind not in _KINDS]
    if unknown:
        raise UserError(
            f"--what {arguments.what!r}: {unknown[0]!r} is not one of "
            f"{', '.join(_KINDS)}."
        )
    size = arguments.size
    if not 64 <= size <= 4096 or size % 8:
        raise UserError(
            f"--size {size} must be 64 to 4096 and divisible by 8, as the autoencoders "
            "of diffusion models ask for."
        )
    for name in ("num", "workers"):
        if getattr(arguments, name) < 0:
            raise UserError(f"--{name} {getattr(arguments, name)} must be 0 or more.")
    if not (arguments.mesh == "truth" or arguments.mesh.startswith("workdir=")):
        raise UserError(
            f"--mesh {arguments.mesh!r} must be truth, or workdir=W with the directory "
            "of a trained model."
        )
    return kinds


# --- data and meshes ----------------------------------------------------------------


def _built_in() -> Path:
    """Return the built-in data set's directory, rendered first if it is missing."""
    from handjax.config import schema as configs
    from handjax.data import run_data
    from handjax.mano import model_files

    config = configs.base()
    config.data.num_train, config.data.num_test = _NUM_TRAIN, _NUM_TEST
    opened = run_data.open_data(config, model_files.load("open"))
    print(f"data: {opened.describe()}", flush=True)
    return opened.evaluated


class _Meshes(NamedTuple):
    """Where meshes come from."""

    name: str
    hand: Any
    """Source of the hand model."""
    predictor: "HandPredictor | None" = None


def _meshes(arguments: argparse.Namespace) -> _Meshes:
    if arguments.mesh == "truth":
        return _Meshes("truth", arguments.hand)
    from handjax.geometry.skeleton import HAND
    from handjax.inference.predictor import HandPredictor

    workdir = arguments.mesh.removeprefix("workdir=")
    predictor = HandPredictor.from_workdir(workdir, batch_size=8)
    if predictor.skeleton is not HAND:
        raise UserError(f"{workdir!r} is of a body; control images are of hands.")
    print(f"meshes: {predictor.name}", flush=True)
    return _Meshes(predictor.name, predictor.config.hand.source, predictor)


def _check_hand(split: "Split", meshes: _Meshes) -> None:
    from data_pipelines.storage import schema
    from handjax.controlnet.examples import check_hand
    from handjax.mano import model_files

    if split.counts != schema.HAND:
        raise UserError(
            f"{split.name} is of bodies ({split.counts.joints} joints); control images "
            "are of hands."
        )
    file = model_files.load(meshes.hand)
    if meshes.predictor is None:
        check_hand(split, file)


def _predict(predictor: "HandPredictor", split: "Split"):
    """Build a `control_workers.Predict` from a model."""
    from data_pipelines.loading import examples
    from handjax.controlnet.examples import HandInCamera, LeftOutError, open_record
    from handjax.inference.photos import HandBox, Intrinsics, Photo
    from handjax.inference.prediction import Request

    def predict(part: Sequence[int]) -> dict[int, HandInCamera]:
        wanted: dict[int, Request] = {}
        for index in part:
            try:
                source = open_record(split, index)
                image = examples.decode_image(source.record["image"])
            except (LeftOutError, ValueError):
                continue  # the drawing process meets the same error and notes it
            x0, y0, x1, y1 = source.box_px.tolist()
            wanted[index] = Request(
                Photo(Path(f"record {index}"), image, None),
                HandBox((x0, y0, x1, y1), source.is_right, "given"),
                Intrinsics(source.K, "given"),
            )
        hands = predictor.run(list(wanted.values()))
        return {
            index: HandInCamera(
                hand.vertices + hand.translation,
                hand.joints3d + hand.translation,
            )
            for index, hand in zip(wanted, hands, strict=True)
        }

    return predict


# --- what is made, and what is said of it -------------------------------------------


def _settings(arguments, split, folder: "Folder", meshes: _Meshes, box_scale: float):
    """Return all settings that decide the pictures; captions are not among them."""
    from handjax.controlnet.folder import SCHEMA_VERSION

    names = ("name", "splits", "hand", "made_by")
    return {
        "version": SCHEMA_VERSION,
        "data": {name: split.metadata.get(name) for name in names},
        "split": arguments.split,
        "num": folder.count,
        "what": list(folder.kinds),
        "size": arguments.size,
        "box_scale": box_scale,
        "mesh": meshes.name,
        "hand": Path(str(meshes.hand)).name,
        "layout": arguments.layout,
    }


def _described(
    folder: "Folder", given: dict[int, str], arguments: argparse.Namespace
) -> str:
    summary = folder.finish(given)
    lines = [
        f"{folder.path}: {summary.examples:,} examples, {', '.join(folder.kinds)}, "
        f"{arguments.size} pixels; for {folder.layout.reader}"
    ]
    if given:
        lines.append(
            f"captions: {summary.captions_given:,} of the {len(given):,} in "
            f"{arguments.captions}, the others from the pose"
        )
    if summary.left_out:
        lines.append(f"left out: {summary.describe_left_out()}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
