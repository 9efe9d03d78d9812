"""Published weights become handjax's, whole, or are refused with one clear message."""

import errno
import importlib.util
import json
import re

import chex
import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from foreign_weights import (
    GOLDEN,
    save_legacy,
    save_zip,
    simplehand_checkpoint,
    simplehand_weights,
    timm_weights,
)

from handjax import conversion, convert
from handjax.checkpoints.workdir import (
    load_for_inference,
    load_variables,
    read_config,
    stage_steps,
)
from handjax.conversion import Options, _apple_names, directory
from handjax.conversion import timm as timm_source
from handjax.inference.predictor import HandPredictor
from handjax.io import weight_matching
from handjax.mano import model_files
from handjax.nn import backbones


@pytest.fixture
def command(tmp_path, capsys):
    """Run the command; returns exit code, output and error."""

    def run(source, origin, *flags, to="out"):
        arguments = [str(source), f"--from={origin}", f"--to={tmp_path / to}", *flags]
        code = convert.main(arguments)
        out, error = capsys.readouterr()
        assert error.count("\n") <= 1
        return code, out, error

    return run


@pytest.fixture(scope="module")
def resnet18():
    return timm_weights("resnet18")


# --- backbones ----------------------------------------------------------------------


def test_a_backbone_is_found_converted_and_described(tmp_path, command, resnet18):
    path = save_zip(tmp_path / "resnet18.pth", {"state_dict": resnet18})
    code, out, _ = command(path, "timm")
    assert code == 0
    for words in (
        "resnet18.pth: resnet18, 11,176,512 parameters",
        "100 of 122 entries used, 22 skipped",
        "20 skipped: counters of torch's batch norms",
        "2 skipped: the classifier",
        "licence: timm's code is Apache-2.0",
        "see the model card",
        f"--config.model.backbone=resnet18 --config.init_from={tmp_path / 'out'}",
    ):
        assert words in out, words
    record = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert record["kind"] == "backbone" and record["backbone"] == "resnet18"
    assert record["source"]["file"] == "resnet18.pth"
    assert record["skipped"]["the classifier"] == ["fc.bias", "fc.weight"]
    with safetensors.safe_open(tmp_path / "out" / "weights.safetensors", "np") as file:
        assert file.metadata()["backbone"] == "resnet18"
        assert file.metadata()["source_sha256"] == record["source"]["sha256"]
        assert "params/layer2_0/downsample_0/kernel" in set(file.keys())
    expected = backbones.family("resnet18").import_torch(resnet18)
    found = directory.read_backbone(tmp_path / "out")
    chex.assert_trees_all_equal(found, expected)


@pytest.mark.parametrize("kind", ["legacy", "safetensors", "half"])
def test_any_file_of_one_network_is_taken(tmp_path, command, resnet18, kind):
    path = tmp_path / f"model.{kind}"
    if kind == "safetensors":
        safetensors.numpy.save_file(resnet18, path)
    elif kind == "legacy":
        save_legacy(path, {f"module.{k}": v for k, v in resnet18.items()})
    else:
        halves = {
            k: v.astype(np.float16) if v.dtype == np.float32 else v
            for k, v in resnet18.items()
        }
        save_zip(path, halves)
    assert command(path, "timm", "--name=resnet18")[0] == 0
    kernel = directory.read_backbone(tmp_path / "out")["params"]["conv1"]["kernel"]
    expected = resnet18["conv1.weight"].transpose(2, 3, 1, 0)
    assert kernel.dtype == np.float32
    np.testing.assert_allclose(kernel, expected, atol=1e-3 * (kind == "half"))


def test_averaged_weights_are_taken_and_said(tmp_path, command, resnet18):
    average = {k: v + 1 if v.dtype == np.float32 else v for k, v in resnet18.items()}
    saved = {"state_dict": resnet18, "state_dict_ema": average}
    path = save_zip(tmp_path / "both.pth", saved)
    for flags, key, shift in (
        ((), "state_dict_ema", 1),
        (("--key=state_dict", "--overwrite"), "state_dict", 0),
    ):
        code, out, _ = command(path, "timm", *flags)
        (other,) = saved.keys() - {key}
        assert code == 0 and f"under {key!r}; others: --key={other}" in out
        record = json.loads((tmp_path / "out" / "conversion.json").read_text())
        assert record["source"]["key"] == key
        kernel = directory.read_backbone(tmp_path / "out")["params"]["conv1"]["kernel"]
        expected = resnet18["conv1.weight"].transpose(2, 3, 1, 0) + shift
        np.testing.assert_array_equal(kernel, expected)
    code, _, error = command(path, "timm", "--key=model", "--overwrite")
    assert code == 2 and "no weights under 'model'" in error


