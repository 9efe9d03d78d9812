r"""Convert METRO's state dict for hands (`metro_hand_state_dict.bin`).

    python -m handjax.convert metro_hand_state_dict.bin --from metro --to runs/metro \
        --hand MANO_RIGHT.pkl --hierarchy mano_downsampling.npz
    python -m handjax.predict photo.jpg --workdir runs/metro --output out

Each block is a whole BERT, of which METRO uses only the layers: the rest, 41,021,568
numbers of it word embeddings, is left out by name. The network gets the mesh of MANO's
mean pose, made from your copy of MANO, with manopth's finger tips.
"""

from typing import Any

import numpy as np

from handjax.config import files
from handjax.conversion import Converted, Options, _backbones, _hmr, _metro
from handjax.errors import UserError
from handjax.geometry import skeleton
from handjax.mano import model_files

SOURCE = "https://github.com/microsoft/MeshTransformer"
LICENCE = (
    "code MIT; weights trained on FreiHAND, for non-commercial research only; MANO's "
    "own"
)
RULES = (
    *_backbones.RULES[:1],
    (
        r"^trans_encoder\.\d+\.bert\.(embeddings|pooler)\.",
        "parts of BERT that METRO does not use: embeddings of words, pooler",
    ),
)
"""Entries that may be skipped beside the backbone's, and why."""

_HEADS = 4
"""Heads of the released network; the shapes of its weights do not tell."""
_TEMPLATE_TIPS = "manopth"
"""Finger tips of the given mesh; those of the joints are `_metro.TIPS`."""


def convert(state_dict: _hmr.StateDict, options: Options) -> Converted:
    """Convert a whole model.

    Raises:
        ConversionError: An entry is missing, unknown or of another shape.
        UserError: `options.hand` or `options.hierarchy` is not given, or it is
            not a hand network of METRO.
        OSError: The hand model or the hierarchy cannot be read.
    """
    config = files.load_config("tore:paper").unlock()
    sizes = _sizes(state_dict)
    config.model.update(sizes)
    return _metro.assemble(
        state_dict,
        options,
        config=config,
        table=_table(len(sizes["metro_hidden"]), sizes["metro_layers"]),
        rules=RULES,
        licence=LICENCE,
        name="METRO",
        at_rest=mean_pose,
    )


def _sizes(state_dict: _hmr.StateDict) -> dict[str, Any]:
    """Return the model's fields that shapes and names determine."""
    shapes = {key: np.shape(value) for key, value in state_dict.items()}
    blocks = [f"trans_encoder.{i}" for i in range(3)]
    try:
        hidden = [shapes[f"{key}.bert.img_embedding.weight"][0] for key in blocks]
        outputs = [shapes[f"{key}.cls_head.weight"][0] for key in blocks]
        layer = "bert.encoder.layer.0.intermediate.dense.weight"
        mlp, width = shapes[f"{blocks[0]}.{layer}"]
    except (KeyError, ValueError):
        raise UserError(
            "The file has no three blocks `trans_encoder.*.bert` as METRO's, so it is "
            "not a network of METRO; its entries begin with "
            f"{', '.join(list(state_dict)[:4])}."
        ) from None
    return dict(
        host="metro",
        gtr=False,
        pruner="none",
        upsampling="learned",
        coarse_level=_metro.LEVEL,
        metro_hidden=tuple(hidden),
        metro_outputs=tuple(outputs[:-1]),
        metro_layers=_metro.depth(state_dict, f"{blocks[0]}.bert.encoder.layer."),
        metro_heads=_HEADS,
        ratio=mlp // width,
    )


def mean_pose(file: model_files.ManoFile) -> tuple[np.ndarray, np.ndarray]:
    """Return vertices and joints of MANO's mean pose, manopth's default."""
    from handjax.mano.hand_model import HandModel, skin

    local = file.hands_mean.reshape(-1, 3)
    pose = np.concatenate([np.zeros((1, 3)), local]).astype(np.float32)
    vertices, bones = skin(HandModel.from_file(file), pose, np.zeros(10, np.float32))
    ids = file.tip_ids
    if file.name == "mano":
        ids = np.array(skeleton.MANO_TIPS[_TEMPLATE_TIPS])
    vertices = np.asarray(vertices)
    joints = np.concatenate([np.asarray(bones), vertices[ids]])
    return vertices, joints[file.joint_order]


def _table(blocks: int, layers: int) -> _hmr.Table:
    """Return the rules for everything outside of the backbone."""
    table = {
        **_hmr.linear("upsampling", "upsample/level0/over_tokens"),
        **_hmr.linear("cam_param_fc", "head/cam_param_fc"),
        **_hmr.linear("cam_param_fc2", "head/cam_param_fc2"),
        **_hmr.linear("cam_param_fc3", "head/cam_param_fc3"),
    }
    for i in range(blocks):
        key, path = f"trans_encoder.{i}", f"head/trans_encoder_{i}"
        table |= {
            f"{key}.bert.position_embeddings.weight": (
                f"params/{path}/position_embeddings",
                np.asarray,
            ),
            **_hmr.linear(f"{key}.bert.img_embedding", f"{path}/img_embedding"),
            **_hmr.linear(f"{key}.cls_head", f"{path}/cls_head"),
            **_hmr.linear(f"{key}.residual", f"{path}/residual"),
        }
        for j in range(layers):
            table |= _layer(f"{key}.bert.encoder.layer.{j}", f"{path}/layer_{j}")
    return table


def _layer(key: str, path: str) -> _hmr.Table:
    """Return the rules of `bert.BertLayer`."""
    table: _hmr.Table = {}
    for name in (
        *("attention.self.query", "attention.self.key", "attention.self.value"),
        *("attention.output.dense", "intermediate.dense", "output.dense"),
    ):
        table |= _hmr.linear(f"{key}.{name}", f"{path}/{name.replace('.', '_')}")
    for name in ("attention.output", "output"):
        place = f"{path}/{name.replace('.', '_')}_norm"
        table |= _hmr.norm(f"{key}.{name}.LayerNorm", place)
    return table
