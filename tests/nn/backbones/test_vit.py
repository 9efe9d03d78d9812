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
from handjax.nn.backbones import vit
from handjax.nn.ops import remat

SLIM = jnp.asarray(random_image(64, batch=1)[:, :, 8:-8])
IMAGES = {
    "vit_test_patch16": random_image(64, batch=1),
    "vit_test": SLIM,
    "vit_base_patch16_224": random_image(224, batch=1),
}


def golden(name):
    stored, shapes = read_golden(GOLDEN / f"{name}.npz")
    return stored, random_state_dict(shapes)


@pytest.fixture(scope="module")
def small():
    """Weights of the test size of HaMeR's rules, for images of 64 x 48."""
    return jax.tree.map(jnp.asarray, vit.import_torch(golden("vit_test")[1]))


@pytest.mark.parametrize(
    "name",
    [
        "vit_test_patch16",
        "vit_test",
        pytest.param("vit_base_patch16_224", marks=pytest.mark.slow),
    ],
)
def test_map_equals_timm(name):
    stored, weights = golden(name)
    variables = vit.import_torch(weights)
    maps = jax.jit(backbones.build(name).apply)(variables, IMAGES[name])
    expected = stored["final"]
    error = np.abs(sample(maps["final"]) - expected).max() / expected[0]
    assert error < 1e-5
    np.testing.assert_array_equal(maps["stride16"], maps["final"])


@pytest.mark.parity
@pytest.mark.slow
def test_live_timm_agrees():
    torch = pytest.importorskip("torch")
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    name = "vit_base_patch16_224"
    model = import_timm().create_model(name).eval()
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    weights = random_state_dict(shapes)
    # So large that a wrong position would show.
    weights["pos_embed"] *= 100
    model.load_state_dict({k: torch.tensor(v) for k, v in weights.items()})
    image = random_image(224)
    with torch.no_grad():
        expected = model.forward_features(torch.tensor(image).permute(0, 3, 1, 2))
    expected = expected[:, 1:].reshape(2, 14, 14, 768).numpy()
    variables = vit.import_torch(weights)
    final = jax.jit(backbones.build(name).apply)(variables, image)["final"]
    scale = np.abs(expected).max()
    np.testing.assert_allclose(final, expected, rtol=0, atol=1e-5 * scale)


# timm's own counts without its classifier, and that of HaMeR's checkpoint (`vit_h`);
# the others follow: 192 positions and the class token's, but no class token.
@pytest.mark.parametrize(
    ("name", "size", "grid", "count"),
    [
        ("vit_base_patch16_224", (224, 224), (14, 14), 85_798_656),
        ("vit_large_patch16_224", (224, 224), (14, 14), 303_301_632),
        ("vit_huge_patch14_224", (224, 224), (16, 16), 630_764_800),
        ("vit_b", (256, 192), (16, 12), 85_794_816),
        ("vit_l", (256, 192), (16, 12), 303_296_512),
        ("vit_h", (256, 192), (16, 12), 630_912_000),
        ("vit_s", (128, 96), (16, 12), 21_442_560),
        ("vit_t", (128, 96), (16, 12), 2_743_680),
        ("vit_t16", (128, 96), (8, 6), 2_826_624),
    ],
)
def test_every_size_has_the_shapes_it_announces(name, size, grid, count):
    image = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    model = backbones.build(name)
    maps, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
    shape = (2, *grid, backbones.num_features(name))
    stride = f"stride{vit.VARIANTS[name].patch}"
    assert {tap: value.shape for tap, value in maps.items()} == {
        stride: shape,
        "final": shape,
    }
    assert count == sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


@pytest.mark.parametrize(("name", "first"), [("vit_h", -2), ("vit_t", 0)])
def test_first_patch_begins_where_the_rules_say(name, first):
    size = vit.VARIANTS[name]._replace(width=1)
    layer = vit.PatchEmbed(size, jnp.float32)

    @jax.jit
    def slope(image):
        variables = layer.init(jax.random.key(0), image)
        return jax.grad(lambda x: layer.apply(variables, x)[0, 1, 1, 0])(image)

    pixels = np.any(slope(jnp.zeros((1, 48, 48, 3))), axis=(0, 2, 3))
    rows = np.flatnonzero(pixels)
    assert (rows[0], len(rows)) == (size.patch + first, size.patch)


