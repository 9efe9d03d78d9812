"""A folder of control images that ControlNet's training scripts read.

    OUT/<split>/metadata.jsonl            layout "imagefolder"
    OUT/<split>/images/000012.png         the target
    OUT/<split>/mesh/000012.png           a control image of each kind

    OUT/<split>/prompt.json               layout "controlnet"
    OUT/<split>/target/000012.png
    OUT/<split>/source/mesh/000012.png

Examples are made in parts. Each part's pictures are written first, then its lines (in
`.parts`, which loaders pass over), and the list of all examples when every part is
there: what the list names is complete, and an interrupted job goes on at its last part.
"""

import io
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from handjax.controlnet.images import KINDS
from handjax.errors import UserError
from handjax.io import json_files
from handjax.io.atomic_files import write_bytes, write_json
from handjax.io.folders import visible

SCHEMA_VERSION = 1
PART = 16
"""Examples of a part: seconds of work that an interruption costs."""

_TARGET_BYTES, _CONTROL_BYTES = 1.6, 0.35
"""PNG bytes of a pixel, photos and drawings: to guess what the disk must hold."""


class Layout(NamedTuple):
    """Where files stand and what the keys of a line are called."""

    name: str
    reader: str
    """What reads it."""
    targets: str
    """Folder of the target images."""
    controls: str
    """Folder of a kind's control images."""


LAYOUTS = {
    "imagefolder": Layout(
        "imagefolder",
        "diffusers' train_controlnet.py and datasets.load_dataset",
        "images",
        "{kind}",
    ),
    "controlnet": Layout(
        "controlnet",
        "the tutorial dataset of lllyasviel/ControlNet",
        "target",
        "source/{kind}",
    ),
}