def _golden_names():
    folder = GOLDEN
    names = {path.stem for path in folder.glob("*.npz")} & set(backbones.names())
    return sorted(names - {"fastvit_ma36"})


@pytest.mark.parametrize("name", _golden_names())
def test_every_family_is_told_from_its_weights(name):
    result = timm_source.convert(timm_weights(name), Options())
    assert result.backbone == name
    assert set(result.skipped) <= {
        "counters of torch's batch norms",
        "the classifier",
    }


def test_a_family_without_a_licence_line_would_be_noticed():
    kinds = tuple(timm_source._WEIGHTS)
    names = [
        n for n in backbones.names() if hasattr(backbones.family(n), "import_torch")
    ]
    assert names and all(name.startswith(kinds) for name in names)


@pytest.fixture(scope="module")
def fastvit_t8():
    return timm_weights("fastvit_t8")


def test_what_differs_is_listed_under_the_names_of_the_file(fastvit_t8):
    weights = dict(fastvit_t8)
    weights.pop("stages.0.blocks.0.mlp.fc1.weight")
    weights["stages.1.blocks.7.extra"] = np.zeros(3, np.float32)
    weights["stem.0.conv_kxk.0.bn.bias"] = np.zeros(5, np.float32)
    with pytest.raises(weight_matching.ConversionError) as caught:
        timm_source.convert(weights, Options())
    error, text = caught.value, str(caught.value)
    assert error.only_in_file == ("stages.1.blocks.7.extra",)
    assert error.missing == ("params/stages_0/blocks_0/mlp/fc1/kernel",)
    assert error.other_shapes == {"stem.0.conv_kxk.0.bn.bias": ((5,), (48,))}
    assert len(error.skipped) == 72
    for words in (
        "do not fit fastvit_t8. Only in the file: 1 entry, stages.1.blocks.7.extra.",
        "Missing from the file: 1 entry, params/stages_0/blocks_0/mlp/fc1/kernel.",
        "1 entry, stem.0.conv_kxk.0.bn.bias (5 in the file, 48 in the network).",
        "Skipped by rule: 72 entries, final_conv.conv_kxk.0.bn.num_batches_tracked,",
        " and 64 more. Pass the state dict of an unfused timm model",
    ):
        assert words in text, (words, text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("conv1.weight"), r"Missing from the file: 1 entry, params/co"),
        (lambda w: w.update(more=np.zeros(2)), r"Only in the file: 1 entry, more\."),
        (
            lambda w: w.update({"layer1.0.conv1.weight": np.zeros((64, 9, 3, 3))}),
            r"Of another shape: 1 entry, layer1\.0\.conv1\.weight \(3x3x9x64 in the",
        ),
        (
            lambda w: w.update({"bn1.bias": np.full(64, np.nan, np.float32)}),
            r"params/bn1/bias has values that are not finite",
        ),
    ],
)
def test_nothing_is_written_where_something_differs(
    tmp_path, command, resnet18, change, message
):
    weights = dict(resnet18)
    change(weights)
    code, out, error = command(save_zip(tmp_path / "a.pth", weights), "timm")
    assert (code, out) == (2, "")
    assert re.search(message, error), error
    assert [p.name for p in tmp_path.iterdir()] == ["a.pth"]


def test_a_skipped_entry_needs_a_rule(monkeypatch, resnet18):
    family = backbones.family("resnet18")
    strict = family.import_torch

    def lenient(state_dict):
        return strict({k: v for k, v in state_dict.items() if k != "surplus"})

    monkeypatch.setattr(family, "import_torch", lenient)
    with pytest.raises(
        weight_matching.ConversionError, match=r"Only in .*1 entry, surplus\."
    ):
        timm_source.convert(resnet18 | {"surplus": np.zeros(2)}, Options())


