"""METRO's and FastMETRO's state dicts for hands become workdirs, or are refused."""

import re

import jax
import jax.numpy as jnp
import metro_weights
import numpy as np
import pytest
import scipy.sparse
from foreign_weights import random_state_dict, save_zip, timm_weights
from torch_reference import import_timm

from handjax import conversion, convert, models
from handjax.checkpoints import workdir
from handjax.conversion import Options, _metro, fastmetro, metro
from handjax.geometry import mesh_hierarchy, skeleton
from handjax.inference.predictor import HandPredictor
from handjax.io import weight_matching
from handjax.mano import model_files
from handjax.nn.ops.image import IMAGENET_MEAN, IMAGENET_STD

HAND = model_files.load()
BUILT = Options(hand="open", hierarchy="built")
TINY = {
    "fastmetro": metro_weights.fastmetro_shapes(**metro_weights.TINY_FASTMETRO),
    "metro": metro_weights.metro_shapes(**metro_weights.TINY_METRO),
}
NUMBERS = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")


def tiny(name):
    """Name of a converter, and weights on ResNet-18, numbered as in a list."""
    weights = random_state_dict(TINY[name])
    for key, value in timm_weights("resnet18").items():
        first, _, rest = key.partition(".")
        if first in NUMBERS:
            weights[f"backbone.{NUMBERS.index(first)}.{rest}"] = value
    return name, weights


@pytest.fixture(scope="module", params=["fastmetro", "metro"])
def source(request):
    return tiny(request.param)


def converted(source):
    name, weights = source
    return conversion.load(name).convert(weights, BUILT)


@pytest.fixture(scope="module")
def result(source):
    """The conversion, which takes seconds, once."""
    return converted(source)


# What is where.


def test_every_entry_lands_in_its_place(source, result):
    name, weights = source
    params = result.variables["params"]
    head = params["head"]
    if name == "fastmetro":
        layer = head["transformer_2"]["decoder"]["layers_0"]
        key = "transformer_2.decoder.layers.0"
        pairs = [
            (head["conv_1x1"]["kernel"], weights["conv_1x1.weight"][:, :, 0, 0].T),
            (head["vertex_token_embed"], weights["vertex_token_embed.weight"]),
            (
                layer["multihead_attn"]["in_proj_kernel"],
                weights[f"{key}.multihead_attn.in_proj_weight"].T,
            ),
            (layer["norm3"]["scale"], weights[f"{key}.norm3.weight"]),
        ]
    else:
        layer = head["trans_encoder_1"]["layer_0"]
        key = "trans_encoder.1.bert.encoder.layer.0"
        pairs = [
            (
                layer["attention_self_key"]["kernel"],
                weights[f"{key}.attention.self.key.weight"].T,
            ),
            (
                layer["attention_output_norm"]["scale"],
                weights[f"{key}.attention.output.LayerNorm.weight"],
            ),
            (
                params["upsample"]["level0"]["over_tokens"]["kernel"],
                weights["upsampling.weight"].T,
            ),
        ]
    backbone = params["image_encoder"]["layer1_0"]["conv1"]["kernel"]
    pairs.append((backbone, weights["backbone.4.0.conv1.weight"].transpose(2, 3, 1, 0)))
    for ours, theirs in pairs:
        np.testing.assert_array_equal(ours, theirs)


def test_a_state_dict_becomes_a_workdir_that_predicts(tmp_path, capsys):
    name, weights = tiny("metro")
    path, target = save_zip(tmp_path / "hand.bin", weights), tmp_path / "out"
    arguments = [str(path), f"--from={name}", f"--to={target}", "--hand=open"]
    assert convert.main(arguments) == 2
    assert "--hierarchy is missing: give METRO's mano_down" in capsys.readouterr().err
    code = convert.main([*arguments, "--hierarchy=built"])
    out, error = capsys.readouterr()
    assert code == 0, error
    assert "hand.bin: tore with resnet18" in out
    assert "warning: --hierarchy=built: vertices are meaningless" in out
    predictor = HandPredictor.from_workdir(target)
    assert predictor.config.model.host == name and predictor.config.data.root == "wrist"
    image = np.random.default_rng(0).integers(0, 255, (80, 90, 3), np.uint8)
    hand = predictor(image, box_px=(10, 20, 70, 60))
    assert hand.vertices.shape == (778, 3) and np.isfinite(hand.vertices).all()
    np.testing.assert_allclose(hand.joints3d[0], 0, atol=1e-5)


