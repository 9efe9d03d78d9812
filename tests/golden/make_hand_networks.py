"""Golden outputs of MediaPipe's hand networks, from the TensorFlow Lite runtime.

    pip install ai-edge-litert
    python tests/golden/make_hand_networks.py WHEEL_FOLDER

WHEEL_FOLDER holds the unpacked wheel of mediapipe 0.10.21. Inputs are seeds (see
`picture`), so the file holds outputs alone.
"""

import sys
from pathlib import Path

import numpy as np

FILES = {
    "mediapipe_hand_full": ("hand_landmark/hand_landmark_full.tflite", 224),
    "mediapipe_hand_lite": ("hand_landmark/hand_landmark_lite.tflite", 224),
    "palm_detection_full": ("palm_detection/palm_detection_full.tflite", 192),
}
OUTPUTS = {
    "Identity": "screen_px",
    "Identity_1": "presence",
    "Identity_2": "is_right",
    "Identity_3": "world",
}
"""Names of the landmark networks' outputs in the file, and ours."""
SEEDS = (0, 2)
EVERY = 61
"""Anchors whose outputs are kept."""


def picture(size: int, seed: int) -> np.ndarray:
    """Return noise (seed 0) or a smooth picture, 0..1, (1, size, size, 3)."""
    rng = np.random.default_rng(seed)
    if seed == 0:
        return rng.random((1, size, size, 3), np.float32)
    rows, columns = np.meshgrid(*[np.linspace(0, 1, size)] * 2, indexing="ij")
    waves = rng.uniform(-9, 9, (3, 6, 2)), rng.uniform(0, 6, (3, 6, 1, 1))
    phase = waves[0][..., :1, None] * rows + waves[0][..., 1:, None] * columns
    smooth = 0.5 + np.sin(phase + waves[1]).mean(1) / 2
    return smooth.transpose(1, 2, 0)[None].astype(np.float32)


def run_tflite(path: str | Path, image: np.ndarray) -> dict[str, np.ndarray]:
    """Run a file in the TensorFlow Lite runtime; outputs by their name in the file."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image)
    interpreter.invoke()
    return {
        detail["name"]: interpreter.get_tensor(detail["index"])[0]
        for detail in interpreter.get_output_details()
    }


def outputs(folder: str | Path, name: str, seed: int) -> dict[str, np.ndarray]:
    """Return the outputs of one network, by our names."""
    file, size = FILES[name]
    path = Path(folder) / "mediapipe" / "modules" / file
    found = run_tflite(path, picture(size, seed))
    if name == "palm_detection_full":
        return {"boxes": found["Identity"], "logits": found["Identity_1"][:, 0]}
    return {OUTPUTS[key]: value for key, value in found.items()}


def main() -> None:
    """Write hand_networks.npz beside this file."""
    golden = {}
    for name in FILES:
        for seed in SEEDS:
            for key, value in outputs(sys.argv[1], name, seed).items():
                kept = value[::EVERY] if name == "palm_detection_full" else value
                golden[f"{name}/{seed}/{key}"] = kept
    path = Path(__file__).with_name("hand_networks.npz")
    np.savez_compressed(path, **golden)
    print(f"wrote {path}, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
