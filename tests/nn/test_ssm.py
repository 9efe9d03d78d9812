import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from handjax.nn import ssm
from handjax.nn.ops import convolutions
from handjax.nn.ssm import SS2D, DepthwiseConv, VSSBlock, selective_scan

COMPUTED = [path for path in ssm.PATHS if path != "auto"]
# Compiling takes longer than running here.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def draw(batch, length, dim, state, *, dt=0.3, seed=0):
    """Arguments of a scan, the batch's last axis having its own A and D."""
    rng = np.random.default_rng(seed)
    sequences = [(length, dim), (length, dim), (length, state), (length, state)]
    x, steps, B, C = (rng.standard_normal((*batch, *shape)) for shape in sequences)
    A = -np.exp(rng.standard_normal((*batch[-1:], dim, state)))
    D = rng.standard_normal((*batch[-1:], dim))
    arrays = (x, dt * np.abs(steps), A, B, C, D)
    return tuple(jnp.asarray(a, jnp.float32) for a in arrays)


def value_and_gradients(arguments, **options):
    def run(*arguments):
        y, pull = jax.vjp(functools.partial(selective_scan, **options), *arguments)
        return y, *pull(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))

    return jit(run)(*arguments)


def loop(x, dt, A, B, C, D, discretisation="euler"):
    """One sequence in float64, number by number."""
    x, dt, A, B, C, D = (np.asarray(a, np.float64) for a in (x, dt, A, B, C, D))
    y = np.zeros_like(x)
    for d in range(x.shape[1]):
        h = np.zeros(A.shape[1])
        for t in range(len(x)):
            for n in range(A.shape[1]):
                held = dt[t, d]
                if discretisation == "zoh":
                    held = (np.exp(dt[t, d] * A[d, n]) - 1) / A[d, n]
                h[n] = np.exp(dt[t, d] * A[d, n]) * h[n] + held * B[t, n] * x[t, d]
            y[t, d] = h @ C[t] + D[d] * x[t, d]
    return y


# --- The scan -----------------------------------------------------------------


@pytest.mark.parametrize("path", ssm.PATHS)
@pytest.mark.parametrize("discretisation", ssm.DISCRETISATIONS)
def test_scan_equals_loops_in_numpy(path, discretisation):
    x, dt, A, B, C, D = draw((2, 3), 7, 4, 2)
    options = dict(path=path, discretisation=discretisation)
    y = jit(functools.partial(selective_scan, **options))(x, dt, A, B, C, D)
    for i in range(2):
        for k in range(3):
            one = (x[i, k], dt[i, k], A[k], B[i, k], C[i, k], D[k])
            expected = loop(*one, discretisation)
            np.testing.assert_allclose(y[i, k], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("length", [1, 2, 22, 192, 1024])
@pytest.mark.parametrize("state", [1, 16])
def test_paths_agree(length, state):
    arguments = draw((2,), length, 3, state, dt=0.03)
    expected = value_and_gradients(arguments, path="sequential")
    for path in ("associative", "fused"):
        actual = value_and_gradients(arguments, path=path)
        tolerances = (1e-6, *(len(actual) - 1) * (1e-5,))
        for a, b, tolerance in zip(actual, expected, tolerances, strict=True):
            assert a.shape == b.shape
            scale = float(jnp.abs(b).max())
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale)


