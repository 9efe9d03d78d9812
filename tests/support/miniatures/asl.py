"""A miniature of the ASL alphabet: doubled folders, twelve pictures of four classes."""

from pathlib import Path

import numpy as np

from . import hands

CLASSES = ("A", "B", "del", "nothing", "space")
COUNT = 12
_PARTS = ("train", "test")


def make(root: Path):
    """Write the files; returns the bytes of each picture."""
    made = {}
    train, test = (f"asl_alphabet_{part}/asl_alphabet_{part}" for part in _PARTS)
    for shape, letter in enumerate(CLASSES):
        image = _picture(shape, empty=letter == "nothing")
        for number in range(1, COUNT + 1):
            frame = np.roll(image, number, axis=1)  # the hand moves a little
            made[f"{train}/{letter}/{letter}{number}.jpg"] = hands.encoded(frame)
        if letter != "del":
            made[f"{test}/{letter}_test.jpg"] = hands.encoded(image)
    for name, content in made.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return made


def _picture(shape: int, *, empty: bool) -> np.ndarray:
    hand = hands.posed(shape, place=(0, 0, 0.6))
    K = hands.camera(200, 200, 400.0)
    return hands.picture([] if empty else [hand], K, 200, 200, seed=shape)
