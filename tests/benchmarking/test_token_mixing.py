import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from handjax.benchmarking import measurements, token_mixing
from handjax.benchmarking.token_mixing import multiply_adds
from handjax.models.hamba import measures


def fields(width=512, depths=(2, 2, 2, 2)):
    model = dict(state=1, ratio=2.0, discretisation="euler", width=width)
    return ml_collections.ConfigDict(dict(model, decoder_depths=depths))


def ones(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_matrices_and_convolutions_are_counted_through_calls():
    product = jax.jit(lambda a, b: jnp.tanh(a @ b))
    assert multiply_adds(product, ones(7, 2, 3), ones(3, 5)) == 7 * 2 * 3 * 5
    batched = lambda a, b: jnp.einsum("bij,bjk->bik", a, b)  # noqa: E731
    assert multiply_adds(batched, ones(4, 2, 3), ones(4, 3, 5)) == 4 * 2 * 3 * 5

    def conv(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=2,
        )

    # Each of 8 x 8 x 6 numbers is a sum over 3 x 3 places and 2 of 4 channels.
    assert multiply_adds(conv, ones(1, 8, 8, 4), ones(3, 3, 2, 6)) == 384 * 18
    gradient = jax.grad(lambda a, b: jnp.sum(product(a, b)), (0, 1))
    assert multiply_adds(gradient, ones(2, 3), ones(3, 5)) == 3 * 30


def test_loops_count_as_often_as_they_run_and_the_dearest_branch():
    def powers(x):
        return jax.lax.scan(lambda y, _: (y @ x, None), x, length=6)[0]

    assert multiply_adds(powers, ones(3, 3)) == 6 * 27
    either = lambda i, x: jax.lax.switch(i, [powers, jnp.sin, lambda x: x @ x], x)  # noqa: E731
    assert multiply_adds(either, jax.ShapeDtypeStruct((), jnp.int32), ones(3, 3)) == 162


def block(length, kind, C=512):
    """Multiplications that one block makes, by hand."""
    mlp = 8 * C * C
    if kind == "attention":
        return length * (4 * C * C + 2 * length * C + mlp)
    D, rank, state = 2 * C, C // 16, 1
    projections = C * D + D * C + 4 * D * (rank + 2 * state) + 4 * rank * D
    # On a column of tokens three taps of the convolution are left, which are sums.
    return length * (projections + (9 * D if length == 192 else 0) + mlp)


def graph(matrices, C=512):
    """Of one graph convolution; the messages are added by a 21 x 21 matrix."""
    return matrices * 21 * C * C + 21 * 21 * C


def size_and_work(row, width):
    """Parameters and multiplications of a row, of which no array is made."""
    x = ones(1, *row.grid, width)
    variables = jax.eval_shape(
        lambda x: row.trunk.init(jax.random.key(0), x, train=False), x
    )
    size = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    work = multiply_adds(lambda v, x: row.trunk.apply(v, x, train=False), variables, x)
    return size, work


def test_the_table_counts_what_layers_multiply():
    C = 32
    rows = measures.mixing_rows(fields(C, depths=(1,)))
    found = {(row.tokens, row.name): size_and_work(row, C)[1] for row in rows}
    assert found == {
        (192, "attention"): block(192, "attention", C),
        (192, "scan"): block(192, "scan", C),
        (22, "attention"): block(22, "attention", C),
        (22, "scan"): block(22, "scan", C),
        (22, "graph"): graph(2, C),
        (22, "graph, attention"): block(22, "attention", C) + graph(2, C),
        (22, "graph, scan"): block(22, "scan", C) + graph(2, C),
        (22, "shared graph, scan"): block(22, "scan", C) + graph(1, C),
    }


def test_hambas_row_is_the_papers():
    """Table S2: 71.8 M parameters with the heads, 649 MFLOPs."""
    row = next(x for x in measures.mixing_rows(fields()) if x.name == "graph, scan")
    size, work = size_and_work(row, 512)
    assert size + 109 * (1578 + 1) == 71_776_579  # 109 outputs of 1578 numbers
    assert work == 8 * block(22, "scan") + 4 * graph(2)
    assert work / 1e6 == pytest.approx(649, rel=0.005)


def test_the_table_is_printed_wide_and_as_lines(monkeypatch, capsys):
    config = ml_collections.ConfigDict(dict(family="hamba"))
    config.model = fields(width=64, depths=(1,))
    one = measures.mixing_rows(config.model)[6:7]
    table = measures.MEASURES["tokens"]._replace(rows=lambda fields: one)
    monkeypatch.setitem(measures.MEASURES, "tokens", table)
    found = measurements.run(config, ("tokens",), seconds=0.0)
    columns = ["tokens", "parameters", "multiply_adds", "flops"]
    columns += ["memory", "training_memory", "latency"]
    assert [x.metric for x in found] == columns
    assert all(x.value > 0 for x in found)
    values = {(x.name, x.metric): x.value for x in found}
    name = "tokens/22 graph, scan"
    work = (block(22, "scan", 64) + graph(2, 64)) / 1e6
    assert values[name, "multiply_adds"] == pytest.approx(work, 1e-4)
    assert 2 * work < values[name, "flops"] < 3 * work  # additions and all the rest
    # Weights, and as much again for their gradients.
    weights = 4e6 / 2**20 * values[name, "parameters"]
    assert weights < values[name, "memory"] < values[name, "training_memory"]
    assert values[name, "training_memory"] > 2 * weights
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == len(found)
    (line,) = [x for x in shown.err.splitlines() if "22 graph, scan" in x]
    assert np.isclose(float(line.split("│")[4]), work, rtol=1e-4)


def test_other_families_have_no_such_table():
    config = ml_collections.ConfigDict(dict(family="simplehand", model={}))
    with pytest.raises(ValueError, match="'simplehand'; use --config configs/hamba"):
        list(token_mixing.measure(config, 0.0))
