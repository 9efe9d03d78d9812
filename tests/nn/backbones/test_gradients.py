"""Gradients of backbones against PyTorch's, where it is installed."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch_reference import import_timm, random_image, random_state_dict

from handjax.nn import backbones


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", ["fastvit_t8", "resnet18"])
def test_gradients_equal_torchs(name, train):
    torch = pytest.importorskip("torch")
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    family = backbones.family(name)
    image = random_image(96, batch=4)
    network = import_timm().create_model(name).train(train).double()
    weights = random_state_dict({k: v.shape for k, v in network.state_dict().items()})
    network.load_state_dict({k: torch.tensor(v) for k, v in weights.items()})
    features = network.forward_features(
        torch.tensor(image).permute(0, 3, 1, 2).double()
    )
    pull = np.random.default_rng(1).standard_normal(features.permute(0, 2, 3, 1).shape)
    features.backward(torch.tensor(pull).permute(0, 3, 1, 2))
    theirs = dict(weights)
    for key, parameter in network.named_parameters():
        if parameter.grad is not None:
            theirs[key] = parameter.grad.numpy()
    expected = family.import_torch(theirs)["params"]
    variables = family.import_torch(weights)

    def loss(params):
        maps = backbones.build(name).apply(
            {**variables, "params": params},
            jnp.asarray(image),
            train=train,
            mutable=["batch_stats"],
        )[0]
        return jnp.sum(maps["final"] * jnp.float32(pull))

    found = jax.jit(jax.grad(loss))(variables["params"])
    pairs = list(
        zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True)
    )
    if not train:
        for (path, ours), theirs in pairs:
            assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max(), path
    # With batch statistics some gradients are zero but for rounding (a bias before a
    # normalisation), so that only the whole gradient can be compared.
    distance = np.sqrt(sum(np.sum((ours - b) ** 2) for (_, ours), b in pairs))
    size = np.sqrt(sum(np.sum(theirs**2) for _, theirs in pairs))
    assert distance < 1e-4 * size
