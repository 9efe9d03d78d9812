"""Recipes of scenes: fingers of their own sizes, edge-on views, unchanged defaults."""

import hashlib

import numpy as np
import pytest

from data_pipelines.storage import schema
from data_pipelines.synthetic import finger_sizes, generate, hand, records, scene
from data_pipelines.synthetic.recipes import RECIPES

FINGERS = ("index", "middle", "little", "ring", "thumb")


@pytest.fixture(scope="module")
def built_in():
    return hand.load()


def joints_of(model):
    return model.file.J_regressor @ model.file.v_template


def bones(model, finger):
    """Lengths of the two inner bones, metres."""
    joints = joints_of(model)[3 * finger + 1 : 3 * finger + 4]
    return np.linalg.norm(np.diff(joints, axis=0), axis=1)


def test_factors_of_one_change_nothing(built_in):
    same = finger_sizes.vary(built_in, np.ones(5), np.ones(5))

    np.testing.assert_allclose(same.v_template, built_in.v_template, atol=1e-12)
    np.testing.assert_allclose(
        same.file.v_template, built_in.file.v_template, atol=1e-7
    )


@pytest.mark.parametrize("finger", range(5), ids=FINGERS)
def test_one_finger_becomes_longer_and_the_others_stay(built_in, finger):
    lengths = np.ones(5)
    lengths[finger] = 1.2

    longer = finger_sizes.vary(built_in, lengths, np.ones(5))

    ratio = [bones(longer, other) / bones(built_in, other) for other in range(5)]
    np.testing.assert_allclose(ratio[finger], 1.2, atol=0.06)
    np.testing.assert_allclose(np.delete(ratio, finger, 0), 1, atol=0.03)


def test_a_wider_finger_keeps_its_bones(built_in):
    wider = finger_sizes.vary(built_in, np.ones(5), np.full(5, 1.2))
    owner = built_in.file.weights.argmax(1)
    middle = owner == 5  # the middle finger's second bone

    def thickness(model):
        across = model.file.v_template[middle][:, 1:]
        return np.ptp(across, axis=0)

    np.testing.assert_allclose(thickness(wider) / thickness(built_in), 1.2, atol=0.05)
    for finger in range(5):
        change = bones(wider, finger) - bones(built_in, finger)
        assert np.abs(change).max() < 0.0015


def test_both_meshes_agree(built_in):
    model = finger_sizes.sample(
        np.random.default_rng(0), built_in, length=0.1, width=0.1, common_width=0.1
    )
    angles = np.random.default_rng(1).uniform(-0.2, 0.6, (15, 3))
    posed = hand.pose(model, angles, np.zeros(10), np.eye(3), np.eye(3))

    apart = np.abs(posed.drawn[model.hand_subset] - posed.vertices).max()

    assert apart < 2e-4  # metres: the pose correctives of the two are fitted apart


def test_edge_on_hands_are_more_often_seen():
    def towards_camera(recipe):
        rng = np.random.default_rng(0)
        views = np.array([scene._view(rng, 180.0, recipe) for _ in range(600)])
        return np.abs(views[:, 2])  # depth of the rest hand's x, y and z axis

    default = towards_camera(RECIPES["default"])
    photos = towards_camera(RECIPES["photos"])
    near = np.cos(np.radians(30))
    little_or_index_side, palm_or_back = (photos > near).mean(0)[[2, 1]]

    np.testing.assert_allclose((default > near).mean(0), 1 - near, atol=0.04)
    assert little_or_index_side > 0.25
    assert palm_or_back > 0.15


def test_photos_leave_out_the_coefficients_that_do_not_describe_the_hand():
    make = records.Generator(seed=3, image_size=64, left_fraction=0.5, recipe="photos")
    example = schema.decode(schema.encode(make("train", 0)))

    assert not example["has_betas"] and not example["has_transl"]
    assert example["has_vertices"] and example["has_pose"]
    np.testing.assert_allclose(
        hand.load().joint_regressor @ example["vertices"],
        example["joints3d"][:, :3],
        atol=1e-5,
    )


def test_only_training_pictures_depend_on_the_recipe():
    plain = records.Generator(seed=3, image_size=48, left_fraction=0.0)
    named = records.Generator(
        seed=3, image_size=48, left_fraction=0.0, recipe="default"
    )

    photos = records.Generator(
        seed=3, image_size=48, left_fraction=0.0, recipe="photos"
    )

    def digests(split):
        return [
            hashlib.sha256(schema.encode(make(split, 0))).hexdigest()
            for make in (plain, named, photos)
        ]

    assert len(set(digests("test"))) == 1
    train = digests("train")
    assert train[0] == train[1] != train[2]


def test_unknown_recipe_is_refused(tmp_path):
    with pytest.raises(ValueError, match="recipe='real'; allowed are default, photos"):
        generate.ensure(tmp_path / "data", 1, recipe="real")
