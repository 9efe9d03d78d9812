import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
import time

import fake_family
import jax
import numpy as np
import pytest
from places import CONFIGS, ROOT, SUPPORT
from torch_reference import import_timm

from handjax import benchmark, models
from handjax.benchmarking import against_torch, clock, measurements, ops
from handjax.config import files

FAKE = SUPPORT / "fake_family.py"
MEASURES = ["compile", "latency", "throughput", "train_step", "memory", "flops"]


def run(*arguments):
    return benchmark.main([f"--config={FAKE}", *arguments])


def test_every_measure_prints_json_lines_and_a_table(monkeypatch, capsys):
    monkeypatch.setattr(models, "load", lambda name: fake_family)
    assert benchmark.DEFAULT == MEASURES
    assert run("--seconds=0", "--max_batch=4") == 0
    output = capsys.readouterr()
    lines = [json.loads(line) for line in output.out.splitlines()]
    for line in lines:
        assert {"name", "metric", "value", "unit", "device", "versions"} <= set(line)
        assert line["value"] > 0, line
    found = {(line["name"], line["metric"]) for line in lines}
    assert found >= {
        ("fake/predict", "trace_time"),
        ("fake/predict", "latency"),
        ("fake/predict", "throughput"),
        ("fake/tokenizer step", "step_time"),
        ("fake/mesh step", "compile_time"),
        ("fake/mesh step", "memory"),
        ("fake/mesh step", "flops"),
    }
    assert "fake/mesh step" in output.err


def test_waiting_is_the_share_of_a_slow_loader(monkeypatch, capsys):
    class Slow(fake_family.Data):
        def train(self, stage, batch_size, start_step):
            for batch in super().train(stage, batch_size, start_step):
                time.sleep(0.5)
                yield batch

    monkeypatch.setattr(models, "load", lambda name: fake_family)
    monkeypatch.setattr(measurements.run_data, "open_data", lambda config, hand: Slow())
    assert run("--what=waiting", "--seconds=1") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [x["name"] for x in lines] == ["fake/tokenizer step", "fake/mesh step"]
    assert all(50 < line["value"] <= 100 for line in lines)


def test_flops_of_a_dense_model_are_those_of_its_matrices(monkeypatch):
    monkeypatch.setattr(models, "load", lambda name: fake_family)
    config = fake_family.get_config()
    (flops, *_) = measurements.run(config, ("flops",))
    matrices = 2 * (16 * 3 * 8 + 8 * 778 * 3)
    assert matrices <= flops.value * 1e9 < 1.6 * matrices


def test_parts_add_up_to_the_whole(monkeypatch):
    monkeypatch.setattr(models, "load", lambda name: fake_family)
    config = fake_family.get_config()
    with pytest.raises(ValueError, match="--what=parts: 'fake' names no parts"):
        measurements.run(config, ("parts",))
    parts = {"head": "__call__", "nothing more": "__call__"}
    monkeypatch.setattr(fake_family, "PARTS", parts, raising=False)
    rounds = {"head": [1.0, 3, 2], "nothing more": [4.0, 4, 6]}
    monkeypatch.setattr(clock, "in_turn", lambda programs, seconds: rounds)
    head, more = measurements.run(config, ("parts",), seconds=0.0)
    assert (head.name, head.value, head.unit) == ("fake/head", 2000, "ms")
    assert (more.name, more.value) == ("fake/nothing more", 2000)


class StepByStep(fake_family.Model):
    """A model that looks at its image again and again."""

    steps: int = 5

    def __call__(self, image, *, train=False):
        for _ in range(self.steps):
            output = super().__call__(image, train=train)
        jax.debug.callback(lambda: asked.append(self.steps))
        return output

    def hypotheses(self, image, *, count, key):
        raise NotImplementedError  # what samples has it; here only passes are timed


asked = []


def test_sampling_is_timed_by_its_steps(monkeypatch):
    monkeypatch.setattr(models, "load", lambda name: fake_family)
    config = fake_family.get_config()
    with pytest.raises(ValueError, match="--what=sampling: 'fake' draws no tokens"):
        measurements.run(config, ("sampling",))
    monkeypatch.setattr(fake_family, "Model", StepByStep)
    monkeypatch.setattr(measurements, "SAMPLING_STEPS", (1, 2))
    asked.clear()
    found = measurements.run(config, ("sampling",), seconds=0.0)
    jax.effects_barrier()
    assert [r.name for r in found] == ["fake/predict/steps1", "fake/predict/steps2"]
    assert all(r.value > 0 and r.unit == "ms" for r in found)
    # Twice to warm up and three rounds; `init_all` took the steps of the config.
    assert sorted(asked) == 5 * [1] + 5 * [2] + [5]


