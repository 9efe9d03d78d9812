"""JSON that is not ours: one line, whatever the file, and exit code 2."""

import ast
import json
import os

import pytest
from places import ROOT

from data_pipelines.preparation import job
from data_pipelines.storage import shards
from handjax import tables
from handjax.checkpoints import workdir
from handjax.config import schema
from handjax.conversion import directory
from handjax.errors import UserError
from handjax.inference import photos
from handjax.io import atomic_files, command_line, json_files
from handjax.training import codebook_curves, logs, nonfinite

STRANGE = {
    "empty": b"",
    "blank": b"\0\0\0\0",
    "list": b"[]",
    "number": b"5",
    "text": b'"text"',
    "null": b"null",
    "object": b'{"unknown": 1}',
    "not UTF-8": b'{"a": "\xff\xfe"}',
    "cut off": b'{"a": [1, 2',
    "nested": b"[" * 100_000,
    "digits": b'{"a": ' + b"9" * 400 + b"}",
    "keys of the wrong kind": json.dumps(
        dict.fromkeys(
            ("starts", "schema", "splits", "settings", "stage")
            + ("step", "what", "dtype", "processes", "benchmark", "protocol", "count")
            + ("metrics", "family", "model", "stages", "train", "hands", "box"),
            5,
        )
    ).encode(),
}
READERS = {
    "config.json": lambda p: workdir.read_config(p.parent),
    "conversion.json": lambda p: directory.read_record(p.parent),
    "metadata.json": lambda p: shards.read_metadata(p.parent),
    "manifest.json": lambda p: job.read_manifest(p.parent),
    "update.json": lambda p: nonfinite.read(p.parent),
    "report.json": lambda p: tables._read(p),
    "boxes.json": photos.read_boxes,
}


@pytest.mark.parametrize("content", STRANGE)
@pytest.mark.parametrize("name", READERS)
def test_other_json_is_one_line_and_code_2(tmp_path, capsys, name, content):
    path = tmp_path / name
    path.write_bytes(STRANGE[content])
    code = command_line.run(lambda: READERS[name](path) and None)
    lines = capsys.readouterr().err.splitlines()
    assert (code, len(lines)) == (2, 1) and name in lines[0] and len(lines[0]) < 600


@pytest.mark.parametrize("content", STRANGE)
def test_log_lines_that_are_not_ours_are_left_out(tmp_path, content):
    path = tmp_path / "metrics.jsonl"
    good = b'{"stage": "mesh", "step": 3, "loss": 1.0}'
    path.write_bytes(STRANGE[content] + b"\n" + good + b"\n{half")
    assert list(json_files.lines(path, {"stage": str, "step": int})) == [
        json.loads(good)
    ]
    assert codebook_curves.panel(path, "mesh") is None
    logs.truncate(path, lambda line: line["step"] <= 3)
    assert path.read_bytes() == good + b"\n"


def test_json_is_read_in_one_place():
    """It checks what a file holds. Text of our own is not a file."""
    ours = {
        "handjax/io/json_files.py",
        "handjax/distributed/processes.py",  # from another process of the run
        "handjax/controlnet/folder.py",  # of json.dumps
        "handjax/inference/__main__.py",  # of a header that was just written
        "handjax/checkpoints/integrity.py",  # any error is what is wrong with it
    }
    for folder in ("handjax", "data_pipelines"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                call = isinstance(node, ast.Call) and ast.unparse(node.func)
                if call in ("json.loads", "json.load"):
                    assert str(path.relative_to(ROOT)) in ours


def test_kinds_of_values_are_named(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"count": true}')
    with pytest.raises(UserError, match=r"'count' is True; it has to be a whole num"):
        json_files.read(path, {"count": int})
    path.write_text('\ufeff{"count": 3}', encoding="utf-8")
    assert json_files.read(path, {"count": (int, str)}) == {"count": 3}
    with pytest.raises(UserError, match=r"there is no 'size' in it\. Copy it\."):
        json_files.read(path, {"size": int}, "Copy it.")


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.update(train=5),
        lambda c: c["train"].update(log_every="often"),
        lambda c: c.update(stages={"mesh": 3}),
        lambda c: c.update(stages=[]),
        lambda c: c.update(data={"max_corrupt": {}}),
    ],
)
def test_values_of_another_kind_are_not_a_config(change):
    config = schema.base().to_dict()
    stages = {"mesh": schema.stage(steps=1, batch_size=1, losses={})}
    config |= {"family": "simplehand", "model": {}, "stages": stages}
    assert schema.from_json(json.dumps(config)).family == "simplehand"
    change(config)
    with pytest.raises(UserError, match="not a config of handjax"):
        schema.from_json(json.dumps(config))


def test_files_are_on_the_disk_before_they_have_their_name(tmp_path, monkeypatch):
    """Else a power cut leaves a name without a content."""
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda f: calls.append("fsync") or fsync(f))
    monkeypatch.setattr(
        os, "replace", lambda a, b: calls.append("replace") or replace(a, b)
    )
    atomic_files.write_json(tmp_path / "a.json", {"a": 1})
    assert calls == ["fsync", "replace"]
