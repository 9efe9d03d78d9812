"""FreiHAND: four pictures a frame, poses relative to the mean."""

import json
import os

import numpy as np
import prepared
import pytest
from miniatures import freihand, hands

from data_pipelines.datasets import freihand as converter
from data_pipelines.preparation import job
from data_pipelines.sources.reading import DownloadedFiles, SourceError


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("freihand")
    return root, *freihand.make(root)


@pytest.fixture(scope="module")
def made(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "freihand"
    return prepared.prepare("freihand", source[0], out)


def test_records_hold_what_the_files_say(source, made):
    root, train, test = source
    for split, posed in (("train", train), ("test", test)):
        for row, record in enumerate(prepared.records(made, split)):
            hand = posed[row % len(posed)]
            prepared.same_hand(record, hand)
            prepared.same_parameters(record, hand)
            np.testing.assert_allclose(record["vertices"], hand.vertices, atol=1e-6)
            K = hands.camera(224, 224, 480.0 + row % len(posed))
            pixels = hands.project(hand.joints3d, K)
            np.testing.assert_allclose(record["joints2d"][:, :2], pixels, atol=1e-3)
            np.testing.assert_allclose(record["K"], K, atol=1e-4)
            box = record["bbox_center"], record["bbox_size"]
            np.testing.assert_allclose(box[0] - box[1] / 2, pixels.min(0), atol=1e-3)
            # The published bytes, untouched.
            assert record["image"] == (root / record["key"]).read_bytes()


def test_picture_i_shows_annotation_i_modulo_the_frames(source, made):
    """Trap: four versions of each frame, number = frame + version * frames."""
    records = prepared.records(made)
    assert len(records) == 12
    assert records[7]["key"] == "training/rgb/00000007.jpg"
    np.testing.assert_array_equal(records[7]["joints3d"], records[1]["joints3d"])
    assert records[7]["image"] != records[1]["image"]


def test_poses_relative_to_the_mean_become_absolute(source, made):
    """Trap: read as absolute, the fingers are off by centimetres."""
    largest = prepared.reposed_mm(made)
    assert largest["right", "repose tips"] < 0.01
    assert largest["right", "repose vertices"] < 0.01
    assert np.abs(hands.FILES[True].hands_mean).max() > 0.1  # else nothing was tested


def test_mano_rows_are_lists_of_one_row(source, tmp_path):
    """Trap: (1, 61), not (61,)."""
    root = prepared.copy(source[0], tmp_path / "flat")
    path = root / "training_mano.json"
    path.write_text(json.dumps([row[0] for row in json.loads(path.read_text())]))
    with pytest.raises(SourceError, match=r"training_mano\.json.*element 0 has shape"):
        prepared.prepare("freihand", root, tmp_path / "out")


def test_the_published_scale_and_root_place_the_hand(source):
    """What the row says of the root agrees with the mesh (which the records take)."""
    root, train, _ = source
    row = json.loads((root / "training_mano.json").read_text())[0][0]
    K = np.array(json.loads((root / "training_K.json").read_text())[0])
    uv, scale = np.array(row[58:60]), row[60]
    focal = (K[0, 0] + K[1, 1]) / 2
    placed = np.append(uv - K[:2, 2], focal) / scale
    np.testing.assert_allclose(placed, train[0].joints3d[9], atol=1e-9)


def test_without_mano_poses_are_left_out_and_meshes_stay(source, tmp_path):
    out = job.prepare("freihand", source[0], tmp_path / "out", splits=["test"])
    for record in prepared.records(out, "test"):
        assert record["has_vertices"] and record["has_betas"]
        assert not record["has_pose"] and not record["has_transl"]
    assert job.read_manifest(out)["splits"].keys() == {"test"}


def test_test_pictures_without_ground_truth_have_a_box_and_a_camera(tmp_path):
    freihand.make(tmp_path / "source", frames=1, test=1, ground_truth=False)
    out = prepared.prepare(
        "freihand", tmp_path / "source", tmp_path / "out", splits=["test"]
    )
    (record,) = prepared.records(out, "test")
    assert record["has_K"] and not record["has_joints3d"] and not record["has_vertices"]
    assert (record["joints2d"] == 0).all()
    assert record["bbox_center"].tolist() == [111.5, 111.5]


# --- damaged sources ----------------------------------------------------------------


def failure(root, split="train"):
    with pytest.raises(SourceError) as error:
        converter.index(DownloadedFiles(root, converter.BUILDER), split)
    return str(error.value)


def test_a_missing_file_names_the_archive(source, tmp_path):
    root = prepared.copy(source[0], tmp_path / "x")
    (root / "training_verts.json").unlink()
    message = failure(root)
    assert "training_verts.json' is missing" in message
    assert "FreiHAND_pub_v2.zip" in message and "lmb.informatik" in message
    assert "(778, 3)" in message


def test_an_archive_that_is_not_unpacked_or_cut_off_is_noticed(tmp_path):
    (tmp_path / "FreiHAND_pub_v2.zip").write_bytes(b"PK\x03\x04 cut off")
    assert "not a complete archive: download it again" in failure(tmp_path)
    import zipfile

    with zipfile.ZipFile(tmp_path / "FreiHAND_pub_v2.zip", "w") as archive:
        archive.writestr("x", "y")
    assert "unpack it into" in failure(tmp_path)


def test_the_wrong_directory_is_corrected(source, tmp_path):
    (tmp_path / "inner").symlink_to(source[0])
    assert "give that as --source" in failure(tmp_path)
    assert "There is no directory" in failure(tmp_path / "nothing")


def test_a_truncated_list_says_where_it_ends(source, tmp_path):
    root = prepared.copy(source[0], tmp_path / "x")
    path = root / "training_xyz.json"
    os.truncate(path, path.stat().st_size - 40)
    message = failure(root)
    assert "training_xyz.json" in message and "element 2 cannot be read" in message


def test_lists_of_other_lengths_are_refused(source, tmp_path):
    root = prepared.copy(source[0], tmp_path / "x")
    path = root / "training_verts.json"
    path.write_text(json.dumps(json.loads(path.read_text())[:2]))
    message = failure(root)
    assert "training_verts.json" in message and "it has 2" in message


def test_files_of_another_version_are_noticed(source, tmp_path):
    """Trap: version 1 of the data set has other cameras."""
    root = prepared.copy(source[0], tmp_path / "x")
    cameras = json.loads((root / "training_K.json").read_text())
    wrong = [[[1900, 0, 112], [0, 1900, -500], [0, 0, 1]] for _ in cameras]
    (root / "training_K.json").write_text(json.dumps(wrong))
    assert "fall into the pictures" in failure(root)
    scale = [1.01 * value for value in (0.03, 0.04, 0.05)]
    (root / "training_scale.json").write_text(json.dumps(scale))
    assert "training_scale.json" in failure(root)


def test_a_missing_or_truncated_picture_is_named(source, tmp_path):
    root = prepared.copy(source[0], tmp_path / "x")
    last = root / "training/rgb/00000011.jpg"
    data = last.read_bytes()
    last.unlink()
    assert "00000011.jpg' is missing" in failure(root)
    last.write_bytes(data)
    cut = root / "training/rgb/00000004.jpg"
    os.truncate(cut, 900)
    with pytest.raises(SourceError, match=r"00000004\.jpg.*cannot be decoded.*v2\.zip"):
        prepared.prepare("freihand", root, tmp_path / "out", splits=["train"])
    # With the picture in place the same command finishes.
    cut.write_bytes((source[0] / "training/rgb/00000004.jpg").read_bytes())
    out = prepared.prepare("freihand", root, tmp_path / "out", splits=["train"])
    assert len(prepared.records(out)) == 12
