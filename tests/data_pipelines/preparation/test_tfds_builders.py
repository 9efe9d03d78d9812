"""tfds makes the records that `prepare` makes, without TensorFlow."""

import sys

import numpy as np
import prepared
import pytest
import tensorflow_datasets as tfds
from miniatures import h2o3d

from data_pipelines.preparation import tfds_builders


def test_a_builder_makes_the_same_records(tmp_path):
    h2o3d.make(tmp_path / "source")
    out = prepared.prepare("h2o3d", tmp_path / "source", tmp_path / "out")
    builder = tfds_builders.builder("h2o3d", data_dir=tmp_path / "tfds", hand="open")
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=tmp_path / "source")
    )
    assert "no redistribution" in builder.info.description
    for split in ("train", "test"):
        found = {e["key"].decode(): e for e in builder.as_data_source(split)}
        expected = {record["key"]: record for record in prepared.records(out, split)}
        assert found.keys() == expected.keys() and found
        for key, record in expected.items():
            for name in ("joints3d", "mano_pose", "mano_transl", "K", "left_model"):
                np.testing.assert_array_equal(found[key][name], record[name])
            assert found[key]["image"].shape[:2] == tuple(record["image_size"])
    assert "tensorflow" not in sys.modules


def test_unknown_names_and_missing_sources_are_errors(tmp_path):
    with pytest.raises(ValueError, match="'mano' is not one of the data sets"):
        tfds_builders.builder("mano", data_dir=tmp_path)
    builder = tfds_builders.builder("freihand", data_dir=tmp_path / "tfds")
    assert "FreiHAND_pub_v2.zip" in builder.MANUAL_DOWNLOAD_INSTRUCTIONS
