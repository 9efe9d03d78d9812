"""CLIP's byte-pair encoding: texts to token ids, on the host.

The vocabulary is a file of yours, nothing is downloaded: `bpe_simple_vocab_16e6.txt.gz`
as CLIP's authors publish it, Hugging Face's `tokenizer.json`, or its `vocab.json` with
`merges.txt` beside it. After Sennrich et al., ACL 2016, on the bytes of UTF-8.
"""

import gzip
import itertools
import json
import math
import re
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from handjax.errors import UserError

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
_MERGES = 49_152 - 256 - 2
"""Of the published list; the file goes on behind them."""

_CONTRACTION = re.compile("'(?:s|t|re|ve|m|ll|d)")
_RUN = re.compile("L+|N|P+")


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
            ids: Of every token.
            merges: Pairs of tokens, first those that are joined first.
            length: Ids of each text.

        Raises:
            UserError: A byte, a joined pair, start or end has no id.
        """
        single = [byte + end for byte in _BYTES.values() for end in ("", WORD_END)]
        wanted = [START, END, *single, *map("".join, merges)]
        missing = [token for token in wanted if token not in ids]
        if missing:
            raise UserError(
                f"The vocabulary has no id for {missing[0]!r} and {len(missing) - 1} "
                "more of the tokens that CLIP's has; pass the vocabulary of CLIP."
            )
        self.ids, self.length = ids, length
        self._rank = {pair: rank for rank, pair in enumerate(merges)}

    def __call__(self, texts: Sequence[str]) -> Int[np.ndarray, "text length"]:
        """Ids of texts.

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
        """Parts of words, as the vocabulary writes them."""
        # As Hugging Face; the first code also mended broken encodings and HTML.
        text = unicodedata.normalize("NFC", text).lower()
        return [part for word in _words(text) for part in self._parts(word)]

    def _parts(self, word: str) -> list[str]:
        """A word's bytes, joined pair by pair in the order of the vocabulary."""
        parts = [_BYTES[byte] for byte in word.encode()]
        parts[-1] += WORD_END
        while len(parts) > 1:
            ranks = [self._rank.get(p, math.inf) for p in itertools.pairwise(parts)]
            rank = min(ranks)
            if rank == math.inf:
                break
            at = ranks.index(rank)
            parts[at : at + 2] = ["".join(parts[at : at + 2])]
        return parts


def _words(text: str) -> Iterator[str]:
    """Contractions, runs of letters, single digits, and runs of anything but blanks."""
    kinds, at = "".join(map(_kind, text)), 0
    while at < len(text):
        found = _CONTRACTION.match(text, at) or _RUN.match(kinds, at)
        if found:
            yield text[at : found.end()]
        at = found.end() if found else at + 1


def _kind(character: str) -> str:
    """L(etter), N(umber), a blank, or P(unctuation), which all others are."""
    if character.isspace():
        return " "
    return "L" if character.isalpha() else "N" if character.isalnum() else "P"


def _byte_characters() -> dict[int, str]:
    """The character that stands for each byte, in the order of their ids.

    Bytes that print stand for themselves, the others follow from U+0100 on.
    """
    prints = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in prints]
    return {byte: chr(byte) for byte in prints} | {
        byte: chr(256 + n) for n, byte in enumerate(others)
    }


_BYTES = _byte_characters()


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


# --- files ---------------------------------------------------------------------------


_DAMAGED = (ValueError, KeyError, TypeError, EOFError, gzip.BadGzipFile, zlib.error)


def read(path: str | Path, length: int = 77) -> BytePairs:
    """Read a vocabulary; see the module's docstring for the files there are.

    Args:
        path: The file; of `vocab.json` and `merges.txt` either, or their directory.
        length: Ids of each text.

    Raises:
        UserError: The file is none of those, or damaged.
        OSError: It, or the one beside it, cannot be read.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        single = path / "tokenizer.json"
        path = single if single.is_file() else path / "vocab.json"
    try:
        if path.name in ("vocab.json", "merges.txt"):
            ids = json.loads(path.with_name("vocab.json").read_text("utf-8"))
            lines = path.with_name("merges.txt").read_text("utf-8").splitlines()
            return BytePairs(ids, _pairs(lines), length)
        if path.suffix == ".json":
            return BytePairs(*_single(json.loads(path.read_text("utf-8"))), length)
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
        merges = _pairs(data.decode("utf-8").splitlines())[:_MERGES]
        return BytePairs(_numbered(merges), merges, length)
    except _DAMAGED as error:
        raise UserError(
            f"{str(path)!r} is no vocabulary of CLIP ({error}). Allowed are "
            "bpe_simple_vocab_16e6.txt.gz, tokenizer.json, and vocab.json with "
            "merges.txt beside it."
        ) from error


def _pairs(lines: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of tokens; the first line names the version."""
    pairs = [tuple(line.split()) for line in lines[1:] if line.strip()]
    wrong = next((pair for pair in pairs if len(pair) != 2), None)
    if wrong is not None:
        raise UserError(f"{' '.join(wrong)[:60]!r} is no pair of tokens")
    return [(first, second) for first, second in pairs]


def _numbered(merges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Ids as CLIP's authors give them: bytes, bytes that end a word, pairs, marks."""
    single = list(_BYTES.values())
    ends = [byte + WORD_END for byte in single]
    names = [*single, *ends, *map("".join, merges), START, END]
    return {name: number for number, name in enumerate(names)}


def _single(content: Any) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Ids and pairs of `tokenizer.json`, which writes a pair in one of two ways."""
    model = content["model"]
    ids = {token["content"]: token["id"] for token in content.get("added_tokens", ())}
    merges = [
        pair.split() if isinstance(pair, str) else pair for pair in model["merges"]
    ]
    return model["vocab"] | ids, [(first, second) for first, second in merges]