def test_paths_agree_with_zero_order_hold_and_one_A_for_the_whole_batch():
    x, dt, A, B, C, D = draw((2, 3), 9, 4, 2)
    expected, *others = (
        value_and_gradients((x, dt, A[0], B, C, D[0]), path=path, discretisation="zoh")
        for path in COMPUTED
    )
    for actual in others:
        for a, b in zip(actual, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_constant_input_fills_the_state_geometrically():
    length, dt, decay_rate = 30, 0.2, -0.7
    ones = jnp.ones((length, 1))
    A, D = jnp.full((1, 1), decay_rate), jnp.full(1, 10.0)
    y = selective_scan(2 * ones, dt * ones, A, 3 * ones, 5 * ones, D)
    decay = np.exp(dt * decay_rate)
    h = dt * 3 * 2 * (1 - decay ** np.arange(1, length + 1)) / (1 - decay)
    np.testing.assert_allclose(y[:, 0], 5 * h + 10 * 2, rtol=1e-5)


def test_zero_order_hold_solves_the_equation_for_constant_input():
    """h' = A h + B u has h(t) = (exp(A t) - 1) / A B u, however t is cut in steps."""
    steps = np.random.default_rng(0).uniform(0.01, 1, (12, 1))
    times, ones, A = np.cumsum(steps), jnp.ones((12, 1)), -0.7
    y = selective_scan(
        *(2 * ones, jnp.asarray(steps, jnp.float32), jnp.full((1, 1), A)),
        *(3 * ones, ones, jnp.zeros(1)),
        discretisation="zoh",
    )
    np.testing.assert_allclose(y[:, 0], np.expm1(A * times) / A * 6, rtol=1e-5)


@pytest.mark.parametrize("path", COMPUTED)
@pytest.mark.parametrize("dt", [1e-3, 50.0])
def test_long_sequences_stay_finite(path, dt):
    arguments = draw((1,), 4096, 2, 1, dt=dt)
    for array in value_and_gradients(arguments, path=path):
        assert jnp.isfinite(array).all()
        assert jnp.abs(array).max() > 0


@pytest.mark.parametrize("path", COMPUTED)
def test_bfloat16_input_keeps_a_float32_state(path):
    """A sum of ones to 1000, at which a bfloat16 state would stall at 256."""
    ones = jnp.ones((1000, 1), jnp.bfloat16)
    zero = jnp.zeros(1, jnp.bfloat16)
    scan = jit(functools.partial(selective_scan, path=path))
    y = scan(ones, ones, zero[None], ones, ones, zero)
    assert y.dtype == jnp.float32
    np.testing.assert_array_equal(y[:, 0], np.arange(1, 1001))


def test_auto_loops_on_cpu_alone():
    arguments = draw((1,), 4, 3, 1)
    trace = jax.jit(selective_scan).trace(*arguments)
    programs = {
        name: trace.lower(lowering_platforms=(name,)).as_text()
        for name in ("cpu", "cuda", "tpu")
    }
    loops = [name for name, text in programs.items() if "stablehlo.while" in text]
    assert loops == ["cpu"]


@pytest.mark.parametrize("option", ["path", "discretisation"])
def test_unknown_option_is_explained(option):
    with pytest.raises(ValueError, match=f"{option}='fast' is not one of .*, "):
        selective_scan(*draw((), 2, 2, 1), **{option: "fast"})


def test_softplus_is_as_accurate_as_numpy():
    x = np.linspace(-30, 30, 4001, dtype=np.float32)
    expected = np.logaddexp(x.astype(np.float64), 0)
    np.testing.assert_allclose(ssm.softplus(jnp.asarray(x)), expected, rtol=4e-7)
    slope = jax.vmap(jax.grad(ssm.softplus))(jnp.asarray(x))
    np.testing.assert_allclose(slope, 1 / (1 + np.exp(-x)), atol=1e-6)


# --- Directions ---------------------------------------------------------------


def orders(height, width):
    """Places (row, column) in the order of each direction."""
    rows = [(r, c) for r in range(height) for c in range(width)]
    columns = [(r, c) for c in range(width) for r in range(height)]
    return rows, columns, rows[::-1], columns[::-1]


@pytest.mark.parametrize(("height", "width"), [(3, 4), (5, 1), (1, 5)])
def test_cross_scan_and_merge_equal_loops_over_places(height, width):
    rng = np.random.default_rng(0)
    maps = rng.standard_normal((2, height, width, 4, 3)).astype(np.float32)
    sequences = ssm.cross_scan(jnp.asarray(maps))
    merged = np.zeros((2, height, width, 3), np.float32)
    for k, order in enumerate(orders(height, width)):
        for t, (r, c) in enumerate(order):
            np.testing.assert_array_equal(sequences[k, :, t], maps[:, r, c, k])
            merged[:, r, c] += sequences[k, :, t]
    np.testing.assert_allclose(
        ssm.cross_merge(sequences, height, width), merged, rtol=1e-6, atol=1e-6
    )


def test_convolution_of_a_column_equals_that_of_a_map():
    x = jax.random.normal(jax.random.key(0), (2, 7, 1, 5))
    conv = DepthwiseConv()
    variables = conv.init(jax.random.key(1), x)
    expected = jit(convolutions.depthwise_conv)(x, variables["params"]["kernel"])
    np.testing.assert_allclose(conv.apply(variables, x), expected, atol=1e-6)


# --- Layers -------------------------------------------------------------------


def layer_and_input(shape=(2, 3, 4, 8), **options):
    layer = SS2D(shape[-1], state=2, dt_rank=3, **options)
    x = jax.random.normal(jax.random.key(0), shape)
    variables = jit(layer.init)(jax.random.key(1), x)
    noise = lambda p: p + 0.3 * jax.random.normal(jax.random.key(p.size), p.shape)  # noqa: E731
    return layer, jax.tree.map(noise, variables), x


@pytest.mark.parity
@pytest.mark.parametrize(
    ("shape", "gated"), [((2, 3, 4, 8), False), ((1, 5, 1, 8), True)]
)
def test_layer_equals_loops_in_torch(shape, gated):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    layer, variables, x = layer_and_input(shape, gated=gated)
    p = jax.tree.map(lambda a: torch.tensor(np.asarray(a)), variables["params"])
    batch, height, width, _ = shape
    u = torch.tensor(np.asarray(x)) @ p["in_proj"]["kernel"]
    u, gate = u[..., :16], u[..., 16:]
    u = functional.conv2d(
        u.permute(0, 3, 1, 2),
        p["conv"]["kernel"].permute(3, 2, 0, 1),
        padding=1,
        groups=16,
    )
    u = functional.silu(u).permute(0, 2, 3, 1)
    A = -torch.exp(p["A_logs"]).reshape(4, 16, 2)
    skip = p["Ds"].reshape(4, 16)
    total = torch.zeros(batch, height, width, 16)
    for k, order in enumerate(orders(height, width)):
        h = torch.zeros(batch, 16, 2)
        for r, c in order:
            at = u[:, r, c]
            low, B, C = torch.split(at @ p["x_proj"][k].T, [3, 2, 2], dim=-1)
            dt = functional.softplus(low @ p["dt_proj"][k].T + p["dt_bias"][k])
            h = torch.exp(dt[..., None] * A[k]) * h
            h = h + dt[..., None] * B[:, None] * at[..., None]
            total[:, r, c] += (h * C[:, None]).sum(-1) + skip[k] * at
    norm = p["out_norm"]
    y = functional.layer_norm(total, (16,), norm["scale"], norm["bias"], eps=1e-5)
    if gated:
        y = y * functional.silu(gate)
    expected = y @ p["out_proj"]["kernel"]
    actual = jit(layer.apply)(variables, x)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=2e-5)


