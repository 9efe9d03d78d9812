import importlib.machinery
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from handjax.inference.box_detectors import MODEL_VARIABLE, make
from handjax.inference.photos import PhotoError


@pytest.fixture
def mediapipe(monkeypatch, tmp_path):
    """A stand-in with MediaPipe's names that finds one left hand in the middle."""
    point = SimpleNamespace
    result = SimpleNamespace(
        hand_landmarks=[[point(x=0.25, y=0.5), point(x=0.75, y=0.9)]],
        handedness=[[SimpleNamespace(category_name="Left", score=0.9)]],
    )
    asked = []
    landmarker = SimpleNamespace(
        create_from_options=lambda options: SimpleNamespace(
            close=lambda: None,
            detect=lambda picture: asked.append((options, picture)) or result,
        )
    )
    keep = lambda **kw: SimpleNamespace(**kw)  # noqa: E731
    vision = SimpleNamespace(HandLandmarker=landmarker, HandLandmarkerOptions=keep)
    module = SimpleNamespace(
        Image=keep,
        ImageFormat=SimpleNamespace(SRGB=1),
        __spec__=importlib.machinery.ModuleSpec("mediapipe", None),
    )
    monkeypatch.setitem(sys.modules, "mediapipe", module)
    monkeypatch.setitem(sys.modules, "mediapipe.tasks", SimpleNamespace())
    python = SimpleNamespace(BaseOptions=keep, vision=vision)
    monkeypatch.setitem(sys.modules, "mediapipe.tasks.python", python)
    model = tmp_path / "hand_landmarker.task"
    model.write_bytes(b"model")
    return model, asked, result


def test_landmarks_become_boxes_in_pixels(mediapipe):
    model, asked, _ = mediapipe
    detector, word = make("mediapipe", str(model))
    assert detector is not None and "MediaPipe" in word
    (hand,) = detector(np.zeros((100, 200, 3), np.uint8))
    assert hand.box_px == pytest.approx((49.5, 49.5, 149.5, 89.5))
    assert not hand.is_right and hand.source == "detector"
    assert asked[0][0].base_options.model_asset_path == str(model)


def test_a_hand_inside_of_a_better_one_is_left_out(mediapipe):
    model, _, result = mediapipe
    point = SimpleNamespace

    def hand(side, score, *corners):
        result.hand_landmarks.append([point(x=x, y=y) for x, y in corners])
        result.handedness.append([point(category_name=side, score=score)])

    result.hand_landmarks.clear(), result.handedness.clear()
    hand("Left", 0.6, (0.3, 0.55), (0.6, 0.85))  # inside of the second
    hand("Left", 0.9, (0.25, 0.5), (0.75, 0.9))
    hand("Right", 0.8, (0.3, 0.55), (0.6, 0.85))  # another hand in front of it
    hand("Left", 0.7, (0.0, 0.0), (0.2, 0.3))  # beside it
    found = make("mediapipe", str(model))[0](np.zeros((100, 200, 3), np.uint8))
    assert [(h.is_right, h.box_px[0]) for h in found] == [
        (False, 49.5),
        (True, 59.5),
        (False, -0.5),
    ]


def test_missing_parts_are_named(mediapipe, monkeypatch, tmp_path):
    monkeypatch.delenv(MODEL_VARIABLE, raising=False)
    with pytest.raises(PhotoError, match="--detector_model"):
        make("mediapipe")
    with pytest.raises(PhotoError, match="no MediaPipe model at"):
        make("mediapipe", str(tmp_path / "absent.task"))
    monkeypatch.delitem(sys.modules, "mediapipe")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(PhotoError, match="pip install"):
        make("mediapipe")


def test_unknown_detector_is_refused():
    assert make("none") == (None, "the middle square")
    with pytest.raises(PhotoError, match="auto, none, mediapipe"):
        make("yolo")
