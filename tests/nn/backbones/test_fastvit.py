import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from places import GOLDEN
from torch_reference import (
    import_timm,
    random_image,
    random_state_dict,
    read_golden,
    sample,
)

from handjax.nn import backbones
from handjax.nn.backbones import fastvit

TAPS = ("stride4", "stride8", "stride16", "stride32", "final")

golden_names = pytest.mark.parametrize(
    "name",
    [
        "fastvit_t8",
        pytest.param("fastvit_sa12", marks=pytest.mark.slow),
        pytest.param("fastvit_ma36", marks=pytest.mark.slow),
    ],
)


def apply(name, variables, image, fused=False, options=None):
    model = fastvit.build(name, fused=fused)
    return jax.jit(model.apply, compiler_options=options)(variables, image)


def golden(name):
    stored, shapes = read_golden(GOLDEN / f"{name}.npz")
    return stored, random_state_dict(shapes)


def relative_error(actual, expected):
    """Largest difference over the largest magnitude, which `sample` puts first."""
    return np.abs(sample(actual) - expected).max() / expected[0]


@golden_names
def test_maps_equal_timm_before_and_after_fusion(name):
    stored, weights = golden(name)
    variables = fastvit.import_torch(weights)
    fused = fastvit.fuse(variables)
    image = random_image(64, batch=1)
    maps, folded = apply(name, variables, image), apply(name, fused, image, fused=True)
    for tap in TAPS:
        assert relative_error(maps[tap], stored[f"64_{tap}"]) < 1e-5
        assert relative_error(folded[tap], stored[f"64_{tap}"]) < 1e-5
    assert relative_error(folded["final"], stored["64_reparameterized"]) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fastvit_t8", "fastvit_sa12"])
def test_maps_equal_timm_at_224(name):
    stored, weights = golden(name)
    maps = apply(name, fastvit.import_torch(weights), random_image(224, batch=1))
    for tap in TAPS:
        assert relative_error(maps[tap], stored[f"224_{tap}"]) < 1e-5


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.parametrize("name", ["fastvit_t8", "fastvit_sa12", "fastvit_ma36"])
def test_live_timm_agrees_in_inference_and_in_training(name):
    torch = pytest.importorskip("torch")
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    model = import_timm().create_model(name).eval()
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    weights = random_state_dict(shapes)
    model.load_state_dict({k: torch.tensor(v) for k, v in weights.items()})
    image = random_image(64)
    torch_image = torch.tensor(image).permute(0, 3, 1, 2)
    variables = fastvit.import_torch(weights)
    with torch.no_grad():
        expected = model.forward_features(torch_image).permute(0, 2, 3, 1).numpy()
        maps = apply(name, variables, image)
        folded = apply(name, fastvit.fuse(variables), image, fused=True)
        model.train()(torch_image)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(maps["final"], expected, rtol=0, atol=1e-5 * scale)
    np.testing.assert_allclose(folded["final"], expected, rtol=0, atol=1e-5 * scale)
    after = {key: value.numpy() for key, value in model.state_dict().items()}
    _assert_same_statistics(name, variables, image, fastvit.import_torch(after))


def _assert_same_statistics(name, variables, image, expected):
    @jax.jit
    def train(variables):
        return fastvit.build(name).apply(
            variables, jnp.asarray(image), train=True, mutable=["batch_stats"]
        )[1]

    updated = train(variables)["batch_stats"]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4),
        updated,
        expected["batch_stats"],
    )


@pytest.fixture(scope="module")
def small():
    """The test size with random weights, statistics and layer scales."""
    model = fastvit.build("fastvit_test")
    image = jnp.asarray(random_image(32))
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        normal = rng.standard_normal(leaf.shape)
        if leaf.ndim > 1:
            return normal / np.sqrt(np.prod(leaf.shape[:-1]))
        offset = 0.0 if path[-1].key in ("bias", "mean") else 1.0
        return offset + 0.2 * normal

    variables = jax.tree.map_with_path(draw, shapes)
    variables = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), variables)
    return model, variables, image


def test_fusion_changes_nothing_but_the_speed(small):
    model, variables, image = small
    fused = fastvit.fuse(variables)
    assert set(fused) == {"params"}
    # Sums in the order of one rounding after the other are off by a little more.
    options = {"xla_backend_optimization_level": 3}
    expected = jax.jit(model.apply, compiler_options=options)(variables, image)
    maps = apply("fastvit_test", fused, image, fused=True, options=options)
    for tap in TAPS:
        scale = jnp.abs(expected[tap]).max()
        np.testing.assert_allclose(maps[tap], expected[tap], rtol=0, atol=1e-6 * scale)
    wanted = jax.eval_shape(
        fastvit.build("fastvit_test", fused=True).init, jax.random.key(0), image
    )
    assert jax.tree.structure(wanted) == jax.tree.structure(fused)


