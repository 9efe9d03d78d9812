"""Joint orders and the maps between them."""

import numpy as np

from handjax.geometry import skeleton


def test_mano_to_joints_maps_names():
    tips = tuple(f"{finger}4" for finger in skeleton.FINGERS)
    names = np.array(skeleton.MANO_JOINTS + tips)
    assert tuple(names[skeleton.MANO_TO_JOINTS]) == skeleton.JOINTS


def test_bones_follow_the_fingers():
    for parent, child in skeleton.BONES:
        finger, number = skeleton.JOINTS[child][:-1], int(skeleton.JOINTS[child][-1])
        expected = "wrist" if number == 1 else f"{finger}{number - 1}"
        assert skeleton.JOINTS[parent] == expected
    assert len(skeleton.BONES) == 20


def test_mano_parents_follow_the_joint_names():
    for joint, parent in enumerate(skeleton.MANO_PARENTS):
        if joint == 0:
            assert parent == -1
            continue
        name = skeleton.MANO_JOINTS[joint]
        expected = "wrist" if name[-1] == "1" else name[:-1] + str(int(name[-1]) - 1)
        assert skeleton.MANO_JOINTS[parent] == expected
