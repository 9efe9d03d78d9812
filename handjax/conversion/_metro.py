"""Convert what the hand networks of METRO and FastMETRO have in common.

Both predict 195 of MANO's vertices. Which ones, and the way back to 778, are in METRO's
`mano_downsampling.npz` and are part of what the weights mean: `--hierarchy` names it.
"""

import re
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import numpy as np

from handjax.conversion import Converted, Options, _backbones, _hand, _hmr
from handjax.errors import UserError
from handjax.family import hand_constants
from handjax.geometry import mesh_hierarchy, skeleton
from handjax.mano import model_files

TIPS = "metro"
LEVEL = 1
"""Level of the hierarchy with the 195 vertices."""
ROOT = "wrist"
BUILT = (
    "--hierarchy=built: vertices are meaningless unless the weights were trained with "
    "handjax's hierarchy of this hand; the released ones were trained with METRO's"
)

_BACKBONE = "backbone."
_CHILDREN = ("conv1", "bn1", "", "", "layer1", "layer2", "layer3", "layer4")
"""Modules of torchvision's ResNet, in order: both projects put them into a list, whose
names are numbers; ReLU and pooling have no entries."""


def assemble(
    state_dict: _hmr.StateDict,
    options: Options,
    *,
    config: Any,
    table: _hmr.Table,
    rules: tuple[tuple[str, str], ...],
    licence: str,
    name: str,
    at_rest: Any = None,
) -> Converted:
    """Make a whole model of a state dict.

    Args:
        state_dict: Entries of the file.
        options: Options of the conversion.
        config: Config of the family, with the sizes of this file; backbone and hand are
            filled in.
        table: All entries but the backbone's and those that `rules` skip.
        rules: Patterns of names that are skipped, and why.
        licence: One line.
        name: Name of the network.
        at_rest: Function from a hand's file to the vertices and joints that the network
            is given; None for the flat hand.

    Raises:
        ConversionError: An entry is missing, unknown or of another shape.
        UserError: `options.hand` or `options.hierarchy` is not given, or the backbone
            is not known.
        OSError: The hand model or the hierarchy cannot be read.
    """
    file = _hand.chosen(config, options.hand, TIPS)
    hierarchy, notes = _hierarchy(options.hierarchy, file)
    backbone = _backbones.import_backbone(_named(state_dict), options.name)
    config.model.backbone = backbone.name
    config.model.root = config.data.root = ROOT
    hand = hand_constants.hand_constants(file)
    vertices, joints = (at_rest or _flat)(file)
    skipped = _backbones.by_rule(backbone.skipped, _BACKBONE)
    found = {
        **_hmr.moved(state_dict, table, skipped, rules),
        "constants/faces": hand.faces,
        "constants/hand/joint_regressor": hand.joint_regressor,
        "constants/hand/weights": hand.weights,
        **_mesh(hierarchy, vertices, joints),
    }
    for collection, tree in backbone.variables.items():
        for path, value in flax.traverse_util.flatten_dict(tree, sep="/").items():
            found[f"{collection}/image_encoder/{path}"] = value
    _hmr.check(
        found,
        config,
        hand,
        table,
        skipped,
        name=f"{name} with {config.model.backbone}",
        advice=f"Pass a state dict of {name}'s hand network.",
    )
    return Converted(
        variables=flax.traverse_util.unflatten_dict(found, sep="/"),
        backbone=backbone.name,
        licence=licence,
        skipped=skipped,
        notes=(*_hand.notes(options.hand), *notes),
        config=config,
        stage="mesh",
        hand_info={"name": file.name, "sha256": file.sha256},
    )


def _hierarchy(
    given: str, file: model_files.ManoFile
) -> tuple[mesh_hierarchy.MeshHierarchy, tuple[str, ...]]:
    """Return the hierarchy of `--hierarchy`, and what to warn about.

    Raises:
        UserError: None was given, or it is of another mesh.
    """
    if not given:
        raise UserError(
            "--hierarchy is missing: give METRO's mano_downsampling.npz "
            "(https://github.com/microsoft/MeshTransformer), which says what the "
            "weights' 195 vertices are, or --hierarchy=built if they were trained with "
            "handjax's own."
        )
    if given == "built":
        vertices = np.asarray(file.v_template, np.float32)
        built = mesh_hierarchy.build(vertices, file.faces, num_levels=LEVEL + 1)
        return built, (BUILT,)
    read = mesh_hierarchy.from_files(given)
    if _unordered(read.levels[0].faces) != _unordered(file.faces):
        raise UserError(
            f"--hierarchy={given!r} is of a mesh with other faces than the hand of "
            "--hand; both have to be MANO's right hand."
        )
    return read, ()


def _unordered(faces: np.ndarray) -> set[tuple[int, ...]]:
    """Return faces without the order of corners and of faces."""
    return set(map(tuple, np.sort(faces, axis=1).tolist()))


def _mesh(
    hierarchy: mesh_hierarchy.MeshHierarchy, vertices: np.ndarray, joints: np.ndarray
) -> dict[str, np.ndarray]:
    """Return what the model keeps of the mesh at rest and of its hierarchy."""
    coarse, root = hierarchy.levels[LEVEL], joints[skeleton.root_joint(ROOT)]
    arrays = {
        "joints": np.float32(joints - root),
        "vertices": np.float32(vertices[coarse.kept] - root),
        "adjacency": coarse.adjacency,
        f"kept{LEVEL}": coarse.kept,
        f"up{LEVEL}": hierarchy.upsampling(LEVEL),
    }
    return {f"constants/mesh/{name}": array for name, array in arrays.items()}


def _flat(file: model_files.ManoFile) -> tuple[np.ndarray, np.ndarray]:
    return file.v_template, model_files.joint_regressor(file) @ file.v_template


def _named(state_dict: _hmr.StateDict) -> dict[str, np.ndarray]:
    """Return the entries of the backbone by torchvision's names.

    Raises:
        UserError: There are none.
    """
    found = {}
    for key, value in state_dict.items():
        if not key.startswith(_BACKBONE):
            continue
        first, _, rest = key.removeprefix(_BACKBONE).partition(".")
        if first.isdecimal() and int(first) < len(_CHILDREN):
            first = _CHILDREN[int(first)] or first
        found[f"{first}.{rest}"] = value
    if not found:
        raise UserError(
            "The file has no entries `backbone.*`, so it is not a whole network; its "
            f"entries begin with {', '.join(list(state_dict)[:4])}."
        )
    return found


def depth(state_dict: Mapping[str, Any], prefix: str) -> int:
    """Count the layers `<prefix><i>.` in a file."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    return len({found[1] for key in state_dict if (found := pattern.match(key))})
