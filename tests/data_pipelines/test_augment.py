"""Augmentation: where numbers come from, and closed forms of what is done with them."""

import numpy as np
import pytest

from data_pipelines import augment
from data_pipelines.augment import AugmentConfig

DRAWN = augment.draws(3, range(4000))


def test_draws_depend_on_seed_and_position_alone():
    np.testing.assert_array_equal(augment.draws(3, [7, 9]), DRAWN[[7, 9]])
    assert (augment.draws(4, [7]) != DRAWN[7]).all()
    alone = np.random.Generator(np.random.Philox(key=[3, 7])).random(augment.NUM_DRAWS)
    np.testing.assert_array_equal(DRAWN[7], alone)
    np.testing.assert_allclose(DRAWN.mean(0), 0.5, atol=0.03)
    np.testing.assert_allclose(np.cov(DRAWN.T), np.eye(10) / 12, atol=0.01)


def test_boxes_move_by_a_share_of_their_width_and_grow():
    n = len(DRAWN)
    center, extent = np.full((n, 2), 50.0), np.tile([20.0, 40], (n, 1))
    moved, grown = augment.jitter_boxes(
        AugmentConfig(), DRAWN, center, extent, np.full((n, 2), 99.0)
    )
    shift = moved - center
    np.testing.assert_allclose(np.abs(shift).max(0), [2, 2], atol=0.01)
    np.testing.assert_allclose(shift.mean(0), [0, 0], atol=0.1)
    growth = grown / extent
    np.testing.assert_array_equal(growth[:, 0], growth[:, 1])
    np.testing.assert_allclose([growth.min(), growth.max()], [1, 1.5], atol=0.01)


def test_box_centres_stay_in_the_picture():
    n = len(DRAWN)
    edge = np.tile([99.0, 0], (n, 1))
    moved, _ = augment.jitter_boxes(
        AugmentConfig(), DRAWN, edge, np.full((n, 2), 50.0), np.full((n, 2), 99.0)
    )
    assert moved[:, 0].max() == 99 and moved[:, 1].min() == 0


@pytest.mark.parametrize("rotation", ["uniform", "released"])
def test_turns_cover_the_circle_evenly(rotation):
    angle = augment.angles(AugmentConfig(rotation=rotation), DRAWN)
    for k in (1, 2, 3):
        assert abs(np.exp(1j * k * angle).mean()) < 0.1


def test_released_angles_pile_up_at_the_clip():
    """P(|N(0, 90)| > 180) = 4.55 %."""
    angle = augment.angles(AugmentConfig(rotation="released"), DRAWN)
    assert (np.abs(angle) == 180).mean() == pytest.approx(0.0455, abs=0.01)


def test_turns_stay_within_the_limit():
    angle = augment.angles(AugmentConfig(max_rotation=0.5), DRAWN)
    np.testing.assert_allclose([angle.min(), angle.max()], [-0.5, 0.5], atol=0.01)


def test_flips_have_the_given_probability():
    assert not augment.flips(AugmentConfig(), DRAWN).any()
    share = augment.flips(AugmentConfig(flip=0.5), DRAWN).mean()
    assert share == pytest.approx(0.5, abs=0.03)


def test_colours_are_the_three_steps_one_after_the_other():
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, -1)
    colours = augment.colours(AugmentConfig(), DRAWN[:40])
    out, brightened = np.empty_like(image), 0
    for i, u in enumerate(DRAWN[:40]):
        augment.recolour(image, colours.affine[i], float(colours.ceiling[i]), out)
        channel, contrast = 0.6 + 0.8 * u[4:7], 0.8 + 0.4 * u[7]
        noisy = np.clip(image * channel, 0, 255)
        expected = np.clip(noisy * contrast + 255 * (-0.4 + 0.5 * u[8]), 0, 255)
        assert np.abs(out - expected).max() < 1.01  # rounding
        brightened += (image * channel).max() > 255 > colours.ceiling[i]
    assert brightened > 5, "no example in which the first step saturates"


def test_no_augmentation_changes_nothing():
    config = augment.NONE
    image = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    colours, out = augment.colours(config, DRAWN[:1]), np.empty((8, 8, 3), np.uint8)
    augment.recolour(image, colours.affine[0], float(colours.ceiling[0]), out)
    np.testing.assert_array_equal(out, image)
    assert not augment.angles(config, DRAWN).any()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rotate": 1}, "no key 'rotate'; allowed: center_jitter"),
        ({"rotation": "some"}, "rotation='some' is not one of"),
        ({"scale": (1.5, 1.0)}, "scale=.* the smaller first"),
        ({"scale": (0.0, 1.0)}, "scale=.* must be above 0"),
        ({"flip": 2}, "flip=2 is no probability"),
        ({"contrast": 1.5}, "contrast=1.5 must be a number"),
    ],
)
def test_wrong_values_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        augment.config_from(values)
