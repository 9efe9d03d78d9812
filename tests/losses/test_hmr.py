"""HaMeR's loss terms against plain numpy, and who learns from which."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from scipy.spatial.transform import Rotation

from handjax.losses import hmr
from handjax.nn import mano_head

BATCH = 4


@functools.cache
def made():
    """A prediction, the hand it stands for, and a batch with half of its flags set."""
    rng = np.random.default_rng(0)

    def numbers(*shape):
        return (0.3 * rng.normal(size=(BATCH, *shape))).astype(np.float32)

    turns = matrices(numbers(16, 3))
    cam = np.tile(np.array([7.0, 0, 0], np.float32), (BATCH, 1))
    parameters = mano_head.ManoParameters(turns[:, :1], turns[:, 1:], numbers(10), cam)
    posed = mano_head.Posed(numbers(778, 3), numbers(21, 3), numbers(21, 2), numbers(3))
    flags = rng.permuted(np.tile([True, False], (2, BATCH // 2)), axis=1)
    batch = tiny.batch(BATCH, crop=64)._replace(
        mano_pose=numbers(16, 3),
        betas=numbers(10),
        joints2d_valid=rng.random((BATCH, 21)) < 0.5,
        joints3d_valid=flags[0],
        mano_valid=flags[1],
    )
    return parameters, posed, batch


def matrices(axis_angle):
    """(..., 3) to (..., 3, 3)."""
    found = Rotation.from_rotvec(axis_angle.reshape(-1, 3)).as_matrix()
    return found.reshape(*axis_angle.shape, 3).astype(np.float32)


def by_hand(parameters, posed, batch):
    """Each example's sum, with loops."""
    sums = {key: np.zeros(BATCH) for key in hmr.KEYS}
    turns = matrices(batch.mano_pose)
    for b in range(BATCH):
        for j in range(21):
            if batch.joints2d_valid[b, j]:
                target = batch.joints2d[b, j] / 64 - 0.5
                sums["joints2d"][b] += np.abs(posed.joints2d[b, j] - target).sum()
            if batch.joints3d_valid[b]:
                mine = posed.joints3d[b, j] - posed.joints3d[b, 0]
                target = batch.joints3d[b, j] - batch.joints3d[b, 0]
                sums["joints3d"][b] += np.abs(mine - target).sum()
        if batch.mano_valid[b]:
            wrist = parameters.global_orient[b, 0] - turns[b, 0]
            sums["global_orient"][b] = (wrist**2).sum()
            for j in range(15):
                finger = parameters.hand_pose[b, j] - turns[b, j + 1]
                sums["hand_pose"][b] += (finger**2).sum()
            sums["betas"][b] = ((parameters.betas[b] - batch.betas[b]) ** 2).sum()
    return sums


@functools.partial(jax.jit, static_argnames=("reduction", "per_device"))
def terms(parameters, posed, batch, **options):
    return hmr.terms(parameters, posed, batch, crop_size=64, **options)


COUNTS = dict(joints2d=42, joints3d=63, global_orient=9, hand_pose=135, betas=10)


@pytest.mark.parametrize("reduction", hmr.REDUCTIONS)
def test_terms_are_those_of_a_loop(reduction):
    case = made()
    found = terms(*case, reduction=reduction)
    sums = by_hand(*case)
    assert found.keys() == sums.keys()
    for key, value in sums.items():
        mean = value.mean()
        expected = 8 * mean if reduction == "sum" else mean / COUNTS[key]
        np.testing.assert_allclose(found[key], expected, rtol=2e-5, err_msg=key)
        assert expected > 0


def test_sums_are_those_of_one_device_however_large_the_batch():
    parameters, posed, batch = made()
    once = terms(parameters, posed, batch, per_device=4)
    twice = jax.tree.map(lambda x: np.concatenate([x, x]), (parameters, posed, batch))
    again = terms(*twice, per_device=4)
    for key, value in by_hand(parameters, posed, batch).items():
        np.testing.assert_allclose(once[key], value.sum(), rtol=2e-5)
        np.testing.assert_allclose(again[key], once[key], rtol=1e-6)


