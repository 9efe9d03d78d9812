"""From published files to a batch: every hand is a right one that its pose makes."""

import numpy as np
import prepared
import pytest
from miniatures import dexycb, freihand, h2o3d, interhand26m

from data_pipelines.loading.examples import ExampleMaker
from data_pipelines.storage import shards
from handjax.geometry.crop import CropConfig
from handjax.mano import model_files, numpy_skinning

MAKERS = {
    "freihand": freihand,
    "dexycb": dexycb,
    "h2o3d": h2o3d,
    "interhand26m": interhand26m,
}
LEFT_POSES_COUNT = {"dexycb": False, "h2o3d": False, "interhand26m": True}
"""Whether betas of left hands mean the same on the mirrored, right model."""


@pytest.mark.parametrize("name", list(MAKERS))
def test_batches_of_prepared_data_agree_with_their_poses(name, tmp_path):
    MAKERS[name].make(tmp_path / "source")
    out = prepared.prepare(
        name, tmp_path / "source", tmp_path / "out", splits=["train"]
    )
    split = shards.open_split(out, "train")
    records = [split[i] | {"index": i} for i in range(len(split))]
    batch = ExampleMaker(CropConfig(size=64))(records)
    assert batch.image.shape == (len(split), 64, 64, 3)
    assert (batch.joints2d_valid.sum(axis=1) == 21).mean() > 0.5
    file = model_files.load("open")
    regressor = model_files.joint_regressor(file)
    for i, record in enumerate(records):
        counts = record["has_pose"] and (record["is_right"] or LEFT_POSES_COUNT[name])
        assert batch.mano_valid[i] == counts
        if not record["has_pose"]:
            continue
        # The open hand's left model is the mirrored right one, whatever the cure.
        pose = batch.mano_pose[i].astype(float)
        mesh = numpy_skinning.posed(file, pose, batch.betas[i].astype(float))
        joints = regressor @ mesh
        expected = joints - joints[9]
        np.testing.assert_allclose(batch.joints3d[i], expected, atol=2e-5)
