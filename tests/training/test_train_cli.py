"""`python -m handjax.train`: what it says, and that nothing can stop it for good."""

import json
import os
import subprocess
import sys

import fake_family
import pytest
from places import ROOT, SUPPORT

from handjax.config import files
from handjax.config import schema as configs
from handjax.errors import UserError

CONFIG = str(SUPPORT / "fake_family.py")
FAKE = [sys.executable, str(SUPPORT / "fake_train.py"), "--config", CONFIG]


def _start(workdir, *arguments):
    return subprocess.Popen(
        [*FAKE, "--workdir", str(workdir), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": "", "JAX_NUM_CPU_DEVICES": "1"},
    )


def _finish(process):
    out, error = process.communicate(timeout=200)
    return process.returncode, out, error


def _numbers(workdir):
    machine = ("images_per_s", "share_")
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if not k.startswith(machine)}
        for line in lines
    ]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("cli") / "unbroken"
    code, out, error = _finish(_start(workdir))
    assert code == 0, error
    return workdir, out


def test_a_run_says_what_it_uses_and_ends_with_a_table(unbroken):
    workdir, out = unbroken
    for words in (
        "data: noise from memory",
        "hand model: open",
        "1 x cpu",
        "compiling train step ... ",
        "mesh 6/6  loss ",
        "stage mesh sees 48 of noise (1.50 epochs of 32)",
        "mean hand  ",
    ):
        assert words in out, words
    assert (workdir / "DONE").read_text() in out
    found = {p.name for p in workdir.iterdir()}
    assert found == {
        ".lock", "DONE", "checkpoints", "config.json", "environment.json", "eval",
        "images", "metrics.jsonl", "tensorboard",
    }  # fmt: skip
    told = [n["epochs_noise"] for n in _numbers(workdir) if "epochs_noise" in n]
    assert told == [step * 8 / 32 for step in range(1, 7)]
    report = json.loads((workdir / "eval" / "6" / "synthetic_test.json").read_text())
    assert {"benchmark", "protocol", "step", "count", "metrics", "baseline"} <= set(
        report
    )


def test_sigterm_saves_and_exits_with_a_sentence(tmp_path, unbroken):
    process = _start(tmp_path / "w", "--config.train.checkpoint_every=1000")
    for line in process.stdout:
        if line.startswith("tokenizer 2/6"):
            break
    process.terminate()
    code, out, error = _finish(process)
    assert code == 0, error
    assert "stopped by SIGTERM" in out and "everything is saved" in out
    code, _, _ = _finish(_start(tmp_path / "w"))
    assert code == 0 and _numbers(tmp_path / "w") == _numbers(unbroken[0])


@pytest.mark.slow
def test_a_profile_is_a_trace_of_updates(tmp_path, unbroken):
    code, out, error = _finish(_start(tmp_path / "w", "--profile"))
    assert code == 0, error
    assert out.count("trace of 5 updates: ") == 2
    for stage in ("tokenizer", "mesh"):
        assert list(
            (tmp_path / "w" / "profile" / stage).rglob("perfetto_trace.json.gz")
        )
    assert _numbers(tmp_path / "w") == _numbers(unbroken[0])


def test_another_config_is_refused_with_the_keys_that_differ(unbroken):
    workdir, _ = unbroken
    before = (workdir / "config.json").read_bytes()
    process = _start(workdir, "--config.seed=3", "--config.train.log_every=7")
    code, _, error = _finish(process)
    assert code == 2
    assert "config.seed: 0 -> 3" in error and "log_every" not in error
    assert "Traceback" not in error
    assert (workdir / "config.json").read_bytes() == before


def test_a_dry_run_writes_nothing(tmp_path):
    code, out, error = _finish(_start(tmp_path / "w", "--dry_run"))
    assert code == 0, error
    assert "all parts" in out and "stage mesh: 6 steps of 8" in out
    assert "stage mesh, group head: sgd lr 0.5" in out and " mesh/head\n" in out
    assert "plan: 1 devices" in out and "process 0 rows 0-7" in out
    assert not list(tmp_path.iterdir())