@pytest.mark.parametrize(
    ("name", "missing", "path"),
    [
        ("vit_test_patch16", "cls_token", "cls_token"),
        ("vit_test_patch16", "pos_embed", "pos_embed"),
        ("vit_test", "last_norm.bias", "last_norm/bias"),
    ],
)
def test_import_names_what_does_not_fit(name, missing, path):
    _, weights = golden(name)
    del weights[missing]
    with pytest.raises(ValueError, match=rf"(?s){name}\b.*{path}"):
        vit.import_torch(weights)


def test_branches_are_dropped_in_training_only(small):
    model = backbones.build("vit_test", drop_path_rate=0.5)
    image = jnp.concatenate([SLIM, SLIM])

    @functools.partial(jax.jit, static_argnums=1)
    def final(seed, train):
        rngs = {"dropout": jax.random.key(seed)}
        return model.apply(small, image, train=train, rngs=rngs)["final"]

    runs = jnp.stack([final(seed, True) for seed in range(4)])
    assert jnp.ptp(runs, axis=0).max() > 0
    np.testing.assert_array_equal(final(0, False), final(1, False))


def test_a_policy_decides_what_remat_stores(small):
    def stored(policy):
        model = backbones.build("vit_test", remat=True, remat_policy=policy)

        def loss(variables):
            return jnp.sum(model.apply(variables, SLIM, train=True)["final"])

        residuals = jax.eval_shape(lambda v: jax.vjp(loss, v)[1], small)
        return sum(leaf.size for leaf in jax.tree.leaves(residuals))

    # Two blocks: queries, keys, values, projection and the widened layer of each token.
    products = 2 * len(SLIM) * 12 * (3 + 1 + 4) * 64
    assert stored("dots") - stored("nothing") == products
    with pytest.raises(ValueError, match=r"remat_policy='most' is not one of nothing"):
        stored("most")


def test_remat_stores_no_block_and_keeps_the_names(small):
    model = backbones.build("vit_test", remat=True)
    variables = jax.eval_shape(model.init, jax.random.key(0), SLIM)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, small)
    steps = jax.make_jaxpr(model.apply)(small, SLIM).eqns
    blocks = [step for step in steps if "prevent_cse" in step.params]
    assert len(blocks) == vit.VARIANTS["vit_test"].depth


@pytest.mark.slow
def test_remat_keeps_the_gradients(small):
    @functools.partial(jax.jit, static_argnums=1)
    def grads(variables, policy):
        options = dict(remat=True, remat_policy=policy) if policy else {}
        model = backbones.build("vit_test", drop_path_rate=0.5, **options)
        rngs = {"dropout": jax.random.key(0)}

        def loss(variables):
            final = model.apply(variables, SLIM, train=True, rngs=rngs)["final"]
            return jnp.sum(
                final**2 * jnp.cos(jnp.arange(final.size) * 1.0).reshape(final.shape)
            )

        return jax.grad(loss)(variables)

    plain = grads(small, "")
    again = {policy: grads(small, policy) for policy in remat.POLICIES}
    for (path, a), b in zip(
        2 * jax.tree.leaves_with_path(plain), jax.tree.leaves(again), strict=True
    ):
        scale = jnp.abs(a).max() + 1e-6
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * scale, err_msg=str(path))


def test_images_whose_patches_have_no_position_are_refused_with_advice(small):
    model = backbones.build("vit_test")
    for shape in ((1, 64, 64, 3), (1, 70, 48, 3)):
        with pytest.raises(ValueError, match=rf"{shape[1]} x {shape[2]}.*12 patches"):
            model.apply(small, jnp.zeros(shape))
    turned = jnp.zeros((1, 48, 64, 3))
    with pytest.raises(ValueError, match="12 patches of 16 x 16 in 4 rows and 3 col"):
        backbones.build("vit_test", grid=(4, 3)).apply(small, turned)


def test_a_given_grid_makes_initialisation_independent_of_the_image(small):
    model = backbones.build("vit_test", grid=(4, 3))
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    maps, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
    assert maps["final"].shape == (1, 4, 3, 64)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, small)


def test_bfloat16_keeps_float32_parameters():
    model = backbones.build("vit_test_patch16", dtype=jnp.bfloat16)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    maps, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
    assert {leaf.dtype for leaf in jax.tree.leaves(maps)} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
