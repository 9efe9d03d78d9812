"""HO-3D v2, v3 and H2O-3D: OpenGL axes, MANO's joint order, frames without a hand."""

import json
import os
import pickle

import numpy as np
import prepared
import pytest
from miniatures import h2o3d, hands, ho3d_v2, ho3d_v3, honnotate

from data_pipelines.preparation import job
from data_pipelines.sources import conventions
from data_pipelines.sources.reading import SourceError

MAKERS = {"ho3d_v2": ho3d_v2, "ho3d_v3": ho3d_v3, "h2o3d": h2o3d}


@pytest.fixture(scope="module", params=list(MAKERS))
def made(request, tmp_path_factory):
    """Name, source, hands of each frame, prepared directory."""
    name = request.param
    root = tmp_path_factory.mktemp(name)
    options = {"ground_truth": True} if name == "ho3d_v3" else {}
    posed = MAKERS[name].make(root / "source", **options)
    out = prepared.prepare(name, root / "source", root / "out")
    return name, root / "source", posed, out


def test_records_hold_what_the_files_say(made):
    _, _, posed, out = made
    expected = [hand for frame in posed["train"] for hand in frame]
    records = prepared.records(out)
    assert len(records) == len(expected)
    for record, hand in zip(records, expected, strict=True):
        prepared.same_hand(record, hand)
        prepared.same_parameters(record, hand)
        K = hands.camera(640, 480, 610.0)
        pixels = hands.project(hand.joints3d, K)
        source = record["crop_origin"] + record["joints2d"][:, :2]
        np.testing.assert_allclose(source, pixels, atol=1e-3)
        assert record["joints2d"][:, 2].all()
        height, width = record["image_size"]
        assert width < 640 and height <= 480


def test_opengl_axes_become_opencv(made):
    """Trap: read as they are, hands stand behind the camera, upside down."""
    for record in prepared.records(made[3]):
        assert (record["joints3d"][:, 2] > 0.3).all()


def test_reposed_hands_of_both_sides_meet_their_joints(made):
    """Trap: the translation has to turn about the shaped rest wrist, not the origin."""
    name, _, _, out = made
    largest = prepared.reposed_mm(out)
    sides = {"right", "left"} if name == "h2o3d" else {"right"}
    assert {side for side, _ in largest if _.startswith("repose")} == sides
    for side in sides:
        for part in ("wrist", "fingers", "tips"):
            assert largest[side, f"repose {part}"] < 0.01, (side, part)


def test_frames_without_annotation_are_dropped_and_counted(made):
    """Trap: every field of such a frame is None."""
    name, _, _, out = made
    train = job.read_manifest(out)["splits"]["train"]
    each = 2 if name == "h2o3d" else 1
    assert train["examples"] == 4 * each and train["kept"] == 2 * each
    assert train["dropped"] == {"not annotated": 2 * each}
    assert train["left"] == (2 if name == "h2o3d" else 0)


def test_the_order_of_the_list_is_kept(made):
    """Trap: evaluation compares by position, so folders must not be sorted."""
    name, source, _, out = made
    lines = (source / "evaluation.txt").read_text().split()
    suffix = ".png" if name == "ho3d_v2" else ".jpg"
    keys = [record["key"].split("#")[0] for record in prepared.records(out, "test")]
    expected = [f"evaluation/{s.replace('/', '/rgb/')}{suffix}" for s in lines]
    assert keys[:: 2 if name == "h2o3d" else 1] == expected


