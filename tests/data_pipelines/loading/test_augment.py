"""Augmentation: where numbers come from, and closed forms of what is done with them."""

import numpy as np
import pytest

from data_pipelines.loading import augment
from data_pipelines.loading.augment import AugmentConfig, HamerConfig
from handjax.config import schema as configs

DRAWN = augment.draws(3, range(4000))
EXTENT = np.tile([20.0, 40], (len(DRAWN), 1))


def _changes(config=AugmentConfig(), drawn=DRAWN):  # noqa: B008
    return config.changes(drawn, EXTENT[: len(drawn)], 1.25)


def test_draws_depend_on_seed_and_position_alone():
    np.testing.assert_array_equal(augment.draws(3, [7, 9]), DRAWN[[7, 9]])
    assert (augment.draws(4, [7]) != DRAWN[7]).all()
    alone = np.random.Generator(np.random.Philox(key=[3, 7])).random(augment.NUM_DRAWS)
    np.testing.assert_array_equal(DRAWN[7], alone)
    np.testing.assert_allclose(DRAWN.mean(0), 0.5, atol=0.03)
    np.testing.assert_allclose(np.cov(DRAWN.T), np.eye(10) / 12, atol=0.01)


def test_boxes_move_by_a_share_of_their_width_and_grow():
    center = np.full(EXTENT.shape, 50.0)
    moved, grown = augment.move_boxes(_changes(), center, EXTENT, 0 * center + 99)
    shift = moved - center
    np.testing.assert_allclose(np.abs(shift).max(0), [2, 2], atol=0.01)
    np.testing.assert_allclose(shift.mean(0), [0, 0], atol=0.1)
    growth = grown / EXTENT
    np.testing.assert_array_equal(growth[:, 0], growth[:, 1])
    np.testing.assert_allclose([growth.min(), growth.max()], [1, 1.5], atol=0.01)


def test_box_centres_stay_in_the_picture():
    edge = np.tile([99.0, 0], (len(DRAWN), 1))
    moved, _ = augment.move_boxes(_changes(), edge, EXTENT, 0 * edge + 99)
    assert moved[:, 0].max() == 99 and moved[:, 1].min() == 0


@pytest.mark.parametrize("rotation", ["uniform", "released"])
def test_turns_cover_the_circle_evenly(rotation):
    angle = _changes(AugmentConfig(rotation=rotation)).angle
    for k in (1, 2, 3):
        assert abs(np.exp(1j * k * angle).mean()) < 0.1


def test_released_angles_pile_up_at_the_clip():
    """P(|N(0, 90)| > 180) = 4.55 %."""
    angle = _changes(AugmentConfig(rotation="released")).angle
    assert (np.abs(angle) == 180).mean() == pytest.approx(0.0455, abs=0.01)


def test_turns_stay_within_the_limit():
    angle = _changes(AugmentConfig(max_rotation=0.5)).angle
    np.testing.assert_allclose([angle.min(), angle.max()], [-0.5, 0.5], atol=0.01)


def test_flips_have_the_given_probability():
    assert not _changes().flip.any()
    share = _changes(AugmentConfig(flip=0.5)).flip.mean()
    assert share == pytest.approx(0.5, abs=0.03)


def test_colours_are_the_three_steps_one_after_the_other():
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, -1)
    colours = augment.colours(_changes(drawn=DRAWN[:40]))
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
    config = AugmentConfig(0.0, (1.0, 1.0), "uniform", 0.0, 0.0, 0.0, (0.0, 0.0), 0.0)
    changes = _changes(config)
    image = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    colours, out = augment.colours(changes), np.empty((8, 8, 3), np.uint8)
    augment.recolour(image, colours.affine[0], float(colours.ceiling[0]), out)
    np.testing.assert_array_equal(out, image)
    assert not changes.angle.any()


# --- HaMeR's recipe -----------------------------------------------------------------


