"""Convert SimpleHand's released checkpoints (`epoch_200_rerun1`, `epoch_200_rerun2`).

    python -m handjax.convert epoch_200_rerun1 --from simplehand --to runs/simplehand \
        --hand MANO_RIGHT.pkl
    python -m handjax.predict photo.jpg --workdir runs/simplehand --output out

The vertices of the released weights are MANO's, so the hand model has to be MANO's,
too: the joints and faces that the result carries come from it.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.traverse_util
import jax
import numpy as np

from handjax import models
from handjax.checkpoints import workdir
from handjax.config import files
from handjax.conversion import Converted, Options, _backbones, _hand
from handjax.errors import UserError
from handjax.family import hand_constants
from handjax.io import weight_matching
from handjax.nn.backbones import _weights
from handjax.types import Batch

SOURCE = "https://github.com/patienceFromZhou/simpleHand"
LICENCE = "code MIT; weights trained on FreiHAND, for non-commercial research only"
UPDATES_PER_EPOCH = 256
TIPS = "freihand"
"""Finger-tip vertices of the released code, by their name in `skeleton.MANO_TIPS`."""

_BACKBONE = "backbone."
_LAYERS = 3

Entry = tuple[str, Callable[[np.ndarray], np.ndarray]]
"""Path of a variable, and its layout made from torch's."""


def convert(state_dict: Mapping[str, np.ndarray], options: Options) -> Converted:
    """Convert a whole model.

    Raises:
        ConversionError: An entry is missing, unknown or of another shape.
        UserError: `options.hand` is not given, or the backbone is not known.
        OSError: The hand model cannot be read.
    """
    config = files.load_config("simplehand:paper").unlock()
    file = _hand.chosen(config, options.hand, TIPS)
    hand = hand_constants.hand_constants(file)
    inside = {k: v for k, v in state_dict.items() if k.startswith(_BACKBONE)}
    if not inside:
        raise UserError(
            "The file has no entries `backbone.*`, so it is not a checkpoint of "
            f"SimpleHand; its entries begin with {', '.join(list(state_dict)[:4])}."
        )
    backbone = _backbones.import_backbone(
        {k.removeprefix(_BACKBONE): v for k, v in inside.items()}, options.name
    )
    config.model.backbone = backbone.name
    skipped = _backbones.by_rule(backbone.skipped, _BACKBONE)
    head, counters = _head(state_dict)
    if counters:
        skipped.setdefault(_backbones.RULES[0][1], []).extend(counters)
    flat = {
        **{
            f"{collection}/image_encoder/{path}": value
            for collection, tree in backbone.variables.items()
            for path, value in flax.traverse_util.flatten_dict(tree, sep="/").items()
        },
        **head,
        "constants/joint_regressor": hand.joint_regressor,
        "constants/faces": hand.faces,
    }
    _check(flat, config, hand, skipped)
    return Converted(
        variables=flax.traverse_util.unflatten_dict(flat, sep="/"),
        backbone=backbone.name,
        licence=LICENCE,
        skipped=skipped,
        notes=_hand.notes(options.hand),
        config=config,
        stage="mesh",
        step=(options.epoch or 0) * UPDATES_PER_EPOCH,
        hand_info={"name": file.name, "sha256": file.sha256},
    )


def _head(state_dict: Mapping[str, np.ndarray]) -> tuple[dict, list[str]]:
    """Return variables outside of the backbone, and counters that are left out.

    Entries that are not in the table keep their name, so that the check finds them.
    """
    table, found, counters = _table(), {}, []
    for key, value in state_dict.items():
        if key.startswith(_BACKBONE):
            continue
        if key.endswith(".num_batches_tracked"):
            counters.append(key)
            continue
        path, layout = table.get(key, (key, np.asarray))
        value = np.asarray(value).astype(np.float32)
        try:
            found[path] = layout(value)
        except ValueError:  # another number of axes, which the check reports
            found[path] = value
    return found, counters


