"""CLIP's text tower is taken under both kinds of names, or refused entry by entry."""

import json

import chex
import clip_weights
import numpy as np
import pytest
import safetensors.numpy
from foreign_weights import save_zip

from handjax import conversion, convert
from handjax.conversion import Options, clip_text, directory
from handjax.io import weight_matching

TINY = "clip_text_test"


@pytest.fixture(scope="module")
def weights():
    return clip_weights.openai(TINY)


def test_both_kinds_of_names_give_the_same(weights):
    one = clip_text.convert(weights, Options())
    other = clip_text.convert(clip_weights.hugging_face(weights), Options())
    assert one.backbone == other.backbone == TINY
    chex.assert_trees_all_equal(one.variables, other.variables)
    assert one.skipped == {
        "the temperature of CLIP's loss": ["logit_scale"],
        "the vision tower": ["visual.conv1.weight", "visual.ln_post.bias"],
    }
    assert other.skipped["constants of the code"] == [
        "text_model.embeddings.position_ids"
    ]
    kernel = one.variables["params"]["resblocks_1"]["qkv"]["kernel"]
    key = "transformer.resblocks.1.attn.in_proj_weight"
    np.testing.assert_array_equal(kernel, weights[key].T)


@pytest.mark.parametrize("kind", ["safetensors", "torch"])
def test_a_file_becomes_an_encoder_of_texts(tmp_path, capsys, weights, kind):
    path = tmp_path / f"model.{kind}"
    named = clip_weights.hugging_face(weights)
    halves = {
        k: np.asarray(v, None if v.dtype.kind == "i" else np.float16)
        for k, v in named.items()
    }
    if kind == "safetensors":
        contiguous = {k: np.ascontiguousarray(v) for k, v in named.items()}
        safetensors.numpy.save_file(contiguous, path)
    else:
        save_zip(path, halves)
    target = tmp_path / "clip"
    code = convert.main([str(path), "--from=clip_text", f"--to={target}"])
    out, error = capsys.readouterr()
    assert code == 0, error
    for words in (
        "clip_text_test, ",
        "2 skipped: the vision tower",
        "licence: CLIP's code and weights MIT",
        "warning: the network has CLIP's quick GELU",
        f"--config.model.text={TINY} --config.data.vocabulary=VOCABULARY "
        f"--config.init_from={target}",
    ):
        assert words in out, (words, out)
    record = json.loads((target / "conversion.json").read_text())
    assert record["part"] == "text_encoder" and record["backbone"] == TINY
    found = directory.read_backbone(target)["params"]["positional_embedding"]
    np.testing.assert_allclose(found, weights["positional_embedding"], atol=1e-3)


@pytest.mark.parametrize("name", ["clip_text_b32", "clip_text_l14"])
@pytest.mark.parametrize("hugging_face", [False, True])
def test_published_sizes_are_told_from_their_weights(name, hugging_face):
    shapes = clip_weights.openai_shapes(name)
    # Of one number each, so that half a gigabyte needs no memory.
    weights = {k: np.broadcast_to(np.float32(1), s) for k, s in shapes.items()}
    if hugging_face:
        weights = clip_weights.hugging_face(weights)
    assert clip_text.convert(weights, Options()).backbone == name


@pytest.mark.parametrize("hugging_face", [False, True])
def test_what_differs_is_listed_under_its_name_in_the_file(weights, hugging_face):
    named = clip_weights.hugging_face(weights) if hugging_face else dict(weights)
    gone = "transformer.resblocks.1.attn.in_proj_bias"
    if hugging_face:
        gone = "text_model.encoder.layers.1.self_attn.k_proj.bias"
    named.pop(gone)
    named["adapter.weight"] = np.zeros((2, 2), np.float32)
    odd = "text_projection.weight" if hugging_face else "text_projection"
    named[odd] = np.zeros((3, 3), np.float32)
    with pytest.raises(weight_matching.ConversionError) as caught:
        clip_text.convert(named, Options())
    error = caught.value
    assert error.name == TINY and error.missing == (gone,)
    assert error.only_in_file == ("adapter.weight",)
    assert error.other_shapes == {odd: ((3, 3), (128, 32))}
    assert "logit_scale" in error.skipped


def test_other_files_are_refused(weights):
    with pytest.raises(ValueError, match="has no text tower of CLIP; it begins with c"):
        clip_text.convert({"conv1.weight": np.zeros(3)}, Options())
    with pytest.raises(ValueError, match="those of clip_text_test, not of --name=clip"):
        clip_text.convert(weights, Options(name="clip_text_b32"))
    assert "clip_text" in conversion.names()
