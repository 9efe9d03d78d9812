import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from handjax.nn.deformable_attention import DeformableAttention, deformable_sample

BATCH, QUERIES, HEADS, POINTS, DIM = 2, 5, 4, 3, 8
SIZES = ((3, 4), (6, 5), (2, 2))


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def sampled(rng, sizes=SIZES):
    """Maps, places (some outside) and weights."""
    values = [rng.normal(size=(BATCH, h, w, HEADS, DIM // HEADS)) for h, w in sizes]
    shape = (BATCH, QUERIES, HEADS, len(sizes), POINTS)
    locations = rng.uniform(-0.3, 1.3, (*shape, 2))
    weights = rng.normal(size=shape)
    return jax.tree.map(jnp.float32, (values, locations, weights))


def slow(values, locations, weights):
    """Query by query, head by head, place by place, corner by corner."""
    border = ((0, 0), (9, 9), (9, 9), (0, 0), (0, 0))
    bordered = [np.pad(np.float64(value), border) for value in values]
    extents = [value.shape[2:0:-1] for value in values]
    pixels = np.float64(locations) * np.array(extents)[:, None] - 0.5
    weights = np.float64(weights)
    out = np.zeros((BATCH, QUERIES, HEADS, DIM // HEADS))
    for b, q, m, level, k in np.ndindex(*weights.shape):
        x, y = (float(at) for at in pixels[b, q, m, level, k])
        for row in (math.floor(y), math.floor(y) + 1):
            for column in (math.floor(x), math.floor(x) + 1):
                share = (1 - abs(x - column)) * (1 - abs(y - row))
                value = bordered[level][b, row + 9, column + 9, m]
                out[b, q, m] += weights[b, q, m, level, k] * share * value
    return out


def test_samples_equal_loops(rng):
    given = sampled(rng)
    np.testing.assert_allclose(
        jax.jit(deformable_sample)(*given), slow(*given), atol=1e-5
    )


def test_gradients_are_the_slopes_of_the_loops(rng):
    values, locations, weights = sampled(rng)
    mix = rng.normal(size=(BATCH, QUERIES, HEADS, DIM // HEADS))
    grads = jax.jit(
        jax.grad(
            lambda *given: jnp.sum(deformable_sample(*given) * np.float32(mix)),
            argnums=(0, 1, 2),
        )
    )(values, locations, weights)
    step = 1e-5
    locations, weights = np.float64(locations), np.float64(weights)

    def slope(*change):
        ends = [
            slow(
                [
                    np.float64(v) + sign * step * d
                    for v, d in zip(values, change[0], strict=True)
                ],
                locations + sign * step * change[1],
                weights + sign * step * change[2],
            )
            for sign in (1, -1)
        ]
        return np.sum((ends[0] - ends[1]) * mix) / (2 * step)

    directions = (
        [rng.normal(size=v.shape) for v in values],
        rng.normal(size=locations.shape),
        rng.normal(size=weights.shape),
    )
    none = ([0.0] * len(values), 0.0, 0.0)
    for i, direction in enumerate(directions):
        change = [*none[:i], direction, *none[i + 1 :]]
        parts = zip(jax.tree.leaves(grads[i]), jax.tree.leaves(direction), strict=True)
        ours = sum(np.sum(np.float64(g) * d) for g, d in parts)
        assert ours == pytest.approx(slope(*change), rel=1e-4, abs=1e-4)


def test_places_far_outside_are_zero_and_have_no_gradient(rng):
    values, locations, weights = sampled(rng)
    far = jnp.where(locations < 0.5, -1e12, 1e12)

    def total(locations):
        return jnp.sum(deformable_sample(values, locations, weights))

    value, grad = jax.jit(jax.value_and_grad(total))(far)
    assert value == 0
    np.testing.assert_array_equal(grad, 0)


@pytest.mark.parity
def test_samples_and_gradients_equal_torchs_grid_sample(rng):
    torch = pytest.importorskip("torch")
    given = sampled(rng)
    mix = np.float32(rng.normal(size=(BATCH, QUERIES, HEADS, DIM // HEADS)))
    ours, pull = jax.vjp(deformable_sample, *given)
    tensor = lambda a: torch.tensor(np.array(a), requires_grad=True)  # noqa: E731
    leaves = jax.tree.map(tensor, given)
    expected = torch_sample(torch, *leaves)
    expected.backward(torch.tensor(mix))
    np.testing.assert_allclose(ours, expected.detach(), atol=1e-5)
    for found, leaf in zip(
        jax.tree.leaves(pull(jnp.asarray(mix))), jax.tree.leaves(leaves), strict=True
    ):
        np.testing.assert_allclose(found, leaf.grad, atol=1e-5)


def torch_sample(torch, values, locations, weights):
    """By Deformable DETR's formula: heads are examples, places a grid."""
    out = 0
    for level, value in enumerate(values):
        maps = value.permute(0, 3, 4, 1, 2).flatten(0, 1)
        grid = 2 * locations[:, :, :, level].transpose(1, 2).flatten(0, 1) - 1
        found = torch.nn.functional.grid_sample(maps, grid, align_corners=False)
        share = weights[:, :, :, level].transpose(1, 2).flatten(0, 1)
        out = out + (found * share[:, None]).sum(-1)
    return out.unflatten(0, (BATCH, HEADS)).permute(0, 3, 1, 2)


# --- The layer -----------------------------------------------------------------


def filled(module, *args, seed=0):
    """Variables drawn from a normal distribution."""
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *args))
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.float32(0.3 * rng.normal(size=leaf.shape)), shapes
    )


def layer_and_input(rng, numbers=2, levels=3):
    layer = DeformableAttention(HEADS, POINTS)
    queries = jnp.float32(rng.normal(size=(BATCH, QUERIES, DIM)))
    reference = jnp.float32(rng.uniform(size=(BATCH, QUERIES, levels, numbers)))
    maps = [jnp.float32(rng.normal(size=(BATCH, h, w, 6))) for h, w in SIZES]
    padding = [jnp.asarray(rng.random((BATCH, h, w)) < 0.3) for h, w in SIZES]
    return layer, (queries, reference, maps, padding)


@pytest.mark.parity
@pytest.mark.parametrize("numbers", [2, 4])
def test_layer_and_its_gradients_equal_deformable_detrs(rng, numbers):
    torch = pytest.importorskip("torch")
    layer, given = layer_and_input(rng, numbers)
    variables = filled(layer, *given)
    mix = np.float32(rng.normal(size=given[0].shape))

    def ours(params, queries, reference, maps):
        return layer.apply({"params": params}, queries, reference, maps, given[3])

    found, pull = jax.jit(lambda *a: jax.vjp(ours, *a))(variables["params"], *given[:3])
    tensor = lambda a: torch.tensor(np.array(a), requires_grad=True)  # noqa: E731
    leaves = jax.tree.map(tensor, (variables["params"], *given[:3]))
    params, queries, reference, maps = leaves
    dense = lambda x, p: x @ p["kernel"] + p["bias"]  # noqa: E731
    values = [
        dense(x, params["value"])
        .masked_fill(torch.tensor(np.array(nothing))[..., None], 0)
        .unflatten(-1, (HEADS, DIM // HEADS))
        for x, nothing in zip(maps, given[3], strict=True)
    ]
    shape = (HEADS, len(SIZES), POINTS)
    offsets = dense(queries, params["offsets"]).unflatten(-1, (*shape, 2))
    weights = dense(queries, params["weights"]).unflatten(-1, (HEADS, -1)).softmax(-1)
    at = reference[:, :, None, :, None]
    if numbers == 2:
        extent = torch.tensor([(w, h) for h, w in SIZES])[:, None]
        locations = at + offsets / extent
    else:
        locations = at[..., :2] + offsets / POINTS * at[..., 2:] * 0.5
    mixed = torch_sample(torch, values, locations, weights.unflatten(-1, shape[1:]))
    expected = dense(mixed.flatten(2), params["out"])
    expected.backward(torch.tensor(mix))
    np.testing.assert_allclose(found, expected.detach(), atol=1e-5)
    for grad, leaf in zip(
        jax.tree.leaves(pull(jnp.asarray(mix))), jax.tree.leaves(leaves), strict=True
    ):
        np.testing.assert_allclose(grad, leaf.grad, rtol=1e-4, atol=1e-5)


def test_layer_starts_with_equal_weights_and_one_direction_per_head(rng):
    layer, given = layer_and_input(rng)
    params = jax.jit(layer.init)(jax.random.key(0), *given)["params"]
    for name in ("offsets", "weights"):
        np.testing.assert_array_equal(params[name]["kernel"], 0)
    for name in ("weights", "value", "out"):
        np.testing.assert_array_equal(params[name]["bias"], 0)
    offsets = np.reshape(params["offsets"]["bias"], (HEADS, len(SIZES), POINTS, 2))
    for head, direction in enumerate([(1, 0), (0, 1), (-1, 0), (0, -1)]):
        for level, point in np.ndindex(len(SIZES), POINTS):
            np.testing.assert_allclose(
                offsets[head, level, point],
                np.multiply(direction, point + 1),
                atol=1e-6,
            )
    bound = np.sqrt(6 / (6 + DIM))
    assert 0.8 * bound < np.abs(params["value"]["kernel"]).max() <= bound


def test_one_reference_serves_all_maps_and_padding_hides(rng):
    layer, (queries, reference, maps, padding) = layer_and_input(rng, levels=1)
    variables = filled(layer, queries, reference, maps)
    apply = jax.jit(layer.apply)
    repeated = jnp.repeat(reference, len(SIZES), axis=2)
    np.testing.assert_array_equal(
        apply(variables, queries, reference, maps, padding),
        apply(variables, queries, repeated, maps, padding),
    )
    other = [
        jnp.where(nothing[..., None], 9.0, x)
        for x, nothing in zip(maps, padding, strict=True)
    ]
    np.testing.assert_array_equal(
        apply(variables, queries, reference, maps, padding),
        apply(variables, queries, reference, other, padding),
    )


def test_maps_may_be_bfloat16_without_places_moving(rng):
    _, given = layer_and_input(rng)
    half, full = (
        DeformableAttention(HEADS, POINTS, t) for t in (jnp.bfloat16, jnp.float32)
    )
    variables = filled(half, *given)
    out = jax.jit(half.apply)(variables, *given)
    assert out.dtype == jnp.bfloat16
    exact = jax.jit(full.apply)(variables, *given)
    np.testing.assert_allclose(np.float32(out), exact, atol=0.05)


def test_what_does_not_fit_is_refused(rng):
    _, given = layer_and_input(rng)
    with pytest.raises(ValueError, match=r"8 channels cannot be cut into heads=3"):
        DeformableAttention(3).init(jax.random.key(0), *given)
    layer, given = layer_and_input(rng, numbers=3)
    with pytest.raises(ValueError, match=r"References have 3 numbers"):
        layer.init(jax.random.key(0), *given)
