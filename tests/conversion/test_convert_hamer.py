"""HaMeR's checkpoints become a workdir, entry by entry, or are refused."""

import jax
import numpy as np
import pytest
from foreign_weights import hamer_shapes, lightning_checkpoint, random_state_dict

from handjax import convert
from handjax.checkpoints import workdir
from handjax.config.files import load_config
from handjax.conversion import Options, hamer
from handjax.inference.predictor import HandPredictor
from handjax.io import weight_matching

TINY = dict(patches=12, width=64, depth=2, dim=32, inner=64, mlp=48, layers=2)
"""A backbone `vit_test` for crops of 64, and a decoder of one head."""


@pytest.fixture(scope="module")
def weights():
    return random_state_dict(hamer_shapes(**TINY)) | {
        "mano_head.init_cam": np.array([[7.0, -0.05, 0.05]], np.float32),
        "initialized": np.array(True),
    }


def test_a_checkpoint_becomes_a_workdir(tmp_path, capsys, weights):
    path = lightning_checkpoint(tmp_path / "hamer.ckpt", weights)
    target = tmp_path / "out"
    code = convert.main([str(path), "--from=hamer", f"--to={target}", "--hand=open"])
    out, error = capsys.readouterr()
    assert code == 0, error
    for words in (
        "hamer.ckpt: hamer with vit_test, ",
        f"{len(weights) - 13} of {len(weights)} entries used, 13 skipped",
        "12 skipped: MANO's arrays, which are taken from --hand",
        "1 skipped: a flag of the training code",
        "licence: code MIT; weights",
    ):
        assert words in out, (words, out)
    predictor = HandPredictor.from_workdir(target)
    assert predictor.name == "hamer, stage mesh, step 0"
    assert predictor.config.data.crop_size == 64
    image = np.random.default_rng(0).integers(0, 255, (120, 160, 3), np.uint8)
    hand = predictor(image, box_px=(30, 20, 110, 100))
    assert np.isfinite(hand.vertices).all() and np.ptp(hand.vertices) > 0
    variables, meta = workdir.load_variables(target, "mesh", 0)
    assert meta["hand"]["name"] == "open" and meta["family"] == "hamer"
    params, key = variables["params"], "discriminator.pose_out.7.weight"
    np.testing.assert_array_equal(
        params["discriminator"]["each_kernel"][7], weights[key][0]
    )
    np.testing.assert_array_equal(
        variables["constants"]["mean"]["cam"], weights["mano_head.init_cam"][0]
    )
    kernel = params["decoder"]["layer1_cross_kv"]["kernel"]
    key = "mano_head.transformer.transformer.layers.1.1.fn.to_kv.weight"
    np.testing.assert_array_equal(kernel, weights[key].T)


def test_every_entry_of_the_released_checkpoint_has_its_place():
    names = hamer_shapes()
    assert len(names) == 562
    head = {k for k in names if not k.startswith(("backbone.", "mano.", "initialized"))}
    assert head == set(hamer._table(depth=6))


@pytest.mark.slow
def test_released_sizes_are_converted_entry_by_entry():
    shapes = hamer_shapes()
    # Of one number each, so that 2.7 GB need no memory.
    state_dict = {k: np.broadcast_to(np.float32(1), s) for k, s in shapes.items()}
    result = hamer.convert(state_dict, Options(hand="open"))
    assert result.backbone == "vit_h" and result.config.data.crop_size == 256
    assert sum(map(len, result.skipped.values())) == 13
    leaves = jax.tree.leaves(result.variables["params"])
    assert sum(leaf.size for leaf in leaves) == 630_912_000 + 39_497_837 + 1_545_211
    fresh = load_config("configs/hamer.py:paper")
    assert result.config.model.to_dict() == fresh.model.to_dict()


def test_what_differs_is_listed(weights):
    weights = dict(weights)
    weights.pop("discriminator.pose_out.3.bias")
    weights["mano_head.decglobal.weight"] = np.zeros((6, 32), np.float32)
    weights["mano_head.deccam.weight"] = np.zeros((4, 32), np.float32)
    weights["mano_head.init_cam"] = np.zeros((2, 3), np.float32)
    with pytest.raises(weight_matching.ConversionError) as caught:
        hamer.convert(weights, Options(hand="open"))
    error = caught.value
    assert error.name == "HaMeR with vit_test"
    assert error.only_in_file == ("mano_head.decglobal.weight",)
    assert error.missing == ("discriminator.pose_out.3.bias",)
    assert error.other_shapes == {
        "mano_head.deccam.weight": ((32, 4), (32, 3)),
        "mano_head.init_cam": ((2, 3), (3,)),
    }
    assert "mano.v_template" in error.skipped


def test_other_files_are_refused(weights):
    with pytest.raises(ValueError, match=r"no decoder `mano_head\.transformer"):
        hamer.convert({"conv1.weight": np.zeros(3)}, Options(hand="open"))
    odd = weights | {"backbone.pos_embed": np.zeros((1, 12, 64), np.float32)}
    with pytest.raises(ValueError, match="positions for 11 patches of 16 pixels"):
        hamer.convert(odd, Options(hand="open"))
    with pytest.raises(ValueError, match="--hand is missing"):
        hamer.convert(weights, Options())
