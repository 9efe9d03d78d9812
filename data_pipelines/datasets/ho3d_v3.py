"""HO-3D version 3: right hands that hold objects. See `honnotate`."""

from typing import Any

from data_pipelines.sources import honnotate
from data_pipelines.sources.conventions import HandModels
from data_pipelines.sources.description import Archive, Builder, Index
from data_pipelines.sources.reading import DownloadedFiles

BUILDER = Builder(
    name="ho3d_v3",
    title="HO-3D v3",
    url="https://github.com/shreyashampali/ho3d",
    licence="academic research only, no commercial use, no redistribution; cite "
    "Hampali et al., CVPR 2020",
    download="""\
1. Download HO-3D v3 (and, to score on this machine, the ground truth of the evaluation
   set) by the links of the page above.
2. Unpack it into a directory, DIR, so that there are DIR/train, DIR/evaluation,
   DIR/train.txt and DIR/evaluation.txt; put evaluation_xyz.json and
   evaluation_verts.json beside them.
3. python -m data_pipelines.prepare ho3d_v3 --source DIR --out OUT --hand MANO""",
    archives=(
        Archive("the ground truth of the evaluation set", ("evaluation_*.json",)),
        Archive("HO3D_v3.zip", ("train*", "evaluation*")),
    ),
    splits={"train": 83_325, "test": 20_137},
)


def index(source: DownloadedFiles, split: str) -> Index:
    """Read the list of frames."""
    return honnotate.read_index(source, split, suffix=".jpg")


def example(
    source: DownloadedFiles, index: Index, row: int, models: HandModels
) -> dict[str, Any]:
    """Return the right hand of a frame."""
    return honnotate.hand(source, index, row, models, is_right=True)
