import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from handjax.nn.ops import convolutions


def draw(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.standard_normal(shape), jnp.float32)


def assert_same_value_and_gradients(function, x, kernel):
    """`function(x, kernel, impl)` agrees between formulations to 1e-5 relative."""

    def run(impl):
        out, pull = jax.vjp(lambda x, k: function(x, k, impl), x, kernel)
        return (out, *pull(draw(*out.shape, seed=1)))

    for actual, expected in zip(
        jax.jit(run, static_argnums=0)("cpu"),
        jax.jit(run, static_argnums=0)("lax"),
        strict=True,
    ):
        assert actual.shape == expected.shape
        scale = max(float(jnp.abs(expected).max()), 1.0)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("taps", [1, 3, 7])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("multiplier", [1, 2])
@pytest.mark.parametrize("size", [(7, 10), (20, 35)])
def test_depthwise_equals_lax(taps, stride, multiplier, size):
    x, kernel = draw(2, *size, 3), draw(taps, taps, 1, 3 * multiplier)
    assert_same_value_and_gradients(
        lambda x, k, impl: convolutions.depthwise_conv(x, k, stride=stride, impl=impl),
        x,
        kernel,
    )


def test_depthwise_equals_a_loop_over_positions():
    x, kernel = np.asarray(draw(1, 5, 6, 2)), np.asarray(draw(3, 3, 1, 4))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = np.zeros((1, 3, 3, 4))
    for h in range(3):
        for w in range(3):
            window = padded[0, 2 * h : 2 * h + 3, 2 * w : 2 * w + 3]
            for c in range(4):
                expected[0, h, w, c] = (window[..., c // 2] * kernel[..., 0, c]).sum()
    actual = convolutions.conv2d(
        jnp.asarray(x), jnp.asarray(kernel), stride=2, groups=2
    )
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_depthwise_sums_are_computed_once():
    x, kernel = jnp.zeros((2, 9, 9, 4)), jnp.zeros((7, 7, 1, 4))

    def two_in_a_row(x, kernel):
        y = convolutions.depthwise_conv(x, kernel, impl="cpu")
        return y + convolutions.depthwise_conv(y, kernel, impl="cpu")

    program = jax.jit(two_in_a_row).lower(x, kernel).compile()
    sums = 2 * x.size * (49 + 48)  # products and additions
    # Repeated inside the second, the first would cost 49 times as much.
    assert sums <= program.cost_analysis()["flops"] < 1.1 * sums


def test_a_depthwise_kernel_that_begins_with_nan_gives_nan():
    x, kernel = draw(1, 5, 6, 2), draw(3, 3, 1, 2).at[0, 0].set(jnp.nan)
    assert jnp.isnan(convolutions.depthwise_conv(x, kernel, impl="cpu")).all()


@pytest.mark.parametrize("stride", [1, 2])
def test_grouped_equals_lax(stride):
    assert_same_value_and_gradients(
        lambda x, k, impl: convolutions.grouped_conv(
            x, k, groups=4, stride=stride, impl=impl
        ),
        draw(2, 7, 8, 12),
        draw(3, 3, 3, 20),
    )


@pytest.mark.parametrize(("taps", "stride"), [(3, 2), (7, 1)])
def test_windows_times_the_kernel_are_the_convolution(taps, stride):
    x, kernel = draw(2, 9, 12, 3), draw(taps, taps, 3, 5)
    expected = convolutions.conv2d(x, kernel, stride=stride)
    actual = convolutions.windows(x, taps, stride) @ kernel.reshape(1, 1, -1, 5)
    np.testing.assert_allclose(actual, expected, atol=1e-4)


@pytest.mark.parametrize("size", [(8, 12), (9, 11)])
def test_patches_equal_lax(size):
    assert_same_value_and_gradients(
        lambda x, k, impl: convolutions.patch_conv(x, k, impl=impl),
        draw(2, *size, 3),
        draw(4, 4, 3, 6),
    )


@pytest.mark.parametrize(
    ("taps", "stride", "padding"),
    [(4, 4, 0), (4, 2, 1), (2, 2, 0), (3, 2, 1), (3, 1, 1), (5, 3, 0), (2, 3, 0)],
)
def test_transposed_convolution_equals_lax_and_a_loop(taps, stride, padding):
    x, kernel = draw(2, 3, 5, 4), draw(taps, taps, 4, 6)
    assert_same_value_and_gradients(
        lambda x, k, impl: convolutions.conv_transpose(
            x, k, stride=stride, padding=padding, impl=impl
        ),
        x,
        kernel,
    )
    full = np.zeros((2, stride * 2 + taps, stride * 4 + taps, 6))
    for h in range(3):
        for w in range(5):
            rows = slice(stride * h, stride * h + taps)
            cols = slice(stride * w, stride * w + taps)
            full[:, rows, cols] += np.einsum("bd,ijdo->bijo", x[:, h, w], kernel)
    ends = [n - padding for n in full.shape[1:3]]
    expected = full[:, padding : ends[0], padding : ends[1]]
    actual = convolutions.conv_transpose(x, kernel, stride=stride, padding=padding)
    np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_gelu_is_the_exact_one_with_its_gradient():
    x = jnp.linspace(-8, 8, 1001)
    np.testing.assert_allclose(
        convolutions.gelu(x), jax.nn.gelu(x, approximate=False), atol=1e-6
    )
    np.testing.assert_allclose(
        jax.vmap(jax.grad(convolutions.gelu))(x),
        jax.vmap(jax.grad(lambda x: jax.nn.gelu(x, approximate=False)))(x),
        atol=1e-6,
    )


def test_a_sharded_batch_gives_the_same_gradient():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    x, kernel = draw(16, 8, 8, 4), draw(7, 7, 1, 4)

    def loss(kernel, x):
        return jnp.sum(convolutions.depthwise_conv(x, kernel, impl="cpu") ** 2)

    expected = jax.grad(loss)(kernel, x)
    split = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    actual = jax.jit(jax.grad(loss))(kernel, split)
    np.testing.assert_allclose(
        actual, expected, atol=1e-5 * float(jnp.abs(expected).max())
    )


def test_shapes_are_known_without_computing():
    x = jax.ShapeDtypeStruct((2, 15, 16, 4), jnp.float32)
    kernel = jax.ShapeDtypeStruct((7, 7, 1, 8), jnp.float32)
    out = jax.eval_shape(
        lambda x, k: convolutions.conv2d(x, k, stride=2, groups=4), x, kernel
    )
    assert out.shape == (2, 8, 8, 8)


def test_exported_for_accelerators_it_is_one_convolution():
    from jax import export

    x = jax.ShapeDtypeStruct((2, 8, 8, 4), jnp.float32)
    kernel = jax.ShapeDtypeStruct((7, 7, 1, 4), jnp.float32)
    exported = export.export(
        jax.jit(lambda x, k: convolutions.conv2d(x, k, groups=4)), platforms=("cuda",)
    )(x, kernel)
    assert exported.mlir_module().count("stablehlo.convolution") == 1


def test_wrong_arguments_say_what_to_do():
    with pytest.raises(ValueError, match=r"6 channels.*3 in each of groups=1"):
        convolutions.conv2d(draw(1, 4, 4, 6), draw(3, 3, 3, 6))
