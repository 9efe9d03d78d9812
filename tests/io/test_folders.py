"""What systems hide in folders is nowhere taken for data."""

import io
import json
import tarfile
import zipfile

import numpy as np
import pytest

from data_pipelines.sources import hamer_tars, index_files
from data_pipelines.sources.reading import DownloadedFiles
from data_pipelines.storage import directories
from handjax import tables
from handjax.checkpoints import workdir
from handjax.evaluation.protocols import hint, mesh_files
from handjax.inference import photos
from handjax.io.folders import visible

APPLE_DOUBLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        "


def litter(folder, *names):
    """Write files as macOS does on foreign disks."""
    (folder / ".DS_Store").write_bytes(b"\x00\x00\x00\x01Bud1")
    for name in names:
        (folder / name).write_bytes(b"data")
        (folder / f"._{name}").write_bytes(APPLE_DOUBLE)


def test_hidden_entries_are_left_out_and_the_rest_is_sorted(tmp_path):
    litter(tmp_path, "b.json", "a.json", "a.txt")
    assert [p.name for p in visible(tmp_path)] == ["a.json", "a.txt", "b.json"]
    assert [p.name for p in visible(tmp_path, "*.json")] == ["a.json", "b.json"]
    assert visible(tmp_path / "absent") == []


def test_folders_of_photos(tmp_path):
    litter(tmp_path, "hand.jpg")
    assert [p.name for p in photos.listed(tmp_path)] == ["hand.jpg"]


def test_checkpoints_and_reports(tmp_path):
    (tmp_path / "checkpoints" / "mesh" / "7").mkdir(parents=True)
    litter(tmp_path / "checkpoints" / "mesh")
    litter(tmp_path / "checkpoints")
    assert workdir.stage_steps(tmp_path) == {"mesh": [7]}
    (tmp_path / "eval" / "7").mkdir(parents=True)
    litter(tmp_path / "eval" / "7", "report.json")
    assert [p.name for p in tables._of_workdir(tmp_path)] == ["report.json"]


def test_labels_of_hint(tmp_path):
    folder = tmp_path / "TEST_newdays_img"
    folder.mkdir()
    litter(folder, "x.json")
    label = {"keypoints": [[1, 2]] * 21, "occlusion": [0] * 21, "bbox": [[0, 0, 9, 9]]}
    (folder / "x.json").write_text(json.dumps([label]))
    found = hint._folders(tmp_path, "TEST")
    assert {part.names for part in found.values()} == {(f"{folder.name}/x",)}


def test_sources_of_data_sets(tmp_path):
    litter(tmp_path, "x.json")
    files = DownloadedFiles.__new__(DownloadedFiles)
    files.root, files._touched = tmp_path, {}
    assert files.names(".", "*.json", "labels") == ["x.json"]
    (tmp_path / "index").mkdir()
    litter(tmp_path / "index")
    np.save(tmp_path / "index" / "row.npy", np.arange(3))
    (tmp_path / "index" / "._row.npy").write_bytes(APPLE_DOUBLE)
    about = {"split": "test", "count": 3, "dropped": {}, "sha256": ""}
    (tmp_path / "index" / index_files._ABOUT).write_text(json.dumps(about))
    assert list(index_files.read(tmp_path / "index")[0].columns) == ["row"]


def test_members_of_tars_and_zips(tmp_path):
    with tarfile.open(tmp_path / "000000.tar", "w") as tar:
        for name in ("._a.jpg", "a.jpg", "._a.data.pyd", "a.data.pyd"):
            member = tarfile.TarInfo(f"./{name}")
            member.size = 4
            tar.addfile(member, io.BytesIO(b"data"))
    (tmp_path / "._000001.tar").write_bytes(APPLE_DOUBLE)
    files = DownloadedFiles.__new__(DownloadedFiles)
    files.root, files._touched = tmp_path, {}
    assert hamer_tars._count(files) == 1
    assert [key for key, *_ in hamer_tars._samples(files, "000000.tar")] == ["a"]
    path = tmp_path / "pred.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("._guess.json", APPLE_DOUBLE)
        archive.writestr("guess.json", "[]")
    assert mesh_files.member_text(path, "pred.json", ".json") == "[]"


def test_an_empty_directory_of_a_data_set_may_hold_what_is_hidden(tmp_path):
    litter(tmp_path)
    directories.check_same(tmp_path, {"a": 1})
    assert (tmp_path / "settings.json").is_file()
    litter(tmp_path)
    with pytest.raises(ValueError, match="a: 1 there, 2 asked for"):
        directories.check_same(tmp_path, {"a": 2})
