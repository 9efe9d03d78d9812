"""One sentence about a hand, made from its joints, and captions that a file brings.

MMHMR's paper asks a vision-language model for sentences such as "A right hand with
fingers slightly bent, palm facing upward". These are made of the same parts from the
pose alone, so that nothing has to be downloaded and every word has a definition.

Conventions: joints in `skeleton.JOINTS` order, metres, OpenCV camera axes (x right, y
down, z forward), the hand as the picture shows it (left hands not mirrored).
"""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from handjax.errors import UserError
from handjax.geometry.skeleton import FINGERS
from handjax.io import json_files

BENDS_DEG = (("straight", 45.0), ("slightly bent", 100.0), ("bent", 160.0))
"""A finger is the first of these whose limit its bend is under, else "curled". The bend
is the sum of the turns at its three joints. Of the built-in named poses, an open hand
has 10 to 30 degrees, a relaxed one 75 to 100, a claw 110, a fist 190 to 225."""

THUMB_BENDS_DEG = (("straight", 45.0), ("slightly bent", 70.0))
"""The thumb's two outer joints, else "bent": its base turns in an open hand, too."""

TOUCH_M = 0.02
"""Tips that are nearer than this touch: joints lie inside the finger."""

_CURLED, _THUMB_BENT = "curled", "bent"
_WAYS = {
    (0, -1): "left",
    (0, 1): "right",
    (1, -1): "up",
    (1, 1): "down",
    (2, -1): "towards the camera",
    (2, 1): "away from the camera",
}


def describe(joints3d: Float[np.ndarray, "21 3"] | None, *, is_right: bool) -> str:
    """Say which hand it is, which fingers are bent, where palm and hand look.

    Args:
        joints3d: Relative to any point; None where the pose is not known.
        is_right: The side.

    Returns:
        For example "A right hand with the index finger straight and the thumb, middle,
        ring and little fingers curled, palm facing the camera, pointing up".
    """
    start = f"A {'right' if is_right else 'left'} hand"
    if joints3d is None:
        return start
    joints3d = np.asarray(joints3d, np.float64)
    parts = [f"{start} with {_listed(_groups(finger_states(joints3d)))}"]
    tips = touching(joints3d)
    if tips:
        parts.append(f"the tips of the {_listed(['thumb', *tips])} finger touching")
    palm = way(palm_normal(joints3d, is_right=is_right))
    parts.append(f"palm facing {palm.replace('towards the', 'the')}")
    parts.append(f"pointing {way(joints3d[9] - joints3d[0])}")
    return ", ".join(parts)


def finger_bends_deg(joints3d: Float[np.ndarray, "21 3"]) -> Float[np.ndarray, "5"]:
    """Sum of the turns along each finger, degrees; the thumb's without its base."""
    chains = [[0, *range(4 * k + 1, 4 * k + 5)] for k in range(len(FINGERS))]
    bones = np.diff(joints3d[np.array(chains)], axis=1)
    bones /= np.maximum(np.linalg.norm(bones, axis=-1, keepdims=True), 1e-9)
    cosines = np.clip((bones[:, :-1] * bones[:, 1:]).sum(axis=-1), -1, 1)
    turns = np.rad2deg(np.arccos(cosines))
    turns[0, 0] = 0.0
    return turns.sum(axis=1)


def finger_states(joints3d: Float[np.ndarray, "21 3"]) -> tuple[str, ...]:
    """Name each finger's bend, thumb first (`BENDS_DEG`, `THUMB_BENDS_DEG`)."""
    states = []
    for finger, bend in zip(FINGERS, finger_bends_deg(joints3d), strict=True):
        thumb = finger == "thumb"
        limits = THUMB_BENDS_DEG if thumb else BENDS_DEG
        under = (word for word, limit in limits if bend < limit)
        states.append(next(under, _THUMB_BENT if thumb else _CURLED))
    return tuple(states)


def touching(joints3d: Float[np.ndarray, "21 3"]) -> list[str]:
    """Return the fingers whose tip is within `TOUCH_M` of the thumb's."""
    tips = joints3d[4::4]
    near = np.linalg.norm(tips[1:] - tips[0], axis=-1) < TOUCH_M
    return [name for name, close in zip(FINGERS[1:], near, strict=True) if close]


def palm_normal(
    joints3d: Float[np.ndarray, "21 3"], *, is_right: bool
) -> Float[np.ndarray, "3"]:
    """Return the direction the palm faces, from wrist, index and little base.

    Not of unit length. For a right hand with the fingers up and the palm to the viewer
    the index finger is on the right of the little one.
    """
    index, little = joints3d[5] - joints3d[0], joints3d[17] - joints3d[0]
    normal = np.cross(index, little)
    return normal if is_right else -normal


def way(direction: Float[np.ndarray, "3"]) -> str:
    """Name the camera axis that is nearest to a direction, seen by the viewer."""
    axis = int(np.abs(direction).argmax())
    return _WAYS[axis, 1 if direction[axis] > 0 else -1]


def _groups(states: tuple[str, ...]) -> list[str]:
    """Describe fingers of the same state together, in the order of the hand."""
    if len(set(states)) == 1:
        return [f"all fingers {states[0]}"]
    if len(set(states[1:])) == 1:
        return [f"the thumb {states[0]}", f"the fingers {states[1]}"]
    phrases = []
    for state in dict.fromkeys(states):
        names = [n for n, s in zip(FINGERS, states, strict=True) if s == state]
        fingers = [name for name in names if name != "thumb"]
        noun = " finger" if len(fingers) == 1 else " fingers" if fingers else ""
        phrases.append(f"the {_listed(names)}{noun} {state}")
    return phrases


def _listed(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)


# --- from a file --------------------------------------------------------------------


def read(path: str | Path) -> dict[int, str]:
    """Read captions that somebody else made, a JSON object a line.

    A line has `index`, the position of the example in its split, and `text` or
    `prompt`; other keys are passed over, so that the files which `handjax.control`
    writes can be changed and given back.

    Raises:
        UserError: A line is not such an object, or names an example twice.
        OSError: The file cannot be read.
    """
    captions: dict[int, str] = {}
    # What is not UTF-8 is not JSON either, and said so with its line.
    with open(path, encoding="utf-8", errors="backslashreplace") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            index, text = _entry(f"{path}, line {number}", line)
            if index in captions:
                raise UserError(
                    f"{path}, line {number}: example {index} has a caption already; "
                    "keep one line for each."
                )
            captions[index] = text
    if not captions:
        raise UserError(
            f'{path}: no captions in it; write lines such as {{"index": 0, "text": "A '
            'right hand"}.'
        )
    return captions


def _entry(where: str, line: str) -> tuple[int, str]:
    try:
        entry: Any = json_files.parse(line, where)
    except UserError:
        entry = None
    if isinstance(entry, dict):
        index, text = entry.get("index"), entry.get("text", entry.get("prompt"))
        if type(index) is int and index >= 0 and isinstance(text, str) and text.strip():
            return index, text
    raise UserError(
        f'{where}: {line.strip()[:60]!r} is no {{"index": NUMBER, "text": "CAPTION"}}.'
    )
