"""HMR's discriminator: its size, what each score looks at, and PyTorch's numbers."""

import functools

import jax
import numpy as np
import pytest

from handjax.nn.pose_discriminator import PoseDiscriminator

RNG = np.random.default_rng(0)
POSE = RNG.normal(size=(2, 15, 3, 3)).astype(np.float32)
BETAS = RNG.normal(size=(2, 10)).astype(np.float32)
apply = jax.jit(PoseDiscriminator().apply)


@functools.cache
def variables():
    return jax.jit(PoseDiscriminator().init)(jax.random.key(0), POSE, BETAS)


def test_parameters_are_those_of_the_released_network():
    found = jax.eval_shape(PoseDiscriminator().init, jax.random.key(0), POSE, BETAS)
    assert sum(x.size for x in jax.tree.leaves(found)) == 1_545_211


def test_each_score_looks_at_its_own_part():
    before = apply(variables(), POSE, BETAS)
    assert before.shape == (2, 17)
    joint = apply(variables(), np.where(np.eye(15)[4, :, None, None], 0, POSE), BETAS)
    assert set(np.flatnonzero(np.any(joint != before, axis=0))) == {4, 16}
    shape = apply(variables(), POSE, 2 * BETAS)
    assert set(np.flatnonzero(np.any(shape != before, axis=0))) == {15}


def test_starts_with_xavier_weights_and_zero_biases():
    params = variables()["params"]
    for name, layer in params.items():
        if name == "each_bias":
            assert not layer.any()
        elif name == "each_kernel":
            assert np.isclose(np.abs(layer).max(), np.sqrt(6 / 33), rtol=0.02)
        else:
            bound = np.sqrt(6 / sum(layer["kernel"].shape))
            assert np.abs(layer["kernel"]).max() <= bound
            assert not layer["bias"].any()


@pytest.mark.parity
def test_scores_are_pytorchs():
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    # Biases begin at zero; give them something to show.
    params = jax.tree.map(
        lambda x: np.array(x) + 0.1 * RNG.normal(size=x.shape).astype(np.float32),
        variables()["params"],
    )

    def linear(x, name):
        layer = params[name]
        weight = torch.from_numpy(layer["kernel"].T.copy())
        return functional.linear(x, weight, torch.from_numpy(layer["bias"]))

    def conv(x, name):
        weight = torch.from_numpy(params[name]["kernel"].T.copy())[..., None, None]
        return functional.conv2d(x, weight, torch.from_numpy(params[name]["bias"]))

    relu = torch.relu
    x = torch.from_numpy(POSE).reshape(2, 15, 1, 9).permute(0, 3, 1, 2)
    x = relu(conv(relu(conv(x, "joint0")), "joint1"))  # batch, 32, joint, 1
    each = [
        functional.linear(
            x[:, :, j, 0],
            torch.from_numpy(params["each_kernel"][j : j + 1]),
            torch.from_numpy(params["each_bias"][j : j + 1]),
        )
        for j in range(15)
    ]
    pose = relu(linear(relu(linear(x.reshape(2, -1), "pose0")), "pose1"))
    shape = torch.from_numpy(BETAS)
    shape = relu(linear(relu(linear(shape, "shape0")), "shape1"))
    scores = [*each, linear(shape, "shape_score"), linear(pose, "pose_score")]
    found = apply({"params": params}, POSE, BETAS)
    np.testing.assert_allclose(found, torch.cat(scores, dim=1), rtol=1e-4, atol=1e-5)