def test_programs_in_turn_are_warmed_up_and_run_three_times():
    calls = []
    programs = {name: functools.partial(calls.append, name) for name in "ab"}
    times = clock.in_turn(programs, 0.0)
    assert calls == list("aabb" + 3 * "ab")
    assert [len(found) for found in times.values()] == [3, 3]


@pytest.mark.parametrize(
    ("cases", "forms"),
    [
        (ops.convolutions, ["lax", "cpu"]),
        (ops.scans, ["sequential", "associative", "fused"]),
        (ops.token_mixers, ["SS2D"]),
        (ops.samplers, ["gather", "products"]),
    ],
)
def test_operations_are_timed_in_every_form_and_direction(monkeypatch, cases, forms):
    monkeypatch.setattr(ops, "MAPS", ((3, 1),))
    monkeypatch.setattr(ops, "PYRAMID", ((3, 1), (6, 2)))
    sizes = {"batch": 1} if cases is ops.convolutions else {"dim": 16}
    small = ("192@8", "3 tokens", "queries of 16, batch 1")
    case = next(c for c in cases(**sizes) if any(name in c.name for name in small))
    timings = list(ops.measure(0.0, [case]))
    found = [(t.form, t.metric) for t in timings]
    assert found == [(f, m) for f in forms for m in ("forward", "gradient")]
    assert all(t.milliseconds > 0 for t in timings)


def test_both_forms_of_deformable_attention_find_the_same(monkeypatch):
    monkeypatch.setattr(ops, "PYRAMID", ((3, 2), (6, 4)))
    case = ops.samplers(dim=16)[0]
    gather, products = (case.function(*case.arguments(), form) for form in case.forms)
    np.testing.assert_allclose(gather, products, atol=1e-5)


def test_unknown_measures_are_named_with_the_known_ones(capsys):
    assert run("--what=latency,speed") == 2
    error = capsys.readouterr().err
    assert re.search(r"speed is not one of compile, latency", error)


def test_help_needs_neither_jax_nor_a_config():
    code = "import atexit, os, sys; from handjax import benchmark\n"
    code += "atexit.register(lambda: 'jax' in sys.modules and os._exit(3))\n"
    code += "benchmark.main(['--help'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--max_batch" in done.stdout


def test_batch_sizes_are_numbers(capsys):
    assert run("--what=peer", "--batch_sizes=1,many") == 2
    assert "'1,many' must be whole numbers above 0" in capsys.readouterr().err


@pytest.mark.parity
@pytest.mark.slow
def test_a_peer_in_pytorch_is_timed_in_turn(monkeypatch, tmp_path):
    pytest.importorskip("torch")
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    import_timm()
    monkeypatch.setattr(against_torch, "_torch_compiled", lambda network: network)
    # PyTorch's process needs the stand-in for torchvision, too.
    stub = f"import sys; sys.path.insert(0, {str(SUPPORT)!r})\n"
    stub += "from torch_reference import import_timm; import_timm()\n"
    (tmp_path / "sitecustomize.py").write_text(stub)
    path = [str(tmp_path), str(ROOT)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    config = files.load_config("configs/simplehand.py:demo")
    with config.unlocked():
        # The peer has the released head alone.
        config.model.update(token_dim=256, regressor_widths=(256, 128, 64))
    found = measurements.run(config, ("peer",), seconds=0.0, batch_sizes=(1, 2))
    names = {result.name for result in found}
    for batch in (1, 2):
        for program in ("handjax", "torch_eager", "torch_eager_fused", "torch_compile"):
            assert f"simplehand/predict/batch{batch}/{program}" in names
    ratios = {r.name: r.value for r in found if r.metric == "ratio"}
    times = {r.name: r.value for r in found if r.metric == "latency"}
    update = "simplehand/update/batch2"
    assert ratios[f"{update}/torch_eager"] == pytest.approx(
        times[f"{update}/handjax"] / times[f"{update}/torch_eager"], rel=0.01
    )


def test_a_family_without_a_peer_says_which_have_one(monkeypatch):
    pytest.importorskip("torch")
    import_timm()
    with pytest.raises(
        ValueError, match=r"'fake' has no network in PyTorch .*simplehand"
    ):
        against_torch._peer(None, "fake")


@pytest.mark.slow
def test_the_smoke_model_is_measured_in_full(capsys):
    config = CONFIGS / "tokenhand.py"
    arguments = [f"--config={config}:smoke", "--what=latency,flops", "--seconds=0"]
    assert benchmark.main(arguments) == 0
    assert "tokenhand/mesh step" in capsys.readouterr().out