def test_a_dry_run_plans_for_devices_that_are_not_here():
    process = _start(
        "unused",
        "--dry_run",
        "--devices=8",
        "--num_processes=4",
        "--config.mesh.fsdp=2",
    )
    code, out, error = _finish(process)
    assert code == 0, error
    assert "plan: 8 devices as data 4 x fsdp 2, 2 in each of 4 processes" in out
    assert "process 0 rows 0-1, process 1 rows 2-3, ..., process 3 rows 6-7" in out
    # The decoder's 8 x 2,334 numbers are too few to be split.
    assert "0 of 8 parameters are split" in out
    code, _, error = _finish(_start("unused", "--devices=8"))
    assert code == 2 and "--devices plans a run and needs --dry_run" in error


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--config.hand.source=/nowhere", "MANO"),
        ("--config.model.widht=3", "'model.widht'. Did you mean 'model.width'?"),
    ],
)
def test_what_cannot_work_is_one_error_and_leaves_nothing(tmp_path, argument, words):
    code, out, error = _finish(_start(tmp_path / "w", argument))
    assert code == 2
    assert words in error and error.startswith("error: ")
    assert "Traceback" not in error + out
    assert not (tmp_path / "w").exists()


# --- In this process ---------------------------------------------------------


def _help(*arguments):
    command = [sys.executable, "-X", "importtime", "-m", "handjax.train", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, check=False
    )


def test_help_imports_nothing_heavy():
    result = _help("--help")
    assert result.returncode == 0 and "--workdir" in result.stdout
    modules = {line.rsplit("|", 1)[-1].strip() for line in result.stderr.splitlines()}
    assert not modules & {"jax", "flax", "orbax", "grain", "tensorflow_datasets"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([("train.log_evry", "3")], "Did you mean 'train.log_every'"),
        (
            [("train.log_every", "abc")],
            "log_every='abc' is not an int .current",
        ),
        ([("train.log_every", "1e3")], "log_every='1e3' is not an int"),
        ([("mesh", "3")], "is a group of keys; set one of"),
        ([("stages.mesh.optimizer.lr", "fast")], "lr='fast' is not a float"),
    ],
)
def test_wrong_overrides_are_explained(overrides, message):
    with pytest.raises(UserError, match=message):
        files.override(fake_family.get_config().lock(), overrides)


def test_overrides_are_parsed_by_the_types_they_replace():
    config = files.override(
        fake_family.get_config().lock(),
        [
            ("seed", "-4"),
            ("stages.mesh.schedule.boundaries", "(0.2, 0.9)"),
            ("train.donate", "false"),
            ("stages.mesh.losses.size", "3"),
            ("data.name", "freihand"),
        ],
    )
    assert config.seed == -4 and config.train.donate is False
    assert config.stages.mesh.schedule.boundaries == (0.2, 0.9)
    assert config.stages.mesh.losses.size == 3.0 and config.data.name == "freihand"


@pytest.mark.parametrize(
    ("spec", "message"),
    [("", "--config is missing"), ("configs/nothing.py", "there is no such file")],
)
def test_a_missing_config_lists_those_there_are(spec, message):
    with pytest.raises(UserError, match=message):
        files.load_config(spec)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train.log_every", 0, "at least 1"),
        ("train.precision", "float46", "Did you mean 'bfloat16'"),
        ("stages.mesh.optimizer.lr", 0.0, "above 0"),
        ("stages.mesh.optimizer.lr", float("nan"), "above 0"),
        ("stages.mesh.optimizer.name", "adamx", "Did you mean 'adam"),
        ("stages.mesh.schedule.warmup_steps", 99, "more than the 6 steps"),
        ("stages.mesh.data", "video", "images, poses"),
    ],
)
def test_values_that_cannot_work_are_refused(key, value, message):
    config = fake_family.get_config()
    configs.check(config)
    config.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match=message):
        configs.check(config)