def official_file(path, levels):
    """METRO's file of a hierarchy, its rows of U made not to sum to one."""
    arrays = {"F": [level.faces for level in levels], "A": [], "V": []}
    rows = np.searchsorted(levels[0].kept, levels[1].kept)
    arrays["D"] = [scipy.sparse.csc_matrix(np.eye(len(levels[0].kept))[rows])]
    arrays["U"] = [scipy.sparse.csc_matrix(1.1 * levels[1].up)]
    for key, values in arrays.items():
        held = np.empty(len(values), object)
        held[:] = values
        arrays[key] = held
    np.savez(path, **arrays)
    return str(path)


def test_the_hierarchy_of_the_file_is_the_networks(tmp_path):
    name, weights = tiny("fastmetro")
    levels = mesh_hierarchy.build(HAND.v_template, HAND.faces, num_levels=2).levels
    path = official_file(tmp_path / "mano_downsampling.npz", levels)
    options = BUILT._replace(hierarchy=path)
    result = conversion.load(name).convert(weights, options)
    mesh = result.variables["constants"]["mesh"]
    np.testing.assert_allclose(mesh["up1"].sum(axis=1), 1.1, atol=1e-6)
    np.testing.assert_array_equal(mesh["kept1"], levels[1].kept)
    np.testing.assert_array_equal(mesh["adjacency"], levels[1].adjacency)
    assert not any("--hierarchy" in note for note in result.notes)
    turned = [level._replace(faces=level.faces[:-1]) for level in levels]
    other = official_file(tmp_path / "other.npz", turned)
    with pytest.raises(ValueError, match=r"other\.npz.*other faces than the hand"):
        conversion.load(name).convert(weights, BUILT._replace(hierarchy=other))


def test_metro_is_given_the_mean_pose():
    vertices, joints = metro.mean_pose(HAND)
    flat = model_files.joint_regressor(HAND) @ HAND.v_template
    assert np.abs(joints - flat).max() > 0.005
    # Bones keep their lengths, and tips are vertices.
    for chain in ((0, 5), (5, 6), (6, 7), (0, 13), (14, 15)):
        length, rest = (
            np.linalg.norm(np.diff(j[list(chain)], 1, 0)) for j in (joints, flat)
        )
        np.testing.assert_allclose(length, rest, rtol=1e-4)
    np.testing.assert_array_equal(joints[4::4], vertices[HAND.tip_ids])
    assert skeleton.JOINTS[0] == _metro.ROOT


def test_the_mesh_at_rest_is_relative_to_the_wrist(source, result):
    flat = HAND.v_template, model_files.joint_regressor(HAND) @ HAND.v_template
    vertices, joints = metro.mean_pose(HAND) if source[0] == "metro" else flat
    mesh = result.variables["constants"]["mesh"]
    np.testing.assert_allclose(mesh["joints"], joints - joints[0], atol=1e-6)
    kept = vertices[mesh["kept1"]] - joints[0]
    np.testing.assert_allclose(mesh["vertices"], kept, atol=1e-6)


# Released sizes.


@pytest.mark.parametrize(
    ("layers", "count"), [(1, 9_179_782), (2, 16_999_046), (3, 24_818_310)]
)
def test_every_entry_of_fastmetro_has_its_place(layers, count):
    shapes = metro_weights.fastmetro_shapes(layers=layers, **metro_weights.FASTMETRO)
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == count
    assert fastmetro._table(layers).keys() == shapes.keys()
    given = {
        key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()
    }
    sizes = fastmetro._sizes(given)
    assert (sizes["width"], sizes["narrow"], sizes["ratio"]) == (512, 128, 4)
    assert sizes["layers"] == layers