def test_evaluation_frames_have_a_wrist_and_a_box(made):
    """Trap: handJoints3D has one row there, and no pose."""
    name, _, posed, out = made
    expected = [hand for frame in posed["evaluation"] for hand in frame]
    for record, hand in zip(prepared.records(out, "test"), expected, strict=True):
        np.testing.assert_allclose(
            record["joints3d"][0], [*hand.joints3d[0], 1], atol=1e-5
        )
        assert not record["has_pose"]
        pixels = hands.project(hand.joints3d, hands.camera(640, 480, 610.0))
        corner = record["bbox_center"] - record["bbox_size"] / 2 + record["crop_origin"]
        np.testing.assert_allclose(corner, pixels.min(0) - 5, atol=1e-3)
        if name == "ho3d_v3":  # with the ground truth of 2024
            prepared.same_hand(record, hand)
            np.testing.assert_allclose(record["vertices"], hand.vertices, atol=1e-5)
        else:
            assert (record["joints3d"][1:, 3] == 0).all()
            assert not record["has_vertices"]


def test_left_hands_say_which_cure_their_model_had(made):
    """Trap: H2O-3D negated all of the left shapedirs, so betas are of that model."""
    for record in prepared.records(made[3]):
        assert record["left_model"] == (0 if record["is_right"] else 3)


def test_png_pictures_are_stored_as_jpeg(made):
    for record in prepared.records(made[3]):
        assert record["image"][:2] == b"\xff\xd8"


def test_joints_come_from_opengl_and_mano(made):
    name, _, posed, _ = made
    joints = posed["train"][0][0].joints3d
    published = (joints @ honnotate.OPENGL)[honnotate.TO_MANO]
    again = conventions.to_joints(name, conventions.to_camera(name, published))
    np.testing.assert_allclose(again, joints)


def test_without_mano_the_translation_alone_is_missing(made, tmp_path):
    """Poses are absolute; but where the hand turns about is in the model."""
    name, source, posed, _ = made
    out = job.prepare(name, source, tmp_path / "out", splits=["train"])
    record = prepared.records(out)[0]
    assert record["has_pose"] and record["has_betas"] and not record["has_transl"]
    np.testing.assert_allclose(
        record["mano_pose"], posed["train"][0][0].pose, atol=1e-5
    )


# --- damaged sources ----------------------------------------------------------------


def failure(name, root, out):
    with pytest.raises(SourceError) as error:
        prepared.prepare(name, root, out)
    return str(error.value)


@pytest.fixture
def damaged(made, tmp_path):
    return made[0], prepared.copy(made[1], tmp_path / "source"), tmp_path / "out"


def test_a_missing_list_or_frame_is_named(damaged):
    name, root, out = damaged
    frames = root / "train.txt"
    lines = frames.read_text()
    frames.write_text(lines + "SMu9/0000\n")
    assert "train/SMu9/rgb/0000" in failure(name, root, out)
    frames.write_text("not a frame\n")
    assert "lines SEQ/0000" in failure(name, root, out)
    frames.unlink()
    message = failure(name, root, out)
    assert "train.txt' is missing" in message and "github.com/shreyashampali" in message


def test_a_truncated_or_foreign_meta_file_is_named(damaged, tmp_path):
    name, root, out = damaged
    path = root / "train/ABF10/meta/0000.pkl"
    content = path.read_bytes()
    os.truncate(path, 300)
    message = failure(name, root, out)
    assert "ABF10/meta/0000.pkl" in message and "not a complete pickle" in message
    path.write_bytes(pickle.dumps({"something": 1}))
    assert "it has no" in failure(name, root, out)
    trace = tmp_path / "trace"
    path.write_bytes(b"cposix\nsystem\n(S'touch %s'\ntR." % str(trace).encode())
    assert "refused to load posix.system" in failure(name, root, out)
    assert not trace.exists()
    path.write_bytes(content)
    assert len(prepared.records(prepared.prepare(name, root, out))) > 0


def test_ground_truth_of_another_version_is_refused(damaged):
    name, root, out = damaged
    zeros = np.zeros((1, 21, 3)).tolist()
    (root / "evaluation_xyz.json").write_text(json.dumps(zeros))
    message = failure(name, root, out)
    assert "evaluation_xyz.json" in message and "it has 1" in message