def _share(values):
    return float(np.mean(values))


def test_hamer_boxes_vary_about_those_of_evaluation():
    """Clipped at one sigma: P(|n| > 1) = 31.73 % are at either end."""
    changes = _changes(HamerConfig())
    growth = changes.growth / 1.25
    np.testing.assert_allclose([growth.min(), growth.max()], [0.7, 1.3])
    np.testing.assert_allclose(growth.mean(), 1, atol=0.01)
    assert _share(np.abs(growth - 1) > 0.3 - 1e-9) == pytest.approx(0.3173, abs=0.02)
    side = 1.25 * 40  # the larger one
    np.testing.assert_allclose(np.abs(changes.shift).max(0), 0.02 * side)
    at_the_end = np.abs(changes.shift) > 0.02 * side - 1e-9
    assert _share(at_the_end) == pytest.approx(0.3173, abs=0.02)
    assert abs(np.corrcoef(changes.shift.T)[0, 1]) < 0.05


def test_hamer_turns_three_in_five_by_a_clipped_normal_angle():
    """P(|n| > 2) = 4.55 % of those that are turned stop at 60 degrees."""
    degrees = np.degrees(_changes(HamerConfig()).angle)
    turned = degrees[degrees != 0]
    assert len(turned) / len(degrees) == pytest.approx(0.6, abs=0.02)
    np.testing.assert_allclose([degrees.min(), degrees.max()], [-60, 60])
    assert _share(np.abs(turned) > 60 - 1e-6) == pytest.approx(0.0455, abs=0.01)
    assert _share(np.abs(turned) < 30) == pytest.approx(0.6827, abs=0.025)


def test_hamer_colours_are_one_factor_for_each_channel():
    changes = _changes(HamerConfig())
    assert not changes.flip.any()
    np.testing.assert_allclose(
        [changes.channel.min(), changes.channel.max()], [0.8, 1.2], atol=1e-3
    )
    image, out = np.full((2, 2, 3), 230, np.uint8), np.empty((2, 2, 3), np.uint8)
    colours = augment.colours(changes)
    augment.recolour(image, colours.affine[0], float(colours.ceiling[0]), out)
    expected = np.minimum(230 * changes.channel[0], 255)
    assert np.abs(out - expected).max() <= 0.5


def test_the_recipe_is_chosen_by_name_and_its_amounts_by_keys():
    values = configs.base().data.augment.to_dict()
    assert augment.config_from(values) == AugmentConfig()
    values["recipe"] = "hamer"
    assert augment.config_from(values) == HamerConfig()
    values["hamer"]["rotation_rate"] = 1.0
    assert augment.config_from(values) == HamerConfig(rotation_rate=1.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rotate": 1}, "no key 'rotate'; allowed: center_jitter"),
        ({"rotation": "some"}, "rotation='some' is not one of"),
        ({"scale": (1.5, 1.0)}, "scale=.* the smaller first"),
        ({"scale": (0.0, 1.0)}, "scale=.* must be above 0"),
        ({"flip": 2}, "flip=2 is not a probability"),
        ({"contrast": 1.5}, "contrast=1.5 must be a number"),
        ({"recipe": "hammer"}, "recipe='hammer' is not one of 'simplehand', 'hamer'"),
        ({"hamer": {"flip": 1}}, "augment.hamer has no key 'flip'; allowed: shift"),
        ({"hamer": {"scale": 1.0}}, "hamer.scale=1.0 must be .* below 1"),
        ({"hamer": {"rotation_rate": 6}}, "hamer.rotation_rate=6 is not a probability"),
        ({"hamer": {"rotation": -1.0}}, "hamer.rotation=-1.0 must be an angle"),
    ],
)
def test_wrong_values_are_refused(values, message):
    chosen = {"recipe": "hamer"} if "hamer" in values else {}
    with pytest.raises(ValueError, match=message):
        augment.config_from(chosen | values)
