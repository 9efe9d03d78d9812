"""Hamba's checkpoint becomes handjax's, whole, or is refused with one clear message."""

import hashlib
import re

import hamba_weights
import numpy as np
import pytest
from foreign_weights import save_zip

from handjax import conversion, convert
from handjax.config import files
from handjax.conversion import Options, _hmr
from handjax.family import hand_constants
from handjax.inference.predictor import HandPredictor
from handjax.io import weight_matching
from handjax.mano import model_files
from handjax.models.hamba.model import parameter_table

LISTING = "a69167e83dac4d4db6d0882909464b4ec657483c53dbcb3dc628fa44f62053e8"
"""Digest of the released checkpoint's 824 names and shapes."""


@pytest.fixture(scope="module")
def tiny_weights():
    return hamba_weights.weights(hamba_weights.TINY)


def converted(weights):
    return conversion.load("hamba").convert(weights, Options(hand="open"))


def zeros(shapes):
    """Arrays of one number each, in no memory."""
    return {key: np.broadcast_to(np.float32(0), s) for key, s in shapes.items()}


def test_the_released_names_and_shapes_are_those_of_the_network():
    shapes = hamba_weights.shapes(**hamba_weights.RELEASED)
    assert len(shapes) == 824
    listing = hamba_weights.listing(shapes).encode()
    assert hashlib.sha256(listing).hexdigest() == LISTING
    source, depths = conversion.load("hamba"), hamba_weights.RELEASED["decoder"]
    table = source._table(depths, depths)
    rest = {key for key in shapes if not key.startswith("backbone.")}
    skipped = {
        key for key in rest if any(re.search(rule, key) for rule, _ in _hmr.RULES)
    }
    assert table.keys() == rest - skipped and len(skipped) == 12 + 6 + 1
    arrays = zeros({key: shapes[key] for key in table})
    given = {path: np.shape(lay(arrays[key])) for key, (path, lay) in table.items()}
    config = files.load_config("configs/hamba.py:paper").unlock()
    hand = hand_constants.hand_constants(model_files.load())
    expected = _hmr._expected(
        config, hand, {path: key for key, (path, _) in table.items()}
    )
    apart = ("params/image_encoder/", "constants/hand/", "constants/faces")
    assert given == {k: v for k, v in expected.items() if not k.startswith(apart)}


@pytest.mark.slow
def test_the_released_size_converts():
    """With 2.9 GB of zeros."""
    shapes = hamba_weights.shapes(**hamba_weights.RELEASED)
    found = converted(zeros(shapes))
    assert {rule: len(names) for rule, names in found.skipped.items()} == {
        "counters of torch's batch norms": 6,
        "MANO's arrays, which are taken from --hand": 12,
        "a flag of the training code": 1,
    }
    assert (found.backbone, found.config.data.crop_size) == ("vit_h", 256)
    parts = dict(parameter_table(found.variables))
    assert sum(parts.values()) == 733_293_483
    model = found.config.model
    assert (model.width, model.state, model.ratio) == (512, 1, 2.0)
    assert model.regressor_depths == model.decoder_depths == (2, 2, 2, 2)


def test_every_kind_of_array_lands_in_its_place(tiny_weights):
    weights = dict(tiny_weights)
    key = "initRegression.dec_vssm.layers.0.blocks.0.mlp.fc1.weight"
    weights[key] = weights[key][:, :, None, None]  # as a convolution of kernel 1
    variables = converted(weights).variables
    params, stats = variables["params"], variables["batch_stats"]
    block = params["regressor"]["stage0_block0"]
    kept = "initRegression.dec_vssm.layers.0.blocks.0"
    pairs = [
        (block["fc1"]["kernel"].T, tiny_weights[key]),
        (block["op"]["x_proj"], weights[f"{kept}.op.x_proj_weight"]),
        (
            block["op"]["conv"]["kernel"][2, 0, 0],
            weights[f"{kept}.op.conv2d.weight"][:, 0, 2, 0],
        ),
        (
            params["sampler"]["linear1"]["kernel"],
            weights["gridSampleFeature.filters.3.weight"][..., 0].T,
        ),
        (stats["downsample"]["norm"]["var"], weights["downsample.1.running_var"]),
        (variables["constants"]["mean"]["cam"], weights["mano_head.init_cam"][0]),
        (
            params["discriminator"]["each_kernel"][7],
            weights["discriminator.pose_out.7.weight"][0],
        ),
    ]
    graph = "mano_head.dec_gcn_vssm.gcn_layers.1.gconv"
    conv = params["decoder"]["stage1_graph"]["conv"]
    pairs += [
        (conv["kernel"], weights[f"{graph}.W"]),
        (conv["self_logits"], weights[f"{graph}.e_0"][0]),
        (conv["edge_logits"], weights[f"{graph}.e_1"][0]),
        (
            params["decoder_head"]["pose"]["kernel"].T,
            weights["mano_head.decpose.weight"],
        ),
    ]
    for ours, theirs in pairs:
        np.testing.assert_array_equal(ours, theirs)


def test_a_checkpoint_becomes_a_workdir_that_predicts(tmp_path, capsys, tiny_weights):
    path = save_zip(tmp_path / "hamba.ckpt", {"state_dict": tiny_weights})
    target = tmp_path / "out"
    arguments = [str(path), "--from=hamba", f"--to={target}", "--hand=open"]
    assert convert.main(arguments) == 0
    out = capsys.readouterr().out
    assert "hamba.ckpt: hamba with vit_test" in out and "CC BY-NC 4.0" in out
    predictor = HandPredictor.from_workdir(target)
    assert predictor.config.model.sampling == "released_clip"
    image = np.random.default_rng(0).integers(0, 255, (80, 90, 3), np.uint8)
    hand = predictor(image, box_px=(10, 20, 70, 60))
    assert np.isfinite(hand.vertices).all() and np.ptp(hand.vertices) > 0.05


def test_what_differs_is_listed_or_told(tiny_weights):
    weights = dict(tiny_weights)
    weights.pop("mano_head.dec_gcn_vssm.gcn_layers.0.gconv.e_0")
    weights["mano_head.decpose.weight"] = np.zeros((96, 5), np.float32)
    weights["mano_head.extra"] = np.zeros(3, np.float32)
    with pytest.raises(weight_matching.ConversionError) as caught:
        converted(weights)
    error = caught.value
    assert error.missing == ("mano_head.dec_gcn_vssm.gcn_layers.0.gconv.e_0",)
    assert error.only_in_file == ("mano_head.extra",)
    assert error.other_shapes == {"mano_head.decpose.weight": ((5, 96), (138, 96))}
    assert "initialized" in error.skipped
    changed = tiny_weights | {"mano_head.init_cam": np.ones((1, 3), np.float32)}
    with pytest.raises(
        ValueError, match=r"init_cam must both be in the file and equal"
    ):
        converted(changed)
    with pytest.raises(ValueError, match=r"so it is not a checkpoint of Hamba"):
        converted({"backbone.pos_embed": np.zeros((1, 5, 4), np.float32)})
