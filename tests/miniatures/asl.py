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
    rng = np.random.default_rng(0)
    train, test = (f"asl_alphabet_{part}/asl_alphabet_{part}" for part in _PARTS)
    for letter in CLASSES:
        for number in range(1, COUNT + 1):
            made[f"{train}/{letter}/{letter}{number}.jpg"] = _picture(rng)
        if letter != "del":
            made[f"{test}/{letter}_test.jpg"] = _picture(rng)
    for name, content in made.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return made


def _picture(rng: np.random.Generator) -> bytes:
    colour = rng.integers(0, 255, 3, dtype=np.uint8)
    return hands.encoded(np.broadcast_to(colour, (200, 200, 3)).copy())
