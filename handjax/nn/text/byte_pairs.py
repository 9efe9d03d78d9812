"""CLIP's byte-pair encoding: texts to token ids, on the host.

The package `tokenizers` (extra `text`) does the work. The vocabulary is a file that you
name, nothing is downloaded: `bpe_simple_vocab_16e6.txt.gz` as published by CLIP's
authors, Hugging Face's `tokenizer.json`, or its `vocab.json` with `merges.txt` beside
it. After Sennrich et al., ACL 2016, on the bytes of UTF-8.
"""

import gzip
import unicodedata
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from handjax.errors import UserError
from handjax.io import json_files

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
_MERGES = 49_152 - 256 - 2
"""Pairs that CLIP uses of the published list, which is longer."""

_WORD = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
"""Yield contractions, runs of letters, single digits, and other runs of text."""


class BytePairs:
    """Turns texts into ids, start and end included, padded with 0 to `length`."""

    def __init__(
        self,
        ids: dict[str, int],
        merges: Sequence[tuple[str, str]],
        length: int = 77,
    ):
        """Take a vocabulary.

        Args:
            ids: Id of every token.
            merges: Pairs of tokens, first those that are joined first.
            length: Ids of each text.

        Raises:
            UserError: A byte, a joined pair, start or end has no id, or `tokenizers` is
                not installed.
        """
        single = [byte + end for byte in byte_characters() for end in ("", WORD_END)]
        wanted = [START, END, *single, *map("".join, merges)]
        wanted += [part for pair in merges for part in pair]
        missing = [token for token in wanted if token not in ids]
        if missing:
            raise UserError(
                f"The vocabulary has no id for {missing[0]!r} and {len(missing) - 1} "
                "more of the tokens that CLIP's has; pass the vocabulary of CLIP."
            )
        self.ids, self.length = ids, length
        self._tokenizer = _tokenizer(ids, merges)

    def __call__(self, texts: Sequence[str]) -> Int[np.ndarray, "text length"]:
        """Return the ids of texts.

        Raises:
            UserError: A text has more tokens than there is room for.
        """
        found = np.zeros((len(texts), self.length), np.int32)
        for row, text in zip(found, texts, strict=True):
            ids = [self.ids[token] for token in (START, *self.tokens(text), END)]
            if len(ids) > self.length:
                raise UserError(
                    f"The text {_short(text)!r} has {len(ids) - 2} tokens; there is "
                    f"room for {self.length - 2}. Shorten it."
                )
            row[: len(ids)] = ids
        return found

    def tokens(self, text: str) -> list[str]:
        """Return the parts of a text's words, as the vocabulary writes them."""
        # As Hugging Face; the first code also mended broken encodings and HTML.
        text = " ".join(unicodedata.normalize("NFC", text).lower().split())
        return self._tokenizer.encode(text, add_special_tokens=False).tokens


def byte_characters() -> list[str]:
    """Return the 256 characters that stand for bytes, in the order of CLIP's ids.

    Bytes that print stand for themselves, the others follow from U+0100 on.
    """
    return sorted(_package().pre_tokenizers.ByteLevel.alphabet())


def _tokenizer(ids: dict[str, int], merges: Sequence[tuple[str, str]]) -> Any:
    package = _package()
    pairs = [tuple(pair) for pair in merges]
    try:
        model = package.models.BPE(ids, pairs, end_of_word_suffix=WORD_END)
    except Exception as error:  # the package raises nothing more exact
        raise UserError(f"The vocabulary is damaged: {error}") from error
    tokenizer = package.Tokenizer(model)
    split = package.pre_tokenizers
    tokenizer.pre_tokenizer = split.Sequence(
        [
            split.Split(package.Regex(_WORD), behavior="removed", invert=True),
            split.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer


def _package() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise UserError(
            "CLIP's texts need the package tokenizers; install it with "
            "`pip install 'handjax[text]'`."
        ) from error
    return tokenizers


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


# --- files ---------------------------------------------------------------------------


_MOST_VOCABULARY = 1 << 26
"""Bytes of an unpacked vocabulary; CLIP's has 3 million."""

_DAMAGED = (ValueError, KeyError, TypeError, EOFError, gzip.BadGzipFile, zlib.error)


def read(path: str | Path, length: int = 77) -> BytePairs:
    """Read a vocabulary; see the module's docstring for the files there are.

    Args:
        path: The file; of `vocab.json` and `merges.txt` either, or their directory.
        length: Ids of each text.

    Raises:
        UserError: The file is not one of these, or damaged.
        OSError: It, or the one beside it, cannot be read.
    """
    _package()  # without it no file can be read
    path = Path(path).expanduser()
    if path.is_dir():
        single = path / "tokenizer.json"
        path = single if single.is_file() else path / "vocab.json"
    try:
        if path.name in ("vocab.json", "merges.txt"):
            vocabulary = path.with_name("vocab.json")
            ids = json_files.read(vocabulary)
            json_files.checked(ids, vocabulary, dict.fromkeys(ids, int))
            lines = path.with_name("merges.txt").read_text("utf-8").splitlines()
            return BytePairs(ids, _pairs(lines), length)
        if path.suffix == ".json":
            return BytePairs(*_single(json_files.read(path)), length)
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = _unpacked(path)
        merges = _pairs(data.decode("utf-8").splitlines())[:_MERGES]
        return BytePairs(_numbered(merges), merges, length)
    except _DAMAGED as error:
        raise UserError(
            f"{str(path)!r} is not a vocabulary of CLIP ({error}). Allowed are "
            "bpe_simple_vocab_16e6.txt.gz, tokenizer.json, and vocab.json with "
            "merges.txt beside it."
        ) from error


def _unpacked(path: Path) -> bytes:
    with gzip.open(path) as file:
        data = file.read(_MOST_VOCABULARY + 1)
    if len(data) > _MOST_VOCABULARY:
        raise UserError(
            f"it unpacks to more than {_MOST_VOCABULARY:,} bytes; no vocabulary does"
        )
    return data


def _pairs(lines: Sequence[str]) -> list[tuple[str, str]]:
    """Return pairs of tokens; the first line names the version."""
    pairs = [tuple(line.split()) for line in lines[1:] if line.strip()]
    wrong = next((pair for pair in pairs if len(pair) != 2), None)
    if wrong is not None:
        raise UserError(f"{' '.join(wrong)[:60]!r} is not a pair of tokens")
    return [(first, second) for first, second in pairs]


def _numbered(merges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Number tokens as CLIP does: bytes, bytes that end a word, pairs, marks."""
    single = byte_characters()
    ends = [byte + WORD_END for byte in single]
    names = [*single, *ends, *map("".join, merges), START, END]
    return {name: number for number, name in enumerate(names)}


def _single(content: Any) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return ids and pairs of `tokenizer.json`, which writes pairs in two ways."""
    model = content["model"]
    ids = {token["content"]: token["id"] for token in content.get("added_tokens", ())}
    merges = [
        pair.split() if isinstance(pair, str) else pair for pair in model["merges"]
    ]
    return model["vocab"] | ids, [(first, second) for first, second in merges]
