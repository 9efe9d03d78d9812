import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from handjax.nn import token_sampler
from handjax.nn.token_sampler import bilinear_sample, sine_code


def test_sampling_at_a_pixel_returns_it():
    features = jnp.arange(2 * 4 * 5 * 3.0).reshape(2, 4, 5, 3)
    points = jnp.array([[[0.0, 0.0], [1.0, 1.0], [0.25, 2 / 3]]] * 2)
    out = bilinear_sample(features, points)
    for i, (row, column) in enumerate([(0, 0), (3, 4), (2, 1)]):
        np.testing.assert_allclose(out[:, i], features[:, row, column], atol=1e-4)


def test_sampling_equals_scipy(rng):
    from scipy.ndimage import map_coordinates

    features, points = rng.normal(size=(2, 6, 9, 3)), rng.uniform(size=(2, 40, 2))
    out = bilinear_sample(jnp.float32(features), jnp.float32(points))
    for b in range(2):
        for c in range(3):
            x, y = points[b].T
            expected = map_coordinates(features[b, ..., c], [y * 5, x * 8], order=1)
            np.testing.assert_allclose(out[b, :, c], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parity
def test_sampling_and_its_gradients_equal_torch(rng):
    torch = pytest.importorskip("torch")
    features = rng.normal(size=(2, 6, 9, 3)).astype(np.float32)
    points = rng.uniform(-0.2, 1.2, (2, 40, 2)).astype(np.float32)
    weight = rng.normal(size=(2, 40, 3)).astype(np.float32)
    ours = jax.grad(
        lambda f, p: jnp.sum(bilinear_sample(f, p) * weight), argnums=(0, 1)
    )(features, points)
    f, p = torch.tensor(features, requires_grad=True), torch.tensor(points)
    p.requires_grad_()
    grid = ((p - 0.5) * 2).clamp(-1, 1)[:, :, None]
    sampled = torch.nn.functional.grid_sample(
        f.permute(0, 3, 1, 2), grid, align_corners=True
    )[..., 0]
    sampled = sampled.permute(0, 2, 1)
    np.testing.assert_allclose(
        bilinear_sample(jnp.asarray(features), jnp.asarray(points)),
        sampled.detach().numpy(),
        rtol=1e-4,
        atol=1e-5,
    )
    (sampled * torch.tensor(weight)).sum().backward()
    np.testing.assert_allclose(ours[0], f.grad.numpy(), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(ours[1], p.grad.numpy(), rtol=1e-3, atol=1e-4)


def test_points_outside_are_moved_to_the_border_and_get_no_gradient(rng):
    features = jnp.float32(rng.normal(size=(1, 3, 3, 2)))
    outside, border = jnp.array([[[-0.5, 1.7]]]), jnp.array([[[0.0, 1.0]]])
    np.testing.assert_array_equal(
        bilinear_sample(features, outside), bilinear_sample(features, border)
    )
    grad = jax.grad(lambda p: jnp.sum(bilinear_sample(features, p)))(outside)
    np.testing.assert_array_equal(grad, 0)


def test_sine_code_is_its_formula():
    code = sine_code(28, 14, 256)
    for y, x, channel in [
        (0, 0, 0),
        (5, 3, 7),
        (27, 13, 126),
        (9, 9, 128),
        (1, 12, 255),
    ]:
        position, size = (y, 28) if channel < 128 else (x, 14)
        i = channel % 128
        angle = (position + 1) / (size + 1e-6) * 2 * math.pi
        angle /= 10_000 ** (2 * (i // 2) / 128)
        expected = math.sin(angle) if i % 2 == 0 else math.cos(angle)
        assert code[y, x, channel] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parity
def test_upsampling_equals_torchs_transposed_convolution(rng):
    torch = pytest.importorskip("torch")
    x = jnp.float32(rng.normal(size=(2, 3, 2, 5)))
    layer = token_sampler.Upsample(6, 4)
    variables = layer.init(jax.random.key(0), x, train=False)
    kernel = np.asarray(variables["params"]["deconvolution"]["kernel"])
    deconvolution = torch.nn.ConvTranspose2d(5, 6, 4, 4, bias=False)
    deconvolution.weight.data = torch.tensor(kernel.reshape(5, 4, 4, 6)).permute(
        0, 3, 1, 2
    )
    norm = torch.nn.BatchNorm2d(6).eval()
    with torch.no_grad():
        expected = norm(deconvolution(torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)))
    np.testing.assert_allclose(
        layer.apply(variables, x, train=False),
        expected.relu().permute(0, 2, 3, 1).numpy(),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("kind, count", [("A", 21), ("B", 2 * 3), ("C", 21), ("D", 21)])
def test_generators_follow_the_size_of_the_map(kind, count, rng):
    features = jnp.float32(rng.normal(size=(2, 2, 3, 5)))
    joints = jnp.float32(rng.uniform(size=(2, 21, 2)))
    generator = token_sampler.TokenGenerator(kind, dim=8)
    tokens, _ = generator.init_with_output(
        jax.random.key(0), features, joints, train=False
    )
    assert tokens.shape == (2, count, 8)
    same = np.ptp(tokens, axis=1).max() == 0
    assert same == (kind == "A")


def test_unknown_generator_is_refused():
    with pytest.raises(
        ValueError, match="token_generator='G' is not one of A, B, C, D, E, F"
    ):
        token_sampler.TokenGenerator("G").init(
            jax.random.key(0),
            jnp.zeros((1, 2, 2, 3)),
            jnp.zeros((1, 21, 2)),
            train=False,
        )


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# --- Pixels of the map ---------------------------------------------------------


def test_around_the_map_all_is_zero(rng):
    features = np.float32(rng.normal(size=(2, 4, 3, 5)))
    pixels = np.float32(rng.uniform(-2, 6, (2, 60, 2)))
    found = token_sampler.sample_pixels(jnp.asarray(features), jnp.asarray(pixels))
    bordered = np.pad(features, ((0, 0), (9, 9), (9, 9), (0, 0)))
    for b, point in np.ndindex(2, 60):
        x, y = pixels[b, point] + 9
        column, row = int(np.floor(x)), int(np.floor(y))
        expected = sum(
            bordered[b, row + i, column + j]
            * (y - row if i else 1 - (y - row))
            * (x - column if j else 1 - (x - column))
            for i in (0, 1)
            for j in (0, 1)
        )
        np.testing.assert_allclose(found[b, point], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parity
def test_pixels_are_those_of_torchs_grid_sample(rng):
    torch = pytest.importorskip("torch")
    features = np.float32(rng.normal(size=(2, 16, 12, 3)))
    grid = np.float32(rng.uniform(-1.4, 1.4, (2, 21, 2)))
    sampled = torch.nn.functional.grid_sample(
        torch.tensor(features).permute(0, 3, 1, 2),
        torch.tensor(grid)[:, :, None],
        align_corners=False,
    )
    pixels = ((grid + 1) * np.array([12, 16], np.float32) - 1) / 2
    found = token_sampler.sample_pixels(jnp.asarray(features), jnp.asarray(pixels))
    expected = sampled[..., 0].permute(0, 2, 1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
