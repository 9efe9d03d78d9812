import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from handjax.nn import point_transformer as pt


def test_sizes_halve_to_48_tokens():
    assert pt.level_sizes(778, (1, 2, 2, 2, 2)) == (778, 389, 194, 97, 48)


def test_farthest_points_spread(rng):
    points = rng.normal(size=(60, 3))
    chosen = pt.farthest_points(points, 10)
    assert chosen[0] == 0 and len(set(chosen.tolist())) == 10
    for i in range(1, 10):  # each is the farthest from its predecessors
        gap = np.linalg.norm(points[:, None] - points[chosen[:i]], axis=-1).min(1)
        assert gap[chosen[i]] == pytest.approx(gap.max())


def test_nearest_neighbours_equal_brute_force(rng):
    points, queries = rng.normal(size=(2, 30, 3)), rng.normal(size=(2, 7, 3))
    found = pt.nearest_neighbours(jnp.float32(queries), jnp.float32(points), 5)
    distance = np.linalg.norm(queries[:, :, None] - points[:, None], axis=-1)
    np.testing.assert_array_equal(found, np.argsort(distance, -1)[..., :5])


def test_gather_takes_one_table_or_one_for_each(rng):
    x, index = rng.normal(size=(2, 9, 4)), rng.integers(0, 9, (6, 3))
    for_all = pt.gather(jnp.float32(x), jnp.asarray(index))
    for_each = pt.gather(jnp.float32(x), jnp.asarray(np.stack([index, index])))
    np.testing.assert_array_equal(for_all, np.float32(x)[:, index])
    np.testing.assert_array_equal(for_all, for_each)


def test_attention_equals_a_slow_loop(rng):
    """The layer, one neighbour at a time, with running statistics."""
    dim, points, k = 16, 6, 3
    x, p = rng.normal(size=(1, points, dim)), rng.normal(size=(1, points, 3))
    index = np.asarray(pt.nearest_neighbours(jnp.float32(p), jnp.float32(p), k))
    offsets = np.stack([p[0, index[0, i]] - p[0, i] for i in range(points)])[None]
    layer = pt.PointAttention(dim)
    args = jnp.float32(x), jnp.float32(offsets), jnp.asarray(index)
    variables = layer.init(jax.random.key(0), *args, train=False)
    variables = jax.tree.map(
        lambda a: (
            jnp.abs(a + 0.1 * rng.normal(size=a.shape).astype(np.float32))
            if a.ndim == 1
            else a
        ),
        variables,
    )
    w, s = jax.tree.map(
        lambda a: np.asarray(a, np.float64),
        (variables["params"], variables["batch_stats"]),
    )

    def dense(v, name):
        return v @ w[name]["kernel"] + w[name]["bias"]

    def norm(v, name):
        v = (v - s[name]["mean"]) / np.sqrt(s[name]["var"] + 1e-5)
        return np.maximum(v * w[name]["scale"] + w[name]["bias"], 0)

    expected = np.zeros((points, dim))
    for i in range(points):
        scores, values = [], []
        for j in index[0, i]:
            e = norm(dense(p[0, j] - p[0, i], "position_in"), "position_bn")
            e = dense(e, "position_out")
            g = dense(x[0, j], "k") - dense(x[0, i], "q") + e
            g = dense(norm(g, "weight_bn1"), "weight_in")
            scores.append(dense(norm(g, "weight_bn2"), "weight_out"))
            values.append(dense(x[0, j], "v") + e)
        a = np.exp(scores) / np.exp(scores).sum(0)
        for c in range(dim):  # channel c uses weight c mod (dim / 8)
            expected[i, c] = sum(a[j, c % (dim // 8)] * values[j][c] for j in range(k))
    out = layer.apply(variables, *args, train=False)[0]
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)


def test_transition_equals_the_linear_map_of_the_concatenation(rng):
    x, offsets = rng.normal(size=(2, 9, 5)), rng.normal(size=(2, 4, 3, 3))
    index = rng.integers(0, 9, (4, 3))
    layer = pt.TransitionDown(6)
    args = jnp.float32(x), jnp.float32(offsets), jnp.asarray(index)
    variables = layer.init(jax.random.key(0), *args, train=False)
    w = variables["params"]
    kernel = np.concatenate([w["position"]["kernel"], w["feature"]["kernel"]])
    y = np.concatenate([offsets, x[:, index]], -1) @ kernel / np.sqrt(1 + 1e-5)
    np.testing.assert_allclose(
        layer.apply(variables, *args, train=False),
        np.maximum(y, 0).max(2),
        rtol=1e-4,
        atol=1e-5,
    )


class Encoder(nn.Module):
    options: dict

    def setup(self):
        self.encoder = pt.PointTransformer(**self.options)

    def init_all(self, template):
        self.encoder.set_template(template)
        return self(jnp.float32(template)[None])

    def __call__(self, points, train=False):
        return self.encoder(points, train=train)


def encoder(template, **options):
    small = dict(
        widths=(8, 16),
        strides=(1, 2),
        neighbours_k=(4, 4),
        blocks=(1, 1),
        neighbours="posed",
    )
    model = Encoder(small | options)
    return model, model.init(jax.random.key(0), template, method="init_all")


def test_compiled_gradients_are_those_of_single_operations(rng):
    """With jnp.max and this compiler option half of them, and more, was lost."""
    template = rng.normal(size=(40, 3))
    model, variables = encoder(template, neighbours="template", blocks=(0, 0))
    points = jnp.float32(template + 0.1 * rng.normal(size=(4, 40, 3)))

    def loss(params):
        held = {**variables, "params": params}
        y, _ = model.apply(held, points, train=True, mutable=["batch_stats"])
        return jnp.sum(jnp.sin(3 * y))

    options = {"xla_backend_optimization_level": 0}
    gradients = jax.jit(jax.grad(loss), compiler_options=options)
    compiled = gradients(variables["params"])
    with jax.disable_jit():
        single = jax.grad(loss)(variables["params"])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3),
        compiled,
        single,
    )


