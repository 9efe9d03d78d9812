"""H2O-3D: two hands that hold an object; each is an example. See `honnotate`."""

from typing import Any

from data_pipelines.sources import honnotate
from data_pipelines.sources.conventions import HandModels
from data_pipelines.sources.description import Archive, Builder, Index
from data_pipelines.sources.reading import DownloadedFiles

BUILDER = Builder(
    name="h2o3d",
    title="H2O-3D v1",
    url="https://github.com/shreyashampali/ho3d",
    licence="academic research only, no commercial use, no redistribution; cite "
    "Hampali et al., CVPR 2022",
    download="""\
1. Download H2O-3D v1 by the link of the page above.
2. Unpack it into a directory, DIR, so that there are DIR/train, DIR/evaluation,
   DIR/train.txt and DIR/evaluation.txt.
3. python -m data_pipelines.prepare h2o3d --source DIR --out OUT --hand MANO""",
    archives=(Archive("the archive of H2O-3D v1", ("train*", "evaluation*")),),
    splits={"train": 121_996, "test": 30_684},
)


def index(source: DownloadedFiles, split: str) -> Index:
    """Read the list of frames; every frame has two examples."""
    frames = honnotate.read_index(source, split, suffix=".jpg")
    return frames._replace(count=2 * frames.count)


def example(
    source: DownloadedFiles, index: Index, row: int, models: HandModels
) -> dict[str, Any]:
    """Return one hand of a frame; the right hand comes before the left."""
    is_right = row % 2 == 0
    return honnotate.hand(
        source, index, row // 2, models, is_right=is_right, two_hands=True
    )
