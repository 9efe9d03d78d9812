import json
import os
import subprocess
import sys

import numpy as np
import pytest

from data_pipelines.storage import contact_sheet, progress, shards
from data_pipelines.synthetic import generate

SETTINGS = dict(seed=1, image_size=48, left_fraction=0.3)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Six training examples in three shards, by two workers."""
    directory = tmp_path_factory.mktemp("data") / "two"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate, "_PER_SHARD", 2)
        generate.ensure(directory, 6, 1, workers=2, **SETTINGS)
    return directory


def contents(directory):
    return {p.name: p.read_bytes() for p in sorted(directory.glob("*array_record*"))}


def test_one_worker_makes_the_same_bytes_and_resumes(made, monkeypatch, tmp_path):
    monkeypatch.setattr(generate, "_PER_SHARD", 2)
    expected = contents(made)
    assert len(expected) == 4
    copy = tmp_path / "one"
    copy.mkdir()
    for path in made.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    lost = sorted(copy.glob("*train*"))[1]
    kept = sorted(copy.glob("*train*"))[0].stat().st_mtime_ns
    lost.unlink()
    (copy / f".{lost.name}.partial-1").write_bytes(b"half a shard")
    generate.ensure(copy, 6, 1, workers=1, **SETTINGS)
    assert contents(copy) == expected
    assert sorted(copy.glob("*train*"))[0].stat().st_mtime_ns == kept
    assert not list(copy.glob(".*partial*"))


def test_data_opens_and_says_how_it_was_made(made):
    source = shards.open_split(made, "train")
    assert len(source) == 6 and len(shards.open_split(made, "test")) == 1
    keys = [source[i]["key"] for i in range(6)]
    assert keys == [f"train/1/{i}" for i in range(6)]
    metadata = shards.read_metadata(made)
    assert metadata["hand"]["name"] == "open"
    assert metadata["made_by"]["seed"] == 1
    from PIL import Image

    with Image.open(made / "contact_sheet.png") as sheet:
        assert sheet.size == (160, 160)


def test_data_that_is_there_is_left_alone(made, monkeypatch):
    monkeypatch.setattr(generate, "_PER_SHARD", 2)
    monkeypatch.setattr(generate, "Workers", None)  # starting any would fail
    before = contents(made)
    generate.ensure(made, 6, 1, **SETTINGS)
    assert contents(made) == before


def test_other_settings_are_refused(made, tmp_path):
    with pytest.raises(ValueError, match="seed: 1 there, 2 asked for"):
        generate.ensure(made, 6, 1, **(SETTINGS | {"seed": 2}))
    (tmp_path / "photo.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"photo\.txt.*Choose an empty"):
        generate.ensure(tmp_path, 6)
    with pytest.raises(ValueError, match=r"left_fraction=2; allowed is from 0 to 1"):
        generate.ensure(tmp_path / "new", 6, left_fraction=2)
    assert not (tmp_path / "new").exists()


def test_command_line_says_what_is_wrong(made):
    command = [sys.executable, "-m", "data_pipelines.synthetic", "--out", str(made)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}

    def run(*more):
        return subprocess.run(
            [*command, *more], capture_output=True, text=True, env=environment
        )

    refused = run("--num", "6", "--seed", "9")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: ") and "seed" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert run().returncode == 2
    assert "smoke 64 + 16" in " ".join(run("--help").stdout.split())


def test_help_and_presets_agree():
    from data_pipelines.synthetic import __main__

    assert tuple(generate.PRESETS) == __main__._PRESETS
    assert generate.PRESETS["demo"] == (2_000, 200)


def test_settings_are_written_before_the_first_shard(tmp_path, monkeypatch):
    class Stopped(Exception):
        pass

    def stop(*_):
        raise Stopped

    monkeypatch.setattr(generate, "_make", stop)
    with pytest.raises(Stopped):
        generate.ensure(tmp_path / "x", 6, **SETTINGS)
    settings = json.loads((tmp_path / "x" / "settings.json").read_text())
    assert settings["num"] == 6 and settings["seed"] == 1


def test_contact_sheet_draws_joints_on_every_second_tile(tmp_path, made):
    from PIL import Image

    example = shards.open_split(made, "train")[0]
    contact_sheet.write(tmp_path / "sheet.png", [example, example])
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet).astype(int)
    assert pixels.shape == (160, 320, 3)
    assert np.abs(pixels[:, :160] - pixels[:, 160:]).max() > 60


def test_progress_prints_plain_lines_without_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_EVERY", -1.0)
    with progress.Report("images", 4) as report:
        report.add(1)
        report.add(3)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("images: 1 of 4, ") and "images/s" in lines[0]
    assert lines[-1].startswith("images: 4 of 4")
