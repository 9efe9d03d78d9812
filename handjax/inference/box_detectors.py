"""Hand boxes found by MediaPipe, where the user has it (`pip install handjax[detect]`).

MediaPipe's wheel ships no model: its `hand_landmarker.task` file is named by
`--detector_model` or the environment variable HANDJAX_HAND_LANDMARKER.
"""

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from handjax.inference.photos import HandBox, PhotoError

MODES = ("auto", "none", "mediapipe")
MODEL_VARIABLE = "HANDJAX_HAND_LANDMARKER"

Detector = Callable[[UInt8[np.ndarray, "height width 3"]], list[HandBox]]

_MIN_CONFIDENCE = 0.5
_MAX_HANDS = 8


def make(mode: str, model: str = "") -> tuple[Detector | None, str]:
    """Return the detector for `mode`, and one line to print about it.

    Args:
        mode: "none"; "mediapipe" (it has to work); "auto" (used where it can be).
        model: Path of `hand_landmarker.task`; "" looks at the environment variable.

    Raises:
        PhotoError: `mode` is unknown, or "mediapipe" cannot be had; says what to do.
    """
    if mode not in MODES:
        raise PhotoError(f"--detector={mode!r} is not one of {', '.join(MODES)}.")
    if mode == "none":
        return None, "the middle square"
    missing = _missing(model)
    if missing and mode == "mediapipe":
        raise PhotoError(f"--detector=mediapipe: {missing}")
    if missing:
        return None, f"the middle square ({missing})"
    return _mediapipe(_model_path(model)), "boxes by MediaPipe"


def _model_path(model: str) -> str:
    return model or os.environ.get(MODEL_VARIABLE, "")


def _missing(model: str) -> str:
    if importlib.util.find_spec("mediapipe") is None:
        return "mediapipe is not installed; run pip install 'handjax[detect]'."
    path = _model_path(model)
    if not path:
        return (
            "MediaPipe's hand_landmarker.task is not named; give --detector_model or "
            f"set {MODEL_VARIABLE}."
        )
    if not Path(path).is_file():
        return f"there is no MediaPipe model at {path}."
    return ""


def _mediapipe(model: str) -> Detector:
    import mediapipe as mp
    from mediapipe.tasks.python import BaseOptions, vision

    landmarker = vision.HandLandmarker.create_from_options(
        vision.HandLandmarkerOptions(
            base_options=BaseOptions(model_asset_path=model),
            num_hands=_MAX_HANDS,
            min_hand_detection_confidence=_MIN_CONFIDENCE,
        )
    )

    def detect(image):
        picture = mp.Image(
            image_format=mp.ImageFormat.SRGB, data=np.ascontiguousarray(image)
        )
        result = landmarker.detect(picture)
        height, width = image.shape[:2]
        hands = []
        for points, side in zip(result.hand_landmarks, result.handedness, strict=True):
            x = np.array([p.x for p in points]) * width - 0.5
            y = np.array([p.y for p in points]) * height - 0.5
            box = (float(x.min()), float(y.min()), float(x.max()), float(y.max()))
            is_right = side[0].category_name == "Right"
            hands.append(HandBox(box, is_right, "detector"))
        return hands

    return detect
