import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from handjax.geometry import skeleton
from handjax.nn import joint_graph
from handjax.nn.joint_graph import JointGraphBlock, JointGraphConv

DIM, FEATURES, JOINTS = 5, 4, skeleton.NUM_JOINTS


def filled(module, x, seed=0, **options):
    """Variables drawn from a normal distribution, constants and logits included."""
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x, **options))
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: (
            jnp.float32(0.5 + rng.random(leaf.shape))
            if leaf.ndim == 1
            else jnp.float32(rng.normal(size=leaf.shape))
        ),
        shapes,
    )


def tokens(batch=3, joints=JOINTS, dim=DIM, seed=1):
    return jnp.float32(np.random.default_rng(seed).normal(size=(batch, joints, dim)))


def neighbours(edges, joint):
    """In increasing order, as the logits of a row are."""
    return sorted(
        {b for a, b in edges if a == joint} | {a for a, b in edges if b == joint}
    )


def slow(kind, params, x, edges):
    """Joint by joint, neighbour by neighbour."""
    x = np.asarray(x, np.float64)
    p = {name: np.asarray(value, np.float64) for name, value in params.items()}
    out, used = np.zeros((*x.shape[:2], FEATURES)), 0
    for i in range(x.shape[1]):
        near = neighbours(edges, i)
        row = near if kind == "per_joint" else sorted([*near, i])
        weights = np.exp(p["edge_logits"][used : used + len(row)])
        used += len(row)
        weights /= weights.sum()
        for j, weight in zip(row, weights, strict=True):
            if kind == "per_joint":
                matrix = p["kernel"][1, j]
            elif kind == "shared":
                matrix = p["kernel"]
            else:
                matrix = p["self_kernel" if j == i else "neighbour_kernel"]
            out[:, i] += weight * x[:, j] @ matrix
        if kind == "per_joint":
            out[:, i] += x[:, i] @ p["kernel"][0, i]
    assert used == p["edge_logits"].size
    return out + p.get("bias", 0.0)


@pytest.mark.parametrize("kind", joint_graph.KINDS)
@pytest.mark.parametrize("shape", ["hand", "other"])
def test_layer_is_the_sum_over_neighbours(kind, shape):
    edges, joints = skeleton.BONES, JOINTS
    if shape == "other":  # any skeleton is data, in whatever order its edges come
        edges, joints = ((3, 1), (0, 1), (2, 0), (3, 4), (2, 4)), 5
    layer, x = JointGraphConv(FEATURES, edges, kind), tokens(joints=joints)
    variables = filled(layer, x)
    expected = slow(kind, variables["params"], x, edges)
    np.testing.assert_allclose(jax.jit(layer.apply)(variables, x), expected, atol=1e-5)


def test_released_layer_has_the_released_shapes_and_start():
    layer, x = JointGraphConv(512, skeleton.BONES), jnp.zeros((1, 21, 512))
    shapes = jax.eval_shape(lambda: layer.init(jax.random.key(0), x))["params"]
    assert {name: leaf.shape for name, leaf in shapes.items()} == {
        "kernel": (2, 21, 512, 512),
        "self_logits": (21,),
        "edge_logits": (40,),
        "bias": (512,),
    }
    small = JointGraphConv(64, skeleton.BONES)
    start = jnp.zeros((1, 21, 64))
    params = jax.jit(lambda: small.init(jax.random.key(0), start))()["params"]
    bound = 1.414 * np.sqrt(6 / (23 * 64 * 64))
    largest = np.abs(params["kernel"]).max()
    assert 0.99 * bound < largest <= bound
    assert 0.5 / np.sqrt(21) < np.abs(params["bias"]).max() <= 1 / np.sqrt(21)
    np.testing.assert_array_equal(params["edge_logits"], 1)


