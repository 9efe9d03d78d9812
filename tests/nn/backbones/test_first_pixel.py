"""Where the pixels of a map look: the middle of what moves them.

Not of networks with attention or squeeze-excitation, which look everywhere.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from handjax.nn import backbones

SLOW = pytest.mark.slow
QUICK = {"xla_backend_optimization_level": 0}


@pytest.mark.parametrize(
    "name, stride",
    [
        ("convnext_test", 8),
        ("convnext_test", 16),
        ("resnet18", 16),
        pytest.param("fastvit_t8", 16, marks=SLOW),
        pytest.param("fastvit_t8", 32, marks=SLOW),
        pytest.param("hrnet_w18_small", 8, marks=SLOW),
    ],
)
def test_first_pixel_is_where_the_map_looks(name, stride):
    """The middle of the squared gradient, averaged over random outputs and weights."""
    size, at = 256, 128 // stride
    model = backbones.build(name)
    image = np.zeros((1, size, size, 3), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(0.02, 0.1, x.shape), jnp.float32), shapes
    )
    statistics = variables.pop("batch_stats", {})
    variables["batch_stats"] = jax.tree.map(jnp.ones_like, statistics)
    channels = jax.eval_shape(model.apply, variables, image)[f"stride{stride}"].shape[3]

    def seen(image, weights):
        features = model.apply(variables, image)[f"stride{stride}"]
        return jnp.sum(features[0, at, at] * weights)

    gradient = jax.jit(jax.grad(seen), compiler_options=QUICK)
    power = 0.0
    for _ in range(8):
        noise = jnp.asarray(rng.normal(size=image.shape), jnp.float32)
        weights = jnp.asarray(rng.normal(size=channels), jnp.float32)
        power += np.square(np.asarray(gradient(noise, weights), float)).sum((0, 3))
    rows, columns = power.sum(1), power.sum(0)
    middle = [np.average(np.arange(size), weights=x) for x in (rows, columns)]
    expected = backbones.first_pixel(name, stride) + stride * at
    np.testing.assert_allclose(middle, expected, atol=stride / 6)


def test_first_pixels_of_patches_and_of_pooled_ones():
    assert backbones.first_pixel("vit_h", 16) == 5.5  # two pixels of padding
    assert backbones.first_pixel("vit_large_patch16_224", 16) == 7.5
    assert backbones.first_pixel("hiera_tiny_224", 4) == 0
    assert backbones.first_pixel("hiera_tiny_224", 16) == 6  # of 0, 4, 8 and 12
