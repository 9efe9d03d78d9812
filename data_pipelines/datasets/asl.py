"""ASL alphabet: pictures of one person's hand and the letter that it shows.

    asl_alphabet_train/asl_alphabet_train/A/A1.jpg ... A3000.jpg    29 classes
    asl_alphabet_test/asl_alphabet_test/A_test.jpg                  28, without "del"

200 x 200 pixels. The folders are doubled, and numbers count from one. Nothing but the
letter is annotated. Frames of a class follow each other in a video, so the split "val"
is the last tenth of each class, not a random one. The class "nothing" shows no hand.
"""

from collections import Counter
from typing import Any

import numpy as np

from data_pipelines.sources import pictures
from data_pipelines.sources.conventions import HandModels
from data_pipelines.sources.description import Archive, Builder, Index, text
from data_pipelines.sources.reading import DownloadedFiles

BUILDER = Builder(
    name="asl",
    title="ASL alphabet",
    url="https://www.kaggle.com/datasets/grassknoted/asl-alphabet",
    licence="GPL-2.0 as its page says",
    download="""\
1. Download archive.zip from the page above.
2. Unpack it into a directory, DIR, so that there is
   DIR/asl_alphabet_train/asl_alphabet_train/A/A1.jpg.
3. python -m data_pipelines.prepare asl --source DIR --out OUT""",
    archives=(Archive("archive.zip", ("asl_alphabet_*",)),),
    splits={"train": 75_600, "val": 8_400, "test": 27},
)

_TRAIN = "asl_alphabet_train/asl_alphabet_train"
_TEST = "asl_alphabet_test/asl_alphabet_test"
_EMPTY = "nothing"
_HELD_BACK = 0.1
"""Share of each class, its last frames, that is the split "val"."""


def index(source: DownloadedFiles, split: str) -> Index:
    """List pictures and their letters."""
    names: list[tuple[str, str]] = []
    dropped: Counter[str] = Counter()
    if split == "test":
        for name in source.names(_TEST, "*_test.jpg", "a picture of each letter"):
            names.append((f"{_TEST}/{name}", name.removesuffix("_test.jpg")))
    else:
        for letter in source.names(_TRAIN, "*", "a folder for each letter"):
            folder = f"{_TRAIN}/{letter}"
            files = source.names(folder, f"{letter}[0-9]*.jpg", "pictures of a letter")
            files.sort(key=lambda name: int(name[len(letter) : -len(".jpg")]))
            first = len(files) - int(_HELD_BACK * len(files))
            part = files[:first] if split == "train" else files[first:]
            names += [(f"{folder}/{name}", letter) for name in part]
    kept = [(name, letter) for name, letter in names if letter != _EMPTY]
    dropped["no hand"] = len(names) - len(kept)
    columns = {
        "name": text([name for name, _ in kept]),
        "letter": text([letter for _, letter in kept]),
    }
    return Index(split, len(kept), columns, dict(+dropped))


def example(
    source: DownloadedFiles, index: Index, row: int, models: HandModels
) -> dict[str, Any]:
    """Return a picture with its letter; almost all of the signers' hands are right."""
    del models  # there is no MANO
    name = index.columns["name"][row].decode()
    picture = source.picture(name)
    size = np.array([picture.width, picture.height])
    box = (size - 1) / 2, np.zeros(2)  # where the hand is, is not known
    placed = pictures.fields(picture, joints2d=np.zeros((21, 3)), box=box)
    letter = index.columns["letter"][row].decode()
    return {"key": name, "is_right": True, "text": letter, **placed}