@pytest.mark.parametrize("neighbours", pt.NEIGHBOURS)
def test_tokens_are_the_same_vertices_in_every_pose(rng, neighbours):
    """Moving one vertex far from all others changes the tokens around it only."""
    template = rng.normal(size=(40, 3))
    model, variables = encoder(template, neighbours=neighbours)
    chosen = np.asarray(variables["constants"]["encoder"]["chosen1"])
    assert len(chosen) == 20
    points = np.float32(template)[None]
    turned = points @ np.float32(np.linalg.qr(rng.normal(size=(3, 3)))[0])
    assert model.apply(variables, jnp.asarray(turned)).shape == (1, 20, 16)
    moved = points.copy()
    moved[0, chosen[3]] += 0.01
    changed = np.abs(
        model.apply(variables, jnp.asarray(moved))
        - model.apply(variables, jnp.asarray(points))
    ).max(-1)[0]
    assert changed[3] > 0
    assert (changed == 0).any()


def test_posed_neighbours_of_the_template_are_the_templates(rng):
    template = rng.normal(size=(40, 3))
    fixed, variables = encoder(template, neighbours="template")
    posed, _ = encoder(template, neighbours="posed")
    points = jnp.float32(template)[None]
    np.testing.assert_allclose(
        fixed.apply(variables, points),
        posed.apply(variables, points),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize(
    "blocks, expected", [(0, 179_040), (1, 1_989_530), (2, 3_800_020)]
)
def test_parameter_number_of_the_full_encoder(blocks, expected, rng):
    full = dict(
        widths=(32, 64, 128, 256, 512),
        strides=(1, 2, 2, 2, 2),
        neighbours_k=(8, 16, 16, 16, 16),
        blocks=(blocks,) * 5,
        neighbours="posed",
    )
    model = Encoder(full)
    template = rng.normal(size=(778, 3))
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), template, method="init_all")
    )
    sizes = [np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"])]
    assert sum(sizes) == expected


def test_unknown_neighbours_are_refused(rng):
    with pytest.raises(ValueError, match="'far' is not one of posed, template"):
        encoder(rng.normal(size=(40, 3)), neighbours="far")


@pytest.fixture
def rng():
    return np.random.default_rng(0)
