"""Rename FastViT's entries from Apple's names to timm's.

Apple's network is one list, `network.N`: blocks of a stage, the step down to the next,
the position code. timm has stages; steps down are where they begin.
"""

import bisect
import re
from collections.abc import Mapping

import numpy as np

_RENAMES = (
    ("patch_embed", "stem"),
    ("rbr_conv", "conv_kxk"),
    ("rbr_scale", "conv_scale"),
    ("rbr_skip", "identity"),
    ("conv_exp", "final_conv"),
    ("lkb_origin", "large_conv"),
    ("convffn", "mlp"),
    (r"\bse\.reduce\b", "se.fc1"),
    (r"\bse\.expand\b", "se.fc2"),
    (r"(layer_scale(_\d)?)$", r"\1.gamma"),
    (r"^head\.", "head.fc."),
)


def renamed(state_dict: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """Rename Apple's entries to timm's; other entries stay as they are."""
    if not any(key.startswith("patch_embed.0.rbr_conv.") for key in state_dict):
        return state_dict
    steps_down = sorted(
        {
            int(match[1])
            for key in state_dict
            if (match := re.match(r"network\.(\d+)\.proj\.", key))
        }
    )
    return {_timm_name(key, steps_down): v for key, v in state_dict.items()}


def _timm_name(key: str, steps_down: list[int]) -> str:
    for pattern, replacement in _RENAMES:
        key = re.sub(pattern, replacement, key)
    match = re.match(r"network\.(\d+)\.(proj\b|pe\b)?(.*)", key)
    if not match:
        return key
    stage = bisect.bisect_right(steps_down, int(match[1]))
    part = {"proj": "downsample.proj", "pe": "pos_emb.pos_enc", None: "blocks."}
    return f"stages.{stage}.{part[match[2]]}{match[3]}"
