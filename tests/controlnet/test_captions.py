import json

import numpy as np
import pytest

from handjax.controlnet import captions


def hand(bends=(0, 0, 0, 0, 0), *, left=False):
    """A right hand held up, palm to the camera; each joint turns a third of a bend."""
    joints = np.zeros((21, 3))
    for finger, bend in enumerate(bends):
        x = 0.05 - 0.02 * finger  # the thumb on the right
        at = np.array([x, -0.02 if finger == 0 else -0.09, 0.0])
        joints[4 * finger + 1] = at
        along = at / np.linalg.norm(at)
        turns = (0.0, 0.5, 0.5) if finger == 0 else (1 / 3, 1 / 3, 1 / 3)
        angle = 0.0
        for i, share in enumerate(turns):
            angle += np.deg2rad(bend * share)
            # Towards the palm, which is towards the camera (-z).
            step = np.cos(angle) * along + np.sin(angle) * np.array([0, 0, -1.0])
            at = at + 0.03 * step
            joints[4 * finger + 2 + i] = at
    return joints * ((-1, 1, 1) if left else (1, 1, 1))


def test_bends_are_the_turns_along_a_finger():
    bends = (50, 20, 80, 130, 200)
    np.testing.assert_allclose(captions.finger_bends_deg(hand(bends)), bends, atol=1e-6)
    assert captions.finger_states(hand(bends)) == (
        *("slightly bent", "straight", "slightly bent", "bent", "curled"),
    )


def test_sentences():
    said = captions.describe(hand(), is_right=True)
    assert said == (
        "A right hand with all fingers straight, palm facing the camera, pointing up"
    )
    said = captions.describe(hand((90, 10, 200, 200, 200)), is_right=True)
    assert said == (
        "A right hand with the thumb bent, the index finger straight and the middle, "
        "ring and little fingers curled, palm facing the camera, pointing up"
    )
    said = captions.describe(hand((10, 200, 200, 200, 200)), is_right=True)
    assert "with the thumb straight and the fingers curled," in said
    assert captions.describe(None, is_right=False) == "A left hand"


def test_a_mirror_changes_the_side_alone():
    bends = (10, 20, 90, 90, 200)
    right = captions.describe(hand(bends), is_right=True)
    left = captions.describe(hand(bends, left=True), is_right=False)
    assert left == right.replace("right hand", "left hand")


@pytest.mark.parametrize(
    ("turn", "palm", "pointing"),
    [
        ([[1, 0, 0], [0, 1, 0], [0, 0, 1]], "the camera", "up"),
        # Half a turn about the vertical shows the back of the hand.
        ([[-1, 0, 0], [0, 1, 0], [0, 0, -1]], "away from the camera", "up"),
        # A quarter about the optical axis: up becomes right.
        ([[0, -1, 0], [1, 0, 0], [0, 0, 1]], "the camera", "right"),
        # A quarter about the horizontal: up becomes towards the camera.
        ([[1, 0, 0], [0, 0, -1], [0, 1, 0]], "down", "towards the camera"),
    ],
)
def test_palm_and_hand_are_named_by_camera_axes(turn, palm, pointing):
    turned = hand() @ np.array(turn, float).T
    said = captions.describe(turned + [0.3, -0.2, 0.9], is_right=True)
    assert said.endswith(f"palm facing {palm}, pointing {pointing}")


def test_touching_tips_are_named():
    joints = hand()
    joints[4] = joints[8] + [0.0, 0.0, -0.015]
    assert captions.touching(joints) == ["index"]
    said = captions.describe(joints, is_right=True)
    assert "the tips of the thumb and index finger touching" in said


# --- from a file --------------------------------------------------------------------


def test_captions_of_either_layout_are_read(tmp_path):
    lines = [
        {"file_name": "images/000003.png", "index": 3, "text": "A fist"},
        {"source": "s.png", "target": "t.png", "index": 5, "prompt": "Eine Faust ✊"},
    ]
    path = tmp_path / "captions.jsonl"
    text = "\n".join(json.dumps(x, ensure_ascii=False) for x in lines) + "\n\n"
    path.write_text(text, encoding="utf-8")
    assert captions.read(path) == {3: "A fist", 5: "Eine Faust ✊"}


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('{"index": 0, "text": "a"}\nrubbish', "line 2: 'rubbish' is no"),
        ('{"index": "0", "text": "a"}', "line 1.*NUMBER"),
        ('{"index": -1, "text": "a"}', "line 1"),
        ('{"index": 0, "text": " "}', "line 1"),
        ('{"index": 0}', "line 1"),
        ('{"index": 0, "text": "a"}\n{"index": 0, "text": "b"}', "example 0 has a"),
        ("\n", "no captions in it"),
    ],
)
def test_files_that_are_no_captions_are_refused(tmp_path, text, match):
    path = tmp_path / "captions.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=match):
        captions.read(path)
