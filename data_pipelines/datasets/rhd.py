"""Rendered Handpose Dataset: characters with both hands, exact in 3-D.

    training/anno_training.pickle       {number: {uv_vis 42 x 3, xyz 42 x 3, K 3 x 3}}
    training/color/00000.png            320 x 320
    training/mask/00000.png             0 background, 1 person, 2-17 left, 18-33 right
    evaluation/...                      the same

Metres, OpenCV camera axes; joints of the left hand before those of the right one, each
finger from its tip. Both hands of a training picture are examples where enough of them
is seen; of a test picture the one that covers more pixels, as in the published
evaluation.
"""

from typing import Any

import numpy as np

from data_pipelines.sources import conventions, pictures
from data_pipelines.sources.conventions import HandModels
from data_pipelines.sources.description import Archive, Builder, DroppedError, Index
from data_pipelines.sources.reading import DownloadedFiles

BUILDER = Builder(
    name="rhd",
    title="Rendered Handpose Dataset",
    url="https://lmb.informatik.uni-freiburg.de/projects/hand3d",
    licence="research only, no commercial use; cite Zimmermann and Brox, ICCV 2017",
    download="""\
1. Download RHD_v1-1.zip from the page above.
2. Unpack it; DIR is RHD_published_v2, with DIR/training and DIR/evaluation.
3. python -m data_pipelines.prepare rhd --source DIR --out OUT""",
    archives=(Archive("RHD_v1-1.zip", ("training*", "evaluation*")),),
    splits={"train": 61_705, "test": 2_728},
)

LEAST_JOINTS = 5
"""Visible joints of a training example, at least: HaMeR trains on hands with more than
four."""
_FOLDERS = {"train": "training", "test": "evaluation"}
_MASK = {False: (2, 17), True: (18, 33)}
"""First and last number of a hand in the mask, by `is_right`."""


def index(source: DownloadedFiles, split: str) -> Index:
    """Read the annotations of all pictures."""
    folder = _FOLDERS[split]
    path = f"{folder}/anno_{folder}.pickle"
    what = "{number: {uv_vis, xyz, K}}"
    content = source.pickle(path, what)
    numbers = sorted(content) if isinstance(content, dict) else []
    if not numbers:
        raise source.damaged(path, what, f"it holds {content!r:.40}")
    columns = {"number": np.array(numbers, np.int64)}
    for name, shape in (("uv_vis", (42, 3)), ("xyz", (42, 3)), ("K", (3, 3))):
        try:
            values = [np.asarray(content[n][name], np.float64) for n in numbers]
            columns[name] = np.stack(values).reshape(-1, *shape)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise source.damaged(path, f"{name} {shape}", f"{error!r}") from None
    for number in (numbers[0], numbers[-1]):
        source.path(_file(split, "color", number), f"a picture of {path}")
    each = 2 if split == "train" else 1
    return Index(split, each * len(numbers), columns)


def _file(split: str, kind: str, number: int) -> str:
    return f"{_FOLDERS[split]}/{kind}/{number:05d}.png"


def example(
    source: DownloadedFiles, index: Index, row: int, models: HandModels
) -> dict[str, Any]:
    """Return one hand; of a training picture the left one comes before the right."""
    del models  # there is no MANO
    if index.split == "train":
        row, side = divmod(row, 2)
        is_right = side == 1
    else:
        is_right = _larger_is_right(source, index, row)
    columns = index.columns
    hand = slice(21, 42) if is_right else slice(0, 21)
    uv_vis = conventions.to_joints("rhd", columns["uv_vis"][row, hand])
    xyz = conventions.to_joints("rhd", columns["xyz"][row, hand])
    seen = uv_vis[:, 2] > 0
    if index.split == "train" and seen.sum() < LEAST_JOINTS:
        raise DroppedError(f"fewer than {LEAST_JOINTS} joints are seen")
    # Exact where they are hidden as well.
    pixels = conventions.to_pixels("rhd", uv_vis[:, :2])
    joints2d = np.column_stack([pixels, np.ones(21)])
    joints3d = np.column_stack([conventions.to_camera("rhd", xyz), np.ones(21)])
    box = pictures.tight_box(joints2d)
    name = _file(index.split, "color", int(columns["number"][row]))
    placed = pictures.fields(
        source.picture(name, box), joints2d=joints2d, box=box, K=columns["K"][row]
    )
    return {
        "key": f"{name}#{'right' if is_right else 'left'}",
        "is_right": is_right,
        "joints3d": joints3d,
        "occluded": ~seen,
        **placed,
    }


def _larger_is_right(source: DownloadedFiles, index: Index, row: int) -> bool:
    """Return whether the right hand covers more pixels of a picture."""
    number = int(index.columns["number"][row])
    mask = source.pixels(_file(index.split, "mask", number))
    counts = {
        side: ((mask >= first) & (mask <= last)).sum()
        for side, (first, last) in _MASK.items()
    }
    return bool(counts[True] >= counts[False])
