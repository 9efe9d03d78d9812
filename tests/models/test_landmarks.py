"""The lifter: what it must not depend on; readings; released files."""

import functools
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from handjax import models
from handjax.checkpoints import workdir
from handjax.detection import regions
from handjax.inference import released
from handjax.models import landmarks
from handjax.nn import landmark_noise
from handjax.nn.backbones import hand_landmark
from handjax.nn.landmark_noise import Landmarks

CONFIG = Path(__file__).parents[2] / "configs" / "landmarks.py"


@pytest.fixture(scope="module")
def config():
    spec = importlib.util.spec_from_file_location("landmarks_config", CONFIG)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config("smoke")


@pytest.fixture(scope="module")
def model(config):
    return workdir.build_model(models.load("landmarks"), config)


@pytest.fixture(scope="module")
def variables(model):
    init = functools.partial(model.init, jax.random.key(0), method="init_all")
    return init(tiny.batch(2), tiny.hand())


@pytest.fixture(scope="module")
def read():
    """Eight readings of renders."""
    found = landmark_noise.load_pairs().landmarks
    return Landmarks(*(x[:8] for x in found))


def test_hand_does_not_depend_on_place_or_size_in_the_picture(model, variables, read):
    moved = read._replace(screen=3 * read.screen + 17, world=read.world - 0.5)
    first, second = (
        model.apply(variables, x, method="lift").output for x in (read, moved)
    )
    np.testing.assert_allclose(first.vertices, second.vertices, atol=1e-5)


@pytest.mark.parametrize("angle", [0.4, -2.0])
def test_regions_are_those_of_the_detector(read, angle):
    turn = np.asarray(landmark_noise.turn_in_plane(jnp.full(8, angle)))[:, :2, :2]
    points = np.einsum("nab,njb->nja", turn, read.screen[..., :2]).astype(np.float64)
    found = landmarks.region_of(jnp.asarray(points, jnp.float32))
    for i, each in enumerate(points):
        expected = regions.landmark_region(each)
        np.testing.assert_allclose(found.centre[i], expected.centre_px, atol=1e-2)
        np.testing.assert_allclose(found.size[i], expected.size_px, rtol=1e-4)
        off = np.angle(np.exp(1j * (float(found.angle[i]) - expected.angle)))
        assert abs(off) < 1e-4


def test_warp_cuts_out_what_the_detector_does():
    rng = np.random.default_rng(0)
    image = np.repeat(np.repeat(rng.random((12, 12, 3)), 20, 0), 20, 1) * 255
    image = image.astype(np.uint8)
    region = regions.Region(np.array([110.0, 130.0]), 190.0, 0.5)
    expected = regions.crop_region(image, region).astype(float)
    given = landmarks.Region(
        jnp.asarray(region.centre_px)[None],
        jnp.asarray([region.size_px]),
        jnp.asarray([region.angle]),
    )
    found = landmarks.warped(jnp.asarray(image[None], jnp.float32), given)[0]
    # OpenCV interpolates in 32nds of a pixel.
    assert np.abs(np.asarray(found) - expected).mean() < 1.0


def test_points_go_back_to_where_they_were_read(read):
    region = landmarks.Region(
        jnp.full((8, 2), 100.0), jnp.full(8, 150.0), jnp.full(8, 0.7)
    )
    points = landmarks.points_of(landmarks.Reading(read, region))
    given = regions.Region(np.full(2, 100.0), 150.0, 0.7)
    back = np.linalg.inv(regions.region_homography(given))
    expected = read.screen[0, :, :2] @ back[:2, :2].T + back[:2, 2]
    np.testing.assert_allclose(points[0], expected, atol=1e-2)


def test_prediction_turns_with_its_region(model, variables, read):
    def predicted(angle):
        region = landmarks.Region(
            jnp.full((8, 2), 100.0), jnp.full(8, 150.0), jnp.full(8, angle)
        )
        reading = landmarks.Reading(read, region)
        return model.apply(variables, reading, method="predict").output

    straight, turned = predicted(0.0), predicted(1.0)
    turn = np.asarray(landmark_noise.turn_in_plane(jnp.ones(8)))
    expected = np.einsum("nab,nvb->nva", turn, straight.vertices)
    np.testing.assert_allclose(turned.vertices, expected, atol=1e-5)
    flat = np.einsum("nab,njb->nja", turn[:, :2, :2], straight.joints2d - 100)
    np.testing.assert_allclose(turned.joints2d, flat + 100, atol=1e-2)


def test_training_learns_pairs_and_drawn_landmarks(config, model, variables):
    batch = tiny.batch(16)

    @jax.jit
    def terms(params, key):
        def total(params):
            found, _, _ = landmarks.poses_loss(
                model, {**variables, "params": params}, batch, {"mask": key}
            )
            return found["vertices"] + found["joints3d"]

        return jax.value_and_grad(total)(params)

    params, history = variables["params"], []
    for step in range(30):
        loss, gradient = terms(params, jax.random.fold_in(jax.random.key(1), step))
        params = jax.tree.map(lambda p, g: p - 0.3 * g, params, gradient)
        history.append(float(loss))
    assert np.mean(history[-5:]) < 0.9 * np.mean(history[:5])


def test_network_is_frozen_and_its_own(variables):
    kept = variables["constants"]["landmark_network"]
    published = hand_landmark.pretrained("mediapipe_hand_full")
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(kept), published)
    assert set(variables["params"]) == {"lifter"}


def test_released_weights_are_the_saved_ones(config, model, variables, read, tmp_path):
    about = {
        "command": "python -m handjax.train",
        "data": "built-in",
        "metrics": '{"pa_mpjpe_mm": 1.5}',
        "licence": "Apache-2.0",
    }
    released.save(tmp_path / "w.safetensors", config, variables, about)
    found = released.load(tmp_path / "w.safetensors")
    assert found.config.to_dict() == config.to_dict()
    assert released.metrics(tmp_path / "w.safetensors") == {"pa_mpjpe_mm": 1.5}
    first, second = (
        m.apply(v, read, method="lift").output
        for m, v in ((model, variables), (found.model, found.variables))
    )
    np.testing.assert_allclose(first.vertices, second.vertices, atol=1e-3)  # float16


def test_file_of_something_else_is_refused(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="not a safetensors file"):
        released.load(tmp_path / "w.safetensors")
    with pytest.raises(FileNotFoundError, match="no such file"):
        released.load(tmp_path / "none.safetensors")