def test_fused_foreign_and_misnamed_weights_are_refused(resnet18):
    fused = {"stem.0.reparam_conv.weight": np.zeros(3)}
    with pytest.raises(ValueError, match=r"fused network.*Pass the unfused file"):
        timm_source.convert(fused, Options())
    with pytest.raises(ValueError, match=r"those of resnet18, not of --name=resnet34"):
        timm_source.convert(resnet18, Options(name="resnet34"))
    with pytest.raises(ValueError, match=r"resnet19.*not one of"):
        timm_source.convert(resnet18, Options(name="resnet19"))
    with pytest.raises(ValueError, match="Missing from the file"):
        timm_source.convert({"nothing.known": np.zeros(3)}, Options())


# --- the command --------------------------------------------------------------------


def test_unknown_sources_and_files_are_one_line(tmp_path, command, resnet18):
    code, _, error = command(tmp_path / "a.pth", "hammer")
    allowed = ", ".join(conversion.names())
    assert code == 2 and f"--from='hammer' is not one of {allowed}" in error
    code, _, error = command(tmp_path / "a.pth", "timm")
    assert code == 2 and "there is no such file" in error
    assert {"timm", "simplehand"} <= set(conversion.names())
    for name in conversion.names():
        module = conversion.load(name)
        assert module.LICENCE and module.SOURCE.startswith("https://")


def test_a_directory_in_use_is_left_alone(tmp_path, command, resnet18):
    path = save_zip(tmp_path / "a.pth", resnet18)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("words")
    code, _, error = command(path, "timm", "--overwrite", to="mine")
    assert code == 2 and "exists and is not an earlier conversion" in error
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "words"
    (tmp_path / "empty").mkdir()
    assert command(path, "timm", to="empty")[0] == 0
    code, _, error = command(path, "timm", to="empty")
    assert code == 2 and "pass --overwrite to replace it" in error
    (tmp_path / "empty" / "weights.safetensors").unlink()
    assert command(path, "timm", "--overwrite", to="empty")[0] == 0
    assert directory.read_backbone(tmp_path / "empty")
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_conversion_that_fails_leaves_the_old_one(
    tmp_path, command, resnet18, monkeypatch
):
    path = save_zip(tmp_path / "a.pth", resnet18)
    command(path, "timm")

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(directory, "_write_weights", full)
    code, _, error = command(path, "timm", "--overwrite")
    assert code == 1 and error == "error: No space left on device\n"
    assert directory.read_backbone(tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pth", "out"]


def test_damaged_conversions_say_so(tmp_path, command, resnet18):
    command(save_zip(tmp_path / "a.pth", resnet18), "timm")
    weights = tmp_path / "out" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        directory.read_backbone(tmp_path / "out")
    (tmp_path / "out" / "conversion.json").write_text("{")
    with pytest.raises(ValueError, match="Convert the weights again"):
        directory.read_record(tmp_path / "out")
    (tmp_path / "out" / "conversion.json").write_text("{}")
    with pytest.raises(ValueError, match=r"was not written by handjax\.convert"):
        directory.read_record(tmp_path / "out")


# --- SimpleHand ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_weights():
    """SimpleHand's head on the smallest backbone."""
    return simplehand_weights("fastvit_t8", 768)


def _predicts(workdir, backbone):
    predictor = HandPredictor.from_workdir(workdir)
    assert predictor.name == "simplehand, stage mesh, step 51200"
    assert predictor.config.model.backbone == backbone
    image = np.random.default_rng(0).integers(0, 255, (120, 160, 3), np.uint8)
    hand = predictor(image, box_px=(30, 20, 110, 100))
    assert np.isfinite(hand.vertices).all() and hand.vertices.shape == (778, 3)
    assert np.isfinite(hand.joints2d).all() and np.ptp(hand.vertices) > 0


def test_a_released_checkpoint_becomes_a_workdir(tmp_path, command, small_weights):
    path = simplehand_checkpoint(tmp_path / "epoch_200_rerun1", small_weights)
    code, out, error = command(path, "simplehand", "--hand=open")
    assert code == 0, error
    for words in (
        "epoch_200_rerun1: simplehand with fastvit_t8, 7,943,407 parameters",
        "450 of 523 entries used, 73 skipped",
        "2 skipped: the classifier",
        "licence: code MIT; weights trained on FreiHAND",
        "warning: --hand=open: vertices and joints are meaningless",
        "python -m handjax.predict photo.jpg --workdir",
    ):
        assert words in out, (words, out)
    _predicts(tmp_path / "out", "fastvit_t8")
    assert stage_steps(tmp_path / "out") == {"mesh": [51200]}
    variables, meta = load_variables(tmp_path / "out", "mesh", 51200)
    assert meta["hand"]["name"] == "open" and meta["family"] == "simplehand"
    kernel = small_weights["mesh_head.deconv.0.weight"]
    patches = variables["params"]["generator"]["upsample0"]["deconvolution"]["kernel"]
    np.testing.assert_array_equal(
        np.asarray(patches).reshape(768, 4, 4, 256)[5, 1, 2], kernel[5, :, 1, 2]
    )
    np.testing.assert_array_equal(
        variables["constants"]["joint_regressor"],
        np.float32(model_files.joint_regressor(model_files.load())),
    )


def test_the_hand_model_is_asked_for_and_kept(tmp_path, command, small_weights):
    path = simplehand_checkpoint(tmp_path / "a", small_weights, epoch=None)
    code, _, error = command(path, "simplehand")
    assert code == 2 and "--hand is missing: give the MANO_RIGHT.pkl" in error
    code, _, error = command(path, "simplehand", f"--hand={tmp_path / 'none.pkl'}")
    assert code == 2 and "No hand model at" in error
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]
    mano = _mano_file(tmp_path / "MANO_RIGHT.npz")
    code, out, error = command(path, "simplehand", f"--hand={mano}")
    assert code == 0 and "warning" not in out, error
    config = read_config(tmp_path / "out")
    assert (config.hand.source, config.hand.tips) == (str(mano), "freihand")
    assert stage_steps(tmp_path / "out") == {"mesh": [0]}  # no epoch said


