"""A photo without a box, a side or a workdir becomes a hand: command and Python."""

import io
import json

import jsonschema
import numpy as np
import pytest
from PIL import Image
from places import ROOT

import handjax
from data_pipelines.synthetic.records import Generator
from handjax import predict
from handjax.inference import __main__ as models_command
from handjax.metrics.mesh_errors import procrustes_align

SCHEMA = ROOT / "handjax" / "assets" / "prediction.schema.json"


@pytest.fixture(scope="module")
def rendered():
    record = Generator(seed=77, image_size=224, left_fraction=0.0, max_turn=60)(
        "test", 0
    )
    return np.array(Image.open(io.BytesIO(record["image"])).convert("RGB")), record


@pytest.fixture(scope="module")
def predictor():
    return handjax.load("landmarks")


def _pa_mm(joints3d, record):
    truth = np.asarray(record["joints3d"], np.float64)[:, :3]
    # Rotations only: the other side's hand must not pass.
    aligned = procrustes_align(truth, np.asarray(joints3d, float), procrustes="proper")
    return 1000 * np.linalg.norm(aligned - truth, axis=-1).mean()


def test_a_rendered_hand_is_found_and_close_to_the_truth(predictor, rendered):
    image, record = rendered
    hand = predictor(image)
    assert hand.box.is_right and not hand.not_sure and hand.presence > 0.9
    assert hand.vertices.shape == (778, 3) and hand.mano_pose.shape == (16, 3)
    assert _pa_mm(hand.joints3d, record) < 15
    apart = np.linalg.norm(hand.joints2d - record["joints2d"][:, :2], axis=1)
    assert apart.mean() < 0.1 * max(record["bbox_size"])


def test_its_mirror_image_is_the_mirrored_left_hand(predictor, rendered):
    image, record = rendered
    hand = predictor(np.ascontiguousarray(image[:, ::-1]))
    assert not hand.box.is_right
    assert _pa_mm(hand.joints3d * [-1, 1, 1], record) < 15


def test_the_side_that_the_user_names_wins(predictor, rendered):
    image, record = rendered
    centre, size = record["bbox_center"], record["bbox_size"]
    box_px = np.concatenate([centre - size / 2, centre + size / 2]).tolist()
    assert not predictor(image, box_px=box_px, is_right=False).box.is_right


def test_a_picture_without_hands_is_an_error_of_one_line(predictor):
    flat = np.full((96, 128, 3), 127, np.uint8)
    with pytest.raises(handjax.UserError, match="no hand was found; give its box"):
        predictor(flat)


def test_predict_needs_only_a_photo(rendered, tmp_path, capsys):
    image, record = rendered
    photo = tmp_path / "photo.png"
    Image.fromarray(image).save(photo)
    assert predict.main([str(photo), f"--output={tmp_path / 'hands'}"]) == 0
    assert "right hand" in capsys.readouterr().out
    found = json.loads((tmp_path / "hands" / "photo.json").read_text())
    (hand,) = found["hands"]
    assert hand["side"] == "right" and not hand["not_sure"]
    assert len(hand["mano"]["hand_pose"]) == 15 and len(hand["mano"]["betas"]) == 10
    assert found["weights_licence"] == "Apache-2.0"
    jsonschema.validate(found, json.loads(SCHEMA.read_text()))
    assert _pa_mm(hand["joints3d"], record) < 15
    for name in ("photo_overlay.png", *hand["files"]):
        assert (tmp_path / "hands" / name).stat().st_size > 0


def test_what_needs_a_workdir_says_so(rendered, tmp_path, capsys):
    photo = tmp_path / "photo.png"
    Image.fromarray(rendered[0]).save(photo)
    assert predict.main([str(photo), "--tta=mean", f"--output={tmp_path}"]) == 2
    assert "give --workdir" in capsys.readouterr().err


def test_models_that_come_with_handjax_are_listed(capsys):
    assert models_command.main(["--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["name"] == "landmarks" and row["metrics"]["pa_mpjpe_mm"] < 12
