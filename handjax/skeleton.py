"""Joint names, orders and the maps between them; each choice with its source.

The one order inside handjax is `JOINTS`: wrist, then thumb, index, middle, ring,
little, each from base to tip (the order of OpenPose and FreiHAND). MANO's file order
is wrist, index, middle, little, ring, thumb (three joints each), to which users append
five finger tips.
"""

import numpy as np

FINGERS = ("thumb", "index", "middle", "ring", "little")

JOINTS = ("wrist",) + tuple(f"{finger}{i}" for finger in FINGERS for i in (1, 2, 3, 4))
"""The 21 joints; 1 is the base of a finger (CMC for the thumb, MCP else), 4 its tip."""

NUM_JOINTS = 21
NUM_VERTICES = 778
NUM_FACES = 1538
NUM_BETAS = 10

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