@pytest.mark.parametrize("kind", joint_graph.KINDS)
def test_only_neighbours_and_used_logits_have_gradients(kind):
    layer, x = JointGraphConv(FEATURES, skeleton.BONES, kind), tokens()
    variables = filled(layer, x)

    def of_joint(params, x, joint):
        return jnp.sum(layer.apply({"params": params}, x)[:, joint] ** 2)

    grad = jax.jit(jax.grad(of_joint, argnums=(0, 1)))
    for joint in (0, 6, 20):  # wrist, inside of a finger, tip
        params, inputs = grad(variables["params"], x, joint)
        seen = np.flatnonzero(np.abs(inputs).max(axis=(0, 2)))
        assert set(seen) == {joint, *neighbours(skeleton.BONES, joint)}
        if kind == "per_joint":
            np.testing.assert_array_equal(params["self_logits"], 0)
            # One neighbour alone has weight 1, whatever its logit.
            assert bool(np.abs(params["edge_logits"]).max() > 0) == (joint != 20)


def test_weights_of_a_half_precision_layer_are_finite():
    layer = JointGraphConv(FEATURES, skeleton.BONES, dtype=jnp.float16)
    variables = filled(layer, tokens())
    variables["params"]["edge_logits"] = jnp.linspace(-200.0, 200.0, 40)

    @jax.jit
    @jax.value_and_grad
    def mean(params):
        return jnp.mean(layer.apply({"params": params}, tokens()).astype(jnp.float32))

    out, grad = mean(variables["params"])
    assert np.isfinite(out)
    chex.assert_tree_all_finite(grad)


def test_block_normalises_over_examples_and_joints():
    block, x = JointGraphBlock(FEATURES, skeleton.BONES), tokens()
    variables = jax.jit(lambda: block.init(jax.random.key(0), x, train=True))()
    conv = JointGraphConv(FEATURES, skeleton.BONES)
    y = np.asarray(jax.jit(conv.apply)({"params": variables["params"]["conv"]}, x))
    apply = functools.partial(block.apply, train=True, mutable=["batch_stats"])
    out, updates = jax.jit(apply)(variables, x)
    normal = (y - y.mean((0, 1))) / np.sqrt(y.var((0, 1)) + 1e-5)
    np.testing.assert_allclose(out, np.maximum(normal, 0), atol=1e-5)
    stats = updates["batch_stats"]["norm"]
    np.testing.assert_allclose(stats["mean"], 0.1 * y.mean((0, 1)), rtol=1e-4)
    unbiased = y.reshape(-1, FEATURES).var(0, ddof=1)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * unbiased, rtol=1e-5)


@pytest.mark.parametrize(
    "kind, edges, message",
    [
        ("chebyshev", skeleton.BONES, r"graph='chebyshev' is not one of per_joint"),
        ("shared", ((0, 21),), r"name joints 0 to 21, but .* joints 0 to 20"),
        ("semgcn", skeleton.BONES[:-1], r"Joint 20 has no edge"),
    ],
)
def test_what_does_not_fit_is_refused(kind, edges, message):
    layer = JointGraphConv(FEATURES, edges, kind)
    with pytest.raises(ValueError, match=message):
        layer.init(jax.random.key(0), tokens())


@pytest.mark.parity
def test_released_layer_equals_torch():
    torch = pytest.importorskip("torch")
    layer = JointGraphConv(FEATURES, skeleton.BONES)
    variables, x = filled(layer, tokens()), tokens()
    given = {k: torch.tensor(np.array(v)) for k, v in variables["params"].items()}
    mask = torch.zeros(21, 21, dtype=torch.bool)
    for a, b in skeleton.BONES:
        mask[a, b] = mask[b, a] = True
    logits = torch.full((21, 21), -torch.inf)
    logits[mask] = given["edge_logits"]  # a boolean mask is filled row by row
    sent = torch.einsum("bjc,kjcd->kbjd", torch.tensor(np.array(x)), given["kernel"])
    expected = sent[0] + logits.softmax(1) @ sent[1] + given["bias"]
    np.testing.assert_allclose(jax.jit(layer.apply)(variables, x), expected, atol=1e-5)
