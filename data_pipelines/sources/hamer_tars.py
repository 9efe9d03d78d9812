"""Read HaMeR's training data: tar files of pictures and pickled annotations.

    freihand-train/000000.tar ... 000130.tar        members of one sample, in a row:
        <key>.jpg (or jpeg, png)
        <key>.data.pyd          a list of dicts, one a hand
        <key>.detection.npz     masks, where there are some; not used here

A dict has keypoints_2d (21 x 3: pixels, confidence), keypoints_3d (21 x 4: metres,
confidence), center and scale (box / 200), hand_pose (48, absolute axis-angle), betas,
right, has_hand_pose, has_betas and extra_info. There are no cameras and no
translations; left hands are stored as they are. Ten data sets come this way, training
splits alone: another source of what `datasets` prepares, with the same names.
"""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.sources import conventions, pictures
from data_pipelines.sources.conventions import HandModels
from data_pipelines.sources.description import Archive, Builder, Index, text
from data_pipelines.sources.reading import DownloadedFiles, SourceError
from handjax.io import safe_pickle
from handjax.io.folders import visible


class Tars(NamedTuple):
    """HaMeR's copy of a data set."""

    folder: str
    last: int
    """Number of the last tar."""
    hands: int


OF = {
    "freihand": Tars("freihand-train", 130, 130_240),
    "dexycb": Tars("dex-train", 406, 406_888),
    "ho3d_v3": Tars("ho3d-train", 83, 83_325),
    "h2o3d": Tars("h2o3d-train", 60, 121_996),
    "interhand26m": Tars("interhand26m-train", 1056, 1_424_632),
    "rhd": Tars("rhd-train", 41, 61_705),
    "mtc": Tars("mtc-train", 306, 363_947),
    "coco_wholebody": Tars("cocow-train", 36, 78_666),
    "halpe": Tars("halpe-train", 22, 34_289),
    "mpii_nzsl": Tars("mpiinzsl-train", 15, 15_184),
}
"""Tars by the data set's name here."""

KIND = "HaMeR's tars"
_PICTURES = ("jpg", "jpeg", "png")
_WHAT = "a list of dicts, one a hand"


def folder(root: Path, name: str) -> Path | None:
    """Find where a directory holds a data set's tars; None if it does not."""
    if name in OF:
        for inner in (root, root / OF[name].folder):
            if next(inner.glob("[0-9]" * 6 + ".tar"), None):
                return inner
    return None


def builder(published: Builder) -> Builder:
    """Describe HaMeR's copy of a data set."""
    tars = OF[published.name]
    return published._replace(
        title=f"{published.title}, from HaMeR's training data",
        url="https://github.com/geopavlakos/hamer",
        download=(
            f"Download HaMeR's training data as its page says; DIR is {tars.folder}, "
            f"with 000000.tar to {tars.last:06d}.tar.\n"
            f"python -m data_pipelines.prepare {published.name} --source DIR --out OUT"
        ),
        archives=(Archive("HaMeR's training data", ("*.tar",)),),
        splits={"train": tars.hands},
        default_splits=("train",),
    )


def index(source: DownloadedFiles, split: str) -> Index:
    """List the hands of all samples."""
    names = [f"{number:06d}.tar" for number in range(_count(source))]
    rows, keys = [], []
    for number, name in enumerate(names):
        for key, picture, annotation in _samples(source, name):
            for hand in range(len(_hands(source, name, *annotation))):
                rows.append((number, *picture, *annotation, hand))
                keys.append(f"{name}/{key}")
    columns = {"row": np.array(rows, np.int64).reshape(-1, 6), "key": text(keys)}
    return Index(split, len(rows), columns)


def _count(source: DownloadedFiles) -> int:
    """Count the tars, which have to be numbered without a gap."""
    there = {path.name for path in visible(source.root, "*.tar")}
    for number in range(len(there)):
        if f"{number:06d}.tar" not in there:
            raise source.missing(f"{number:06d}.tar", "one of a row of tars")
    return len(there)


Place = tuple[int, int]
"""Offset and size of a member's content."""