def test_branches_are_dropped_in_training_only(small):
    _, variables, image = small
    model = fastvit.build("fastvit_test", drop_path_rate=0.5)

    @functools.partial(jax.jit, static_argnums=1)
    def last(seed, train):
        rngs = {"dropout": jax.random.key(seed)}
        out = model.apply(
            variables, image, train=train, rngs=rngs, mutable=["batch_stats"]
        )
        return out[0]["stride32"]

    runs = jnp.stack([last(seed, True) for seed in range(4)])
    assert jnp.ptp(runs, axis=0).max() > 0
    np.testing.assert_array_equal(last(0, False), last(1, False))


@pytest.mark.slow
def test_bfloat16_computes_near_float32_and_keeps_float32_parameters(small):
    _, variables, image = small
    model = fastvit.build("fastvit_test", dtype=jnp.bfloat16)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    out = jax.jit(model.apply)(variables, image)["final"]
    expected = apply("fastvit_test", variables, image)["final"]
    assert out.dtype == jnp.bfloat16
    error = jnp.abs(out.astype(jnp.float32) - expected).max()
    assert error < 0.05 * jnp.abs(expected).max()


def test_training_reaches_every_parameter_and_moves_the_statistics(small):
    model, variables, image = small

    def loss(params):
        out, updates = model.apply(
            {**variables, "params": params}, image, train=True, mutable=["batch_stats"]
        )
        weights = jax.random.normal(jax.random.key(1), out["final"].shape)
        return jnp.mean(out["final"] * weights), updates

    grads, updates = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    for path, grad in jax.tree.leaves_with_path(jax.device_get(grads)):
        assert np.isfinite(grad).all(), path
        assert np.abs(grad).max() > 0, path
    before = variables["batch_stats"]["stem_0"]["conv_scale"]["bn"]
    after = updates["batch_stats"]["stem_0"]["conv_scale"]["bn"]
    kernel = variables["params"]["stem_0"]["conv_scale"]["conv"]["kernel"][0, 0]
    values = np.dot(image[:, ::2, ::2], kernel).reshape(-1, kernel.shape[1])
    np.testing.assert_allclose(
        after["mean"], 0.9 * before["mean"] + 0.1 * values.mean(0), rtol=1e-4
    )
    np.testing.assert_allclose(
        after["var"], 0.9 * before["var"] + 0.1 * values.var(0, ddof=1), rtol=1e-4
    )


@pytest.mark.parametrize("name", ["fastvit_test", "fastvit_t8", "fastvit_sa12"])
def test_every_size_has_the_shapes_it_announces(name):
    size = fastvit.VARIANTS[name]
    image = jax.ShapeDtypeStruct((2, 64, 96, 3), jnp.float32)
    model = backbones.build(name)
    maps, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
    for i, tap in enumerate(TAPS[:4]):
        stride = 4 * 2**i
        assert maps[tap].shape == (2, 64 // stride, 96 // stride, size.widths[i])
    assert maps["final"].shape == (2, 2, 3, backbones.num_features(name))


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("fastvit_t8", 3.257),
        pytest.param("fastvit_ma36", 42.851, marks=pytest.mark.slow),
    ],
)
def test_parameter_counts_are_the_published_ones(name, millions):
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    variables = jax.eval_shape(fastvit.build(name).init, jax.random.key(0), image)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert round(count / 1e6, 3) == millions


def test_import_names_what_does_not_fit():
    _, weights = golden("fastvit_t8")
    weights.pop("stages.0.blocks.0.mlp.fc1.weight")
    weights["stages.9.extra"] = np.zeros(3)
    with pytest.raises(
        ValueError,
        match=r"not fit fastvit_t8. .*Missing from the file: 1 entry, params/stages_0",
    ):
        fastvit.import_torch(weights)


def test_wrong_use_is_refused_with_advice(small):
    model, variables, _ = small
    with pytest.raises(
        ValueError, match=r"65 x 64.*crop_size so: a multiple of 32, or of 128"
    ):
        model.apply(variables, jnp.zeros((1, 65, 64, 3)))
    with pytest.raises(ValueError, match="fused=False"):
        fastvit.build("fastvit_test", fused=True).init(
            jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=True
        )
    with pytest.raises(ValueError, match=r"fastvit_t9.*not one of.*fastvit_t8"):
        backbones.build("fastvit_t9")
