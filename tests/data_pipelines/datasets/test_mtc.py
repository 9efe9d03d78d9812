"""MTC: centimetres in the world, lenses that distort, views that do not count."""

import io
import os
import pickle

import numpy as np
import prepared
import pytest
from miniatures import hands, mtc
from PIL import Image

from data_pipelines.datasets import mtc as converter
from data_pipelines.preparation import job
from data_pipelines.sources.reading import DownloadedFiles, SourceError


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("mtc")
    return root, mtc.make(root)


@pytest.fixture(scope="module")
def made(source, tmp_path_factory):
    return prepared.prepare("mtc", source[0], tmp_path_factory.mktemp("out") / "mtc")


def hand_of(record, posed):
    """View and hand of a record."""
    path, side = record["key"].split("#")
    _, sequence, frame, name = path.split("/")
    return int(name.split("_")[1]), posed[sequence, frame, side == "right"]


@pytest.mark.parametrize("split", ["train", "test"])
def test_records_hold_what_the_files_say(source, made, split):
    """Traps: centimetres, world coordinates, t is a column."""
    for record in prepared.records(made, split):
        view, hand = hand_of(record, source[1])
        joints = mtc.seen_from(view, hand.joints3d)
        prepared.same_hand(record, hand._replace(joints3d=joints))
        pixels = hands.project(record["joints3d"][:, :3], record["K"])
        np.testing.assert_allclose(record["joints2d"][:, :2], pixels, atol=1e-2)


def test_pictures_are_undistorted_as_their_joints_are(source, made):
    """Trap: a photo's dot is several pixels from where the camera matrix projects."""
    away = []
    for record in prepared.records(made):
        view, hand = hand_of(record, source[1])
        tip = record["joints2d"][12, :2]
        source_px = record["crop_origin"] + tip / record["crop_scale"]
        bent = mtc.photographed(view, hand.joints3d[[12]])[0]
        away.append(np.linalg.norm(bent - source_px))
        with Image.open(io.BytesIO(record["image"])) as image:
            pixels = np.asarray(image).astype(float)
        pink = np.minimum(pixels[..., 0], pixels[..., 2]) - pixels[..., 1]
        y, x = np.mgrid[: pixels.shape[0], : pixels.shape[1]]
        near = (x - tip[0]) ** 2 + (y - tip[1]) ** 2 < 15**2
        weight = np.where(near, np.maximum(pink - 100, 0), 0)
        found = np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum()
        assert np.linalg.norm(found - tip) < 0.5
    assert max(away) > 3  # else nothing is tested


def test_views_that_do_not_count_are_dropped_with_their_reason(made):
    """Traps: the occluded flag, overlap, hands outside, samples without a hand."""
    splits = job.read_manifest(made)["splits"]
    for split in ("train", "test"):
        assert splits[split]["dropped"] == {
            "not inside the picture": 3,
            "occluded": 1,
            "overlaps another person": 1,
        }
        assert (splits[split]["right"], splits[split]["left"]) == (1, 3)


def test_damaged_files_are_named(source, tmp_path):
    root = tmp_path / "source"
    root.mkdir()
    index = converter.index
    with pytest.raises(SourceError, match=r"annotation\.pkl' is missing.*mtc_dataset"):
        index(DownloadedFiles(root, converter.BUILDER), "train")
    for name in ("annotation.pkl", "camera_data.pkl"):
        (root / name).write_bytes((source[0] / name).read_bytes())
    os.truncate(root / "annotation.pkl", 200)
    with pytest.raises(SourceError, match=r"annotation\.pkl.*not a complete pickle"):
        index(DownloadedFiles(root, converter.BUILDER), "train")
    (root / "annotation.pkl").write_bytes((source[0] / "annotation.pkl").read_bytes())
    (root / "camera_data.pkl").write_bytes(pickle.dumps({}))
    with pytest.raises(SourceError, match=r"camera_data\.pkl.*171026_pose1"):
        index(DownloadedFiles(root, converter.BUILDER), "train")
    (root / "camera_data.pkl").write_bytes((source[0] / "camera_data.pkl").read_bytes())
    with pytest.raises(SourceError, match=r"00_00_00002977\.jpg' is missing"):
        prepared.prepare("mtc", root, tmp_path / "out")
