"""Convert CLIP's text tower, for meshes of texts.

    python -m handjax.convert model.safetensors --from clip_text --to weights/clip
    python -m handjax.train --config configs/mmhmr.py:text --workdir runs/text \
        --config.model.text=clip_text_b32 --config.init_from=weights/clip \
        --config.data.vocabulary=bpe_simple_vocab_16e6.txt.gz

Hugging Face's names (`CLIPModel`, `CLIPTextModelWithProjection`) or OpenAI's, which
open_clip has, too. OpenAI's own files are programs, not weights, and are refused: load
one with its code and save what `model.state_dict()` gives. The vision tower is skipped.
"""

import re
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from handjax.conversion import Converted, Options, _hmr
from handjax.errors import UserError
from handjax.io import weight_matching
from handjax.nn.backbones import _weights
from handjax.nn.text import clip_text
from handjax.types import Variables

SOURCE = "https://github.com/openai/CLIP, https://huggingface.co/openai"
LICENCE = "CLIP's code and weights MIT; see the model card about their use"
RULES = (
    (r"^(visual|vision_model|visual_projection)\.", "the vision tower"),
    (r"^logit_scale$", "the temperature of CLIP's loss"),
    (r"(^|\.)(position_ids|attn_mask)$", "constants of the code"),
    (r"^(input_resolution|context_length|vocab_size)$", "constants of the code"),
)
"""Entries that may be skipped, and why."""

_NOTE = (
    "the network has CLIP's quick GELU; weights that were trained with the plain one, "
    "as most of open_clip's, look the same and are not for it"
)
_PACKED = ("q", "k", "v")


def convert(state_dict: Mapping[str, np.ndarray], options: Options) -> Converted:
    """Convert the text tower of one of the published sizes.

    Raises:
        ConversionError: An entry is missing, unknown or of another shape.
        UserError: It is not a text tower, or not the one of `options.name`.
    """
    hugging_face = any(key.startswith("text_model.") for key in state_dict)
    if not hugging_face and "token_embedding.weight" not in state_dict:
        raise UserError(
            "The file has neither `text_model.*` nor `token_embedding.weight`, so it "
            f"has no text tower of CLIP; it begins with "
            f"{', '.join(list(state_dict)[:4])}."
        )
    skipped: dict[str, list[str]] = {}
    kept = {}
    for key, value in state_dict.items():
        why = next((why for rule, why in RULES if re.search(rule, key)), "")
        if why:
            skipped.setdefault(why, []).append(key)
        else:
            kept[key] = np.asarray(value)
    size = _nearest(kept, hugging_face)
    if options.name not in ("", size):
        raise UserError(
            f"The weights are those of {size}, not of --name={options.name}. Leave "
            "--name out or pass the file of that tower."
        )
    found = _moved(kept, size, hugging_face, skipped)
    return Converted(
        variables=found,
        backbone=size,
        part="text_encoder",
        licence=LICENCE,
        skipped=skipped,
        notes=(_NOTE,),
    )


def _nearest(kept: Mapping[str, np.ndarray], hugging_face: bool) -> str:
    """Return the size that shares the most fields with the weights."""
    embedding = "text_model.embeddings." if hugging_face else ""
    tokens = np.shape(kept.get(f"{embedding}token_embedding.weight", ()))
    layers = {found[1] for key in kept if (found := re.search(r"\.(\d+)\.", key))}

    def shared(name: str) -> int:
        size = clip_text.SIZES[name]
        return (tokens == (size.vocabulary, size.width)) + (len(layers) == size.layers)

    return max(clip_text.SIZES, key=shared)


def _moved(
    kept: Mapping[str, np.ndarray],
    size: str,
    hugging_face: bool,
    skipped: Mapping[str, list[str]],
) -> Variables:
    """Return the network's variables, compared with it entry by entry."""
    names = _hugging_face if hugging_face else _openai
    table = names(clip_text.SIZES[size].layers)
    found = {}
    for key, value in kept.items():
        path, layout = table.get(key, (key, np.asarray))
        found[path] = layout(value.astype(np.float32, copy=False))
    files = {path: key for key, (path, _) in table.items()}
    try:
        weight_matching.check(
            {path: np.shape(value) for path, value in found.items()},
            _expected(size, split=hugging_face),
            name=size,
            advice="Pass the weights of a whole CLIP, ViT-B/32, ViT-B/16 or ViT-L/14, "
            "or of its text tower with the projection.",
        )
    except weight_matching.ConversionError as error:
        left_out = [name for group in skipped.values() for name in group]
        raise error.renamed(lambda path: files.get(path, path), left_out) from None
    return _nested(found)


