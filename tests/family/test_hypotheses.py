from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from handjax.family import hypotheses
from handjax.family.hypotheses import joint_uncertainty_mm
from handjax.inference.photos import Photo
from handjax.inference.predictor import HandPredictor
from handjax.mano import model_files
from handjax.types import HandOutput

BATCH, COUNT = 3, 5
KEY = jax.random.key(3)
FACES = np.asarray(model_files.load("open").faces)


class Guesses(nn.Module):
    """A model whose hands are noise about a learnt one; red crops leave more doubt."""

    def setup(self):
        self.joints = self.param("joints", nn.initializers.normal(0.05), (21, 3))

    def __call__(self, image):
        hand = jnp.broadcast_to(self.joints - self.joints[9:10], (len(image), 21, 3))
        return HandOutput(hand[:, :1] + jnp.zeros((1, 778, 1)), hand)

    def hypotheses(self, image, key, count):
        answer = self(image)
        doubt = jnp.mean(image[..., 0] / 255.0, axis=(1, 2)) * 0.01

        def one(key):
            noise_key, code_key = jax.random.split(key)
            noise = jax.random.normal(noise_key, answer.joints3d.shape)
            noise = noise - noise[:, 9:10]
            indices = jax.random.randint(code_key, (len(image), 4), 0, 11)
            return HandOutput(
                answer.vertices + doubt[:, None, None],
                answer.joints3d + doubt[:, None, None] * noise,
                logits=jax.nn.one_hot(indices, 11),
                indices=indices,
                confidence=jnp.mean(indices, axis=1) / 11,
            )

        return hypotheses.draw(one, key, count)


def images():
    image = np.zeros((BATCH, 8, 8, 3), np.uint8)
    image[1, ..., 0], image[2, ..., 0] = 100, 250
    return image


