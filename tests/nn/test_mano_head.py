"""Mean parameters, heads and HaMeR's camera."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from handjax.family import hand_constants
from handjax.geometry import skeleton
from handjax.mano import hand_model
from handjax.mano.model_files import joint_regressor, load
from handjax.nn import mano_head

BATCH = 3
RNG = np.random.default_rng(0)
CAM = RNG.uniform([4, -0.1, -0.1], [9, 0.1, 0.1], (BATCH, 3)).astype(np.float32)
TURNS = Rotation.from_rotvec(RNG.normal(0, 0.5, (BATCH * 16, 3))).as_matrix()
TURNS = TURNS.astype(np.float32).reshape(BATCH, 16, 3, 3)
BETAS = RNG.normal(size=(BATCH, 10)).astype(np.float32)


@functools.cache
def hand():
    return hand_model.HandModel.load()


@functools.cache
def mean():
    return jax.device_get(jax.jit(mano_head.mean_parameters)(hand()))


@functools.cache
def shown():
    """The same parameters by both kinds of joints, and skinned without HaMeR."""

    @jax.jit
    def compute(hand):
        parameters = mano_head.ManoParameters(TURNS[:, :1], TURNS[:, 1:], BETAS, CAM)
        shaped = hand.with_shape(BETAS)
        skinned = shaped.with_pose(TURNS[:, 0], TURNS[:, 1:], form="matrix")
        kinds = {
            k: mano_head.posed(hand, parameters, joints=k) for k in ("skeleton", "mesh")
        }
        return skinned, kinds

    return jax.device_get(compute(hand()))


@functools.cache
def head():
    """An untrained head, variables and what it makes of two features."""
    module = mano_head.ManoHead("xavier")
    features = RNG.normal(size=(2, 8)).astype(np.float32)
    variables = jax.jit(module.init)(jax.random.key(0), features, mean())
    found = jax.jit(module.apply)(variables, features, mean())
    return features, jax.device_get(variables["params"]), jax.device_get(found)


def test_constants_of_a_hand_make_the_hand_model_again():
    constants = hand_constants.hand_constants(load())
    for name, value in hand_model.HandModel(**constants._asdict())._asdict().items():
        np.testing.assert_array_equal(value, getattr(hand(), name), err_msg=name)


def test_mean_hand_shows_its_palm_with_fingers_up_in_the_middle_of_the_crop():
    file = load()
    R = mano_head.FACING
    fingers = Rotation.from_rotvec(np.asarray(file.hands_mean).reshape(15, 3))
    numbers = np.asarray(mean().pose).reshape(16, 2, 3)
    np.testing.assert_allclose(numbers[0], R.T[:2], atol=1e-6)
    columns = fingers.as_matrix()[..., :2].transpose(0, 2, 1)
    np.testing.assert_allclose(numbers[1:], columns, atol=1e-6)
    # The fingers of the mean pose are bent; flat, they show best where they point.
    scale, *offset = np.asarray(mean().cam)
    flat = (joint_regressor(file) @ (file.v_template @ R.T))[:, :2] + offset
    x, y = scale / 2 * flat.T
    joint = skeleton.JOINTS.index
    assert (y[[joint(f"{finger}4") for finger in skeleton.FINGERS]] < y[0]).all()
    # A right hand's thumb is on the right when its palm is seen.
    assert x[joint("index1")] > x[joint("little1")]


def test_mean_camera_puts_the_joints_in_the_middle_half_of_the_crop():
    @jax.jit
    def joints2d(hand, mean):
        pose = mano_head.rotations.rotation_6d_to_matrix(mean.pose.reshape(1, 16, 6))
        parameters = mano_head.ManoParameters(
            pose[:, :1], pose[:, 1:], mean.betas[None], mean.cam[None]
        )
        return mano_head.posed(hand, parameters, joints="mesh").joints2d

    points = np.asarray(joints2d(hand(), mean()))[0]
    low, high = points.min(axis=0), points.max(axis=0)
    np.testing.assert_allclose(low + high, 0, atol=3e-3)  # a trace of perspective
    np.testing.assert_allclose((high - low).max(), 0.5, atol=5e-3)


def test_heads_are_three_linear_layers_added_to_the_mean():
    features, params, found = head()
    assert {name: layer["kernel"].shape for name, layer in params.items()} == {
        "pose": (8, 96),
        "betas": (8, 10),
        "cam": (8, 3),
    }
    cam = mean().cam + features @ params["cam"]["kernel"]
    np.testing.assert_allclose(found.cam, cam, atol=1e-5)
    pose = mean().pose + features @ params["pose"]["kernel"]
    first = np.asarray(pose).reshape(2, 16, 6)[..., :3]
    columns = np.concatenate([found.global_orient, found.hand_pose], axis=1)[..., 0]
    np.testing.assert_allclose(
        columns, first / np.linalg.norm(first, axis=-1, keepdims=True), atol=1e-5
    )


def test_a_new_head_stays_close_to_the_mean_hand():
    _, _, found = head()
    np.testing.assert_allclose(found.cam, [mean().cam] * 2, atol=0.1)
    assert np.abs(found.betas).max() < 0.1


def test_unknown_initialiser_and_joints_are_refused():
    with pytest.raises(ValueError, match="head_init='zeros' is not one of torch"):
        module = mano_head.ManoHead("zeros")
        module.init(jax.random.key(0), jnp.zeros((1, 8)), mean())
    with pytest.raises(ValueError, match="joints='smplx' is not one of skeleton"):
        mano_head.posed(hand(), head()[2], joints="smplx")


def test_projection_is_hamers_formula():
    _, kinds = shown()
    for i, (s, tx, ty) in enumerate(CAM.astype(np.float64)):
        point = kinds["skeleton"].joints3d[i] + [tx, ty, 2 * 5000 / (256 * s)]
        expected = 5000 / 256 * point[:, :2] / point[:, 2:]
        np.testing.assert_allclose(kinds["skeleton"].joints2d[i], expected, atol=1e-6)


def test_skeleton_joints_are_what_skinning_turns_about_and_the_tips():
    skinned, kinds = shown()
    file = load()
    for i, name in enumerate(skeleton.JOINTS):
        if name.endswith("4"):
            tip = file.tip_ids[skeleton.FINGERS.index(name[:-1])]
            expected = skinned.vertices[:, tip]
        else:
            expected = skinned.model_joints[:, skeleton.MANO_JOINTS.index(name)]
        found = kinds["skeleton"].joints3d[:, i]
        np.testing.assert_allclose(found, expected, atol=1e-6, err_msg=name)
    mesh = kinds["mesh"].joints3d
    np.testing.assert_allclose(mesh, skinned.joints3d, atol=1e-6)
    assert 0.001 < np.abs(mesh - kinds["skeleton"].joints3d).max() < 0.01


def test_output_is_relative_to_the_root_and_its_camera_sees_the_same():
    seen = shown()[1]["skeleton"]
    root = skeleton.MIDDLE_MCP
    output = mano_head.hand_output(seen, root=root, size_px=128)
    np.testing.assert_array_equal(output.joints3d[:, root], 0)
    moved = seen.vertices - output.vertices
    np.testing.assert_allclose(moved, moved[:, :1].repeat(778, 1), atol=1e-6)
    s, tx, ty = np.asarray(output.cam, np.float64).T
    transl = np.stack([tx, ty, 2 * 5000 / (256 * s)], axis=-1)
    points = output.joints3d + transl[:, None]
    pixels = 128 * (5000 / 256 * points[..., :2] / points[..., 2:] + 0.5)
    np.testing.assert_allclose(pixels, output.joints2d, atol=1e-3)
