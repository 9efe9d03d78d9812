"""The named poses as angles set by hand, and which surfaces should touch in them.

Fingers are (MCP flexion, PIP flexion, DIP flexion[, MCP abduction]) in degrees in the
order index, middle, ring, pinky; thumbs are (flexion, abduction, twist) of the CMC,
then flexion of MCP and IP. Positive abduction is towards the thumb.
"""

import numpy as np
from skinning import FINGERS, JOINT_NAMES

LIMITS_DEG = np.zeros((15, 3, 2))
"""Joint limits: (joint, flexion abduction twist, low high)."""
_SPREAD = {
    "index": (-15, 20),
    "middle": (-12, 12),
    "pinky": (-25, 14),
    "ring": (-15, 12),
}
for _f, _finger in enumerate(FINGERS[:4]):
    LIMITS_DEG[3 * _f] = [[-20, 95], _SPREAD[_finger], [-8, 8]]
    LIMITS_DEG[3 * _f + 1] = [[-5, 112], [-2, 2], [-4, 4]]
    LIMITS_DEG[3 * _f + 2] = [[-8, 82], [-2, 2], [-3, 3]]
LIMITS_DEG[12] = [[-25, 50], [-25, 45], [-25, 35]]
LIMITS_DEG[13] = [[-10, 60], [-10, 10], [-5, 12]]
LIMITS_DEG[14] = [[-18, 85], [-3, 3], [-4, 4]]

_STRAIGHT = (0, 2, 1)
_CLOSED = (84, 100, 62)
_CONVERGE = {"index": -4, "middle": 0, "ring": 4, "pinky": 12}
"""Abduction at a closed MCP joint: bent fingers point to one spot at the wrist."""
_UP = ((-20, -5, -5), -5, -12)
_ACROSS = ((30, 25, 20), 40, 50)
_RELAXED = ((5, 10, 5), 10, 15)
_OPPOSED = ((12, 36, 25), 15, 20)
_IN_PALM = ((38, 5, 10), 30, 25)


def pose(index, middle, ring, pinky, thumb):
    """Angles (15, 3) in radians of the module's notation."""
    angles = np.zeros((15, 3))
    for finger, values in zip(
        ("index", "middle", "ring", "pinky"), (index, middle, ring, pinky), strict=True
    ):
        first = JOINT_NAMES.index(f"{finger}1") - 1
        angles[first : first + 3, 0] = values[:3]
        closed = np.clip(values[0] / _CLOSED[0], 0, 1)
        angles[first, 1] = values[3] if len(values) > 3 else closed * _CONVERGE[finger]
    angles[12], angles[13, 0], angles[14, 0] = thumb
    return np.radians(angles)