def _check(
    flat: dict, config: Any, hand: hand_constants.HandConstants, skipped: dict
) -> None:
    """Compare with the model of the config.

    Raises:
        ConversionError: Something differs.
    """
    torch_names = {path: key for key, (path, _) in _table().items()}
    try:
        weight_matching.check(
            {path: np.shape(value) for path, value in flat.items()},
            _expected(config, hand),
            name=f"SimpleHand with {config.model.backbone}",
            advice="Pass a checkpoint of SimpleHand's released configuration.",
        )
    except weight_matching.ConversionError as error:
        names = [name for group in skipped.values() for name in group]
        raise error.renamed(lambda p: torch_names.get(p, p), names) from None


def _expected(
    config: Any, hand: hand_constants.HandConstants
) -> dict[str, tuple[int, ...]]:
    model = workdir.build_model(models.load("simplehand"), config)
    size = config.data.crop_size
    fields: dict[str, Any] = dict.fromkeys(Batch._fields)
    fields["image"] = np.zeros((1, size, size, 3), np.uint8)
    variables: Any = jax.eval_shape(
        lambda key: model.init(key, Batch(**fields), hand, method="init_all"),
        jax.random.key(0),
    )
    return _weights.shapes(variables)


# --- names and layouts --------------------------------------------------------------


def _table() -> dict[str, Entry]:
    """Return name in the file -> where it goes, for all but the backbone."""
    up, norm = "generator/upsample0", "generator/upsample0/norm"
    table: dict[str, Entry] = {
        **_linear("keypoints_2d_head", "joints2d_head"),
        **_linear("mesh_head.pred_final", "regressor/coordinates"),
        "mesh_head.deconv.0.weight": (f"params/{up}/deconvolution/kernel", _patches),
        **_norm("mesh_head.deconv.1", norm),
        "mesh_head.deconv.1.running_mean": (f"batch_stats/{norm}/mean", np.asarray),
        "mesh_head.deconv.1.running_var": (f"batch_stats/{norm}/var", np.asarray),
    }
    for i in range(_LAYERS):
        n, layer = i + 1, f"regressor/layer{i}"
        block, mixer = (
            f"mesh_head.encoder_{n}.0",
            f"mesh_head.encoder_{n}.0.token_mixer",
        )
        table |= {
            f"mesh_head.pos_emb_{n}": (f"params/{layer}_code", np.asarray),
            **_linear(f"mesh_head.proj_{n}", f"{layer}_reduce"),
            **_norm(f"{block}.norm1", f"{layer}_block0/norm1"),
            **_norm(f"{block}.norm2", f"{layer}_block0/norm2"),
            **_linear(f"{mixer}.in_proj", f"{layer}_block0/attention/qkv", "_"),
            **_linear(f"{mixer}.out_proj", f"{layer}_block0/attention/out"),
            **_linear(f"{block}.mlp.fc1", f"{layer}_block0/mlp_in"),
            **_linear(f"{block}.mlp.fc2", f"{layer}_block0/mlp_out"),
            **_linear(
                f"mesh_head.upsample_{n}.upsample", f"{layer}_upsample/over_tokens"
            ),
        }
    return table


def _linear(key: str, path: str, dot: str = ".") -> dict[str, Entry]:
    return {
        f"{key}{dot}weight": (f"params/{path}/kernel", np.transpose),
        f"{key}{dot}bias": (f"params/{path}/bias", np.asarray),
    }


def _norm(key: str, path: str) -> dict[str, Entry]:
    return {
        f"{key}.weight": (f"params/{path}/scale", np.asarray),
        f"{key}.bias": (f"params/{path}/bias", np.asarray),
    }


def _patches(weight: np.ndarray) -> np.ndarray:
    """Convert a transposed convolution (in, out, h, w) to (in, h * w * out)."""
    return weight.transpose(0, 2, 3, 1).reshape(len(weight), -1)