@pytest.mark.parametrize(
    ("name", "group", "message"),
    [
        ("gan", dict(pattern="^d", weigt_decay=1.0), "groups.gan has no key .* Did"),
        ("gan", dict(pattern="^d", lr=0.0), "mesh.groups.gan.lr=0.0 must be a number"),
        ("gan", dict(lr=1.0), "groups.gan.pattern=None must be a regular expression"),
        ("gan", dict(pattern="(d"), r"pattern='\(d' must be .*unterminated"),
        (
            "gan",
            dict(pattern="d", schedule={"nam": "step"}),
            "schedule has no key 'nam",
        ),
        ("gan", "^d", r"groups.gan='\^d' must be a dict"),
        ("rest", dict(pattern="^d"), "'rest' stands for all other parameters"),
    ],
)
def test_groups_that_cannot_work_are_refused(name, group, message):
    config = fake_family.get_config()
    config.stages.mesh.groups = {name: group}
    with pytest.raises(ValueError, match=message):
        configs.check(config)


def test_a_config_survives_json_and_differs_only_where_it_was_changed():
    config = fake_family.get_config()
    again = configs.from_json(configs.to_json(config))
    assert configs.difference(config, again) == []
    assert again.stages.mesh.schedule.boundaries == (0.5,)
    again.stages.mesh.optimizer.lr = 0.5
    again.train.log_every = 77
    assert configs.difference(config, again) == [
        "  config.stages.mesh.optimizer.lr: 0.001 -> 0.5"
    ]


def test_patience_needs_evaluations_and_makes_their_keys_count():
    config = fake_family.get_config()
    config.stages.mesh.patience = 3
    configs.check(config)
    other = configs.from_json(configs.to_json(config))
    other.train.eval_every = 0
    assert configs.difference(config, other) == ["  config.train.eval_every: 1000 -> 0"]
    with pytest.raises(ValueError, match=r"mesh.patience=3 .*eval_every=0.*patience=0"):
        configs.check(other)


@pytest.mark.parametrize(
    "ramps, message",
    [
        (dict(vertex=dict(middle=1, width=1)), "no loss.* Did you mean 'vertices'"),
        (dict(vertices=dict(middle=1)), r"ramps.vertices.width=None must be a number"),
        (dict(vertices=dict(middle=-1, width=1)), "middle=-1 must be a number of at"),
        (dict(vertices=dict(start=0)), "ramps.vertices has no key 'start'"),
    ],
)
def test_ramps_are_of_losses_and_have_a_middle_and_a_width(ramps, message):
    config = fake_family.get_config()
    config.stages.mesh.ramps = ramps
    with pytest.raises(ValueError, match=message):
        configs.check(config)
    config.stages.mesh.ramps = dict(vertices=dict(middle=100, width=0.5))
    configs.check(config)
    assert configs.difference(config, configs.from_json(configs.to_json(config))) == []


def test_a_config_from_before_a_key_existed_has_its_default():
    config = fake_family.get_config()
    old = config.to_dict()
    del old["train"]["batch_norm"], old["data"]["max_corrupt"], old["data"]["augment"]
    del old["stages"]["mesh"]["grad_clip"], old["stages"]["mesh"]["schedule"]["name"]
    del old["stages"]["tokenizer"]["grad_clip"]  # 1, where the default is 0
    again = configs.from_json(json.dumps(old))
    assert configs.difference(again, config) == [
        "  config.stages.tokenizer.grad_clip: 0.0 -> 1.0"
    ]


@pytest.mark.slow
def test_the_real_smoke_config_resumes_to_the_last_bit(tmp_path):
    command = [sys.executable, "-m", "handjax.train", "--config"]
    command += ["configs/tokenhand.py:smoke", "--config.train.log_every=1"]
    for name, stops in (("whole", [23]), ("cut", [9, 13, 1])):
        for stop in stops:
            arguments = ["--workdir", str(tmp_path / name), "--stop_after", str(stop)]
            subprocess.run([*command, *arguments], check=True, cwd=ROOT)
    assert len(_numbers(tmp_path / "cut")) >= 23
    assert _numbers(tmp_path / "cut") == _numbers(tmp_path / "whole")
