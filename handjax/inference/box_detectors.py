"""Hand boxes for a photo without any: by handjax's detector, or by MediaPipe's own.

`HandDetector` comes with handjax. MediaPipe's landmarker is for comparison; its wheel
(`pip install mediapipe`) ships no model: `--detector_model` or the environment variable
HANDJAX_HAND_LANDMARKER names its `hand_landmarker.task` file.
"""

import atexit
import functools
import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from handjax.detection.hand_detector import (
    COVERED,
    SURE,
    HandDetector,
    covered_share,
)
from handjax.inference import photos
from handjax.inference.photos import HandBox, PhotoError
from handjax.io import pixels

MODES = ("auto", "none", "mediapipe")
MODEL_VARIABLE = "HANDJAX_HAND_LANDMARKER"

Detector = Callable[[UInt8[np.ndarray, "height width 3"]], list[HandBox]]

_MIN_CONFIDENCE = 0.5
_MAX_HANDS = 8


def make(
    mode: str, model: str = "", *, min_score: float | int = SURE
) -> tuple[Detector | None, str]:
    """Return the detector for `mode`, and one line to print about it.

    Args:
        mode: "auto" (handjax's detector), "mediapipe" or "none".
        model: Path of `hand_landmarker.task` for "mediapipe"; "" looks at the
            environment variable.
        min_score: Presence from which handjax's detector calls a hand sure.

    Raises:
        PhotoError: `mode` is unknown, or "mediapipe" cannot be had; says what to do.
    """
    if mode not in MODES:
        raise PhotoError(f"--detector={mode!r} is not one of {', '.join(MODES)}.")
    if mode == "none":
        return None, "the middle square"
    if mode == "auto":
        finder = HandDetector(min_score=min_score)
        return functools.partial(find_boxes, finder), "boxes by handjax's detector"
    missing = _missing(model)
    if missing:
        raise PhotoError(f"--detector=mediapipe: {missing}")
    return _mediapipe(_model_path(model)), "boxes by MediaPipe"


def find_boxes(
    detector: HandDetector, image: UInt8[np.ndarray, "height width 3"]
) -> list[HandBox]:
    """Return the boxes of all hands, the surest first, each with its reading."""
    boxes = []
    for hand in detector.find(image):
        x0, y0, x1, y1 = (float(v) for v in hand.box_px)
        boxes.append(HandBox((x0, y0, x1, y1), hand.is_right > 0.5, "detector", hand))
    return photos.in_photo(boxes, image)


def _model_path(model: str) -> str:
    return model or os.environ.get(MODEL_VARIABLE, "")


def _missing(model: str) -> str:
    if importlib.util.find_spec("mediapipe") is None:
        return "mediapipe is not installed; run pip install mediapipe."
    path = _model_path(model)
    if not path:
        return (
            "MediaPipe's hand_landmarker.task is not named; give --detector_model or "
            f"set {MODEL_VARIABLE}."
        )
    if not Path(path).is_file():
        return f"there is no MediaPipe model at {path}."
    return ""


def _covered(a: Sequence[float], b: Sequence[float]) -> bool:
    return covered_share(np.asarray(a), np.asarray(b)) > COVERED


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
    # Left to the interpreter's end, it prints a traceback of its own.
    atexit.register(landmarker.close)

    def detect(image):
        image = pixels.from_array(image)
        picture = mp.Image(image_format=mp.ImageFormat.SRGB, data=image)
        result = landmarker.detect(picture)
        height, width = image.shape[:2]
        hands: list[HandBox] = []
        found = zip(result.hand_landmarks, result.handedness, strict=True)
        # MediaPipe may find a hand again inside of itself, with a lower score.
        for points, side in sorted(found, key=lambda hand: -hand[1][0].score):
            x = np.array([p.x for p in points]) * width - 0.5
            y = np.array([p.y for p in points]) * height - 0.5
            box = (float(x.min()), float(y.min()), float(x.max()), float(y.max()))
            is_right = side[0].category_name == "Right"
            same_side = [h.box_px for h in hands if h.is_right == is_right]
            if not any(_covered(box, other) for other in same_side):
                hands.append(HandBox(box, is_right, "detector"))
        return photos.in_photo(hands, image)

    return detect