def test_layer_starts_as_vmamba():
    layer = SS2D(64, state=4)
    x = jnp.zeros((1, 2, 2, 64))
    p = jit(layer.init)(jax.random.key(0), x)["params"]
    np.testing.assert_allclose(p["A_logs"][77], np.log([1, 2, 3, 4]), rtol=1e-6)
    assert (p["Ds"] == 1).all() and p["Ds"].shape == (4 * 128,)
    steps = jax.nn.softplus(p["dt_bias"])
    assert 0.99e-3 < steps.min() < 2e-3 and 0.05 < steps.max() < 0.101
    for name, bound in (("dt_proj", 4**-0.5), ("x_proj", 128**-0.5)):
        assert 0.95 * bound < jnp.abs(p[name]).max() <= bound
    assert abs(float(p["in_proj"]["kernel"].std()) - 0.02) < 1e-3
    assert p["in_proj"].keys() == p["out_proj"].keys() == {"kernel"}


def test_layer_in_bfloat16_is_near_that_in_float32():
    layer, variables, x = layer_and_input()
    half = layer.clone(dtype=jnp.bfloat16)
    expected, actual = (jit(m.apply)(variables, x) for m in (layer, half))
    assert actual.dtype == jnp.bfloat16
    error = jnp.abs(actual.astype(jnp.float32) - expected).max()
    assert error < 0.05 * jnp.abs(expected).max()


def test_block_of_the_paper_has_its_number_of_parameters():
    block = VSSBlock(512)
    x = jnp.zeros((1, 22, 1, 512))
    shapes = jax.eval_shape(
        lambda key: block.init(key, x, train=False), jax.random.key(0)
    )
    assert sum(p.size for p in jax.tree.leaves(shapes)) == 3_444_224


def test_block_drops_its_branches_example_by_example():
    x = jax.random.normal(jax.random.key(0), (64, 3, 1, 4))
    block = VSSBlock(4, mlp_ratio=1.0, drop_path=0.5)
    variables = jit(functools.partial(block.init, train=False))(jax.random.key(1), x)

    def run(train):
        apply = functools.partial(block.apply, train=train)
        return jit(apply)(variables, x, rngs={"drop_path": jax.random.key(2)})

    whole, dropped = run(train=False), run(train=True)
    untouched = (dropped == x).all((1, 2, 3))
    assert 0.1 < untouched.mean() < 0.4  # both branches dropped: a quarter
    assert not (whole == x).all((1, 2, 3)).any()
