"""Records: what goes in comes out, and agrees with tfds's own reading."""

import subprocess
import sys

import numpy as np
import pytest
from fake_records import record

from data_pipelines.storage import dataset_names, schema


def test_fields_survive():
    example = record(3)
    back = schema.decode(schema.encode(example))
    for name, value in example.items():
        if isinstance(value, (str, bytes, bool)):
            assert back[name] == value
        else:
            np.testing.assert_allclose(back[name], np.float32(value), rtol=0)
    assert back["schema_version"] == schema.SCHEMA_VERSION
    assert back["occluded"].tolist() == [schema.UNKNOWN] * 21
    assert back["has_K"] and back["has_vertices"] and back["text"] == ""


def test_decoding_is_that_of_tfds():
    import tensorflow_datasets as tfds

    data = schema.encode(record(1, occluded=np.arange(21), text="Q"))
    theirs = schema.features().deserialize_example_np(
        data, decoders={"image": tfds.decode.SkipDecoding()}
    )
    ours = schema.decode(data)
    assert set(ours) == set(theirs)
    for name in set(ours) - {"key", "text", "dataset"}:
        np.testing.assert_array_equal(ours[name], theirs[name])
    assert ours["text"].encode() == theirs["text"]
    assert dataset_names.DATASETS.index(ours["dataset"]) == theirs["dataset"]


def test_only_the_fields_that_are_asked_for_are_decoded():
    data = schema.encode(record(1))
    part, whole = schema.decode(data, ("K", "key")), schema.decode(data)
    assert set(part) == {"K", "key"} and part["key"] == whole["key"]
    np.testing.assert_array_equal(part["K"], whole["K"])


def test_what_is_not_annotated_has_a_flag_and_no_guess():
    example = record(0, joints3d=None, vertices=None, mano_pose=None, K=None)
    back = schema.decode(schema.encode(example))
    flags = [back[f"has_{name}"] for name in ("joints3d", "vertices", "pose", "K")]
    assert flags == [False] * 4 and back["has_betas"]
    assert back["vertices"].shape == (0, 3) and not back["joints3d"].any()


def test_an_annotation_of_zeros_is_an_annotation():
    back = schema.decode(schema.encode(record(0, mano_betas=np.zeros(10))))
    assert back["has_betas"] and not back["mano_betas"].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vertexes": 1}, r"unknown fields \['vertexes'\]"),
        ({"key": None}, r"missing fields \['key'\]"),
        ({"joints2d": np.zeros((16, 3))}, r"joints2d has shape \(16, 3\)"),
        ({"image": b"\x89PNG"}, "must be JPEG"),
    ],
)
def test_wrong_examples_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        schema.encode(record(0, **changes))


BODY = schema.Counts(vertices=30, joints=29, bones=24)


def body():
    return record(
        0,
        joints2d=np.ones((29, 3)),
        joints3d=np.ones((29, 4)),
        vertices=np.zeros((30, 3)),
        mano_pose=np.arange(72),
    )


def test_a_data_set_has_its_own_counts():
    example = body()
    back = schema.decode(schema.encode(example, BODY), counts=BODY)
    assert back["joints3d"].shape == (29, 4) and back["occluded"].shape == (29,)
    np.testing.assert_array_equal(back["mano_pose"], example["mano_pose"])
    del example["joints3d"], example["mano_pose"]
    back = schema.decode(schema.encode(example, BODY), counts=BODY)
    assert not back["joints3d"].any() and back["mano_pose"].shape == (72,)
    assert schema.features(BODY)["joints3d"].shape == (29, 4)


def test_records_of_other_counts_are_refused():
    with pytest.raises(ValueError, match=r"joints2d has shape \(29, 3\), the schema"):
        schema.encode(body())
    with pytest.raises(ValueError, match="cannot reshape"):
        schema.decode(schema.encode(body(), BODY))


@pytest.mark.parametrize("data", [b"", b"no proto", b"\x0a\x03abc"])
def test_bytes_that_are_no_record_are_refused(data):
    with pytest.raises(ValueError, match="not a record of the schema"):
        schema.decode(data)


def test_half_a_record_is_refused():
    data = schema.encode(record(0))
    with pytest.raises(ValueError, match="not a record of the schema"):
        schema.decode(data[: len(data) // 2])


def test_another_schema_version_is_refused():
    with pytest.raises(ValueError, match="schema version is 99, this program reads"):
        schema.decode(schema.encode(record(0, schema_version=99)))


def test_opening_data_imports_all_that_threads_will_need():
    """TFDS replaces `import` meanwhile; a checkpoint, saved by a thread, tripped."""
    program = """
import sys
from handjax.config import schema as configs
from handjax.data import run_data
from handjax.mano import model_files
defaults = configs.base()
run_data.open_data(defaults, model_files.load(), create=False)
before = set(sys.modules)
from data_pipelines.storage import schema
schema.features()
schema._example_type()
print(sorted(name for name in set(sys.modules) - before if "tensorflow" in name))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]", done.stdout
