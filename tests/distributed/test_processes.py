"""Runs of several processes: the numbers of one, and what a death does."""

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from places import CONFIGS, ROOT, SUPPORT

from handjax.checkpoints.workdir import load_variables, stage_steps
from handjax.distributed import processes
from handjax.errors import UserError

CONFIG = SUPPORT / "fake_family.py"


CALM = "--config.stages.mesh.groups.head.lr=0.01"
"""At the fake family's own rate its loss explodes, and rounding with it."""


def _port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _start(workdir, *arguments, count=2, devices=2, command=()):
    """Processes of one run, each with so many CPU devices."""
    fake = [str(SUPPORT / "fake_train.py"), f"--config={CONFIG}"]
    coordinator = f"127.0.0.1:{_port()}"
    return [
        subprocess.Popen(
            [
                *(sys.executable, *(["-m", *command] if command else fake)),
                f"--workdir={workdir}",
                *(
                    (f"--coordinator={coordinator}", f"--process_id={number}")
                    if count > 1
                    else ()
                ),
                *((f"--num_processes={count}",) if count > 1 else ()),
                *arguments,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env={
                **os.environ,
                "XLA_FLAGS": "--xla_backend_optimization_level=0",
                "JAX_NUM_CPU_DEVICES": str(devices),
                "JAX_PLATFORMS": "cpu",
            },
        )
        for number in range(count)
    ]


def _ended(started, timeout=300):
    """Exit codes and outputs, once all have ended."""
    try:
        said = [process.communicate(timeout=timeout)[0] for process in started]
    finally:
        for process in started:
            process.kill()
            process.communicate()
    return [process.returncode for process in started], said


def _run(workdir, *arguments, **options):
    return _ended(_start(workdir, *arguments, **options))


def _lines(workdir):
    text = (workdir / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def _final(workdir, stage):
    step = stage_steps(workdir)[stage][-1]
    return jax.device_get(load_variables(workdir, stage, step)[0])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same run by one process with two devices, and by two with two each."""
    root = tmp_path_factory.mktemp("processes")
    for count in (1, 2):
        codes, said = _run(root / str(count), CALM, count=count)
        assert codes == [0] * count, "\n".join(said)
    return root / "1", root / "2", said


def test_two_processes_compute_what_one_does(runs):
    one, two, _ = runs
    a, b = _lines(one), _lines(two)
    assert [x["step"] for x in a] == [x["step"] for x in b]
    for x, y in zip(a, b, strict=True):
        for name in x:
            if name.startswith(("loss", "grad_norm", "eval_pa")):
                np.testing.assert_allclose(y[name], x[name], rtol=1e-5, err_msg=name)
    for stage in ("tokenizer", "mesh"):
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(y, x, rtol=1e-4, atol=1e-6),
            _final(one, stage),
            _final(two, stage),
        )


def test_the_first_process_alone_talks_and_writes(runs):
    _, two, said = runs
    assert "2 processes" in said[0] and "stage" not in said[1]
    steps = [(x["stage"], x["step"]) for x in _lines(two) if "loss" in x]
    assert len(steps) == len(set(steps)) == 12


@pytest.mark.slow
def test_a_run_of_two_goes_on_with_one_and_with_four_devices(runs, tmp_path):
    one, _, _ = runs
    workdir = tmp_path / "w"
    codes, _ = _run(workdir, CALM, "--stop_after=4")
    assert codes == [0, 0]
    codes, said = _run(workdir, CALM, "--stop_after=3", count=1, devices=1)
    assert codes == [0] and "going on from step 4" in said[0]
    codes, said = _run(workdir, CALM, count=1, devices=4)
    assert codes == [0] and "going on from step 1" in said[0]
    for stage in ("tokenizer", "mesh"):
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(y, x, rtol=1e-4, atol=1e-6),
            _final(one, stage),
            _final(workdir, stage),
        )


@pytest.mark.slow
def test_two_processes_agree_on_a_broken_checkpoint(runs, tmp_path):
    one, _, _ = runs
    workdir = tmp_path / "w"
    assert _run(workdir, CALM, "--stop_after=4")[0] == [0, 0]
    data = workdir / "checkpoints" / "tokenizer" / "4" / "train"
    largest = max(data.rglob("*"), key=lambda path: path.stat().st_size)
    broken = bytearray(largest.read_bytes())
    broken[len(broken) // 2] ^= 0xFF
    largest.write_bytes(bytes(broken))
    codes, said = _run(workdir, CALM)
    assert codes == [0, 0], said
    assert "checkpoint tokenizer/4 cannot be read" in said[0]
    assert "going on from step 2" in said[0]
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(y, x, rtol=1e-4, atol=1e-6),
        _final(one, "mesh"),
        _final(workdir, "mesh"),
    )


def test_sigterm_to_one_stops_all_and_saves(tmp_path):
    started = _start(tmp_path / "w", "--config.stages.tokenizer.steps=100000")
    _wait_for_step(tmp_path / "w", 3)
    started[1].send_signal(signal.SIGTERM)
    codes, said = _ended(started)
    assert codes == [0, 0], said
    assert "stopped by another process" in said[0]


def test_a_process_that_lost_another_ends_with_a_message(tmp_path):
    many = "--config.stages.tokenizer.steps=100000"
    started = _start(tmp_path / "w", many, "--heartbeat_s=5")
    _wait_for_step(tmp_path / "w", 3)
    started[1].kill()
    (code, _), (said, _) = _ended(started)
    assert code != 0
    # Whoever notices first: an update or a checkpoint of ours, or JAX, which aborts.
    ours = "error: process 0 of 2 lost another one" in said
    assert ours or "another task died" in said, said[-3000:]
    assert not ours or "The last checkpoint: " in said


def _wait_for_step(workdir, step):
    begin = time.monotonic()
    while time.monotonic() - begin < 200:
        path = workdir / "metrics.jsonl"
        if path.exists() and len(path.read_text().splitlines()) >= step:
            return
        time.sleep(0.2)
    raise AssertionError("training did not begin")


def test_processes_with_other_values_are_named(tmp_path):
    begun = _start(tmp_path / "w")
    begun[1].kill()
    begun[1].communicate()
    address = next(a for a in begun[0].args if a.startswith("--coordinator"))
    (other,) = [
        subprocess.Popen(
            [*begun[1].args, "--config.seed=7", address],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env={**os.environ, "XLA_FLAGS": "", "JAX_NUM_CPU_DEVICES": "2"},
        )
    ]
    codes, said = _ended([begun[0], other])
    assert codes == [2, 2], said
    assert "Process 1 on" in said[0] and "config" in said[0]
    assert not (tmp_path / "w").exists()


@pytest.mark.slow
def test_parameters_that_processes_hold_parts_of_train_and_are_saved(tmp_path):
    """Split over all four devices, the decoder is nowhere whole."""
    wide = [CALM, "--config.model.width=64"]
    assert _run(tmp_path / "1", *wide, count=1, devices=1)[0] == [0]
    split = [*wide, "--config.mesh.fsdp=4"]
    codes, said = _run(tmp_path / "2", *split, "--stop_after=8")
    assert codes == [0, 0], said
    codes, said = _run(tmp_path / "2", *split)
    assert codes == [0, 0] and "going on from step 2" in said[0], said
    for stage in ("tokenizer", "mesh"):
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(y, x, rtol=1e-3, atol=1e-5),
            _final(tmp_path / "1", stage),
            _final(tmp_path / "2", stage),
        )


@pytest.mark.slow
def test_a_process_that_compiles_longer_is_waited_for(tmp_path, monkeypatch):
    """Devices that talk for the first time give each other up after 30 s."""
    monkeypatch.setenv("FAKE_LATE_S", "40")
    codes, said = _run(tmp_path / "w", CALM)
    assert codes == [0, 0], said


def test_facts_that_differ_are_refused_and_clocks_are_reported(monkeypatch):
    def gathered(**other):
        def both(mine):
            return [mine, {**mine, "host": "b", **other}]

        monkeypatch.setattr(processes, "_gather", both)

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    said = []
    facts = {"versions": {"jax": "0.10.2"}, "data": "abc"}
    gathered()
    processes.compare(facts, said.append)
    assert not said
    gathered(time=time.time() + 90)
    processes.compare(facts, said.append)
    assert len(said) == 1 and "clocks of the hosts are 90 s apart" in said[0]
    gathered(versions={"jax": "0.9.0"})
    with pytest.raises(UserError, match=r"Process 1 on b has versions .*0\.9\.0.*"):
        processes.compare(facts, said.append)


@pytest.mark.parametrize(
    ("cluster", "words"),
    [
        (processes.Cluster("host:1"), "needs --num_processes and --process_id"),
        (processes.Cluster(num_processes=2), "need --coordinator=HOST:PORT"),
    ],
)
def test_what_is_missing_is_named(cluster, words):
    with pytest.raises(UserError, match=words):
        processes.join(cluster)


FAMILIES = ("tokenhand", "simplehand", "hamer", "hamba", "mmhmr", "tore")


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_on_two_processes_as_on_one(family, tmp_path):
    """Losses agree to 1e-5, codebooks and their resets, too."""
    config = f"configs/{family}.py:smoke"
    options = [f"--config.train.{name}_every=1" for name in ("log", "checkpoint")]
    smoke = runpy.run_path(CONFIGS / f"{family}.py")["get_config"]("smoke")
    # At the smoke configs' own rates differences in rounding double with every update.
    options += [f"--config.stages.{name}.optimizer.lr=1e-5" for name in smoke.stages]
    if family in ("tokenhand", "mmhmr"):
        # Codes that no token chooses are reset after some updates.
        options.append("--config.model.reset_below=0.95")
    if family == "tokenhand":
        # With seed 0 a token is as near to two codes as rounding can tell.
        options.append("--config.seed=1")
    command = ["handjax.train", f"--config={config}", *options]
    for count, devices in ((1, 1), (2, 2)):
        started = _start(
            tmp_path / str(count), command=command, count=count, devices=devices
        )
        codes, said = _ended(started, timeout=1500)
        assert codes == [0] * count, "\n".join(said)[-5000:]
    one, two = (_lines(tmp_path / name) for name in ("1", "2"))
    for x, y in zip(one, two, strict=True):
        for name in x:
            if name == "loss" or name.startswith("loss_"):
                what = f"{x['stage']} {x['step']} {name}"
                np.testing.assert_allclose(y[name], x[name], rtol=1e-5, err_msg=what)
        assert x.get("resets") == y.get("resets")
    resets = sum(x.get("resets", 0) for x in one)
    assert (resets > 0) == (family in ("tokenhand", "mmhmr"))
    for stage in stage_steps(tmp_path / "1"):
        books = [
            _final(tmp_path / name, stage).get("codebook", {}) for name in ("1", "2")
        ]
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(y, x, rtol=1e-4, atol=1e-5), *books
        )
