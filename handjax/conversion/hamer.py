"""Convert HaMeR's released checkpoint (`hamer.ckpt`), and others of its code.

    python -m handjax.convert hamer.ckpt --from hamer --to runs/hamer \
        --hand MANO_RIGHT.pkl
    python -m handjax.predict photo.jpg --workdir runs/hamer --output out

The mean parameters are the file's own. MANO's arrays in it are left alone: they come
from your copy of MANO. Another family with the same backbone, such as Hamba, starts
from its weights with --config.init_from=runs/hamer.
"""

import re

import numpy as np

from handjax.config import files
from handjax.conversion import Converted, Options, _hmr
from handjax.errors import UserError

SOURCE = "https://github.com/geopavlakos/hamer"
LICENCE = (
    "code MIT; weights trained on data for non-commercial research only; MANO's own"
)

_DECODER = "mano_head.transformer."
_LAYERS = f"{_DECODER}transformer.layers."
_HEAD_DIM = 64
"""Heads of the released network; the shapes of its weights do not tell."""


def convert(state_dict: _hmr.StateDict, options: Options) -> Converted:
    """Convert a whole model.

    Raises:
        ConversionError: An entry is missing, unknown or of another shape.
        UserError: `options.hand` is not given, or it is not a HaMeR checkpoint.
        OSError: The hand model cannot be read.
    """
    config = files.load_config("hamer:paper").unlock()
    config.model.update(_sizes(state_dict))
    return _hmr.assemble(
        state_dict,
        options,
        config=config,
        table=_table(config.model.decoder_depth),
        licence=LICENCE,
        stage="mesh",
    )


def _sizes(state_dict: _hmr.StateDict) -> dict[str, int | str]:
    """Return the model's fields that the decoder's shapes determine."""
    layers = {
        int(found[1])
        for key in state_dict
        if (found := re.match(re.escape(_LAYERS) + r"(\d+)\.", key))
    }
    shapes = {key: np.shape(value) for key, value in state_dict.items()}
    try:
        inner, dim = shapes[f"{_LAYERS}0.1.fn.to_q.weight"]
        mlp, _ = shapes[f"{_LAYERS}0.2.fn.net.0.weight"]
        _, numbers = shapes[f"{_DECODER}to_token_embedding.weight"]
    except (KeyError, ValueError):
        raise UserError(
            f"The file has no decoder `{_DECODER}*` as HaMeR's, so it is not a "
            "checkpoint of HaMeR; its entries begin with "
            f"{', '.join(list(state_dict)[:4])}."
        ) from None
    return dict(
        decoder_dim=dim,
        decoder_depth=max(layers) + 1,
        decoder_heads=inner // _HEAD_DIM,
        decoder_head_dim=_HEAD_DIM,
        decoder_mlp=mlp,
        query="zero" if numbers == 1 else "mean",
    )


def _table(depth: int) -> _hmr.Table:
    """Return the rules for everything outside of the backbone."""
    linear, norm = _hmr.linear, _hmr.norm
    table = {
        **_hmr.heads("mano_head", "mano_head"),
        **_hmr.mean("mano_head"),
        **_hmr.discriminator(),
        f"{_DECODER}pos_embedding": ("params/decoder/position", np.asarray),
        **linear(f"{_DECODER}to_token_embedding", "decoder/embed"),
    }
    for i in range(depth):
        own, cross, mlp = (f"{_LAYERS}{i}.{k}" for k in range(3))
        path = f"decoder/layer{i}"
        table |= {
            **norm(f"{own}.norm", f"{path}_norm_self"),
            **linear(f"{own}.fn.to_qkv", f"{path}_self_qkv", bias=False),
            **linear(f"{own}.fn.to_out.0", f"{path}_self_out"),
            **norm(f"{cross}.norm", f"{path}_norm_cross"),
            **linear(f"{cross}.fn.to_q", f"{path}_cross_q", bias=False),
            **linear(f"{cross}.fn.to_kv", f"{path}_cross_kv", bias=False),
            **linear(f"{cross}.fn.to_out.0", f"{path}_cross_out"),
            **norm(f"{mlp}.norm", f"{path}_norm_mlp"),
            **linear(f"{mlp}.fn.net.0", f"{path}_mlp_in"),
            **linear(f"{mlp}.fn.net.3", f"{path}_mlp_out"),
        }
    return table
