"""Meshes made of MANO parameters: right, left, with and without a place."""

import numpy as np
import pytest
from fake_records import decoded, record
from miniatures import hands

from data_pipelines.loading import augment
from data_pipelines.loading.augment import AugmentConfig
from data_pipelines.loading.examples import ExampleMaker
from data_pipelines.loading.posing import Poser
from handjax.geometry.crop import CropConfig
from handjax.geometry.skeleton import MIDDLE_MCP
from handjax.mano import model_files, numpy_skinning

FILE = model_files.load("open")
POSER = Poser(FILE, MIDDLE_MCP)
K = hands.camera(96, 96, 150.0)


def test_meshes_are_those_of_plain_skinning():
    rng = np.random.default_rng(0)
    pose, betas = rng.normal(0, 0.6, (5, 16, 3)), rng.normal(size=(5, 10))
    found = POSER.vertices(pose, betas)
    assert found.dtype == np.float32
    for mesh, p, b in zip(found, pose, betas, strict=True):
        np.testing.assert_allclose(mesh, numpy_skinning.posed(FILE, p, b), atol=2e-6)
    regressor = model_files.joint_regressor(FILE)
    expected = np.einsum("jv,nvx->njx", regressor, found)[:, MIDDLE_MCP]
    np.testing.assert_allclose(POSER.roots(found), expected, atol=1e-6)


def stored(hand, **changes):
    """A record of a posed hand, its mesh left out."""
    pixels = hands.project(hand.joints3d, K)
    ones = np.ones((21, 1))
    fields = dict(
        K=K,
        is_right=hand.is_right,
        joints2d=np.concatenate([pixels, ones], -1),
        joints3d=np.concatenate([hand.joints3d, ones], -1),
        bbox_center=pixels.mean(0),
        bbox_size=np.ptp(pixels, axis=0),
        mano_pose=hand.pose,
        mano_betas=hand.betas,
        mano_transl=hand.transl,
        left_model=0 if hand.is_right else 2,
        vertices=None,
    )
    return record(**(fields | changes))


MAKE = ExampleMaker(CropConfig(size=64), poser=POSER)


def made(*records, posable=True, augmentation=None):
    given = [decoded(r) | {"posable": posable} for r in records]
    draws = augment.draws(0, range(len(given)))
    return MAKE._replace(augmentation=augmentation)(given, draws)


@pytest.mark.parametrize("is_right", [True, False])
@pytest.mark.parametrize("recipe", [None, AugmentConfig(flip=1.0)])
def test_a_posed_mesh_is_the_one_that_could_have_been_stored(is_right, recipe):
    hand = hands.posed(3, is_right=is_right, place=(0.01, 0.02, 0.5))
    options = dict(augmentation=recipe)
    batch = made(stored(hand), **options)
    truth = made(stored(hand, vertices=hand.vertices), **options)
    assert batch.vertices_valid[0] and truth.vertices_valid[0]
    np.testing.assert_allclose(batch.vertices, truth.vertices, atol=1e-6)


def test_a_mesh_without_a_place_is_put_at_the_joints():
    """HaMeR's tars have no translations."""
    hand = hands.posed(4, place=(0.0, 0.01, 0.55))
    batch = made(stored(hand, mano_transl=None))
    truth = made(stored(hand, vertices=hand.vertices))
    np.testing.assert_allclose(batch.vertices, truth.vertices, atol=2e-6)


@pytest.mark.parametrize(
    "missing, changes, posable",
    [
        ("mano_betas", {}, True),
        ("mano_pose", {}, True),
        ("joints3d", {}, True),
        ("", dict(is_right=False, left_model=1), True),  # MANO_LEFT as it is
        ("", {}, False),  # parameters of another hand model
    ],
)
def test_what_cannot_be_posed_has_no_mesh(missing, changes, posable):
    example = stored(hands.posed(5, place=(0, 0, 0.5))) | changes
    example.pop(missing, None)
    assert not made(example, posable=posable).vertices_valid[0]


def test_stored_meshes_are_left_alone():
    example = record(2, mano_transl=None)
    batch = made(example)
    plain = MAKE._replace(poser=None)([decoded(example)])
    np.testing.assert_array_equal(batch.vertices, plain.vertices)
    assert batch.vertices_valid[0]
