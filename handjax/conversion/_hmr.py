"""Convert what the Lightning checkpoints of HaMeR and Hamba have in common.

Names in a file and paths of variables meet in a table; `assemble` moves the entries,
takes the hand model from `--hand` and compares all with the family's network.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.traverse_util
import jax
import numpy as np

from handjax import models
from handjax.checkpoints import workdir
from handjax.conversion import Converted, Options, _backbones, _hand
from handjax.errors import UserError
from handjax.family import hand_constants
from handjax.io import weight_matching
from handjax.nn.backbones import _weights
from handjax.types import Batch

StateDict = Mapping[str, np.ndarray]
Table = dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]]
"""Name in the file -> path of a variable, and its layout made from torch's."""

TIPS = "smplx"
RULES = (
    *_backbones.RULES[:1],
    (r"^mano\.", "MANO's arrays, which are taken from --hand"),
    (r"^initialized$", "a flag of the training code"),
)
"""Entries that may be skipped beside the backbone's, and why."""

_BACKBONE = "backbone."
_STACKED = re.compile(r"(.+)/(\d+)")


def assemble(
    state_dict: StateDict,
    options: Options,
    *,
    config: Any,
    table: Table,
    licence: str,
    stage: str,
) -> Converted:
    """Make a whole model of a checkpoint.

    Args:
        state_dict: Entries of the file.
        options: Options of the conversion.
        config: Config of the family, with the sizes of this file; backbone, crop and
            hand are filled in.
        table: All entries but the backbone's and those that `RULES` skip.
        licence: One line.
        stage: Stage whose result the weights are.

    Raises:
        ConversionError: An entry is missing, unknown or of another shape.
        UserError: `options.hand` is not given, or the backbone is not known.
        OSError: The hand model cannot be read.
    """
    file = _hand.chosen(config, options.hand, TIPS)
    inside = {
        key.removeprefix(_BACKBONE): value
        for key, value in state_dict.items()
        if key.startswith(_BACKBONE)
    }
    backbone = _backbones.import_backbone(inside, options.name)
    config.model.backbone = backbone.name
    config.data.crop_size = crop_size(backbone.variables["params"])
    hand = hand_constants.hand_constants(file)
    skipped = _backbones.by_rule(backbone.skipped, _BACKBONE)
    found = {
        **moved(state_dict, table, skipped, RULES),
        **{f"constants/hand/{name}": value for name, value in hand.arrays().items()},
        "constants/faces": hand.faces,
    }
    for collection, tree in backbone.variables.items():
        for path, value in flax.traverse_util.flatten_dict(tree, sep="/").items():
            found[f"{collection}/image_encoder/{path}"] = value
    paper = models.load(config.family).PAPER
    check(
        found,
        config,
        hand,
        table,
        skipped,
        name=f"{paper.name} with {config.model.backbone}",
        advice=f"Pass a checkpoint of {paper.name}, as Lightning saved it.",
    )
    return Converted(
        variables=flax.traverse_util.unflatten_dict(_stacked(found), sep="/"),
        backbone=backbone.name,
        licence=licence,
        skipped=skipped,
        notes=_hand.notes(options.hand),
        config=config,
        stage=stage,
        hand_info={"name": file.name, "sha256": file.sha256},
    )


