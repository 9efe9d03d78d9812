"""Random weights of CLIP's text tower, under OpenAI's names and Hugging Face's."""

import numpy as np
from foreign_weights import random_state_dict

from handjax.nn.text.clip_text import SIZES


def openai_shapes(name):
    size = SIZES[name]
    width = size.width
    shapes = {
        "token_embedding.weight": (size.vocabulary, width),
        "positional_embedding": (size.length, width),
        "text_projection": (width, size.dim),
        "logit_scale": (),
        "visual.conv1.weight": (8, 3, 4, 4),
        "visual.ln_post.bias": (8,),
        **_norm("ln_final", width),
    }
    for i in range(size.layers):
        block = f"transformer.resblocks.{i}"
        shapes |= {
            f"{block}.attn.in_proj_weight": (3 * width, width),
            f"{block}.attn.in_proj_bias": (3 * width,),
            **_linear(f"{block}.attn.out_proj", width, width),
            **_linear(f"{block}.mlp.c_fc", 4 * width, width),
            **_linear(f"{block}.mlp.c_proj", width, 4 * width),
            **_norm(f"{block}.ln_1", width),
            **_norm(f"{block}.ln_2", width),
        }
    return shapes


def _linear(key, outputs, inputs):
    return {f"{key}.weight": (outputs, inputs), f"{key}.bias": (outputs,)}


def _norm(key, width):
    return {f"{key}.weight": (width,), f"{key}.bias": (width,)}


def openai(name):
    return random_state_dict(openai_shapes(name))


_RENAMED = {
    "token_embedding": "embeddings.token_embedding",
    "ln_final": "final_layer_norm",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "transformer.resblocks": "encoder.layers",
}


def hugging_face(weights):
    """The same weights under the other names."""
    found = {"text_model.embeddings.position_ids": np.arange(16)[None]}
    for key, value in weights.items():
        if key == "logit_scale":
            found[key] = value
        elif key == "text_projection":
            found["text_projection.weight"] = value.T
        elif key == "positional_embedding":
            found["text_model.embeddings.position_embedding.weight"] = value
        elif key.startswith("visual."):
            found["vision_model." + key.removeprefix("visual.")] = value
        elif ".attn.in_proj_" in key:
            block, leaf = key.split(".attn.in_proj_")
            block = block.replace("transformer.resblocks", "text_model.encoder.layers")
            for part, third in zip("qkv", np.split(value, 3), strict=True):
                found[f"{block}.self_attn.{part}_proj.{leaf}"] = third
        else:
            for ours, theirs in _RENAMED.items():
                key = key.replace(ours, theirs)
            found[f"text_model.{key}"] = value
    return found
