"""DexYCB: principal components, four set-ups, frames without a hand, both sides."""

import itertools
import os

import numpy as np
import prepared
import pytest
from miniatures import dexycb, hands

from data_pipelines.datasets import dexycb as converter
from data_pipelines.preparation import job
from data_pipelines.sources.reading import DownloadedFiles, SourceError


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("dexycb")
    return root, dexycb.make(root)


@pytest.fixture(scope="module")
def made(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "dexycb"
    return prepared.prepare("dexycb", source[0], out, splits=["train", "val"])


def test_records_hold_what_the_files_say(source, made):
    _, posed = source
    for record in prepared.records(made):
        hand = posed[record["key"].split("#")[0]]
        prepared.same_hand(record, hand)
        prepared.same_parameters(record, hand, atol=2e-5)
        K = record["K"].astype(float)
        pixels = hands.project(hand.joints3d, K)
        np.testing.assert_allclose(record["joints2d"][:, :2], pixels, atol=1e-2)


def test_principal_components_become_angles_of_both_sides(made):
    """Trap: 45 coefficients, not angles, and the mean is added."""
    largest = prepared.reposed_mm(made)
    for side in ("right", "left"):
        for part in ("wrist", "fingers", "tips"):
            assert largest[side, f"repose {part}"] < 0.05, (side, part)


def test_left_hands_keep_the_defect_of_their_model(made):
    """Trap: annotated with the left file as published."""
    for record in prepared.records(made):
        assert record["left_model"] == (0 if record["is_right"] else 1)


def test_frames_without_a_hand_are_dropped(made):
    """Trap: their joints are -1 and their pose is zero."""
    train = job.read_manifest(made)["splits"]["train"]
    # 2 subjects x 4 sequences x 2 cameras x 2 frames, less one frame of each camera of
    # the first sequences.
    assert train["examples"] == 32 and train["dropped"] == {"no hand": 4}
    assert (train["right"], train["left"]) == (14, 14)


def test_a_frame_without_labels_is_dropped(source, tmp_path):
    """Trap: some label files are missing in the published archive."""
    root = prepared.copy(source[0], tmp_path / "source")
    folder = root / dexycb.SUBJECTS[1] / "20200813_140044" / dexycb.SERIALS[0]
    (folder / "labels_000001.npz").unlink()
    out = prepared.prepare("dexycb", root, tmp_path / "out", splits=["val"])
    val = job.read_manifest(out)["splits"]["val"]
    assert val["kept"] == 7 and val["dropped"] == {"no label file": 1}
    (folder / "color_000001.jpg").unlink()
    with pytest.raises(SourceError, match=r"labels_000001\.npz' is missing"):
        prepared.prepare("dexycb", root, tmp_path / "again", splits=["val"])


def test_frames_are_ordered_by_camera_then_time(source):
    """Trap: `image_id` of submissions is the position in this order."""
    index = converter.index(DownloadedFiles(source[0], converter.BUILDER), "val")
    assert index.columns["frame"].tolist() == [
        [sequence, camera, frame]
        for sequence in (0, 1)
        for camera in (0, 7)
        for frame in (0, 1)
    ]
    models = converter.HandModels()
    record = converter.example(
        DownloadedFiles(source[0], converter.BUILDER), index, 3, models
    )
    expected = "20200709-subject-01/20200709_140044/932122062010/color_000001.jpg#3"
    assert record["key"] == expected
    assert "mano_pose" not in record and "mano_betas" in record


def test_set_ups_divide_all_frames_as_published():
    everything = list(itertools.product(range(10), range(100), range(8)))
    expected = {
        "s0": {"train": 10 * 80 * 8, "val": 2 * 20 * 8, "test": 8 * 20 * 8},
        "s1": {"train": 7 * 800, "val": 800, "test": 2 * 800},
        "s2": {"train": 6 * 1000, "val": 1000, "test": 1000},
        "s3": {"train": 15 * 5 * 80, "val": 2 * 5 * 80, "test": 3 * 5 * 80},
    }
    for setup, counts in expected.items():
        parts = [converter.part_of(setup, *frame) for frame in everything]
        assert {part: parts.count(part) for part in counts} == counts, setup
    assert converter.part_of("s1", 9, 0, 0) == "train"
    assert converter.part_of("s0", 1, 4, 0) == "val"
    assert converter.part_of("s3", 0, 99, 0) == "val"


def test_other_set_ups_are_splits_of_their_own(source, tmp_path):
    splits = ["s2_test", "s2_train"]
    out = prepared.prepare("dexycb", source[0], tmp_path / "out", splits=splits)
    tests, trains = (prepared.records(out, split) for split in splits)
    assert all(dexycb.SERIALS[1] in record["key"] for record in tests)
    assert all(dexycb.SERIALS[0] in record["key"] for record in trains)
    assert len(tests) + len(trains) == 36


@pytest.mark.parametrize(
    "path, content, message",
    [
        ("calibration/intrinsics/836212060125_640x480.yml", "", "calibration.tar.gz"),
        ("calibration/intrinsics/836212060125_640x480.yml", "color: {fx: 1}", "ppx"),
        (
            "calibration/mano_20200709-subject-01_right/mano.yml",
            "betas: [1, 2]",
            "ten betas",
        ),
        ("20200709-subject-01/20200709_140000/meta.yml", "serials: [", "not complete"),
        ("20200709-subject-01/20200709_140000/meta.yml", "a: 1", "serials is None"),
    ],
)
def test_damaged_descriptions_are_named(source, tmp_path, path, content, message):
    root = prepared.copy(source[0], tmp_path / "source")
    (root / path).write_text(content)
    with pytest.raises(SourceError) as error:
        converter.index(DownloadedFiles(root, converter.BUILDER), "train")
    assert path in str(error.value) and message in str(error.value)


def test_truncated_labels_are_named(source, tmp_path):
    root = prepared.copy(source[0], tmp_path / "source")
    path = root / "20200709-subject-01/20200709_140000/836212060125/labels_000000.npz"
    os.truncate(path, 200)
    with pytest.raises(SourceError, match=r"labels_000000\.npz.*not a complete npz"):
        prepared.prepare("dexycb", root, tmp_path / "out", splits=["train"])


def test_no_subjects_at_all(tmp_path):
    with pytest.raises(SourceError, match=r"a folder for each subject"):
        converter.index(DownloadedFiles(tmp_path, converter.BUILDER), "train")
