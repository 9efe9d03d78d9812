"""Writes one held-out rendered picture as a JPEG with its hand box, for `make demo`.

The repository ships no photograph of a person: the ones we know of carry research-only
licences. To try your own, run `python -m handjax.predict photo.jpg --workdir runs/demo`.
"""

import json
from pathlib import Path

from absl import app, flags

WORKDIR = flags.DEFINE_string("workdir", None, "A trained workdir.", required=True)
OUTPUT = flags.DEFINE_string("output", None, "Folder to write into.", required=True)
INDEX = flags.DEFINE_integer("index", 5, "Which record of the test split.")


def main(argv: list[str]) -> None:
    """Writes `photo.jpg` and `boxes.json`."""
    del argv
    from data_pipelines import shards
    from handjax import data
    from handjax.checkpoints import load_config

    config = load_config(Path(WORKDIR.value))
    record = shards.open_split(data.dataset_dir(config), "test")[INDEX.value]
    output = Path(OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    (output / "photo.jpg").write_bytes(record["image"])
    half = record["bbox_size"] / 2
    box = [*(record["bbox_center"] - half), *(record["bbox_center"] + half)]
    boxes = {
        "photo.jpg": {
            "box": [float(x) for x in box],
            "side": "right" if record["is_right"] else "left",
        }
    }
    (output / "boxes.json").write_text(json.dumps(boxes, indent=1))
    print(f"Wrote {output / 'photo.jpg'}: test record {INDEX.value}, never trained on.")


if __name__ == "__main__":
    app.run(main)
