"""Make hands that show what a text says.

    python -m handjax.text_to_mesh a b y --workdir W --output D
    python -m handjax.text_to_mesh "a hand that points" --workdir W --output D --num 8

`W` is a run of a config whose model reads texts (`configs/mmhmr.py:text`). Writes for
each text `<text>.json`, `<text>.png` and, for each of its hands, `<text>_<i>.glb` and
`.obj`, the most confident hand first. The texts that a model with a closed set of
labels knows are listed when another is asked for. The exit code is 0, or 2 when nothing
was made.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from handjax.errors import UserError
from handjax.io import command_line
from handjax.io.command_line import Parser, at_least

if TYPE_CHECKING:
    import numpy as np

SCHEMA = "handjax/text_to_mesh"
SCHEMA_VERSION = 1


class GeneratedHands(NamedTuple):
    """Hands of one text, the most confident first; right ones, as models see."""

    text: str
    vertices: "np.ndarray"
    """(hand, vertex, 3), metres, camera axes, relative to the root joint."""
    joints3d: "np.ndarray"
    """(hand, joint, 3), same frame."""
    indices: "np.ndarray"
    """(hand, token), the chosen codes."""
    confidence: "np.ndarray"
    """(hand,), mean probability of the chosen codes."""


class TextToMesh:
    """A trained model of texts.

        make = TextToMesh.from_workdir("runs/text")
        make(["a", "y"])[0].vertices  # (4, 778, 3)

    Hands differ by what is drawn: `config.model` says how (top-5 % sampling in the
    paper), `seed` which.
    """

    def __init__(
        self,
        config: Any,
        model: Any,
        variables: Any,
        *,
        num: int = 4,
        seed: int = 0,
        name: str = "",
    ):
        """Take a model.

        Args:
            config: Of its run.
            model: The family's Model.
            variables: Its Flax collections.
            num: Hands of each text.
            seed: Of the draws.
            name: Of the model, for reports.

        Raises:
            UserError: The model reads no texts, or `num` is none.
        """
        import functools

        import jax

        from handjax.family import hand_constants
        from handjax.nn.text import text_encoder

        if config.model.get("condition", "image") != "text":
            raise UserError(
                f"{name or config.family} reads images, not texts; train a model that "
                "does: python -m handjax.train --config configs/mmhmr.py:text."
            )
        if num < 1:
            raise UserError(f"--num={num} hands of each text: it must be 1 or more.")
        self.config, self.name = config, name
        self.faces = jax.device_get(variables["constants"]["faces"])
        self.skeleton = hand_constants.skeleton_of(variables)
        self._variables, self._key = variables, jax.random.key(seed)
        self._encode = text_encoder.tokenizer(
            config.model.text,
            labels=config.model.labels,
            vocabulary=config.data.vocabulary,
        )
        self._draw = jax.jit(
            functools.partial(model.apply, method="hypotheses", count=num)
        )

    @classmethod
    def from_workdir(
        cls,
        workdir: str | Path,
        *,
        stage: str | None = None,
        step: int | None = None,
        num: int = 4,
        seed: int = 0,
        vocabulary: str = "",
    ) -> "TextToMesh":
        """Load the newest checkpoint of the last stage.

        Args:
            workdir: Directory of a `handjax.train` run.
            stage: Another stage than the last.
            step: Another checkpoint than the newest.
            num: Hands of each text.
            seed: Of the draws.
            vocabulary: File of CLIP's vocabulary, if it moved since training.

        Raises:
            MissingFileError: The workdir has no such checkpoint.
            UserError: The stage makes no hands of texts.
        """
        from handjax.checkpoints.workdir import load_for_inference
        from handjax.config.schema import LABELLED_POSES

        changes = [("data.vocabulary", vocabulary)] if vocabulary else []
        config, model, variables, found, step = load_for_inference(
            workdir, stage, step, change=lambda config: _changed(config, changes)
        )
        name = f"{config.family}, stage {found}, step {step}"
        reads = config.stages[found].data == LABELLED_POSES
        if config.model.get("condition", "image") == "text" and not reads:
            raise UserError(
                f"{str(workdir)!r}: stage {found!r} (step {step}) reads no texts yet; "
                "train the next stage with handjax.train first."
            )
        return cls(config, model, variables, num=num, seed=seed, name=name)

    def __call__(self, texts: Sequence[str]) -> list[GeneratedHands]:
        """Make the hands of each text.

        Raises:
            UserError: A text cannot be read; says which can.
        """
        import jax
        import numpy as np

        drawn = self._draw(self._variables, self._encode(texts), key=self._key)
        fields = ("vertices", "joints3d", "indices", "confidence")
        arrays = [np.asarray(jax.device_get(getattr(drawn, name))) for name in fields]
        return [
            GeneratedHands(text, *(array[i] for array in arrays))
            for i, text in enumerate(texts)
        ]


def _changed(config: Any, changes: Sequence[tuple[str, str]]) -> Any:
    from handjax.config import files

    return files.override(config, changes)


# --- files ---------------------------------------------------------------------------


def write(folder: Path, stem: str, hands: GeneratedHands, make: TextToMesh) -> Path:
    """Write the files of one text; the JSON comes last and is returned.

    Where it stands, the others are complete.
    """
    import cv2
    import numpy as np

    from handjax.io import atomic_files
    from handjax.visualization import mesh_export, render

    faces = mesh_export.outward_faces(make.faces, is_right=True)
    names = []
    for i, vertices in enumerate(hands.vertices.astype(np.float64)):
        mesh = mesh_export.HandMesh(f"right_hand_{i}", vertices, faces)
        names.append([f"{stem}_{i}.glb", f"{stem}_{i}.obj"])
        mesh_export.write_glb(folder / names[i][0], [mesh])
        mesh_export.write_obj(folder / names[i][1], [mesh])
    pictures = [render.turned_view(v, faces) for v in hands.vertices]
    page = render.side_by_side(pictures, columns=min(len(pictures), 8))
    _, data = cv2.imencode(".png", page[..., ::-1])
    atomic_files.write_bytes(folder / f"{stem}.png", data.tobytes())
    path = folder / f"{stem}.json"
    atomic_files.write_json(path, as_json(hands, make, names))
    return path


def as_json(
    hands: GeneratedHands, make: TextToMesh, names: Sequence[Sequence[str]]
) -> dict[str, Any]:
    """Return all that was made as JSON values, with frames and units stated."""
    import numpy as np

    def rounded(values: Any, digits: int) -> list:
        return np.round(np.asarray(values, np.float64), digits).tolist()

    return {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "text": hands.text,
        "model": make.name,
        "units": {"3d": "metres"},
        "frames": {
            "vertices": "camera axes (OpenCV: x right, y down, z forward), relative to "
            "the root joint",
            "joints3d": "the same",
            "meshes": "GLB and OBJ: x right, y up, z towards the viewer, relative to "
            "the root joint",
        },
        "root_joint": make.config.data.root,
        "joint_names": list(make.skeleton.joints),
        "hands": [
            {
                "side": "right",
                "confidence": round(float(hands.confidence[i]), 5),
                "token_indices": hands.indices[i].tolist(),
                "joints3d": rounded(hands.joints3d[i], 6),
                "vertices": rounded(hands.vertices[i], 6),
                "files": list(names[i]),
            }
            for i in range(len(hands.vertices))
        ],
    }


def stems(texts: Sequence[str]) -> list[str]:
    """Name the files of texts: letters and digits, numbered where equal."""
    found: list[str] = []
    for text in texts:
        plain = re.sub(r"\W+", "_", text).strip("_")[:40] or "text"
        stem, number = plain, 1
        while stem.lower() in map(str.lower, found):
            number += 1
            stem = f"{plain}-{number}"
        found.append(stem)
    return found


# --- entry ---------------------------------------------------------------------------


def _parser() -> Parser:
    parser = Parser("text-to-mesh", __doc__)
    add = parser.add_argument
    add("text", nargs="+", help="what the hand is to show")
    add("--workdir", required=True, help="directory of a trained model")
    add("--output", required=True, help="directory that gets the results")
    add("--stage", help="training stage; default: the last one")
    add("--step", type=at_least(0), help="checkpoint; default: the newest one")
    add("--num", type=int, default=4, help="hands of each text; default: 4")
    add("--seed", type=at_least(0), default=0, help="of the draws; default: 0")
    add("--vocabulary", default="", help="CLIP's, if it moved since training")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Make the hands of texts; return the exit code."""
    return command_line.run(lambda: _make(_parser().parse_args(argv)))


def _make(arguments: argparse.Namespace) -> None:
    make = TextToMesh.from_workdir(
        arguments.workdir,
        stage=arguments.stage,
        step=arguments.step,
        num=arguments.num,
        seed=arguments.seed,
        vocabulary=arguments.vocabulary,
    )
    print(f"model: {make.name}")
    made = make(arguments.text)
    folder = Path(arguments.output)
    folder.mkdir(parents=True, exist_ok=True)
    for stem, hands in zip(stems(arguments.text), made, strict=True):
        path = write(folder, stem, hands, make)
        sure = ", ".join(f"{value:.2f}" for value in hands.confidence)
        print(f"{hands.text}: {len(hands.vertices)} hands ({sure}), {path}")


if __name__ == "__main__":
    sys.exit(main())