def test_single_joints_teach_by_their_confidence():
    """Released: confidence times L1, in 2-D and in 3-D, joint by joint."""
    parameters, posed, batch = made()
    rng = np.random.default_rng(2)
    confidence = rng.random((BATCH, 21)).astype(np.float32)
    known = rng.random((BATCH, 21)) < 0.5
    known[:, 0] = [True, True, False, True]
    unsure = batch._replace(
        joints2d_confidence=confidence,
        joints3d_known=known,
        betas_valid=~batch.mano_valid,
    )
    found = terms(parameters, posed, unsure, reduction="sum", per_device=BATCH)
    expected = dict.fromkeys(("joints2d", "joints3d", "betas"), 0.0)
    for b in range(BATCH):
        expected["betas"] += (~batch.mano_valid[b]) * np.sum(
            (parameters.betas[b] - batch.betas[b]) ** 2
        )
        for j in range(21):
            flat = posed.joints2d[b, j] - (batch.joints2d[b, j] / 64 - 0.5)
            valid = batch.joints2d_valid[b, j]
            expected["joints2d"] += valid * confidence[b, j] * np.abs(flat).sum()
            deep = posed.joints3d[b] - batch.joints3d[b]
            # Without the wrist there is nothing that the others are relative to.
            both = known[b, j] and known[b, 0]
            expected["joints3d"] += both * np.abs(deep[j] - deep[0]).sum()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-5, err_msg=name)
    same = terms(parameters, posed, batch, reduction="sum", per_device=BATCH)
    np.testing.assert_array_equal(found["hand_pose"], same["hand_pose"])


def test_unknown_reduction_is_refused():
    with pytest.raises(ValueError, match="reduction='max' is not one of sum, mean"):
        hmr.terms(*made(), crop_size=64, reduction="max")


def test_adversarial_losses_are_the_released_sums():
    made, real = np.array([[0.5, 2.0], [1.0, 0.0]]), np.full((4, 2), 3.0)
    assert hmr.generator_loss(made) == (0.25 + 1 + 0 + 1) / 2
    expected = (0.25 + 4 + 1 + 0 + 8 * 4) / 2  # twice as many real ones, same divisor
    assert hmr.discriminator_loss(made, real) == expected


class Judge(nn.Module):
    def setup(self):
        self.discriminator = nn.Dense(2)

    def discriminate(self, hand_pose, betas):
        poses = hand_pose.reshape(len(hand_pose), -1)
        return self.discriminator(jnp.concatenate([poses, betas], axis=-1))


def test_each_side_of_the_game_learns_from_its_own_term_only():
    parameters, _, batch = made()
    real = batch.mano_pose, batch.betas
    model, given = Judge(), (parameters.hand_pose, parameters.betas)
    variables = model.init(jax.random.key(0), *given, method="discriminate")

    def loss(name, variables, parameters):
        found = hmr.adversarial_terms(model, variables, parameters, *real)
        return found[name]

    parameters = jax.tree.map(jnp.asarray, parameters)
    slopes = jax.jit(jax.grad(loss, argnums=(1, 2)), static_argnums=0)
    for name, (judge_learns, hand_learns) in {
        "adversarial": (False, True),
        "discriminator": (True, False),
    }.items():
        grads = slopes(name, variables, parameters)
        for grad, learns in zip(
            (grads[0]["params"], grads[1].hand_pose),
            (judge_learns, hand_learns),
            strict=True,
        ):
            moved = any(np.any(leaf) for leaf in jax.tree.leaves(grad))
            assert moved == learns, name


def test_missing_real_poses_are_explained():
    parameters, _, _ = made()
    with pytest.raises(ValueError, match="real_poses of at least 1"):
        hmr.adversarial_terms(Judge(), {}, parameters, None, None)