_C, _S = _CLOSED, _STRAIGHT
POSES = {
    "flat": pose(_S, _S, _S, _S, ((0, 0, 0), 0, 0)),
    "relaxed": pose((18, 28, 16), (22, 32, 18), (26, 34, 20), (30, 36, 20), _RELAXED),
    "spread": pose(
        (-6, 0, 0, 14),
        (-6, 0, 0, 3),
        (-6, 0, 0, -9),
        (-6, 0, 0, -20),
        ((-20, 12, -5), -5, -12),
    ),
    "together": pose(
        (2, 3, 1, -8), (2, 3, 1, -1), (2, 3, 1, 6), (2, 3, 1, 12), ((20, -10, 0), 5, 5)
    ),
    "fist": pose(_C, _C, _C, _C, _ACROSS),
    "point": pose(_S, _C, _C, _C, _ACROSS),
    "thumb_up": pose(_C, _C, _C, _C, _UP),
    "gun": pose(_S, _C, _C, _C, _UP),
    "victory": pose((0, 2, 1, 14), (0, 2, 1, -9), _C, _C, _ACROSS),
    "three": pose((0, 2, 1, 10), (0, 2, 1, 0), (0, 2, 1, -10), _C, _ACROSS),
    "four": pose(_S, _S, _S, _S, _IN_PALM),
    "horns": pose(_S, _C, _C, _S, _ACROSS),
    "shaka": pose(_C, _C, _C, (0, 2, 1, -18), _UP),
    "love": pose(_S, _C, _C, _S, _UP),
    "pinch": pose((42, 48, 30), (22, 28, 15), (16, 22, 12), (12, 16, 10), _OPPOSED),
    "ok": pose((48, 55, 32), (5, 8, 4), (2, 5, 2, -5), (0, 4, 2, -12), _OPPOSED),
    "tripod": pose((45, 45, 25), (48, 48, 25), (60, 60, 35), (65, 65, 38), _OPPOSED),
    "lumbrical": pose((65, 8, 5), (65, 8, 5), (65, 8, 5), (65, 8, 5), _OPPOSED),
    "all_pinch": pose(
        (50, 42, 25, -5), (52, 42, 25), (55, 42, 25, 4), (58, 42, 25, 8), _OPPOSED
    ),
    "hook": pose((5, 88, 45), (5, 90, 45), (5, 90, 45), (5, 88, 45), _RELAXED),
    "claw": pose(
        (-5, 60, 40, 10),
        (-5, 62, 40, 2),
        (-5, 62, 40, -8),
        (-5, 60, 40, -16),
        ((-5, 15, 5), 20, 40),
    ),
    "cylinder": pose(
        (45, 45, 25, 4),
        (48, 46, 25),
        (50, 46, 25, -2),
        (54, 46, 25, -6),
        ((10, 35, 20), 12, 18),
    ),
    "small_cyl": pose(
        (62, 70, 35), (65, 72, 36), (68, 72, 36), (70, 70, 35), ((20, 30, 20), 20, 25)
    ),
    "sphere": pose(
        (30, 40, 25, 14),
        (32, 40, 25, 3),
        (34, 40, 25, -9),
        (36, 40, 25, -20),
        ((2, 38, 22), 8, 15),
    ),
    "disk": pose(
        (5, 45, 30, 16),
        (5, 45, 30, 4),
        (5, 45, 30, -10),
        (5, 45, 30, -22),
        ((-10, 30, 10), 10, 35),
    ),
    "lateral": pose(
        (55, 70, 35), (60, 78, 40), (62, 80, 40), (64, 78, 40), ((18, -8, 0), 10, 20)
    ),
    "mouse": pose(
        (12, 22, 12), (12, 22, 12), (15, 25, 14), (18, 28, 15, -8), ((-5, 20, 5), 8, 12)
    ),
    "asl_a": pose(_C, _C, _C, _C, ((10, -10, 0), 5, 5)),
    "asl_b": pose((0, 2, 1, -8), (0, 2, 1), (0, 2, 1, 6), (0, 2, 1, 12), _IN_PALM),
    "asl_c": pose((25, 48, 30), (25, 48, 30), (25, 48, 30), (25, 48, 30), _OPPOSED),
    "asl_d": pose(_S, (55, 65, 35), (60, 70, 40), (65, 72, 40), _OPPOSED),
    "asl_e": pose((40, 105, 68), (40, 106, 68), (42, 106, 68), (45, 104, 66), _IN_PALM),
    "asl_f": pose(
        (50, 55, 32), (-5, 2, 0, 2), (-5, 2, 0, -8), (-5, 2, 0, -16), _OPPOSED
    ),
    "asl_h": pose((0, 2, 1, -8), (0, 2, 1, 2), _C, _C, _ACROSS),
    "asl_i": pose(_C, _C, _C, (0, 2, 1, -10), _ACROSS),
    "asl_k": pose((0, 2, 1, 10), (40, 5, 2, 0), _C, _C, ((5, 25, 10), 5, 5)),
    "asl_l": pose((0, 2, 1, 4), _C, _C, _C, ((-20, 0, 0), -5, -10)),
    "asl_o": pose((48, 50, 28), (48, 50, 28), (50, 50, 28), (52, 50, 28), _OPPOSED),
    "asl_u": pose((0, 2, 1, -9), (0, 2, 1, 3), _C, _C, _ACROSS),
    "asl_w": pose((0, 2, 1, 12), (0, 2, 1, 1), (0, 2, 1, -10), _C, _OPPOSED),
    "asl_x": pose((20, 85, 50), _C, _C, _C, _ACROSS),
    "asl_y": pose(_C, _C, _C, (0, 2, 1, -20), ((-22, -2, -5), -5, -10)),
}

CONTACTS = {
    "fist": ["thumb middle2"],
    "point": ["thumb middle2"],
    "victory": ["thumb ring2"],
    "three": ["thumb pinky2"],
    "horns": ["thumb middle2"],
    "pinch": ["thumb index"],
    "ok": ["thumb index"],
    "tripod": ["thumb index", "thumb middle"],
    "all_pinch": ["thumb index", "thumb middle"],
    "lateral": ["thumb index2side"],
    "asl_a": ["thumb index1side"],
    "asl_d": ["thumb middle"],
    "asl_f": ["thumb index"],
    "asl_i": ["thumb middle2"],
    "asl_o": ["thumb index", "thumb middle"],
    "asl_u": ["thumb ring2"],
    "asl_w": ["thumb pinky"],
    "asl_x": ["thumb middle2"],
}
"""Pairs of places that touch. A finger's name is its pad; a name with a phalanx number
(1 to 3) the back of that phalanx, with `side` its thumb side."""
