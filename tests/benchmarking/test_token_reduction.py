"""What TORE's networks multiply, against formulae; the table that prints it."""

import importlib.util

import jax
import jax.numpy as jnp
import ml_collections
import pytest
import tiny
from places import CONFIGS

from handjax.benchmarking import measurements, token_reduction
from handjax.models import tore

TABLE = tore.MEASURES["cost"]
P, C, J, V = 4, 8, 21, 195
"""Places and channels of the tiny map, joints, vertices of the coarse mesh."""


@pytest.fixture(autouse=True)
def backbone(monkeypatch):
    tiny.patch_backbone(monkeypatch)


def config():
    path = CONFIGS / "tore.py"
    spec = importlib.util.spec_from_file_location("tore_config", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config("smoke")


def encoder(n, d, ratio=4):
    """One layer: projections, scores and sums, linear layers."""
    return 4 * n * d * d + 2 * n * n * d + 2 * ratio * n * d * d


def decoder(q, n, d, ratio=4):
    among = 4 * q * d * d + 2 * q * q * d
    at = 2 * q * d * d + 2 * n * d * d + 2 * q * n * d
    return among + at + 2 * ratio * q * d * d


def fastmetro(w, n):
    """Widths w and n, one layer each."""
    both = [encoder(P + 1, d) + decoder(J + V, P, d) for d in (w, n)]
    narrowed = (1 + P + J + V) * w * n
    heads = 3 * n * (1 + J + V)
    return C * w * P + sum(both) + narrowed + heads


def reduced(w, n, kept=None):
    """The same with both reductions; `kept` tokens, None without a pruner."""
    T = kept or P
    pruner = 9 * P * w * (w // 4) + P * (w // 4) * T + P * T * w if kept else 0
    both = [encoder(T + 1, d) + decoder(J, T, d) for d in (w, n)]
    regressor = encoder(J + 1, n) + decoder(V, J, n)
    narrowed = (1 + T + J) * w * n
    heads = 3 * n * (1 + J + V)
    return C * w * P + pruner + sum(both) + regressor + narrowed + heads


def work_of(name):
    row = next(row for row in TABLE.rows if row.name == name)
    values = config()
    backbone = token_reduction._backbone(values, TABLE, "float32")
    head = token_reduction._head(values, TABLE, row.fields, "float32", backbone)
    maps = {"final": jax.ShapeDtypeStruct((1, 2, 2, C), jnp.float32)}
    return token_reduction.multiply_adds(head.find, head.variables, maps)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("FastMETRO", fastmetro(32, 16)),
        ("FastMETRO + GTR", reduced(32, 16)),
        ("FastMETRO + GTR + ITP@20%", reduced(32, 16, 3)),
        ("FastMETRO + GTR + ITP@50%", reduced(32, 16, 2)),
    ],
)
def test_heads_multiply_what_the_formulae_say(name, expected):
    assert work_of(name) == expected


def test_the_table_has_work_speed_and_gain(monkeypatch, capsys):
    rows = [row for row in TABLE.rows if row.name.startswith("FastMETRO-S")]
    monkeypatch.setitem(tore.MEASURES, "cost", TABLE._replace(rows=rows))
    found = measurements.run(config(), ("cost",), seconds=0.0, batch_sizes=(2,))
    values = {(x.name, x.metric): x.value for x in found}
    host, ours = (f"cost/{row.name}" for row in rows)
    assert values[host, "head_mac"] == round(fastmetro(32, 16) / 1e9, 3)
    assert values[host, "head_mac"] > values[ours, "head_mac"]
    for name in (host, ours):
        half, twice = (values[name, f"head_{x}"] for x in ("mac", "flops"))
        assert twice == pytest.approx(2 * half, abs=0.0016)
        gain = values[name, "throughput_2"] / values[host, "throughput_2"] - 1
        assert values[name, "gain_2"] == pytest.approx(100 * gain, abs=0.2)
    assert "FastMETRO-S + GTR" in capsys.readouterr().err


def test_other_families_have_no_such_table():
    other = ml_collections.ConfigDict(dict(family="hamba", model={}))
    with pytest.raises(ValueError, match=r"'hamba'; use --config configs/tore"):
        list(token_reduction.measure(other, "float32", (1,), 0.0))