def _mano_file(path):
    """The open hand under MANO's finger-tip vertices."""
    from handjax.geometry import skeleton

    with np.load(model_files.OPEN_HAND) as file:
        arrays = {key: file[key] for key in file if not key.startswith("tip")}
    weights = np.array(arrays["weights"])
    for tip, finger in zip(
        skeleton.MANO_TIPS["freihand"], skeleton.FINGERS, strict=True
    ):
        weights[tip] = 0
        weights[tip, skeleton.MANO_JOINTS.index(f"{finger}3")] = 1
    np.savez(path, **{**arrays, "weights": weights})
    return path


def test_what_differs_in_the_head_is_listed(small_weights):
    weights = dict(small_weights)
    weights.pop("mesh_head.proj_2.weight")
    weights["mesh_head.depth.weight"] = np.zeros((1, 768), np.float32)
    weights["mesh_head.pos_emb_3"] = np.zeros((1, 389, 128), np.float32)
    weights["mesh_head.deconv.0.weight"] = np.zeros((768, 256), np.float32)
    source = conversion.load("simplehand")
    with pytest.raises(weight_matching.ConversionError) as caught:
        source.convert(weights, Options(hand="open"))
    error = caught.value
    assert error.name == "SimpleHand with fastvit_t8"
    assert error.only_in_file == ("mesh_head.depth.weight",)
    assert error.missing == ("mesh_head.proj_2.weight",)
    assert error.other_shapes == {
        "mesh_head.deconv.0.weight": ((768, 256), (768, 4096)),
        "mesh_head.pos_emb_3": ((1, 389, 128), (1, 336, 128)),
    }
    assert "backbone.head.fc.weight" in error.skipped
    weights.pop("backbone.stem.0.conv_kxk.0.bn.bias")
    with pytest.raises(weight_matching.ConversionError, match="fit fastvit_t8"):
        source.convert(weights, Options(hand="open"))


def test_other_networks_are_no_simplehand(resnet18):
    with pytest.raises(ValueError, match=r"no entries `backbone\.\*`.*bn1\.bias"):
        conversion.load("simplehand").convert(resnet18, Options(hand="open"))


