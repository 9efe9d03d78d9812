"""InterHand2.6M: world coordinates, millimetres, two hands, joints not valid."""

import io
import json
import os

import numpy as np
import prepared
import pytest
from miniatures import hands, interhand26m
from PIL import Image

from data_pipelines.datasets import interhand26m as converter
from data_pipelines.preparation import job
from data_pipelines.sources.reading import DownloadedFiles, SourceError

CAMERAS = list(interhand26m.CAMERAS)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("interhand26m")
    return root, interhand26m.make(root)


@pytest.fixture(scope="module")
def made(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "interhand26m"
    return prepared.prepare("interhand26m", source[0], out, splits=["train"])


def hand_of(record, posed):
    """Camera, time and hand of a record."""
    path, side = record["key"].split("#")
    camera, frame = path.split("/cam")[1].removesuffix(".jpg").split("/image")
    return camera, frame, posed[frame, side == "right"]


def test_records_hold_what_the_files_say(source, made):
    """Traps: world to camera, and millimetres to metres."""
    records = prepared.records(made)
    assert len(records) == 2 * 5
    for record in records:
        camera, _, hand = hand_of(record, source[1])
        joints = interhand26m.seen_from(camera, hand.joints3d)
        prepared.same_hand(record, hand._replace(joints3d=joints))
        pixels = hands.project(joints, interhand26m.intrinsics(camera))
        stored = record["crop_origin"] + record["joints2d"][:, :2]
        np.testing.assert_allclose(stored, pixels, atol=1e-3)


def test_fits_move_to_the_camera_and_meet_the_joints(made):
    """Traps: poses relative to the mean, translations in metres, about the wrist."""
    largest = prepared.reposed_mm(made)
    for side in ("right", "left"):
        for part in ("wrist", "fingers", "tips"):
            assert largest[side, f"repose {part}"] < 0.01, (side, part)


def test_frames_without_a_fit_keep_their_joints(source, made):
    """Traps: null for a hand, and frames that are not in the file at all."""
    for record in prepared.records(made):
        _, frame, _ = hand_of(record, source[1])
        has_fit = frame in ("7753", "7756")
        assert record["has_pose"] == record["has_betas"] == has_fit
        assert record["has_joints3d"]


def test_a_hand_whose_wrist_is_not_valid_is_dropped(made):
    """Trap: joints that are not valid hold ones."""
    train = job.read_manifest(made)["splits"]["train"]
    assert train["dropped"] == {"wrist not valid": 2}
    assert (train["right"], train["left"]) == (6, 4)


def test_single_joints_that_are_not_valid_have_no_confidence(source, tmp_path):
    root = prepared.copy(source[0], tmp_path / "source")
    path = root / "annotations/train/InterHand2.6M_train_data.json"
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        annotation["joint_valid"][4] = [0]  # the index finger's tip of right hands
        annotation["joint_valid"] = [flag for (flag,) in annotation["joint_valid"]]
    path.write_text(json.dumps(content))
    out = prepared.prepare("interhand26m", root, tmp_path / "out", splits=["train"])
    for record in prepared.records(out):
        expected = np.ones(21)
        expected[8] = not record["is_right"]
        assert record["joints3d"][:, 3].tolist() == expected.tolist()
        assert record["joints2d"][:, 2].tolist() == expected.tolist()


def test_upright_and_grey_pictures_are_stored_in_colour(made):
    """Traps: 334 x 512 frames, and cameras 41xxxx."""
    for record in prepared.records(made):
        with Image.open(io.BytesIO(record["image"])) as image:
            assert image.mode == "RGB"
            assert image.size == tuple(record["image_size"][::-1])
            pixels = np.asarray(image).astype(int)
        grey = np.abs(pixels[..., 0] - pixels[..., 2]).max() < 3
        assert grey == ("cam41" in record["key"])


def test_left_hands_are_of_the_model_with_x_negated(made):
    for record in prepared.records(made):
        left_with_fit = not record["is_right"] and record["has_pose"]
        assert record["left_model"] == (2 if left_with_fit else 0)


def test_a_hand_lies_inside_of_its_picture(made):
    for record in prepared.records(made):
        inside = (record["joints2d"][:, :2] >= 0).all()
        assert inside and (record["joints2d"][:, :2] < record["image_size"][::-1]).all()


def test_a_hand_outside_of_the_picture_is_dropped(source, tmp_path):
    """Its joints may well be valid: other cameras saw them."""
    root = prepared.copy(source[0], tmp_path / "source")
    path = root / "annotations/train/InterHand2.6M_train_camera.json"
    content = json.loads(path.read_text())
    content["0"]["princpt"]["400002"] = [-900.0, 100.0]
    path.write_text(json.dumps(content))
    out = prepared.prepare("interhand26m", root, tmp_path / "out", splits=["train"])
    dropped = job.read_manifest(out)["splits"]["train"]["dropped"]
    assert dropped == {"outside of the picture": 5, "wrist not valid": 2}


# --- damaged sources ----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["data", "camera", "joint_3d", "MANO_NeuralAnnot"])
def test_missing_and_truncated_annotations_are_named(source, tmp_path, kind):
    root = prepared.copy(source[0], tmp_path / "source")
    path = root / f"annotations/train/InterHand2.6M_train_{kind}.json"
    os.truncate(path, path.stat().st_size - 30)
    builder = converter.BUILDER
    with pytest.raises(SourceError, match=f"{kind}.json.*annotations of v1.0"):
        converter.index(DownloadedFiles(root, builder), "train")
    path.unlink()
    with pytest.raises(SourceError, match=rf"^'[^']*{kind}\.json' is missing"):
        converter.index(DownloadedFiles(root, builder), "train")


def test_annotations_of_another_release_are_refused(source, tmp_path):
    """Trap: frames of the 30 fps release are not in the files of the 5 fps one."""
    root = prepared.copy(source[0], tmp_path / "source")
    path = root / "annotations/train/InterHand2.6M_train_data.json"
    content = json.loads(path.read_text())
    content["images"][0]["frame_idx"] = 7754
    path.write_text(json.dumps(content))
    with pytest.raises(SourceError, match=r"train_data\.json.*'7754'"):
        converter.index(DownloadedFiles(root, converter.BUILDER), "train")


def test_a_picture_of_another_size_is_named(source, tmp_path):
    root = prepared.copy(source[0], tmp_path / "source")
    picture = root / "images/train/Capture0/0390_dh_touchROM/cam410001/image7753.jpg"
    picture.write_bytes(hands.encoded(np.zeros((334, 512), np.uint8)))
    with pytest.raises(SourceError, match=r"image7753\.jpg.*it has 512 x 334"):
        prepared.prepare("interhand26m", root, tmp_path / "out", splits=["train"])
