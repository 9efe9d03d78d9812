"""Writes one held-out rendered picture as a JPEG with its hand box, for `make demo`.

The repository ships no photograph of a person: the ones we know of carry research-only
licences. Your own photo works the same way:

    python -m handjax.predict photo.jpg --workdir runs/demo --output out
"""

import argparse
import json
import sys
from pathlib import Path


def main() -> None:
    """Write `photo.jpg` and `boxes.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", required=True, help="a trained workdir")
    parser.add_argument("--output", required=True, help="folder to write into")
    parser.add_argument("--index", type=int, default=5, help="record of the test split")
    arguments = parser.parse_args()

    from data_pipelines.storage import shards
    from handjax.checkpoints import workdir
    from handjax.data import run_data

    try:
        config = workdir.read_config(arguments.workdir)
        directory = config.data.dir or run_data.default_directory(config.data)
        record = shards.open_split(directory, "test")[arguments.index]
    except (OSError, ValueError, IndexError) as error:
        sys.exit(f"error: {error}")
    low = record["bbox_center"] - record["bbox_size"] / 2
    high = record["bbox_center"] + record["bbox_size"] / 2
    hand = {
        "box": [float(x) for x in (*low, *high)],
        "side": "right" if record["is_right"] else "left",
    }
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    (output / "photo.jpg").write_bytes(record["image"])
    (output / "boxes.json").write_text(json.dumps({"photo.jpg": hand}, indent=1))
    print(f"{output / 'photo.jpg'}: record {arguments.index} of the test split")


if __name__ == "__main__":
    main()