def _samples(source: DownloadedFiles, name: str) -> Iterator[tuple[str, Place, Place]]:
    """Yield key, picture and annotation of each sample."""
    what = "samples of a picture and a .data.pyd each"
    found: dict[str, dict[str, Place]] = {}
    path = source.path(name, what)
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if Path(member.name).name.startswith("."):
                    continue  # of macOS, which packs "._x.jpg" beside "x.jpg"
                stem, _, kind = Path(member.name).name.partition(".")
                place = member.offset_data, member.size
                found.setdefault(stem, {})[kind] = place
        _check_end(path, found)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise source.damaged(name, what, f"the tar is not complete ({error})") from None
    for key, members in found.items():
        picture = next((members[kind] for kind in _PICTURES if kind in members), None)
        if picture is None or "data.pyd" not in members:
            raise source.damaged(name, what, f"sample {key!r} has {sorted(members)}")
        yield key, picture, members["data.pyd"]


def _check_end(path: Path, found: dict[str, dict[str, Place]]) -> None:
    """Check the block of zeros that ends a tar; a partial download lacks it."""
    ends = [sum(place) for members in found.values() for place in members.values()]
    with open(path, "rb") as file:
        file.seek(-512, 2)
        if any(file.read(512)) or max(ends, default=0) > file.tell():
            raise EOFError("its end is missing")


def _read(source: DownloadedFiles, name: str, place: Place) -> bytes:
    offset, size = place
    try:
        with open(source.root / name, "rb") as file:
            file.seek(offset)
            data = file.read(size)
    except OSError as error:
        raise source.damaged(name, "a tar", error.strerror) from None
    return data


def _hands(
    source: DownloadedFiles, name: str, offset: int, size: int
) -> list[dict[str, Any]]:
    data = _read(source, name, (offset, size))
    allowed = safe_pickle.plain_globals()
    try:
        hands = safe_pickle.loads(data, allowed, name)
    except ValueError as error:
        reason = str(error).removeprefix(f"{name}: ")
        raise source.damaged(name, _WHAT, reason) from None
    if not isinstance(hands, list) or not all(isinstance(h, dict) for h in hands):
        raise source.damaged(name, _WHAT, f"one of them is {hands!r:.60}")
    return hands


def example(
    source: DownloadedFiles, index: Index, row: int, models: HandModels
) -> dict[str, Any]:
    """Return one hand of one sample."""
    del models  # poses are absolute already
    number, *places, hand = index.columns["row"][row].tolist()
    key, name = index.columns["key"][row].decode(), f"{number:06d}.tar"
    content = _Hand(source, key, _hands(source, name, places[2], places[3])[hand])
    is_right = bool(content.array("right", ()))
    joints2d = content.array("keypoints_2d", (21, 3))
    joints3d = content.array("keypoints_3d", (21, 4))
    box = pictures.tight_box(joints2d)
    if (joints2d[:, 2] > 0).sum() < 2:
        side = 200 * content.array("scale", (2,)).max()
        box = content.array("center", (2,)), np.full(2, side)
    fields: dict[str, Any] = {"key": f"{key}#{hand}", "is_right": is_right}
    if (joints3d[:, 3] > 0).any():
        joints3d[:, 3] = joints3d[:, 3] > 0
        fields["joints3d"] = joints3d
    if content.array("has_hand_pose", ()) > 0:
        fields["mano_pose"] = content.array("hand_pose", (48,))
    if content.array("has_betas", ()) > 0:
        fields["mano_betas"] = content.array("betas", (10,))
        fields["left_model"] = conventions.left_model(source.builder.name, is_right)
    loss = content.fit_loss()
    if loss is not None:
        fields["fit_loss"] = loss
    data = _read(source, name, (places[0], places[1]))
    try:
        picture = pictures.store(data, box)
    except ValueError as error:
        raise source.damaged(name, f"the picture of {key}", error) from None
    return fields | pictures.fields(picture, joints2d=joints2d, box=box)


class _Hand:
    """The annotations of one hand."""

    def __init__(self, source: DownloadedFiles, key: str, fields: dict[str, Any]):
        self._source, self._key, self._fields = source, key, fields

    def array(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        try:
            return np.array(self._fields[name], np.float64).reshape(shape)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise self._wrong(f"{name} of shape {shape}", error) from None

    def fit_loss(self) -> float | None:
        """Return the reprojection loss of the fit, where the annotation has it."""
        info = self._fields.get("extra_info") or {}
        loss = (info.get("fitting_loss") or {}).get("reprojection_loss")
        return None if loss is None else float(np.asarray(loss).reshape(()))

    def _wrong(self, what: str, error: Exception) -> SourceError:
        name, _, key = self._key.partition("/")
        return self._source.damaged(name, what, f"sample {key!r}: {error!r}")