def test_metros_unused_embeddings_are_skipped_by_name():
    shapes = metro_weights.metro_shapes(**metro_weights.METRO)
    count = {key: int(np.prod(shape)) for key, shape in shapes.items()}
    assert sum(n for k, n in count.items() if k[:6] == "trans_") == 101_182_022
    words = [n for key, n in count.items() if "word_embeddings" in key]
    assert sum(words) == 41_021_568
    table = metro._table(3, 4)
    unused = shapes.keys() - table.keys()
    assert len(unused) == 3 * 7 and table.keys() <= shapes.keys()
    pattern = metro.RULES[-1][0]
    assert all(re.search(pattern, key) for key in unused)
    assert not any(re.search(pattern, key) for key in table)


# Refusals.


def test_what_differs_is_listed(source):
    name, weights = source
    weights = dict(weights)
    last = {"fastmetro": "cam_predictor", "metro": "cam_param_fc3"}[name]
    weights.pop(f"{last}.bias")
    weights["extra.weight"] = np.zeros((2, 3), np.float32)
    weights[f"{last}.weight"] = np.zeros((5, 7), np.float32)
    with pytest.raises(weight_matching.ConversionError) as caught:
        converted((name, weights))
    error = caught.value
    assert error.name == {"fastmetro": "FastMETRO", "metro": "METRO"}[name] + (
        " with resnet18"
    )
    assert error.missing == (f"{last}.bias",)
    assert error.only_in_file == ("extra.weight",)
    assert list(error.other_shapes) == [f"{last}.weight"]
    if name == "metro":
        assert "trans_encoder.0.bert.pooler.dense.weight" in error.skipped


def test_other_files_are_refused(source):
    name, weights = source
    other = {"fastmetro": metro, "metro": fastmetro}[name]
    with pytest.raises(ValueError, match=r"so it is not a network of \w*METRO"):
        other.convert(weights, BUILT)
    head = {k: v for k, v in weights.items() if not k.startswith("backbone.")}
    with pytest.raises(ValueError, match=r"no entries `backbone\.\*`"):
        converted((name, head))
    with pytest.raises(ValueError, match="--hand is missing"):
        conversion.load(name).convert(weights, Options(hierarchy="built"))


# Parity.


@pytest.mark.parity
def test_outputs_equal_pytorchs(source, result):
    torch = pytest.importorskip("torch")
    timm = import_timm()
    import metro_torch

    name, weights = source
    mesh = result.variables["constants"]["mesh"]
    backbone = metro_torch.listed(timm.create_model("resnet18"))
    if name == "fastmetro":
        sizes = metro_weights.TINY_FASTMETRO
        network = metro_torch.FastMetroHand(backbone, mesh["adjacency"], **sizes)
    else:
        rest = np.concatenate([mesh["joints"], mesh["vertices"]])
        network = metro_torch.MetroHand(backbone, rest, **metro_weights.TINY_METRO)
    tensors = {key: torch.from_numpy(value) for key, value in weights.items()}
    network.load_state_dict(tensors)
    image = np.random.default_rng(1).integers(0, 255, (2, 64, 64, 3), np.uint8)
    normal = (image / 255.0 - IMAGENET_MEAN) / IMAGENET_STD
    with torch.no_grad():
        theirs = network.eval()(
            torch.from_numpy(np.float32(normal.transpose(0, 3, 1, 2)))
        )
    joints, coarse, *full, cam = (x.numpy() for x in theirs)
    full = full[0] if full else mesh["up1"] @ coarse
    model = workdir.build_model(models.load("tore"), result.config)
    found = jax.jit(
        lambda v, x: model.apply(v, x, method="predict"),
        compiler_options={"xla_backend_optimization_level": 0},
    )(result.variables, jnp.asarray(image))
    regressor = result.variables["constants"]["hand"]["joint_regressor"]
    wrist = np.einsum("v,bvx->bx", regressor[0], full)[:, None]
    for ours, expected in (
        (found.joints3d, joints - joints[:, :1]),
        (found.levels[0], coarse - wrist),
        (found.output.vertices, full - wrist),
        (found.output.cam, cam),
    ):
        scale = np.abs(expected).max()
        np.testing.assert_allclose(ours, expected, atol=2e-5 * scale)