class Folder:
    """The pictures of one split, being made or complete."""

    def __init__(self, path: str | Path, layout: str, kinds: Sequence[str], count: int):
        self.path, self.layout = Path(path), LAYOUTS[layout]
        self.kinds, self.count = tuple(kinds), count

    # --- one example ----------------------------------------------------------------

    def target(self, index: int) -> str:
        """Return the path of a target inside the folder."""
        return f"{self.layout.targets}/{index:06d}.png"

    def control(self, kind: str, index: int) -> str:
        """Return the path of a control image inside the folder."""
        return f"{self.layout.controls.format(kind=kind)}/{index:06d}.png"

    def write_picture(self, name: str, image: UInt8[np.ndarray, "_ _ 3"]) -> None:
        """Write a PNG file, complete or not at all."""
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        write_bytes(self.path / name, buffer.getvalue())

    # --- parts ----------------------------------------------------------------------

    def parts(self) -> list[range]:
        """Return the indices of the examples of each part."""
        starts = range(0, self.count, PART)
        return [range(first, min(first + PART, self.count)) for first in starts]

    def missing(self) -> list[range]:
        """Return the parts that are yet to be made."""
        return [part for part in self.parts() if not self._part_file(part).exists()]

    def finish_part(self, part: range, entries: Sequence[dict[str, Any]]) -> None:
        """Note the examples of a part whose pictures are all written."""
        write_bytes(self._part_file(part), _lines(entries))

    def entries(self) -> Iterator[dict[str, Any]]:
        """Yield the metadata of every example, in order."""
        for part in self.parts():
            text = self._part_file(part).read_text(encoding="utf-8")
            yield from map(json.loads, text.splitlines())

    def _part_file(self, part: range) -> Path:
        return self.path / ".parts" / f"{part.start:06d}-{part.stop:06d}.jsonl"

    # --- the whole ------------------------------------------------------------------

    def start(self, settings: dict[str, Any]) -> None:
        """Note what is being made; go on with what was made of the same.

        Raises:
            UserError: The folder holds pictures that were made otherwise.
        """
        path = self.path / "control.json"
        # As they come back from the file: tuples as lists.
        settings = json.loads(json.dumps(settings))
        if path.exists():
            advice = "Choose another --out, or delete that folder."
            before = json_files.read(path, {"settings": dict}, advice)["settings"]
            keys = sorted({*before, *settings})
            changed = [
                f"{key} {before.get(key)!r}, not {settings.get(key)!r}"
                for key in keys
                if before.get(key) != settings.get(key)
            ]
            if changed:
                more = f" (and {len(changed) - 1} more)" if changed[1:] else ""
                raise UserError(
                    f"{str(self.path)!r} holds pictures made with {changed[0]}{more}. "
                    "Choose another --out, or delete that folder."
                )
            return
        if self.path.is_dir() and visible(self.path):
            raise UserError(
                f"{str(self.path)!r} is not empty, and nothing in it says that it "
                "holds control images. Choose another --out."
            )
        write_json(
            path,
            {
                "schema": "handjax/control",
                "schema_version": SCHEMA_VERSION,
                "settings": settings,
                "for": self.layout.reader,
                "pixels": {kind: KINDS[kind] for kind in self.kinds},
            },
        )

    def check_space(self, size: int) -> None:
        """Refuse to begin what the disk will not hold, by a rough guess.

        Raises:
            UserError: Says how much is needed and how much is free.
        """
        pixels = size * size * sum(len(part) for part in self.missing())
        needed = pixels * (_TARGET_BYTES + _CONTROL_BYTES * len(self.kinds))
        free = shutil.disk_usage(self.path).free
        if needed > free:
            raise UserError(
                f"The pictures take about {needed / 1e9:.1f} GB, and the disk of "
                f"{str(self.path)!r} has {free / 1e9:.1f} GB free. Choose another "
                "--out, fewer kinds (--what) or fewer examples (--num)."
            )

    def finish(self, captions: dict[int, str]) -> "Summary":
        """Write the list of all examples; where a caption is given, it is taken."""
        kept, left_out, given = [], {}, 0
        for entry in self.entries():
            if "left_out" in entry:
                reason = entry["left_out"].partition(":")[0]
                left_out[reason] = left_out.get(reason, 0) + 1
                continue
            if entry["index"] in captions:
                entry["caption"] = captions[entry["index"]]
                given += 1
            kept.append(entry)
        if not kept:
            raise UserError(
                f"None of {self.count} records gives an example: {_counted(left_out)}. "
                "Choose kinds that the data are annotated for (--what), or a model's "
                "meshes (--mesh workdir=W)."
            )
        self._sweep()
        for name, lines in self._lists(kept).items():
            write_bytes(self.path / name, _lines(lines))
        return Summary(len(kept), given, left_out)

    def _sweep(self) -> None:
        """Remove what killed processes left of pictures they were writing."""
        for name in (self.target(0), *(self.control(kind, 0) for kind in self.kinds)):
            for left in (self.path / name).parent.glob(".*.png.*"):
                left.unlink(missing_ok=True)

    def _lists(self, kept: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
        """Return the files that list the examples, and their lines."""
        if self.layout.name == "imagefolder":
            return {"metadata.jsonl": [self._row(entry) for entry in kept]}
        return {
            "prompt.json" if kind == self.kinds[0] else f"prompt_{kind}.json": [
                {
                    "source": self.control(kind, entry["index"]),
                    "target": self.target(entry["index"]),
                    "prompt": entry["caption"],
                    **_facts(entry),
                }
                for entry in kept
            ]
            for kind in self.kinds
        }

    def _row(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Build one line of metadata.jsonl.

        `datasets` opens what a key that ends in `file_name` names: the key alone gives
        the column "image", `mesh_file_name` the column "mesh".
        """
        first, *others = self.kinds
        index = entry["index"]
        return {
            "file_name": self.target(index),
            "conditioning_image_file_name": self.control(first, index),
            **{f"{kind}_file_name": self.control(kind, index) for kind in others},
            "text": entry["caption"],
            **_facts(entry),
        }


class Summary(NamedTuple):
    """What a folder holds."""

    examples: int
    captions_given: int
    left_out: dict[str, int]
    """Reason -> number of records."""

    def describe_left_out(self) -> str:
        """Say how many records gave no example, and why; "" where all did."""
        return _counted(self.left_out)


def _counted(reasons: dict[str, int]) -> str:
    return ", ".join(f"{count} x {reason}" for reason, count in reasons.items())


def _facts(entry: dict[str, Any]) -> dict[str, Any]:
    names = ("index", "is_right", "depth_range_m")
    return {name: entry[name] for name in names if name in entry}


def _lines(entries: Sequence[dict[str, Any]]) -> bytes:
    text = [json.dumps(e, ensure_ascii=False, allow_nan=False) + "\n" for e in entries]
    return "".join(text).encode()
