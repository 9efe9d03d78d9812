"""HaMeR's tars as a source: lists of dicts, kinds of pictures, cut downloads."""

import os
import pickle
import shutil
import tarfile

import numpy as np
import prepared
import pytest
from miniatures import freihand, hamer_tars

from data_pipelines import datasets, prepare
from data_pipelines.preparation import job
from data_pipelines.sources import hamer_tars as reader
from data_pipelines.sources.reading import SourceError
from data_pipelines.storage import shards


@pytest.fixture(scope="module", params=["freihand", "interhand26m", "h2o3d", "halpe"])
def made(request, tmp_path_factory):
    """Name, source, hands as stored, prepared directory."""
    name = request.param
    root = tmp_path_factory.mktemp(name)
    stored = hamer_tars.make(root / "source", left=name != "freihand")
    return (
        name,
        root / "source",
        stored,
        prepared.prepare(name, root / "source", root / "out"),
    )


def test_records_hold_what_the_tars_say(made):
    """Traps: a list of dicts, two hands in a picture, flags that are arrays."""
    _, _, stored, out = made
    records = prepared.records(out)
    assert [record["key"] for record in records] == list(stored)
    for record in records:
        hand, fields = stored[record["key"]]
        assert record["is_right"] == hand.is_right
        pixels = fields["keypoints_2d"]
        source = record["crop_origin"] + record["joints2d"][:, :2]
        np.testing.assert_allclose(source, pixels[:, :2], atol=1e-3)
        np.testing.assert_allclose(record["joints2d"][:, 2], pixels[:, 2], atol=1e-6)
        known = fields["has_betas"] > 0
        assert record["has_pose"] == record["has_betas"] == known
        assert record["has_joints3d"] == known
        assert not record["has_K"] and not record["has_transl"]
        assert record["image"][:2] == b"\xff\xd8"
        if known:
            np.testing.assert_allclose(record["mano_pose"], hand.pose, atol=1e-6)
            prepared.same_hand(record, hand)


def test_poses_are_absolute_whatever_the_data_set(made):
    """Trap: FreiHAND's own files are relative to the mean, HaMeR's copy is not."""
    name, _, stored, out = made
    if name == "halpe":
        return  # has no MANO of its own to re-pose with
    largest = prepared.reposed_mm(out)
    for side in {"right" if hand.is_right else "left" for hand, _ in stored.values()}:
        assert largest[side, "repose tips"] < 0.01


def test_left_hands_keep_their_side_and_model(made):
    name, _, _, out = made
    code = {"interhand26m": 2, "h2o3d": 3}.get(name, 0)
    for record in prepared.records(out):
        left = not record["is_right"]
        assert record["left_model"] == (code if left and record["has_betas"] else 0)


def test_losses_of_fits_are_kept_for_filters(made):
    losses = [record["fit_loss"] for record in prepared.records(made[3])]
    assert losses == [12.5, 12.5, 40000.0, 0.0]


def test_the_kind_of_source_is_noted_and_not_mixed(made, tmp_path):
    name, source, _, out = made
    settings = shards.read_metadata(out)["made_by"]
    assert settings["source"] == "HaMeR's tars"
    assert job.read_manifest(out)["splits"].keys() == {"train"}
    if name == "freihand":
        freihand.make(tmp_path / "files", frames=1, test=1)
        with pytest.raises(ValueError, match='source: "HaMeR\'s tars" there'):
            prepared.prepare(name, tmp_path / "files", out)
    with pytest.raises(ValueError, match="no split 'test'; it has train"):
        prepared.prepare(name, source, tmp_path / "out", splits=["test"])


def test_a_folder_with_several_sets_will_do(made, tmp_path, capsys):
    name, source, stored, _ = made
    shutil.copytree(source, tmp_path / "tars" / reader.OF[name].folder)
    arguments = [name, f"--source={tmp_path / 'tars'}", f"--out={tmp_path / 'out'}"]
    assert prepare.main([*arguments, "--workers=1"]) == 0
    assert f"note: {reader.OF[name].hands:,} are published" in capsys.readouterr().out
    assert len(prepared.records(tmp_path / "out")) == len(stored)


def test_ten_data_sets_come_as_tars():
    assert len(reader.OF) == 10 and set(reader.OF) <= set(datasets.names())
    assert sum(tars.hands for tars in reader.OF.values()) == 2_720_872


# --- damaged sources ----------------------------------------------------------------


@pytest.fixture
def damaged(tmp_path):
    hamer_tars.make(tmp_path / "source")
    return tmp_path / "source"


def failure(root, out):
    with pytest.raises(SourceError) as error:
        prepared.prepare("interhand26m", root, out)
    return str(error.value)


def test_a_missing_tar_is_named(damaged, tmp_path):
    (damaged / "000000.tar").unlink()
    message = failure(damaged, tmp_path / "out")
    assert "000000.tar' is missing" in message and "github.com/geopavlakos" in message


@pytest.mark.parametrize("kept", [100, 5000, -512, -9000])
def test_a_truncated_tar_is_named(damaged, tmp_path, kept):
    """Trap: a tar that ends between two members reads without an error."""
    path = damaged / "000000.tar"
    data = path.read_bytes()
    end = len(data.rstrip(b"\0"))
    end += -end % 512
    os.truncate(path, kept if kept > 0 else end + kept + 512)
    assert "000000.tar" in failure(damaged, tmp_path / "out")


def rewritten(path, change):
    """The tar with other members: `change` maps name and content to those kept."""
    with tarfile.open(path) as tar:
        members = [(m.name, tar.extractfile(m).read()) for m in tar]
    with tarfile.open(path, "w") as tar:
        import io

        for name, data in members:
            data = change(name, data)
            if data is not None:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize(
    "kind, content, message",
    [
        ("jpg", None, "sample '00001000' has"),
        ("data.pyd", pickle.dumps({"right": 1}), "a list of dicts"),
        ("data.pyd", pickle.dumps([{"right": 1}]), "keypoints_2d"),
        ("data.pyd", b"cposix\nsystem\n(S'true'\ntR.", "refused to load posix.system"),
        ("jpg", b"\xff\xd8 nothing", "the picture of 000001.tar/00001000"),
    ],
)
def test_damaged_samples_are_named(damaged, tmp_path, kind, content, message):
    path = damaged / "000001.tar"
    rewritten(path, lambda n, data: content if n.endswith(kind) else data)
    assert message in failure(damaged, tmp_path / "out")
