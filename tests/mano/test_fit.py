"""Fits of the hand model: poses found again, mirror images, conventions, refusals."""

import jax
import numpy as np
import pytest

from data_pipelines.synthetic.poses import PosePriorSource
from handjax.geometry import rotations
from handjax.mano import fit as mano_fit
from handjax.mano.hand_model import HandModel

K = np.array([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]])
COUNT = 4
EXACT = mano_fit.Weights(pose=0.01, shape=0.01, initial=0.0, outlier=0.0)
"""Points without noise need hardly any prior."""


@pytest.fixture(scope="module")
def hand():
    return HandModel.load("open")


@pytest.fixture(scope="module")
def truth(hand):
    """Poses, and joints half a metre in front of the camera."""
    source = PosePriorSource(3)
    drawn = [source[i] for i in range(COUNT)]
    pose = np.stack([each["mano_pose"] for each in drawn])
    betas = 0.5 * np.stack([each["betas"] for each in drawn])
    posed = jax.device_get(hand.with_shape(betas).with_pose(pose[:, 0], pose[:, 1:]))
    joints = posed.joints3d - posed.joints3d[:, 9:10]
    return pose, betas, joints + np.array([0.05, 0.02, 0.5], np.float32)


@pytest.fixture(scope="module")
def fitted(hand, truth):
    """The fit that most tests look at, to both kinds of points."""
    _, _, joints = truth
    return mano_fit.fit(
        hand,
        points2d=pixels(joints),
        intrinsics=K,
        points3d=joints,
        weights=EXACT,
        iterations=25,
    )


def pixels(joints):
    seen = joints @ K.T
    return (seen[..., :2] / seen[..., 2:]).astype(np.float32)


def errors_mm(fit, joints):
    apart = fit.joints3d - (joints - joints[:, 9:10])
    return 1000 * np.linalg.norm(apart, axis=-1).mean(axis=-1)


def test_exact_points_give_the_hand_back(fitted, truth):
    _, _, joints = truth
    assert errors_mm(fitted, joints).max() < 2.0
    assert np.asarray(fitted.residual_px).max() < 0.5
    assert np.asarray(fitted.residual_mm).max() < 1.5
    np.testing.assert_allclose(fitted.translation, joints[:, 9], atol=0.005)
    np.testing.assert_allclose(fitted.joints2d, pixels(joints), atol=2.0)


def test_parameters_are_those_of_the_mesh(hand, fitted):
    posed = hand.with_shape(fitted.betas).with_pose(
        fitted.mano_pose[:, 0], fitted.mano_pose[:, 1:]
    )
    vertices = posed.vertices - posed.joints3d[:, 9:10]
    np.testing.assert_allclose(vertices, fitted.vertices, atol=1e-4)


def test_cost_never_grows_and_ends_lower(fitted):
    cost = np.asarray(fitted.cost)
    assert (np.diff(cost, axis=1) <= 0).all()
    assert (cost[:, -1] < 0.1 * cost[:, 0]).all()


def test_left_hand_is_the_mirror_image_of_the_right_one(hand, truth, fitted):
    joints = truth[2] * np.array([-1.0, 1, 1], np.float32)
    left = mano_fit.fit(
        hand,
        points2d=pixels(joints),
        intrinsics=K,
        points3d=joints,
        is_right=np.zeros(COUNT, bool),
        weights=EXACT,
        iterations=25,
    )
    mirrored = np.asarray(fitted.vertices) * np.array([-1.0, 1, 1])
    np.testing.assert_allclose(left.vertices, mirrored, atol=1e-3)
    np.testing.assert_allclose(left.mano_pose, fitted.mano_pose, atol=0.02)


def test_point_of_no_confidence_may_be_anywhere(hand, truth, fitted):
    joints = truth[2]
    wrong = pixels(joints)
    wrong[:, 8] = 1e4
    confidence = np.ones((COUNT, 21), np.float32)
    confidence[:, 8] = 0
    fit = mano_fit.fit(
        hand,
        points2d=wrong,
        intrinsics=K,
        points3d=joints,
        confidence=confidence,
        weights=EXACT,
        iterations=25,
    )
    others = np.delete(np.arange(21), 8)
    apart = np.linalg.norm(np.asarray(fit.joints3d - fitted.joints3d), axis=-1)
    assert apart[:, others].max() < 0.003


def test_joints_only_hand_has_the_same_joints(hand, truth):
    pose, betas, _ = truth
    small = mano_fit._only_joints(hand)
    assert len(small.v_template) < len(hand.v_template) / 4
    few, all_ = (
        model.with_shape(betas).with_pose(pose[:, 0], pose[:, 1:])
        for model in (hand, small)
    )
    np.testing.assert_allclose(few.joints3d, all_.joints3d, atol=1e-6)


def test_angles_of_the_prior_are_within_its_limits(truth):
    prior = mano_fit.PosePrior.load()
    fingers = truth[0][:, 1:]
    angles = np.einsum("jab,njb->nja", prior.axes, fingers)
    slack = np.radians(12)  # the angles are of a product of turns, these of its vector
    assert (angles > prior.limits[..., 0] - slack).all()
    assert (angles < prior.limits[..., 1] + slack).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "needs points2d"),
        ({"points3d": np.zeros((1, 20, 3))}, r"must be \(batch, 21, 3\)"),
        ({"points2d": np.zeros((1, 21, 2))}, "needs intrinsics"),
        ({"points3d": np.full((1, 21, 3), np.nan)}, "not finite"),
        (
            {"points3d": np.zeros((1, 21, 3)), "convention": "openpose"},
            "joints, mediapipe",
        ),
        (
            {"points3d": np.zeros((1, 21, 3)), "confidence": np.full((1, 21), 2.0)},
            "from 0 to 1",
        ),
    ],
)
def test_what_cannot_be_fitted_is_refused(hand, given, message):
    with pytest.raises(ValueError, match=message):
        mano_fit.fit(hand, **given)


def test_initial_hand_is_where_the_fit_begins(hand, truth):
    pose, betas, joints = truth
    initial = mano_fit.Initial(rotations.axis_angle_to_matrix(pose), betas)
    fit = mano_fit.fit(
        hand,
        points2d=pixels(joints),
        intrinsics=K,
        initial=initial,
        weights=EXACT._replace(initial=0.3),
        iterations=0,
    )
    assert errors_mm(fit, joints).max() < 1e-2
    # Weak perspective puts it into place: near, but not exactly.
    assert np.asarray(fit.residual_px).max() < 5