@pytest.mark.slow
def test_a_checkpoint_of_the_released_size(tmp_path, command):
    weights = simplehand_weights("fastvit_ma36", 1216)
    assert len(weights) == 1325
    path = simplehand_checkpoint(tmp_path / "epoch_200", weights)
    code, out, error = command(path, "simplehand", "--hand=open")
    assert code == 0, error
    assert "1140 of 1325 entries used" in out and "49,391,003 parameters" in out
    _predicts(tmp_path / "out", "fastvit_ma36")


# --- against PyTorch ----------------------------------------------------------------


def _timm():
    pytest.importorskip("torch")
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    from torch_reference import import_timm

    return import_timm()


def _apple_name(key, position):
    """Inverse of the renaming, for networks of four stages."""
    match = re.match(r"stages\.(\d)\.(downsample\.proj|pos_emb\.pos_enc|blocks)", key)
    if match:
        stage = int(match[1])
        first = max(2 * stage - 1, 0)  # blocks, step down, blocks, step down, ...
        blocks = 2 * stage + (position and stage == 3)
        part = {
            "downsample.proj": f"network.{first}.proj",
            "pos_emb.pos_enc": f"network.{first + 1}.pe",
            "blocks": f"network.{blocks}",
        }
        key = part[match[2]] + key[match.end() :]
    for ours, apples in (
        ("stem", "patch_embed"),
        ("conv_kxk", "rbr_conv"),
        ("conv_scale", "rbr_scale"),
        ("identity", "rbr_skip"),
        ("final_conv", "conv_exp"),
        ("large_conv", "lkb_origin"),
        ("mlp", "convffn"),
        ("se.fc1", "se.reduce"),
        ("se.fc2", "se.expand"),
        (".gamma", ""),
        ("head.fc", "head"),
    ):
        key = key.replace(ours, apples)
    return key


@pytest.mark.parametrize("name", ["fastvit_t8", "fastvit_sa12", "fastvit_ma36"])
def test_apples_names_become_timms(name):
    keys = list(timm_weights(name))
    apples = {_apple_name(key, name != "fastvit_t8"): key for key in keys}
    assert len(apples) == len(keys) and "network.0.0.convffn.fc1.weight" in apples
    found = _apple_names.renamed({key: np.zeros(1) for key in apples})
    assert list(found) == list(apples.values())


@pytest.mark.parity
def test_timm_renames_apples_entries_alike():
    timm = _timm()
    from timm.models.fastvit import checkpoint_filter_fn

    model = timm.create_model("fastvit_sa12")
    apples = {_apple_name(key, True): key for key in model.state_dict()}
    numbers = {key: np.array(i) for i, key in enumerate(apples)}
    theirs = checkpoint_filter_fn(dict(numbers), model)
    assert theirs == _apple_names.renamed(numbers)
    assert list(theirs) == list(apples.values())


@pytest.mark.parity
@pytest.mark.slow
def test_the_converted_network_computes_what_torchs_does(tmp_path, command):
    _timm()
    import torch

    from handjax.benchmarking import torch_peers

    network = torch_peers.SimpleHand("fastvit_t8", 64).eval()
    weights = simplehand_weights("fastvit_t8", 768)
    network.load_state_dict({k: torch.tensor(v) for k, v in weights.items()})
    torch.save({"epoch": 200, "state_dict": network.state_dict()}, tmp_path / "e")
    assert command(tmp_path / "e", "simplehand", "--hand=open")[0] == 0
    _, model, variables, *_ = load_for_inference(tmp_path / "out")
    image = np.random.default_rng(1).integers(0, 255, (2, 64, 64, 3), np.uint8)
    output = jax.jit(model.apply)(variables, image)
    given = torch.tensor(image[..., ::-1] / np.float32(255) - np.float32(0.5))
    with torch.no_grad():
        points, vertices = network(given.permute(0, 3, 1, 2))
    scale = vertices.abs().max().item()
    np.testing.assert_allclose(
        output.vertices, vertices.numpy(), rtol=0, atol=2e-5 * scale
    )
    np.testing.assert_allclose(output.joints2d / 64, points.numpy(), atol=2e-5)
