"""Whoever makes them, shards are the same: Apache Beam as local processes."""

import sys

import prepared
import pytest
from miniatures import freihand, h2o3d

from data_pipelines import prepare
from data_pipelines.preparation import job
from data_pipelines.sources.reading import SourceError
from data_pipelines.storage import shards

MAKERS = {"freihand": freihand, "h2o3d": h2o3d}


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(shards, "RECORDS_PER_SHARD", 3)


def test_without_beam_the_error_says_how_to_get_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    freihand.make(tmp_path / "source", frames=1, test=1)
    arguments = [f"--source={tmp_path / 'source'}", f"--out={tmp_path / 'out'}"]
    assert prepare.main(["freihand", *arguments, "--beam=DirectRunner"]) == 2
    assert "pip install 'handjax[beam]'" in capsys.readouterr().err


@pytest.mark.parametrize("name", list(MAKERS))
@pytest.mark.filterwarnings("ignore")
def test_the_local_runner_writes_the_same_bytes(tmp_path, name):
    pytest.importorskip("apache_beam")
    MAKERS[name].make(tmp_path / "source")
    here = prepared.prepare(name, tmp_path / "source", tmp_path / "here")
    there = prepared.prepare(
        name, tmp_path / "source", tmp_path / "there", beam="DirectRunner"
    )
    assert prepared.contents(here) == prepared.contents(there)


@pytest.mark.filterwarnings("ignore")
def test_it_goes_on_where_the_other_way_stopped(tmp_path):
    pytest.importorskip("apache_beam")
    freihand.make(tmp_path / "source", frames=2, test=1)
    expected = prepared.prepare("freihand", tmp_path / "source", tmp_path / "whole")
    picture = tmp_path / "source/training/rgb/00000006.jpg"
    data = picture.read_bytes()
    picture.write_bytes(data[:500])
    out = tmp_path / "out"
    with pytest.raises((SourceError, RuntimeError), match=r"00000006\.jpg"):
        prepared.prepare("freihand", tmp_path / "source", out, beam="DirectRunner")
    picture.write_bytes(data)
    prepared.prepare("freihand", tmp_path / "source", out)
    assert prepared.contents(out) == prepared.contents(expected)
    assert job.read_manifest(out)["splits"]["train"]["kept"] == 8
