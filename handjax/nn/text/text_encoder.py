"""Encoders of texts: what a mesh can be asked for in words.

On the host, a tokenizer turns texts into token ids, `ids = tokenizer(...)(texts)`; in
the network, an encoder turns ids into `types.TextFeatures`. There are

- "labels": a closed set of labels, each with a learned vector. Needs no file.
- `clip_text.SIZES`: CLIP's text tower, any text. Needs CLIP's vocabulary, and weights
  that `handjax.convert --from clip_text` has converted.
"""

import difflib
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from handjax.errors import UserError
from handjax.nn.metaformer import layer_norm, linear
from handjax.nn.ops.convolutions import gelu
from handjax.nn.text import byte_pairs
from handjax.nn.text.clip_text import SIZES, ClipText
from handjax.types import AnyArray, TextFeatures

LABELS = "labels"
ASL_LETTERS = tuple("abcdefhiklouwxy")
"""Letters of the American manual alphabet among the named poses of the built-in data:
of those that are held still, those that its hand can show."""


def names() -> tuple[str, ...]:
    """Return the names of all text encoders."""
    return (LABELS, *SIZES)


@runtime_checkable
class Tokenizer(Protocol):
    """Texts to token ids."""

    length: int
    """Ids of each text."""

    def __call__(self, texts: Sequence[str]) -> Int[np.ndarray, "text length"]:
        """Encode texts as ids.

        Raises:
            UserError: A text cannot be encoded.
        """
        ...


class Labels:
    """Labels of a closed set to their numbers."""

    length = 1

    def __init__(self, labels: Sequence[str]):
        """Take the set.

        Raises:
            UserError: It is empty, or has a label twice.
        """
        self.labels = tuple(labels)
        if not self.labels or len(set(self.labels)) < len(self.labels):
            raise UserError(
                f"config.model.labels={self.labels} must name at least one label, and "
                "none of them twice."
            )

    def __call__(self, texts: Sequence[str]) -> Int[np.ndarray, "text 1"]:
        """Return the number of each label.

        Raises:
            UserError: A text is none of the labels; lists those there are.
        """
        for text in texts:
            if text not in self.labels:
                near = difflib.get_close_matches(text.lower(), self.labels, n=1)
                raise UserError(
                    f"{text!r} is not one of the labels that the model has learned: "
                    f"{', '.join(self.labels)}."
                    + (f" Did you mean {near[0]!r}?" if near else "")
                )
        ids = [self.labels.index(text) for text in texts]
        return np.array(ids, np.int32).reshape(-1, 1)


class LabelEncoder(nn.Module):
    """A learned vector of each label, through a layer."""

    num_labels: int
    dim: int = 256
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, ids: Int[AnyArray, "batch length"], *, train: bool = False
    ) -> TextFeatures:
        """Compute features of labels; the pooled one is their mean."""
        del train
        init = nn.initializers.normal(1.0)
        x = nn.Embed(
            self.num_labels,
            self.dim,
            dtype=self.dtype,
            embedding_init=init,
            name="embed",
        )(jnp.asarray(ids))
        x = gelu(linear(self.dim, self.dtype, "layer")(x))
        x = layer_norm(jnp.float32, "norm")(x)
        return TextFeatures(x, jnp.ones(ids.shape, bool), jnp.mean(x, axis=1))


def tokenizer(
    name: str, *, labels: Sequence[str] = ASL_LETTERS, vocabulary: str = ""
) -> Tokenizer:
    """Return the tokenizer of an encoder.

    Args:
        name: One of `names()`.
        labels: Of "labels", in the order of their numbers.
        vocabulary: File of CLIP's vocabulary, see `byte_pairs`.

    Raises:
        UserError: There is no such encoder, or no vocabulary of it.
        OSError: The vocabulary cannot be read.
    """
    _check(name)
    if name == LABELS:
        return Labels(labels)
    if not vocabulary:
        raise UserError(
            f"config.model.text={name!r} needs CLIP's vocabulary: pass "
            "--config.data.vocabulary=FILE, bpe_simple_vocab_16e6.txt.gz or Hugging "
            f"Face's tokenizer.json, or use config.model.text={LABELS!r}."
        )
    encode = byte_pairs.read(vocabulary, SIZES[name].length)
    if max(encode.ids.values()) != SIZES[name].vocabulary - 1:
        raise UserError(
            f"config.data.vocabulary={vocabulary!r} has {len(encode.ids)} tokens, "
            f"{name} has {SIZES[name].vocabulary}; pass the vocabulary of CLIP."
        )
    return encode


def build(
    name: str, *, labels: Sequence[str] = ASL_LETTERS, dtype: Any = jnp.float32
) -> nn.Module:
    """Build the network of an encoder, from ids to `TextFeatures`.

    Raises:
        UserError: There is no such encoder.
    """
    _check(name)
    if name == LABELS:
        return LabelEncoder(len(labels), dtype=dtype)
    return ClipText(name, dtype)


def _check(name: str) -> None:
    if name not in names():
        raise UserError(
            f"config.model.text={name!r} is not one of {', '.join(names())}."
        )
