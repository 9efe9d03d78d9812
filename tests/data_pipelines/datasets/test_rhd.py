"""RHD: joints from the tips, both hands of a picture, masks that choose one."""

import os
import pickle

import numpy as np
import prepared
import pytest
from miniatures import hands, rhd

from data_pipelines.datasets import rhd as converter
from data_pipelines.preparation import job
from data_pipelines.sources.reading import DownloadedFiles, SourceError


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("rhd")
    return root, rhd.make(root)


@pytest.fixture(scope="module")
def made(source, tmp_path_factory):
    return prepared.prepare("rhd", source[0], tmp_path_factory.mktemp("out") / "rhd")


def hand_of(record, posed):
    path, side = record["key"].split("#")
    return posed[path][side == "right"]


@pytest.mark.parametrize("split", ["train", "test"])
def test_records_hold_what_the_files_say(source, made, split):
    """Traps: fingers begin at their tips, and the left hand comes first."""
    for record in prepared.records(made, split):
        hand = hand_of(record, source[1])
        prepared.same_hand(record, hand)
        pixels = hands.project(hand.joints3d, hands.camera(320, 320, 300.0))
        stored = record["crop_origin"] + record["joints2d"][:, :2]
        np.testing.assert_allclose(stored, pixels, atol=1e-2)
        assert record["image"][:2] == b"\xff\xd8" and not record["has_pose"]


def test_hidden_hands_are_dropped_and_hidden_joints_flagged(made):
    train = job.read_manifest(made)["splits"]["train"]
    assert train["dropped"] == {"fewer than 5 joints are seen": 1}
    assert (train["right"], train["left"]) == (1, 2)
    flags = [record["occluded"].sum() for record in prepared.records(made)]
    # The last two of the right hand's joints are hidden in the first picture.
    assert flags == [0, 2, 0]
    right = prepared.records(made)[1]
    assert np.flatnonzero(right["occluded"]).tolist() == [17, 18]
    assert (right["joints2d"][:, 2] == 1).all()


def test_the_hand_with_more_pixels_is_tested(made):
    """Trap: mask numbers 2 to 17 are the left hand, 18 to 33 the right one."""
    records = prepared.records(made, "test")
    assert [record["key"] for record in records] == [
        "evaluation/color/00000.png#right",
        "evaluation/color/00001.png#left",
    ]


def test_damaged_annotations_are_named(source, tmp_path):
    root = prepared.copy(source[0], tmp_path / "source")
    path = root / "training/anno_training.pickle"
    for content in (path.read_bytes()[:500], pickle.dumps({}), pickle.dumps({0: {}})):
        path.write_bytes(content)
        with pytest.raises(SourceError, match=r"anno_training\.pickle.*RHD_v1-1\.zip"):
            converter.index(DownloadedFiles(root, converter.BUILDER), "train")
    path.unlink()
    with pytest.raises(SourceError, match=r"is missing.*RHD_v1-1\.zip"):
        converter.index(DownloadedFiles(root, converter.BUILDER), "train")


def test_a_truncated_mask_is_named(source, tmp_path):
    root = prepared.copy(source[0], tmp_path / "source")
    os.truncate(root / "evaluation/mask/00000.png", 60)
    with pytest.raises(SourceError, match=r"mask/00000\.png.*cannot be decoded"):
        prepared.prepare("rhd", root, tmp_path / "out", splits=["test"])
