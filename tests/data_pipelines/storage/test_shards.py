"""Datasets on disk: readable by tfds and grain, atomic, resumable, clear errors."""

import json
import os
import subprocess
import sys
import textwrap
import time

import grain
import numpy as np
import pytest
from fake_records import record, write
from places import SUPPORT

from data_pipelines.storage import schema, shards


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return write(tmp_path_factory.mktemp("made"))


@pytest.fixture
def fresh(tmp_path):
    return write(tmp_path / "fresh")


def _files(directory):
    return {path.name: path.stat().st_mtime_ns for path in directory.iterdir()}


def test_records_come_back_in_order(made):
    split = shards.open_split(made, "train")
    assert len(split) == 20 and len(shards.open_split(made, "test")) == 5
    assert [split[i]["key"] for i in range(20)] == [f"fake/{i}" for i in range(20)]
    assert split.metadata["hand"] == {"name": "open", "sha256": "0" * 64}
    with pytest.raises(IndexError):
        split[20]


def test_tfds_reads_the_folder(made):
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(made)
    assert builder.info.splits["train"].num_examples == 20
    assert builder.info.splits["train"].num_shards == 3
    source = builder.as_data_source("train")
    assert len(source) == 20
    example = source[7]
    assert example["key"] == b"fake/7" and example["image"].shape == (96, 96, 3)
    np.testing.assert_array_equal(
        example["joints3d"], np.float32(record(7)["joints3d"])
    )
    assert len(builder.as_data_source("train[:50%]")) == 10
    assert "tensorflow" not in sys.modules


def test_plain_grain_reads_the_shards(made):
    files = sorted(str(path) for path in made.glob("fake-train.array_record*"))
    source = grain.sources.ArrayRecordDataSource(files)
    assert schema.decode(source[19])["key"] == "fake/19"


def test_finished_shards_are_kept_and_missing_ones_written(fresh):
    before = _files(fresh)
    lost = fresh / "fake-train.array_record-00001-of-00003"
    lost.unlink()
    write(fresh)
    after = _files(fresh)
    assert set(after) == set(before)
    kept = [n for n in before if "array_record" in n and n != lost.name]
    assert [after[n] for n in kept] == [before[n] for n in kept]
    assert len(shards.open_split(fresh, "train")) == 20


def test_a_truncated_shard_is_written_anew(fresh):
    broken = fresh / "fake-train.array_record-00002-of-00003"
    os.truncate(broken, 100)
    write(fresh)
    assert shards.open_split(fresh, "train")[19]["key"] == "fake/19"


def test_a_failure_leaves_no_half_shard(tmp_path):
    def records(first, last):
        for index in range(first, last):
            if index == 12:
                raise KeyboardInterrupt
            yield schema.encode(record(index))

    with pytest.raises(KeyboardInterrupt):
        shards.write_split(
            tmp_path, name="x", split="train", count=20, records=records, shards=2
        )
    assert [p.name for p in tmp_path.iterdir()] == [
        "x-train.array_record-00000-of-00002"
    ]


def test_what_a_killed_job_left_is_removed(tmp_path):
    left = tmp_path / ".fake-train.array_record-00000-of-00003.partial-99"
    running = tmp_path / ".fake-train.array_record-00001-of-00003.partial-98"
    left.touch()
    running.touch()
    old = time.time() - 2 * shards.ABANDONED_AFTER_S
    os.utime(left, (old, old))
    write(tmp_path)
    assert not left.exists() and running.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="uses a Linux file size limit")
def test_a_full_disk_is_one_clear_message_and_no_half_shard(tmp_path):
    """A limit on the file size makes writes fail as a full disk does."""
    here = str(SUPPORT)
    code = f"""
        import resource, signal, sys
        sys.path.insert(0, {here!r})
        from fake_records import write
        from data_pipelines.storage import shards
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
        try:
            write({str(tmp_path)!r})
        except shards.ShardError as error:
            print("MESSAGE", error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        check=True,
        capture_output=True,
        text=True,
    )
    assert "MESSAGE Could not write the dataset" in done.stdout, done
    assert "run the same command to go on" in done.stdout
    assert list(tmp_path.iterdir()) == []


# --- damaged datasets ---------------------------------------------------------------


def test_a_missing_shard_is_named(fresh):
    (fresh / "fake-train.array_record-00001-of-00003").unlink()
    with pytest.raises(
        shards.ShardError, match=r"fake-train.*00001-of-00003 is missing"
    ):
        shards.open_split(fresh, "train")


@pytest.mark.parametrize("size", [0, 100, 40_000])
def test_a_truncated_shard_is_named(fresh, size):
    broken = fresh / "fake-train.array_record-00002-of-00003"
    os.truncate(broken, size)
    with pytest.raises(shards.ShardError, match=f"{broken.name}.*truncated"):
        shards.open_split(fresh, "train")


def test_a_shard_of_another_dataset_is_noticed(fresh, tmp_path):
    other = write(tmp_path / "other", count=9)
    name = "fake-train.array_record-00002-of-00003"
    (other / name).rename(fresh / name)
    with pytest.raises(shards.ShardError, match=r"hold 16 records, metadata.json says"):
        shards.open_split(fresh, "train")


def test_flipped_bits_name_shard_and_position(fresh):
    path = fresh / "fake-train.array_record-00001-of-00003"
    data = bytearray(path.read_bytes())
    at = data.index(b"fake/8") - 3000
    data[at : at + 8] = b"\0" * 8
    path.write_bytes(data)
    split = shards.open_split(fresh, "train")
    bad = []
    for index in range(20):
        try:
            split[index]
        except ValueError as error:
            bad.append(index)
            assert f"{path} record {index - 6}" in str(error)
    assert len(bad) == 1


def test_no_dataset_says_how_to_make_one(tmp_path, made):
    with pytest.raises(FileNotFoundError, match=r"data_pipelines\.synthetic --out"):
        shards.open_split(tmp_path, "train")
    with pytest.raises(FileNotFoundError, match=r"no split 'val'.*'test', 'train'"):
        shards.open_split(made, "val")


def test_another_schema_version_is_refused(fresh):
    path = fresh / "metadata.json"
    metadata = json.loads(path.read_text()) | {"schema_version": 99}
    path.write_text(json.dumps(metadata))
    with pytest.raises(shards.ShardError, match="schema version 99"):
        shards.open_split(fresh, "train")


def test_a_wrong_count_is_no_finished_dataset(fresh):
    with pytest.raises(shards.ShardError, match=r"holds 20 records.*21 were to be"):
        shards.write_metadata(fresh, name="fake", splits={"train": 21}, description="")


def test_older_datasets_are_of_hands(fresh):
    """Before bodies, metadata.json said nothing of counts."""
    metadata = json.loads((fresh / "metadata.json").read_text())
    assert metadata.pop("counts") == schema.HAND._asdict()
    (fresh / "metadata.json").write_text(json.dumps(metadata))
    split = shards.open_split(fresh, "train")
    assert split.counts == schema.HAND and split[0]["joints3d"].shape == (21, 4)