def crop_size(backbone: Mapping[str, Any]) -> int:
    """Return the side of the crop that a vision transformer has positions for.

    Raises:
        UserError: There is none.
    """
    patch = backbone["patch_embed"]["proj"]["kernel"].shape[0]
    patches = backbone["pos_embed"].shape[1] - 1
    size = patch * math.isqrt(4 * patches // 3)
    if (size // patch) * (size * 3 // 4 // patch) != patches:
        raise UserError(
            f"The backbone has positions for {patches} patches of {patch} pixels, "
            "which three quarters of no square crop are cut into."
        )
    return size


def moved(
    state_dict: StateDict,
    table: Table,
    skipped: dict[str, list[str]],
    rules: Sequence[tuple[str, str]],
) -> dict[str, np.ndarray]:
    """Return everything but the backbone under its path; unknown entries, too.

    Args:
        state_dict: Entries of the file.
        table: Where each entry goes.
        skipped: Gets the names that `rules` skip.
        rules: Patterns of names, and why those are skipped.
    """
    found = {}
    for key, value in state_dict.items():
        if key.startswith(_BACKBONE):
            continue
        why = next((why for rule, why in rules if re.search(rule, key)), "")
        if why:
            skipped.setdefault(why, []).append(key)
            continue
        path, layout = table.get(key, (key, np.asarray))
        value = np.asarray(value).astype(np.float32, copy=False)
        try:
            found[path] = layout(value)
        except (ValueError, IndexError):  # other axes, which the check reports
            found[path] = value
    return found


def check(
    found: dict[str, Any],
    config: Any,
    hand: hand_constants.HandConstants,
    table: Table,
    skipped: dict[str, list[str]],
    *,
    name: str,
    advice: str,
) -> None:
    """Compare with the model of the config.

    Raises:
        ConversionError: Something differs; in the names of the file.
    """
    names = {path: key for key, (path, _) in table.items()}
    try:
        weight_matching.check(
            {path: np.shape(value) for path, value in found.items()},
            _expected(config, hand, names),
            name=name,
            advice=advice,
        )
    except weight_matching.ConversionError as error:
        left_out = [name for group in skipped.values() for name in group]
        raise error.renamed(lambda path: names.get(path, path), left_out) from None


def _expected(
    config: Any, hand: hand_constants.HandConstants, names: Mapping[str, str]
) -> dict[str, tuple[int, ...]]:
    """Return the network's shapes, split in parts where the file splits them."""
    model = workdir.build_model(models.load(config.family), config)
    size = config.data.crop_size
    fields: dict[str, Any] = dict.fromkeys(Batch._fields)
    fields["image"] = np.zeros((1, size, size, 3), np.uint8)
    variables: Any = jax.eval_shape(
        lambda key: model.init(key, Batch(**fields), hand, method="init_all"),
        jax.random.key(0),
    )
    shapes = {}
    for path, shape in _weights.shapes(variables).items():
        if f"{path}/0" in names:
            shapes |= {f"{path}/{i}": shape[1:] for i in range(shape[0])}
        else:
            shapes[path] = shape
    return shapes


def _stacked(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Stack entries `path/0`, `path/1`... into one array."""
    parts: dict[str, dict[int, np.ndarray]] = {}
    whole = {}
    for path, value in found.items():
        if part := _STACKED.fullmatch(path):
            parts.setdefault(part[1], {})[int(part[2])] = value
        else:
            whole[path] = value
    for path, values in parts.items():
        whole[path] = np.stack([values[i] for i in sorted(values)])
    return whole


# --- names and layouts --------------------------------------------------------------


def linear(key: str, path: str, *, bias: bool = True) -> Table:
    """Convert a linear layer."""
    table: Table = {f"{key}.weight": (f"params/{path}/kernel", np.transpose)}
    if bias:
        table[f"{key}.bias"] = (f"params/{path}/bias", np.asarray)
    return table


def norm(key: str, path: str) -> Table:
    """Convert scale and bias of a normalisation."""
    return {
        f"{key}.weight": (f"params/{path}/scale", np.asarray),
        f"{key}.bias": (f"params/{path}/bias", np.asarray),
    }


def heads(key: str, path: str) -> Table:
    """Convert `mano_head.ManoHead`."""
    return {
        **linear(f"{key}.decpose", f"{path}/pose"),
        **linear(f"{key}.decshape", f"{path}/betas"),
        **linear(f"{key}.deccam", f"{path}/cam"),
    }


def mean(key: str) -> Table:
    """Convert mean parameters, which replace those made of the hand model."""
    names = {"init_hand_pose": "pose", "init_betas": "betas", "init_cam": "cam"}
    return {
        f"{key}.{theirs}": (f"constants/mean/{ours}", _only)
        for theirs, ours in names.items()
    }


def discriminator() -> Table:
    """Convert `pose_discriminator.PoseDiscriminator`."""
    key, path = "discriminator", "discriminator"
    table = {
        **linear(f"{key}.betas_fc1", f"{path}/shape0"),
        **linear(f"{key}.betas_fc2", f"{path}/shape1"),
        **linear(f"{key}.betas_out", f"{path}/shape_score"),
        **linear(f"{key}.D_alljoints_fc1", f"{path}/pose0"),
        **linear(f"{key}.D_alljoints_fc2", f"{path}/pose1"),
        **linear(f"{key}.D_alljoints_out", f"{path}/pose_score"),
    }
    for i in range(2):
        table |= linear(f"{key}.D_conv{i + 1}", f"{path}/joint{i}")
        table[f"{key}.D_conv{i + 1}.weight"] = (
            f"params/{path}/joint{i}/kernel",
            _pointwise,
        )
    for joint in range(15):
        where = f"{key}.pose_out.{joint}"
        table[f"{where}.weight"] = (f"params/{path}/each_kernel/{joint}", _only)
        table[f"{where}.bias"] = (f"params/{path}/each_bias/{joint}", _only)
    return table


def _only(value: np.ndarray) -> np.ndarray:
    """Return the only entry along the first axis."""
    (only,) = value
    return np.asarray(only)


def _pointwise(weight: np.ndarray) -> np.ndarray:
    """Convert a 1x1 convolution (out, in, 1, 1) to (in, out)."""
    return weight[:, :, 0, 0].T
