"""The noise model turns with the hand and keeps the convention of its pairs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from handjax.nn import landmark_noise
from handjax.nn.landmark_noise import Landmarks


@pytest.fixture(scope="module")
def pairs():
    return landmark_noise.load_pairs()


@pytest.fixture(scope="module")
def noise(pairs):
    return landmark_noise.noise_of(pairs)


def turned(points, angle):
    turn = landmark_noise.turn_in_plane(jnp.full(len(points), angle))
    return jnp.einsum("nab,njb->nja", turn, points)


@pytest.mark.parametrize("angle", [0.3, -1.7, 3.0])
def test_draws_of_turned_hands_are_turned_draws(pairs, noise, angle):
    joints, key = jnp.asarray(pairs.joints3d[:32]), jax.random.key(1)
    straight = landmark_noise.draw(key, noise, joints)
    of_turned = landmark_noise.draw(key, noise, turned(joints, angle))
    for name in ("screen", "world"):
        expected = turned(getattr(straight, name), angle)
        # Float rounding may choose another of two pairs that look equally alike.
        apart = np.abs(np.asarray(getattr(of_turned, name) - expected)).max(axis=(1, 2))
        assert np.mean(apart < 1e-4) > 0.9


def test_maps_neither_move_nor_turn_hands(noise):
    for name in ("screen_map", "depth_map", "world_map"):
        np.testing.assert_allclose(getattr(noise, name).sum(axis=1), 1, atol=1e-4)


def test_known_convention_is_found_again(pairs):
    # A network that reads every knuckle a fifth of the way to the wrist.
    convention = np.eye(21, dtype=np.float32)
    for knuckle in (5, 9, 13, 17):
        convention[knuckle, [knuckle, 0]] = 0.8, 0.2
    points = np.einsum("jk,nkx->njx", convention, pairs.joints3d)
    read = Landmarks(points, points, np.ones(len(points), np.float32))
    noise = landmark_noise.noise_of(pairs._replace(landmarks=read))
    found = landmark_noise.convention_of(pairs._replace(landmarks=read))
    for maps in found:
        np.testing.assert_allclose(maps[5:], convention[5:], atol=0.05)
    again = np.einsum("jk,nkx->njx", noise.world_map, pairs.joints3d)
    centred = points - points.mean(axis=1, keepdims=True)
    again = again - again.mean(axis=1, keepdims=True)
    assert np.linalg.norm(again - centred, axis=-1).mean() < 5e-4
    assert np.linalg.norm(noise.world_rest, axis=-1).mean() < 5e-4


def test_all_of_the_noise_gives_the_pairs_back(pairs, noise):
    sure = pairs.landmarks.presence > 0.5
    flat = landmark_noise.in_radii(pairs.joints3d[sure])
    screen = landmark_noise._screen(noise, flat) + noise.screen_rest
    expected = landmark_noise.in_radii(pairs.landmarks.screen[sure])
    np.testing.assert_allclose(screen, expected, atol=1e-4)


def test_saved_pairs_are_read_again(pairs, tmp_path, monkeypatch):
    landmark_noise.save_pairs(tmp_path / "pairs.npz", pairs)
    monkeypatch.setattr(landmark_noise, "PAIRS", tmp_path / "pairs.npz")
    jax.tree.map(np.testing.assert_array_equal, landmark_noise.load_pairs(), pairs)


def test_pairs_hold_hands_that_the_network_saw(pairs):
    assert len(pairs.betas) > 1000
    assert pairs.landmarks.presence.min() >= 0.29
    middle = np.linalg.norm(pairs.joints3d[:, 9], axis=-1)
    assert middle.max() < 1e-6