def test_hypotheses_are_ranked_and_each_keeps_its_parts_together():
    model = Guesses()
    variables = model.init(KEY, images())
    found = jax.jit(
        lambda key: model.apply(variables, images(), key, COUNT, method="hypotheses")
    )(KEY)
    assert found.vertices.shape == (BATCH, COUNT, 778, 3)
    assert found.joints3d.shape == (BATCH, COUNT, 21, 3) and found.joints2d is None
    assert (np.diff(found.confidence, axis=1) <= 0).all()
    np.testing.assert_allclose(
        found.confidence, np.asarray(found.indices).mean(axis=-1) / 11, rtol=1e-6
    )
    np.testing.assert_allclose(np.sum(found.weights, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(
        found.weights / found.weights[:, :1],
        found.confidence / found.confidence[:, :1],
        rtol=1e-5,
    )
    # Each key gave one hand: those of the loop, sorted.
    noise = [
        jax.random.normal(jax.random.split(key)[0], (BATCH, 21, 3))
        for key in jax.random.split(KEY, COUNT)
    ]
    tips = 0.01 * 250 / 255 * np.array([n[2, 20] - n[2, 9] for n in noise])
    still = np.asarray(model.apply(variables, images()).joints3d[2, 20])
    np.testing.assert_allclose(
        np.sort(found.joints3d[2, :, 20], axis=0),
        np.sort(still + tips, axis=0),
        atol=1e-6,
    )
    other = model.apply(variables, images(), KEY, COUNT, method="hypotheses")
    np.testing.assert_array_equal(other.indices, found.indices)


def test_uncertainty_is_the_weighted_spread_in_millimetres():
    rng = np.random.default_rng(0)
    joints3d = rng.normal(0, 0.1, (BATCH, COUNT, 21, 3))
    weights = rng.uniform(0.1, 1, (BATCH, COUNT))
    weights /= weights.sum(axis=1, keepdims=True)
    expected = np.zeros((BATCH, 21))
    for b in range(BATCH):
        for j in range(21):
            points = joints3d[b, :, j] - joints3d[b, :, 9]
            mean = sum(w * p for w, p in zip(weights[b], points, strict=True))
            far = [((p - mean) ** 2).sum() for p in points]
            expected[b, j] = 1000 * np.sqrt(np.dot(weights[b], far))
    found = joint_uncertainty_mm(joints3d, weights, root=9)
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    assert (found[:, 9] == 0).all()
    inside = joint_uncertainty_mm(jnp.asarray(joints3d), jnp.asarray(weights), root=9)
    np.testing.assert_allclose(inside, expected, rtol=1e-4, atol=1e-3)
    # Two hands 10 mm apart in one joint, evenly: 5 mm from their mean.
    pair = np.zeros((2, 21, 3))
    pair[1, 4, 2] = 0.01
    found = joint_uncertainty_mm(pair, np.array([0.5, 0.5]), root=0)
    np.testing.assert_allclose(found, 5.0 * (np.arange(21) == 4))
    assert not joint_uncertainty_mm(pair[1:], np.ones(1), root=0).any()


def test_hands_without_confidence_and_no_hands_are_refused():
    hands = HandOutput(jnp.zeros((2, 3, 778, 3)), jnp.zeros((2, 3, 21, 3)))
    with pytest.raises(ValueError, match=r"HandOutput.confidence must not be None"):
        hypotheses.ranked(hands)
    with pytest.raises(ValueError, match="count=0 must be 1 or more"):
        hypotheses.draw(lambda key: hands, KEY, 0)


CONFIG = ml_collections.ConfigDict(
    dict(data=dict(crop_size=64, box_scale=1.25, root="middle_mcp"), family="guesses")
)
GRAY = Photo(Path("x"), np.full((60, 80, 3), 120, np.uint8), None)


def predictor(model=None, **options):
    variables = Guesses().init(KEY, images())
    variables = {**variables, "constants": {"faces": FACES}}
    return HandPredictor(CONFIG, model or Guesses(), variables, **options)


def test_the_predictor_places_hypotheses_in_the_photo():
    lens = (100.0, 100.0, 39.5, 29.5)  # in the very middle: mirrored the same
    made = predictor()
    options = dict(box_px=(10, 10, 50, 50), intrinsics=lens)
    drawn = made.hypotheses(GRAY, COUNT, **options, seed=1)
    assert made(GRAY, **options).hypotheses is None
    assert len(drawn.hands) == COUNT and drawn.hands[0].indices.shape == (4,)
    sure = [hand.confidence for hand in drawn.hands]
    np.testing.assert_allclose(drawn.weights, np.divide(sure, sum(sure)), rtol=1e-5)
    # The spread does not depend on the axes that the hands are given in.
    turned = np.stack([hand.joints3d for hand in drawn.hands])
    np.testing.assert_allclose(
        drawn.joint_uncertainty_mm,
        joint_uncertainty_mm(turned, drawn.weights.astype(float), root=9),
        rtol=1e-4,
    )
    assert 3 < drawn.joint_uncertainty_mm.max() < 30
    # A left hand is the mirror image, hypotheses included.
    options = dict(box_px=(29, 10, 69, 50), is_right=False, intrinsics=lens)
    left = made.hypotheses(GRAY, COUNT, **options, seed=1)
    for a, b in zip(left.hands, drawn.hands, strict=True):
        np.testing.assert_allclose(a.joints3d * [-1, 1, 1], b.joints3d, atol=1e-5)
        np.testing.assert_allclose(a.translation * [-1, 1, 1], b.translation, atol=1e-5)
    again = made.hypotheses(GRAY, COUNT, box_px=(10, 10, 50, 50), seed=2)
    assert (again.hands[0].joints3d != drawn.hands[0].joints3d).any()


class OneAnswer(nn.Module):
    """A model that does not sample."""


@pytest.mark.parametrize(
    ("model", "options", "number", "match"),
    [
        (OneAnswer(), {}, 2, "'guesses' gives one answer to an image"),
        (None, {}, -1, r"hypotheses=-1 must be 1 or more"),
        (None, {"tta": "mean"}, 2, "tta='mean' fuses 95"),
    ],
)
def test_hypotheses_that_cannot_be_had_are_refused(model, options, number, match):
    with pytest.raises(ValueError, match=match):
        predictor(model, **options).hypotheses(GRAY, number)
