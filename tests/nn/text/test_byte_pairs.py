"""Byte-pair encoding with a made-up vocabulary, in each of the published formats."""

import gzip
import json
import sys

import numpy as np
import pytest
from tokenizers import decoders

from handjax.errors import UserError
from handjax.nn.text import byte_pairs
from handjax.nn.text.byte_pairs import END, START, WORD_END, BytePairs

MERGES = [
    ("h", "a"),
    ("n", "d" + WORD_END),
    ("ha", "nd" + WORD_END),
    ("a", "n"),
    ("'", "s" + WORD_END),
]


def vocabulary():
    """Bytes first, as the published one."""
    single = byte_pairs.byte_characters()
    ends = [byte + WORD_END for byte in single]
    names = [*single, *ends, *map("".join, MERGES), START, END]
    return {name: number for number, name in enumerate(names)}


def tokens(text, length=16):
    return BytePairs(vocabulary(), MERGES, length).tokens(text)


def test_pairs_are_joined_in_the_order_of_the_vocabulary():
    assert tokens("hand") == ["hand</w>"]
    assert tokens("han") == ["ha", "n</w>"]  # "a n" comes after "h a"
    assert tokens("ana") == ["an", "a</w>"]
    assert tokens("haha") == ["ha", "h", "a</w>"]  # the last "a" ends the word


@pytest.mark.parametrize(
    "text, words",
    [
        ("  Hand\tHAND\n", ["hand", "hand"]),
        ("hand's 12", ["hand", "'s", "1", "2"]),
        ("x½²y", ["x", "½", "²", "y"]),
        ("a_b!?c", ["a", "_", "b", "!?", "c"]),
        ("\"'s", ["\"'", "s"]),
        ("", []),
        ("ΠΕΣ\x1cD", ["πες", "d"]),
    ],
)
def test_texts_are_cut_as_clips(text, words):
    found = "".join(tokens(text)).split(WORD_END)[:-1]
    assert [decoders.ByteLevel().decode([word]) for word in found] == words


def test_any_text_has_tokens_of_its_bytes():
    assert tokens("é") == ["Ã", "©</w>"]  # bytes C3 and A9
    composed, apart = tokens("é"), tokens("e\u0301")
    assert composed == apart


def test_ids_have_start_end_and_padding():
    ids = vocabulary()
    found = BytePairs(ids, MERGES, 6)(["hand's", ""])
    expected = [ids[START], ids["hand</w>"], ids["'s</w>"], ids[END], 0, 0]
    np.testing.assert_array_equal(found[0], expected)
    np.testing.assert_array_equal(found[1], [ids[START], ids[END], 0, 0, 0, 0])
    assert ids[END] == max(ids.values())


def test_a_text_that_is_too_long_is_refused():
    encode = BytePairs(vocabulary(), MERGES, 4)
    encode(["a b"])
    with pytest.raises(ValueError, match=r"'a b c' has 3 tokens; there is room for 2"):
        encode(["a b c"])


def written(folder, kind):
    lines = "\n".join(["#version: 0.2", *map(" ".join, MERGES)]) + "\n"
    ids = vocabulary()
    if kind == "gz":
        path = folder / "bpe.txt.gz"
        path.write_bytes(gzip.compress(lines.encode()))
        return path
    if kind in ("vocab.json", "folder"):
        (folder / "vocab.json").write_text(json.dumps(ids))
        (folder / "merges.txt").write_text(lines)
        return folder if kind == "folder" else folder / "merges.txt"
    pairs = MERGES if kind == "pairs" else [" ".join(pair) for pair in MERGES]
    marks = [{"content": mark, "id": ids.pop(mark)} for mark in (START, END)]
    content = {"added_tokens": marks, "model": {"vocab": ids, "merges": pairs}}
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("kind", ["gz", "vocab.json", "folder", "pairs", "joined"])
def test_every_format_gives_the_same_ids(tmp_path, kind):
    read = byte_pairs.read(written(tmp_path, kind), length=8)
    expected = BytePairs(vocabulary(), MERGES, 8)(["hand's", "Éa"])
    np.testing.assert_array_equal(read(["hand's", "Éa"]), expected)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("bpe.txt.gz", b"no gzip", "Not a gzipped file"),
        ("bpe.txt", b"#version\na b c\n", "'a b c' is not a pair of tokens"),
        ("tokenizer.json", b"{}", r"'model'"),
        ("tokenizer.json", b"[", "Expecting value"),
    ],
)
def test_other_files_are_refused(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"not a vocabulary of CLIP \(.*{message}"):
        byte_pairs.read(path)


def test_a_vocabulary_without_its_marks_is_refused():
    ids = vocabulary()
    del ids[START]
    with pytest.raises(ValueError, match=r"no id for '<\|startoftext\|>' and 0 more"):
        BytePairs(ids, MERGES)


def test_without_the_package_it_says_what_to_install(monkeypatch, tmp_path):
    path = written(tmp_path, "gz")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"pip install 'handjax\[text\]'"):
        byte_pairs.read(path)
