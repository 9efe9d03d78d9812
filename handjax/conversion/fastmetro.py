r"""FastMETRO's state dicts for hands (`FastMETRO-L-H64_freihand_state_dict.bin`).

    python -m handjax.convert FastMETRO-L-H64_freihand_state_dict.bin \
        --from fastmetro --to runs/fastmetro --hand MANO_RIGHT.pkl \
        --hierarchy mano_downsampling.npz
    python -m handjax.predict photo.jpg --workdir runs/fastmetro --output out

S, M and L are told by the number of layers; the backbone is HRNet-W64 or ResNet-50.
"""

from typing import Any

import numpy as np

from handjax.config import files
from handjax.conversion import Converted, Options, _backbones, _hmr, _metro
from handjax.errors import UserError

SOURCE = "https://github.com/postech-ami/FastMETRO"
LICENCE = (
    "code MIT; weights trained on FreiHAND, for non-commercial research only; MANO's "
    "own"
)
RULES = _backbones.RULES[:1]

_TRANSFORMERS = ("transformer_1", "transformer_2")
_HEADS = 8
"""Heads of the released network; the shapes of its weights do not tell."""


def convert(state_dict: _hmr.StateDict, options: Options) -> Converted:
    """Convert a whole model.

    Raises:
        ConversionError: An entry is missing, unknown or of another shape.
        UserError: `options.hand` or `options.hierarchy` is not given, or it is
            not a hand network of FastMETRO.
        OSError: The hand model or the hierarchy cannot be read.
    """
    config = files.load_config("tore:paper").unlock()
    sizes = _sizes(state_dict)
    config.model.update(sizes)
    return _metro.assemble(
        state_dict,
        options,
        config=config,
        table=_table(sizes["layers"]),
        rules=RULES,
        licence=LICENCE,
        name="FastMETRO",
    )


def _sizes(state_dict: _hmr.StateDict) -> dict[str, Any]:
    """Return the model's fields that shapes and names determine."""
    shapes = {key: np.shape(value) for key, value in state_dict.items()}
    try:
        width = shapes["conv_1x1.weight"][0]
        narrow, _ = shapes["dim_reduce_enc_img.weight"]
        mlp, _ = shapes["transformer_1.encoder.layers.0.linear1.weight"]
    except (KeyError, ValueError):
        raise UserError(
            "The file has no `conv_1x1`, `dim_reduce_enc_img` and `transformer_1` as "
            "FastMETRO's, so it is not a network of FastMETRO; its entries begin with "
            f"{', '.join(list(state_dict)[:4])}."
        ) from None
    return dict(
        host="fastmetro",
        gtr=False,
        pruner="none",
        upsampling="fixed",
        coarse_level=_metro.LEVEL,
        width=width,
        narrow=narrow,
        layers=_metro.depth(state_dict, "transformer_1.encoder.layers."),
        heads=_HEADS,
        ratio=mlp // width,
    )


def _table(layers: int) -> _hmr.Table:
    """Return the rules for everything outside of the backbone."""
    table: _hmr.Table = {
        "conv_1x1.weight": ("params/head/conv_1x1/kernel", _pointwise),
        "conv_1x1.bias": ("params/head/conv_1x1/bias", np.asarray),
    }
    for name in ("cam", "joint", "vertex"):
        key = f"{name}_token_embed"
        table[f"{key}.weight"] = (f"params/head/{key}", np.asarray)
    for name in ("enc_cam", "enc_img", "dec"):
        table |= _hmr.linear(f"dim_reduce_{name}", f"head/dim_reduce_{name}")
    for name in ("xyz_regressor", "cam_predictor"):
        table |= _hmr.linear(name, f"head/{name}")
    for name in _TRANSFORMERS:
        table |= _half(f"{name}.encoder", layers, ("self_attn",))
        table |= _half(f"{name}.decoder", layers, ("self_attn", "multihead_attn"))
    return table


def _half(key: str, layers: int, attentions: tuple[str, ...]) -> _hmr.Table:
    """Return the rules of an encoder or a decoder of `detr.Transformer`."""
    path = f"head/{key.replace('.', '/')}"
    table = _hmr.norm(f"{key}.norm", f"{path}/norm")
    for i in range(layers):
        layer, place = f"{key}.layers.{i}", f"{path}/layers_{i}"
        for name in attentions:
            table |= _attention(f"{layer}.{name}", f"{place}/{name}")
        for k in range(len(attentions) + 1):
            table |= _hmr.norm(f"{layer}.norm{k + 1}", f"{place}/norm{k + 1}")
        for name in ("linear1", "linear2"):
            table |= _hmr.linear(f"{layer}.{name}", f"{place}/{name}")
    return table


def _attention(key: str, path: str) -> _hmr.Table:
    """Return the rules of `detr.MultiheadAttention`."""
    return {
        f"{key}.in_proj_weight": (f"params/{path}/in_proj_kernel", np.transpose),
        f"{key}.in_proj_bias": (f"params/{path}/in_proj_bias", np.asarray),
        **_hmr.linear(f"{key}.out_proj", f"{path}/out_proj"),
    }


def _pointwise(weight: np.ndarray) -> np.ndarray:
    """Convert a 1x1 convolution (out, in, 1, 1) to (in, out)."""
    return weight[:, :, 0, 0].T
