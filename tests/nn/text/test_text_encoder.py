"""Texts to features: labels that are learned, and CLIP's vocabulary."""

import gzip

import jax
import numpy as np
import pytest

from data_pipelines.synthetic import letters
from handjax.nn.text import text_encoder
from handjax.nn.text.clip_text import SIZES, ClipText
from handjax.types import TextFeatures


def test_the_letters_are_those_of_the_built_in_poses():
    assert text_encoder.ASL_LETTERS == letters.names()


def test_labels_are_numbered():
    encode = text_encoder.tokenizer("labels", labels=("fist", "point"))
    np.testing.assert_array_equal(encode(["point", "fist"]), [[1], [0]])
    assert encode([]).size == 0 and encode.length == 1


@pytest.mark.parametrize(
    "text, message",
    [
        ("z", r"'z' is not one of the labels .*: fist, point\.$"),
        ("Fist", r"Did you mean 'fist'\?"),
    ],
)
def test_a_label_that_was_not_learned_is_refused(text, message):
    encode = text_encoder.tokenizer("labels", labels=("fist", "point"))
    with pytest.raises(ValueError, match=message):
        encode(["fist", text])


@pytest.mark.parametrize("labels", [(), ("a", "b", "a")])
def test_sets_that_are_none_are_refused(labels):
    with pytest.raises(ValueError, match=r"labels=.* at least one label, and none"):
        text_encoder.tokenizer("labels", labels=labels)


def test_every_label_has_features_of_its_own():
    encoder = text_encoder.build("labels", labels="abc")
    ids = text_encoder.tokenizer("labels", labels="abc")(["a", "c", "a"])
    variables = encoder.init(jax.random.key(0), ids)
    found = encoder.apply(variables, ids)
    assert isinstance(found, TextFeatures) and found.tokens.shape == (3, 1, 256)
    assert bool(found.mask.all())
    np.testing.assert_array_equal(found.pooled, found.tokens[:, 0])
    np.testing.assert_array_equal(found.pooled[0], found.pooled[2])
    assert float(abs(found.pooled[0] - found.pooled[1]).max()) > 0.1


def test_clip_has_its_own_tokens_and_wants_their_file(tmp_path):
    name = "clip_text_test"
    assert isinstance(text_encoder.build(name), ClipText)
    with pytest.raises(ValueError, match=r"needs CLIP's vocabulary: pass --config\.da"):
        text_encoder.tokenizer(name)
    path = tmp_path / "bpe.txt.gz"
    # 256 bytes, the same at the end of words, and two marks make 514.
    pairs = [f"{first} {second}" for first in "abcdefghijk" for second in "lmnopqrs"]
    for count, fits in ((86, True), (80, False)):
        lines = "\n".join(["#version", *pairs[:count]])
        path.write_bytes(gzip.compress(lines.encode()))
        if fits:
            encode = text_encoder.tokenizer(name, vocabulary=str(path))
            ids = encode(["Al"])
            assert ids.shape == (1, SIZES[name].length) and ids.max() == 599
        else:
            with pytest.raises(
                ValueError, match="has 594 tokens, clip_text_test has 6"
            ):
                text_encoder.tokenizer(name, vocabulary=str(path))


def test_encoders_that_are_not_there_are_refused():
    for make in (text_encoder.build, text_encoder.tokenizer):
        with pytest.raises(
            ValueError, match="'clip' is not one of labels, clip_text_b"
        ):
            make("clip")