def _expected(size: str, *, split: bool) -> dict[str, tuple[int, ...]]:
    """Return the network's shapes; q, k and v apart if the file has them so."""
    ids = jnp.zeros((1, clip_text.SIZES[size].length), jnp.int32)
    network = clip_text.ClipText(size)
    variables: Any = jax.eval_shape(
        lambda key: network.init(key, ids), jax.random.key(0)
    )
    shapes = {}
    for path, shape in _weights.shapes(variables).items():
        if split and "/qkv/" in path:
            third = (*shape[:-1], shape[-1] // 3)
            shapes |= {path.replace("/qkv/", f"/{part}/"): third for part in _PACKED}
        else:
            shapes[path] = shape
    return shapes


def _nested(found: Mapping[str, np.ndarray]) -> Variables:
    """Return the tree of the variables, queries, keys and values packed."""
    whole = {}
    for path, value in found.items():
        if "/q/" in path:
            parts = [found[path.replace("/q/", f"/{part}/")] for part in _PACKED]
            whole[path.replace("/q/", "/qkv/")] = np.concatenate(parts, axis=-1)
        elif "/k/" not in path and "/v/" not in path:
            whole[path] = value
    return flax.traverse_util.unflatten_dict(whole, sep="/")


# --- names and layouts ---------------------------------------------------------------


def _openai(layers: int) -> _hmr.Table:
    """Return the names of OpenAI's code and of open_clip."""
    table: _hmr.Table = {
        "token_embedding.weight": ("params/token_embedding/embedding", np.asarray),
        "positional_embedding": ("params/positional_embedding", np.asarray),
        "text_projection": ("params/text_projection/kernel", np.asarray),
        **_hmr.norm("ln_final", "ln_final"),
    }
    for i in range(layers):
        block, path = f"transformer.resblocks.{i}", f"resblocks_{i}"
        qkv = f"params/{path}/qkv"
        table |= {
            f"{block}.attn.in_proj_weight": (f"{qkv}/kernel", np.transpose),
            f"{block}.attn.in_proj_bias": (f"{qkv}/bias", np.asarray),
            **_hmr.norm(f"{block}.ln_1", f"{path}/ln_1"),
            **_hmr.norm(f"{block}.ln_2", f"{path}/ln_2"),
            **_hmr.linear(f"{block}.attn.out_proj", f"{path}/out_proj"),
            **_hmr.linear(f"{block}.mlp.c_fc", f"{path}/c_fc"),
            **_hmr.linear(f"{block}.mlp.c_proj", f"{path}/c_proj"),
        }
    return table


def _hugging_face(layers: int) -> _hmr.Table:
    """Return the names of Hugging Face's code."""
    embeddings = "text_model.embeddings"
    table: _hmr.Table = {
        f"{embeddings}.token_embedding.weight": (
            "params/token_embedding/embedding",
            np.asarray,
        ),
        f"{embeddings}.position_embedding.weight": (
            "params/positional_embedding",
            np.asarray,
        ),
        **_hmr.norm("text_model.final_layer_norm", "ln_final"),
        **_hmr.linear("text_projection", "text_projection", bias=False),
    }
    for i in range(layers):
        block, path = f"text_model.encoder.layers.{i}", f"resblocks_{i}"
        for part in _PACKED:
            table |= _hmr.linear(f"{block}.self_attn.{part}_proj", f"{path}/{part}")
        table |= {
            **_hmr.norm(f"{block}.layer_norm1", f"{path}/ln_1"),
            **_hmr.norm(f"{block}.layer_norm2", f"{path}/ln_2"),
            **_hmr.linear(f"{block}.self_attn.out_proj", f"{path}/out_proj"),
            **_hmr.linear(f"{block}.mlp.fc1", f"{path}/c_fc"),
            **_hmr.linear(f"{block}.mlp.fc2", f"{path}/c_proj"),
        }
    return table
