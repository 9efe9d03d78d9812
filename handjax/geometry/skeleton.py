"""Joint names, orders and the maps between them; each choice with its source.

The one order inside handjax is `JOINTS`: wrist, then thumb, index, middle, ring,
little, each from base to tip (the order of OpenPose and FreiHAND). MANO's file order
is wrist, index, middle, little, ring, thumb (three joints each), to which users append
five finger tips.

Whatever is not a network for hands takes its joints from a `Skeleton`: `HAND`, or the
one of a body model's file (`ManoFile.skeleton`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

FINGERS = ("thumb", "index", "middle", "ring", "little")

JOINTS = ("wrist",) + tuple(f"{finger}{i}" for finger in FINGERS for i in (1, 2, 3, 4))
"""The 21 joints; 1 is the base of a finger (CMC for the thumb, MCP else), 4 its tip."""

NUM_JOINTS = 21
NUM_VERTICES = 778

WRIST = 0
MIDDLE_MCP = 9
ROOTS = {"wrist": WRIST, "middle_mcp": MIDDLE_MCP}
"""Named root joints (`config.data.root`)."""

BONES = tuple(
    (0 if i == 0 else 4 * finger + i, 4 * finger + i + 1)
    for finger in range(5)
    for i in range(4)
)
"""Parent and child of each of the 20 bones, in `JOINTS` indices."""


class Skeleton(NamedTuple):
    """The joints that a model predicts, in one order."""

    joints: tuple[str, ...]
    bones: tuple[tuple[int, int], ...]
    """Parent and child of each bone, as indices of `joints`."""
    roots: dict[str, int]
    """Joints that 3-D may be relative to (`config.data.root`). A hand or body none of
    whose roots is in the picture has no 3-D supervision."""


HAND = Skeleton(JOINTS, BONES, ROOTS)

MANO_JOINTS = ("wrist",) + tuple(
    f"{finger}{i}"
    for finger in ("index", "middle", "little", "ring", "thumb")
    for i in (1, 2, 3)
)
"""The 16 joints of a MANO file, in file order."""

MANO_PARENTS = (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14)
"""Parent of each joint of a MANO file (its `kintree_table`)."""

MANO_TO_JOINTS = np.array(
    [0, 13, 14, 15, 16, 1, 2, 3, 17, 4, 5, 6, 18, 10, 11, 12, 19, 7, 8, 9, 20]
)
"""Gather from (16 MANO joints, then tips thumb, index, middle, ring, little) to
`JOINTS`: `joints = mano21[MANO_TO_JOINTS]`."""

ORDERS = {
    "openpose": np.arange(NUM_JOINTS),
    "mano": MANO_TO_JOINTS,
    "interhand": np.array(
        [20, *(4 * finger + 3 - i for finger in range(5) for i in range(4))]
    ),
    "rhd": np.array(
        [0, *(4 * finger + 4 - i for finger in range(5) for i in range(4))]
    ),
}
"""Published order of 21 joints -> gather to `JOINTS`: `joints = theirs[ORDERS[name]]`.
InterHand2.6M and RHD, whose fingers go from tip to base, are counted within one hand.
`np.argsort(ORDERS[name])` is the gather from `JOINTS`."""

MANO_TIPS = {
    "smplx": (744, 320, 443, 554, 671),
    "manopth": (745, 317, 444, 556, 673),
    "freihand": (744, 320, 443, 555, 672),
    "ho3d": (744, 333, 444, 555, 672),
    "metro": (745, 317, 445, 556, 673),
}
"""Finger-tip vertices of MANO meshes (thumb, index, middle, ring, little) by the
project that uses them. Other meshes name their own in the model file."""

MANO_TIPS_LEFT = {"manopth": (745, 317, 445, 556, 673)}
"""Where a project uses other vertices for left hands than `MANO_TIPS` says."""

SMPL_JOINTS = (
    *("pelvis", "left_hip", "right_hip", "spine1", "left_knee", "right_knee"),
    *("spine2", "left_ankle", "right_ankle", "spine3", "left_foot", "right_foot"),
    *("neck", "left_collar", "right_collar", "head", "left_shoulder"),
    *("right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist"),
    *("left_hand", "right_hand"),
)
"""The 24 joints of an SMPL file, in file order."""

SMPL_PARENTS = (
    *(-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12),
    *(13, 14, 16, 17, 18, 19, 20, 21),
)
"""Parent of each joint of an SMPL file (its `kintree_table`)."""


def root_joint(name: str) -> int:
    """Index of a root: a hand's by its name; a body's only one is its first joint."""
    return ROOTS.get(name, 0)


def of_body(parents: Sequence[int], ends: Sequence[tuple[str, int]] = ()) -> Skeleton:
    """Build the skeleton of a body model's tree, then of its file's named points.

    Args:
        parents: of each joint, -1 for the first. SMPL's tree has SMPL's names.
        ends: name of each further point, and the joint that it hangs on.
    """
    known = tuple(parents) == SMPL_PARENTS
    names = SMPL_JOINTS if known else tuple(f"joint{i}" for i in range(len(parents)))
    tree = [(parent, child) for child, parent in enumerate(parents) if child]
    hung = [(joint, len(names) + i) for i, (_, joint) in enumerate(ends)]
    return Skeleton(
        joints=(*names, *(name for name, _ in ends)),
        bones=(*tree, *hung),
        roots={names[0]: 0},
    )
