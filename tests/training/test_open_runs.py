"""The `:open_smoke` runs: features of a frozen network, training, then a photo."""

import cv2
import fake_records
import jax
import numpy as np
import pytest

from handjax import models
from handjax.config import schema as configs
from handjax.config.files import load_config
from handjax.detection.hand_detector import DetectedHand, HandDetector
from handjax.detection.regions import landmark_region
from handjax.errors import UserError
from handjax.inference.predictor import HandPredictor
from handjax.train import train


def _config(family, directory):
    config = load_config(f"configs/{family}.py:open_smoke")
    config.data.dir, config.train.compile_cache = str(directory), ""
    return config


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """Made-up pictures, and a detector that finds a hand in the middle of a box."""

    def find_in_box(self, image, box_px):
        x0, y0, x1, y1 = box_px
        hand = fake_records.joints(0)[:, :2]
        unit = (hand - hand.min(0)) / np.ptp(hand, axis=0)
        points = np.array([x0, y0]) + unit * [x1 - x0, y1 - y0]
        region = landmark_region(points)
        box = np.asarray(box_px, np.float64)
        return DetectedHand(
            region, box, points, np.zeros(21), np.zeros((21, 3)), 1.0, 0.9, True
        )

    monkeypatch.setattr(HandDetector, "__init__", lambda self, *a, **options: None)
    monkeypatch.setattr(HandDetector, "find_in_box", find_in_box)
    monkeypatch.setenv("HANDJAX_DATA", str(tmp_path / "cache"))
    return fake_records.write(
        tmp_path / "pictures", count=8, name="synthetic", num_shards=1
    )


@pytest.mark.parametrize(
    "family", ["simplehand", pytest.param("tokenhand", marks=pytest.mark.slow)]
)
def test_a_run_on_features_ends_in_a_model_that_reads_photos(
    family, pictures, tmp_path
):
    workdir = tmp_path / "run"
    train(_config(family, pictures), str(workdir))

    assert (workdir / "DONE").is_file()
    parts = sorted(p.name for p in (tmp_path / "cache" / "features").rglob("*.s*rs"))
    assert parts == ["part-00000-of-00001.safetensors"] * 2
    predict = HandPredictor.from_workdir(workdir)
    noise = np.random.default_rng(0).integers(0, 255, (9, 12, 3), dtype=np.uint8)
    photo = cv2.resize(noise, (320, 240))
    hand = predict(photo, box_px=(60, 40, 260, 220))
    assert hand.presence == 1.0 and not hand.not_sure
    assert np.isfinite(hand.vertices).all() and np.ptp(hand.vertices) > 0.01


@pytest.mark.parametrize("family", ["simplehand", "tokenhand"])
def test_only_features_reach_a_model_that_stands_on_them(family):
    config = load_config(f"configs/{family}.py:open_smoke")
    config.stages.mesh.data = "images"
    with pytest.raises(UserError, match=r"stages.mesh.data='images'.*'features'"):
        configs.check(config)
    config = load_config(f"configs/{family}.py:smoke")
    config.stages.mesh.data = "features"
    with pytest.raises(UserError, match=r"stages.mesh.data='features'.*'images'"):
        configs.check(config)


@pytest.mark.parametrize("family", ["simplehand", "tokenhand"])
@pytest.mark.parametrize(
    "changes, match",
    [
        (dict(features="thawed"), "features='thawed' is not one of"),
        (dict(backbone="hiera_tiny_224"), "mediapipe_hand_full or"),
    ],
)
def test_fields_that_do_not_go_together_are_named(family, changes, match):
    config = load_config(f"configs/{family}.py:open_smoke")
    config.model.update(changes)
    model = models.load(family).Model(**config.model)
    with pytest.raises(UserError, match=match):
        jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 224, 224, 3)))
