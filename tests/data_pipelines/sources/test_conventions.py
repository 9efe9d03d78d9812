"""Orders by the names of joints, and poses in every form a data set has them."""

import numpy as np
import pytest
from miniatures import hands
from scipy.spatial.transform import Rotation

from data_pipelines.sources import conventions
from data_pipelines.sources.conventions import ROWS
from handjax.geometry import skeleton
from handjax.geometry.skeleton import ORDERS
from handjax.mano import model_files, numpy_skinning

TIP_TO_BASE = [f"{finger}{i}" for finger in skeleton.FINGERS for i in (4, 3, 2, 1)]
NAMES = {
    "openpose": skeleton.JOINTS,
    "mano": (*skeleton.MANO_JOINTS, *(f"{finger}4" for finger in skeleton.FINGERS)),
    "interhand": (*TIP_TO_BASE, "wrist"),
    "rhd": ("wrist", *TIP_TO_BASE),
}
"""Each order spelled out, after the data sets' own documentation."""


@pytest.mark.parametrize("order", list(ORDERS))
def test_gathers_follow_from_the_names_of_joints(order):
    gather = ORDERS[order]
    assert [NAMES[order][joint] for joint in gather] == list(skeleton.JOINTS)


def test_the_known_gathers():
    """As data sets print them in their tools."""
    interhand = "20 3 2 1 0 7 6 5 4 11 10 9 8 15 14 13 12 19 18 17 16"
    rhd = "0 4 3 2 1 8 7 6 5 12 11 10 9 16 15 14 13 20 19 18 17"
    to_mano = "0 5 6 7 9 10 11 17 18 19 13 14 15 1 2 3 4 8 12 16 20"
    assert " ".join(map(str, ORDERS["interhand"])) == interhand
    assert " ".join(map(str, ORDERS["rhd"])) == rhd
    assert " ".join(map(str, np.argsort(ORDERS["mano"]))) == to_mano


@pytest.mark.parametrize("name", list(ROWS))
def test_joints_are_reordered_scaled_and_turned(name):
    points, row = np.random.default_rng(0).normal(size=(21, 3)), ROWS[name]
    published = points[np.argsort(ORDERS[row.order])] / (row.unit * np.array(row.axes))
    back = conventions.to_joints(name, conventions.to_camera(name, published))
    np.testing.assert_allclose(back, points)


@pytest.mark.parametrize("name", list(ROWS))
def test_rows_name_what_exists(name):
    row = ROWS[name]
    assert row.source and row.order in ORDERS and row.pose in conventions.POSES
    assert row.tips in skeleton.MANO_TIPS
    assert row.left in ("", *model_files.LEFT_SHAPEDIRS)
    assert row.unit in (1, 0.01, 0.001) and row.first_pixel in (0, 1)
    # A reflection would turn right hands into left ones.
    assert np.linalg.det(np.diag(row.axes)) == pytest.approx(1)


def with_row(monkeypatch, **fields):
    row = conventions.Convention(source="made up", **fields)
    monkeypatch.setitem(ROWS, "freihand", row)


@pytest.mark.parametrize("is_right", [True, False])
@pytest.mark.parametrize("form", ["flat", "mean", "pca"])
def test_poses_of_every_form_become_absolute(monkeypatch, form, is_right):
    """Trap: PCA coefficients and mean-relative poses of either side."""
    with_row(monkeypatch, pose=form, left="as_is")
    hand, file = hands.posed(0, is_right=is_right), hands.FILES[is_right]
    pose = hand.pose.copy()
    if form != "flat":
        pose[3:] -= file.hands_mean
    if form == "pca":
        pose[3:] = np.linalg.solve(file.hands_components.T, pose[3:])
    model = conventions.load_models("freihand", "open").of(is_right)
    found = conventions.absolute_pose("freihand", pose, model)
    np.testing.assert_allclose(found, hand.pose, atol=1e-9)
    without = conventions.absolute_pose("freihand", pose, None)
    assert (without is None) == (form != "flat")


@pytest.mark.parametrize("is_right", [True, False])
def test_parameters_follow_a_change_of_camera(monkeypatch, is_right):
    """The hand of the moved parameters is the moved hand, by posing both."""
    with_row(monkeypatch, pose="flat", unit=0.001, left="x_negated")
    hand = hands.posed(3, is_right=is_right)
    R = Rotation.from_rotvec([0.3, -2.0, 1.1]).as_matrix()
    t = np.array([0.4, 0.1, -0.2])
    model = conventions.load_models("freihand", "open").of(is_right)
    found = conventions.parameters(
        "freihand",
        model,
        is_right=is_right,
        pose=hand.pose,
        betas=hand.betas,
        transl=hand.transl,
        R=R,
        t=t,
    )
    pose = found["mano_pose"].reshape(16, 3)
    mesh = numpy_skinning.posed(model, pose, found["mano_betas"]) + found["mano_transl"]
    np.testing.assert_allclose(mesh, hand.vertices @ R.T + t, atol=1e-7)
    assert found.get("left_model", 0) == (0 if is_right else 2)


def test_pixels_that_count_from_one_lose_one(monkeypatch):
    """Trap: Matlab's first pixel is (1, 1)."""
    with_row(monkeypatch, first_pixel=1)
    assert conventions.to_pixels("freihand", np.ones((1, 2))).tolist() == [[0, 0]]


def test_a_left_model_is_read_with_its_cure(tmp_path, monkeypatch):
    """The published MANO_LEFT holds the right hand's shapedirs."""
    right, left = model_files.load(), model_files.load(side="left")
    for file, name in ((right, "RIGHT"), (left, "LEFT")):
        table = np.array([file.parents, np.arange(16)])
        np.savez(
            tmp_path / f"MANO_{name}.npz",
            v_template=file.v_template,
            shapedirs=right.shapedirs,
            posedirs=file.posedirs,
            J_regressor=file.J_regressor,
            weights=file.weights,
            f=file.faces,
            kintree_table=table,
            hands_mean=file.hands_mean,
            hands_components=file.hands_components,
        )
    tips = {"own": tuple(int(i) for i in right.tip_ids)}
    monkeypatch.setattr(skeleton, "MANO_TIPS", skeleton.MANO_TIPS | tips)
    factors = {"as_is": [1, 1, 1], "x_negated": [-1, 1, 1], "all_negated": [-1] * 3}
    monkeypatch.setattr(model_files, "load", _own_tips(model_files.load))
    for cure, factor in factors.items():
        with_row(monkeypatch, pose="flat", left=cure, tips="own")
        models = conventions.load_models("freihand", tmp_path)
        expected = right.shapedirs * np.array(factor)[:, None]
        np.testing.assert_array_equal(models.left.shapedirs, expected)
        np.testing.assert_array_equal(models.right.shapedirs, right.shapedirs)
        assert models.left.tip_ids.tolist() == right.tip_ids.tolist()


def _own_tips(load):
    """`mano_files.load` for the open hand's vertex order."""
    return lambda source, tips="own", **options: load(source, tips=tips, **options)


def test_no_model_is_read_where_none_is_named():
    assert conventions.load_models("freihand", "") == conventions.HandModels()
    with pytest.raises(FileNotFoundError, match=r"mano\.is\.tue\.mpg\.de"):
        conventions.load_models("freihand", "/nowhere")
