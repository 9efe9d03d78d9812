import jax
import jax.numpy as jnp
import numpy as np
import pytest

from handjax.nn.feature_pyramid import LEVELS, FeaturePyramid


def filled(module, *args):
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *args))
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.float32(0.3 * rng.normal(size=leaf.shape)), shapes
    )


def shapes(module, x):
    return jax.eval_shape(
        lambda: module.init_with_output(jax.random.key(0), jnp.zeros(x))
    )


def test_maps_of_vit_h_have_the_papers_sizes():
    maps, variables = shapes(FeaturePyramid(256, tuple(LEVELS)), (2, 16, 12, 1280))
    assert [m.shape for m in maps] == [
        (2, 16, 12, 256),
        (2, 64, 48, 256),
        (2, 128, 96, 256),
        (2, 256, 192, 256),
    ]
    params = variables["params"]
    assert params["level4x_up0"]["kernel"].shape == (2, 2, 1280, 640)
    assert params["level4x_up1"]["kernel"].shape == (2, 2, 640, 320)
    assert params["level4x_conv1"]["kernel"].shape == (1, 1, 320, 256)
    assert params["level4x_conv3"]["kernel"].shape == (3, 3, 256, 256)
    assert "level1x_up0" not in params
    assert "bias" not in params["level1x_conv1"]


def test_maps_come_in_the_order_of_their_names_and_do_not_depend_on_each_other():
    x = jnp.float32(np.random.default_rng(1).normal(size=(1, 3, 2, 8)))
    both = FeaturePyramid(4, ("4x", "1x"))
    variables = filled(both, x)
    fine, coarse = jax.jit(both.apply)(variables, x)
    assert (fine.shape, coarse.shape) == ((1, 12, 8, 4), (1, 3, 2, 4))
    alone = {k: v for k, v in variables["params"].items() if k.startswith("level1x")}
    (only,) = jax.jit(FeaturePyramid(4, ("1x",)).apply)({"params": alone}, x)
    np.testing.assert_allclose(only, coarse, atol=1e-6)


def test_maps_may_be_bfloat16():
    module = FeaturePyramid(4, ("1x", "4x"), dtype=jnp.bfloat16)
    maps, variables = shapes(module, (1, 3, 2, 8))
    assert {m.dtype for m in maps} == {jnp.dtype("bfloat16")}
    assert {v.dtype for v in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    "levels, message",
    [
        (("1x", "2x"), r"levels=\('1x', '2x'\) must name at least one of 1x, 4x, 8x"),
        ((), r"levels=\(\) must name"),
        (("1x", "1x"), r"names a map twice"),
    ],
)
def test_unknown_levels_are_refused(levels, message):
    with pytest.raises(ValueError, match=message):
        shapes(FeaturePyramid(4, levels), (1, 3, 2, 8))


@pytest.mark.parity
def test_four_times_the_size_equals_torch():
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    x = jnp.float32(np.random.default_rng(1).normal(size=(2, 3, 4, 8)))
    module = FeaturePyramid(6, ("4x",))
    variables = filled(module, x)
    p = jax.tree.map(lambda a: torch.tensor(np.array(a)), variables["params"])

    def up(x, p):
        # torch's kernels are (in, out, row, column)
        kernel = p["kernel"].permute(2, 3, 0, 1)
        return functional.conv_transpose2d(x, kernel, p["bias"], stride=2)

    def conv(x, p):
        kernel = p["kernel"].permute(3, 2, 0, 1)
        return functional.conv2d(x, kernel, padding=kernel.shape[-1] // 2)

    def norm(x, p):
        last = x.permute(0, 2, 3, 1)
        shape = p["scale"].shape
        last = functional.layer_norm(last, shape, p["scale"], p["bias"], 1e-6)
        return last.permute(0, 3, 1, 2)

    y = up(torch.tensor(np.array(x)).permute(0, 3, 1, 2), p["level4x_up0"])
    y = functional.gelu(norm(y, p["level4x_up0_norm"]))
    y = up(y, p["level4x_up1"])
    y = norm(conv(y, p["level4x_conv1"]), p["level4x_conv1_norm"])
    y = norm(conv(y, p["level4x_conv3"]), p["level4x_conv3_norm"])
    (found,) = jax.jit(module.apply)(variables, x)
    np.testing.assert_allclose(found, y.permute(0, 2, 3, 1), atol=1e-5)
