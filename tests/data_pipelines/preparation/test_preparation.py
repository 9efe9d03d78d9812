"""Preparation of any data set: resumable, the same bytes by any way, accounted for."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import fake_records
import numpy as np
import prepared
import pytest
from miniatures import freihand
from scipy.spatial.transform import Rotation

from data_pipelines import check, datasets, prepare
from data_pipelines.loading import recipes
from data_pipelines.preparation import job as preparation
from data_pipelines.preparation import one_shard
from data_pipelines.sources import conventions, reposing
from data_pipelines.storage import dataset_names, schema, shards


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("source")
    freihand.make(root, frames=2, test=1)
    return root


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(shards, "RECORDS_PER_SHARD", 3)


@pytest.fixture(scope="module")
def made(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "RECORDS_PER_SHARD", 3)
        prepared.prepare("freihand", source, out)
    return out


def test_names_are_of_the_schema_and_have_rows():
    names = datasets.names()
    assert set(names) <= set(dataset_names.DATASETS) and set(names) <= set(
        conventions.ROWS
    )
    for name in names:
        builder = datasets.load(name).BUILDER
        assert builder.name == name
        assert builder.licence and builder.url.startswith("http")
        assert f"prepare {name} --source" in builder.download
        assert set(builder.default_splits) <= set(builder.splits)
    with pytest.raises(ValueError, match="'mano' is not one of the data sets: f"):
        datasets.load("mano")


def test_two_processes_write_the_same_bytes(source, made, tmp_path):
    out = tmp_path / "two"
    prepared.prepare("freihand", source, out, workers=2)
    assert prepared.contents(out) == prepared.contents(made)


class Stopped(BaseException):
    pass


@pytest.mark.parametrize(
    "module, name, calls",
    [
        (preparation.index_files, "write", [1]),
        (schema, "encode", [1, 5]),
        (shards, "_count", [1, 2]),
        (one_shard.atomic_files, "write_json", [1, 2, 3, 2, 2]),
        (preparation.shards, "write_metadata", [1]),
        (preparation.contact_sheet, "write_split", [1]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_interrupted_anywhere_it_goes_on_to_the_same_bytes(
    source, made, tmp_path, monkeypatch, module, name, calls
):
    """The job is stopped at each of these calls in turn, then run to its end."""
    out, original = tmp_path / "out", getattr(module, name)
    for wanted in calls:
        seen = 0

        def stop(*args, wanted=wanted, **kwargs):
            nonlocal seen
            seen += 1
            if seen == wanted:
                raise Stopped
            return original(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(module, name, stop)
            with pytest.raises(Stopped):
                prepared.prepare("freihand", source, out)
    prepared.prepare("freihand", source, out)
    assert prepared.contents(out) == prepared.contents(made)


@pytest.mark.slow
def test_killed_processes_leave_nothing_that_stays(source, made, tmp_path):
    """The whole program, killed after a shard, with its worker processes."""
    out = tmp_path / "out"
    code = (
        "from data_pipelines import prepare, shards; shards.RECORDS_PER_SHARD = 3; "
        f"prepare.main(['freihand', '--source', {str(source)!r}, '--out', {str(out)!r},"
        " '--hand', 'open', '--workers', '1'])"
    )
    job = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    while not list(out.glob("freihand-train*")) and job.poll() is None:
        time.sleep(0.01)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    prepared.prepare("freihand", source, out)
    assert prepared.contents(out) == prepared.contents(made)


def test_a_shard_that_is_lost_is_made_again_and_no_other(source, made, tmp_path):
    out = prepared.copy(made, tmp_path / "out")
    lost = out / "freihand-train.array_record-00001-of-00003"
    kept = out / "freihand-train.array_record-00000-of-00003"
    before = kept.stat().st_mtime_ns
    lost.unlink()
    prepared.prepare("freihand", source, out)
    assert prepared.contents(out) == prepared.contents(made)
    assert kept.stat().st_mtime_ns == before


def test_a_file_that_was_replaced_is_read_again(source, made, tmp_path):
    """After an error, whoever puts another file there means the new one."""
    root, out = prepared.copy(source, tmp_path / "source"), tmp_path / "out"
    picture = root / "training/rgb/00000003.jpg"
    data = picture.read_bytes()
    meshes = root / "training_verts.json"
    wrong = json.loads(meshes.read_text())
    meshes.write_text(json.dumps([[[0.0, 0.0, 1.0]] * 778 for _ in wrong]))
    picture.write_bytes(data[:500])
    with pytest.raises(ValueError, match=r"00000003\.jpg"):
        prepared.prepare("freihand", root, out)
    picture.write_bytes(data)
    meshes.write_text(json.dumps(wrong))
    prepared.prepare("freihand", root, out)
    assert prepared.contents(out) == prepared.contents(made)


def test_splits_can_be_added(source, made, tmp_path):
    out = tmp_path / "out"
    prepared.prepare("freihand", source, out, splits=["test"])
    assert shards.read_metadata(out)["splits"] == {"test": 1}
    prepared.prepare("freihand", source, out, splits=["train"])
    assert len(shards.open_split(out, "train")) == 8
    assert shards.read_metadata(out) == shards.read_metadata(made)


def test_a_complete_one_needs_no_source(made, tmp_path):
    before = prepared.contents(made)
    prepared.prepare("freihand", tmp_path / "gone", made)
    assert prepared.contents(made) == before


def test_other_settings_and_names_are_refused(source, made, tmp_path):
    with pytest.raises(ValueError, match="hands_sha256"):
        preparation.prepare("freihand", source, made)  # without a hand model
    with pytest.raises(ValueError, match=r"no split 'val'; it has train, test"):
        preparation.prepare("freihand", source, tmp_path / "x", splits=["val"])
    assert not (tmp_path / "x").exists()


def test_a_job_that_made_nothing_can_be_told_otherwise(source, tmp_path):
    """A wrong path or a forgotten hand model must not spoil the directory."""
    out, root = tmp_path / "out", prepared.copy(source, tmp_path / "source")
    with pytest.raises(ValueError, match=r"There is no directory .*nowhere"):
        prepared.prepare("freihand", tmp_path / "nowhere", out)
    assert not out.exists()
    (root / "training_K.json").rename(root / "K.json")
    with pytest.raises(ValueError, match=r"training_K\.json"):
        preparation.prepare("freihand", root, out)  # without a hand model
    (root / "K.json").rename(root / "training_K.json")
    prepared.prepare("freihand", root, out)
    assert len(prepared.records(out)) == 8
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/mine.jpg").write_text("x")
    with pytest.raises(ValueError, match=r"mine\.jpg.*Choose an empty"):
        prepared.prepare("freihand", root, tmp_path / "photos")


def test_the_manifest_counts_every_example(source, tmp_path, monkeypatch):
    module, drop = datasets.load("freihand"), {0, 1, 6}
    whole = module.example

    def example(source, index, row, models):
        if index.split == "train" and row in drop:
            raise one_shard.DroppedError("ugly")
        return whole(source, index, row, models)

    monkeypatch.setattr(module, "example", example)
    out = prepared.prepare("freihand", source, tmp_path / "out")
    train = preparation.read_manifest(out)["splits"]["train"]
    assert (train["examples"], train["kept"]) == (8, 5)
    assert train["dropped"] == {"ugly": 3}
    assert (train["right"], train["left"]) == (5, 0)
    assert [part["records"] for part in train["shards"]] == [0, 3, 2]
    keys = [record["key"][-7:-4] for record in prepared.records(out)]
    assert keys == ["002", "003", "004", "005", "007"]


def test_a_split_of_which_nothing_is_left_is_an_error(source, tmp_path, monkeypatch):
    def example(*_):
        raise one_shard.DroppedError("ugly")

    monkeypatch.setattr(datasets.load("freihand"), "example", example)
    with pytest.raises(ValueError, match=r"none of the 8 examples.*'ugly': 8"):
        prepared.prepare("freihand", source, tmp_path / "out")


def test_the_data_set_says_what_it_is(made):
    import tensorflow_datasets as tfds

    about = tfds.builder_from_directory(made).info
    assert "no commercial use" in about.description
    assert "FreiHAND_pub_v2.zip" in about.description
    assert about.splits["train"].num_examples == 8
    metadata = shards.read_metadata(made)
    assert metadata["made_by"]["dataset"] == "freihand"
    assert metadata["hand"]["name"] == "open"


def test_contact_sheets_show_each_hand_twice(made):
    from PIL import Image

    with Image.open(made / "contact_sheet_train.png") as sheet:
        pixels = np.asarray(sheet).astype(int)
    assert pixels.shape == (2 * 160, 8 * 160, 3)
    joints, mesh = pixels[:160, :160], pixels[:160, 160:320]
    assert np.abs(joints - mesh).max() > 60


# --- commands -----------------------------------------------------------------------


def test_list_prints_one_name_a_line(capsys):
    assert prepare.main(["--list"]) == 0
    assert capsys.readouterr().out.split() == datasets.names()


def test_a_name_alone_says_how_to_get_the_data(capsys):
    assert prepare.main(["freihand"]) == 0
    out = capsys.readouterr().out
    assert "Licence: research only" in out and "train (130,240)" in out


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "name a data set: freihand"),
        (["nothing"], "'nothing' is not one of the data sets"),
        (["freihand", "--source", "x"], "give both --source DIR and --out DIR"),
        (["freihand", "--source", "x", "--out", "y", "--workers=-1"], "--workers -1"),
        (
            ["freihand", "--source=x", "--out=y", "--workers=1", "--beam=DirectRunner"],
            "exclude each other",
        ),
        (["freihand", "--source=x", "--out=y", "--beam_option=a"], "needs --beam"),
    ],
)
def test_wrong_commands_are_one_line(capsys, arguments, message):
    assert prepare.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_the_command_prepares_and_sums_up(source, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["freihand", f"--source={source}", f"--out={out}", "--workers=1"]
    assert prepare.main([*arguments, "--split=test"]) == 0
    said = capsys.readouterr().out
    assert "test: 1 hands (1 right, 0 left)" in said
    assert "note: 3,960 are published" in said
    assert "give its folder with --hand" in said
    shutil.rmtree(out)
    assert prepare.main([*arguments[:1], "--source=nowhere", f"--out={out}"]) == 2
    error = capsys.readouterr().err
    assert "There is no directory" in error


def test_check_reports_and_finds_damage(made, tmp_path, capsys):
    assert check.main([str(made), "--hand", "open"]) == 0
    said = capsys.readouterr().out
    assert "train right repose tips" in said and "nothing is damaged" in said
    reproject = next(line for line in said.splitlines() if "reproject" in line)
    assert float(reproject.split()[3]) < 1e-3
    out = prepared.copy(made, tmp_path / "out")
    path = out / "freihand-train.array_record-00001-of-00003"
    data = bytearray(path.read_bytes())
    at = data.index(b"training/rgb") - 3000
    data[at : at + 8] = b"\0" * 8
    path.write_bytes(data)
    assert check.main([str(out)]) == 1
    error = capsys.readouterr().err
    assert f"{path} has another checksum" in error
    assert check.main([str(tmp_path / "nothing")]) == 2


def test_a_pose_that_contradicts_its_joints_is_counted_and_found(
    source, tmp_path, monkeypatch, capsys
):
    whole = datasets.load("freihand").example

    def example(source, index, row, models):
        made = whole(source, index, row, models)
        if index.split == "train" and row == 2:
            wrist = Rotation.from_rotvec(made["mano_pose"][:3])
            turned = Rotation.from_rotvec([0, 0.7, 0]) * wrist
            made["mano_pose"] = [*turned.as_rotvec(), *made["mano_pose"][3:]]
        return made

    monkeypatch.setattr(datasets.load("freihand"), "example", example)
    out = prepared.prepare("freihand", source, tmp_path / "out")
    train = preparation.read_manifest(out)["splits"]["train"]
    assert train["contradicting_poses"] == 1
    apart = [float(record["repose_mm"]) for record in prepared.records(out)]
    assert apart[2] > reposing.CONTRADICTS_MM and max(apart[:2] + apart[3:]) < 1e-2
    for flags in ([], ["--hand=open"]):  # as measured before, or again
        assert check.main([str(out), *flags]) == 1
        said = capsys.readouterr()
        assert "train: the poses of 1 of 8 records are more than 20 mm off" in said.err
        assert "nothing is damaged" not in said.out
    assert check.main([str(out), "--max_repose_mm=200"]) == 0
    assert reposing.CONTRADICTS_MM == recipes.Filters().max_repose_mm


def test_records_of_earlier_preparations_have_no_distance():
    old = schema.encode(fake_records.record())
    proto = schema._example_type().FromString(old)
    del proto.features.feature["repose_mm"]
    found = schema.decode(proto.SerializeToString())
    assert found["repose_mm"] == reposing.NOT_KNOWN_MM
    del proto.features.feature["fit_loss"]
    with pytest.raises(ValueError, match="no field 'fit_loss'"):
        schema.decode(proto.SerializeToString())


def test_records_are_of_the_source_alone(made):
    """No path of this machine is in the data set."""
    for name, content in prepared.contents(made).items():
        assert b"/tmp/" not in content, name


def test_settings_are_plain(made):
    assert json.loads((made / "settings.json").read_text())["dataset"] == "freihand"
