"""Reading hand models: the open hand, Python 2 pickles, npz, and what can be wrong.

Files in MANO's format are made from the open hand's arrays: no licensed number is here.
"""

import pickle
import sys
import types
import warnings

import numpy as np
import pytest
import python2_pickle

from data_pipelines.synthetic.body import mesh as synthetic_body
from handjax.geometry import skeleton
from handjax.io import safe_pickle
from handjax.mano import model_files

TIPS = tuple(int(i) for i in model_files.load().tip_ids)


def _arrays(side="right"):
    file = model_files.load(side=side)
    table = np.array([file.parents, np.arange(16)])
    table[0, 0] = 2**32 - 1
    return {
        "v_template": file.v_template,
        "shapedirs": file.shapedirs,
        "posedirs": file.posedirs,
        "J_regressor": file.J_regressor,
        "weights": file.weights,
        "f": file.faces.astype(np.uint32),
        "kintree_table": table,
        "hands_mean": file.hands_mean,
        "hands_components": file.hands_components,
        "bs_style": "lbs",
        "bs_type": "lrotmin",
    }


def _fake_class(monkeypatch, module, name):
    """A class that pickles as `module.name`, like chumpy's or an old scipy's."""
    made = type(name, (), {"__module__": module})
    stand_in = types.ModuleType(module)
    setattr(stand_in, name, made)
    monkeypatch.setitem(sys.modules, module, stand_in)
    return made


def _held(made, **state):
    instance = made()
    instance.__dict__.update(state)
    return instance


def _python2_pickle(path, arrays, monkeypatch, row_shift=0):
    """Write a file with the structure of MANO_RIGHT.pkl, global for global."""
    chumpy = _fake_class(monkeypatch, "chumpy.ch", "Ch")
    select = _fake_class(monkeypatch, "chumpy.reordering", "Select")
    csc = _fake_class(monkeypatch, "scipy.sparse.csc", "csc_matrix")
    twenty = np.concatenate([arrays["shapedirs"], arrays["shapedirs"] * 7], axis=2)
    ids = np.arange(twenty.size).reshape(twenty.shape)[:, :, :10].ravel()
    dense = arrays["J_regressor"]
    column, row = np.nonzero(dense.T)
    data = arrays | {
        "shapedirs": _held(
            select,
            a=_held(chumpy, x=twenty, _dirty_vars=set(), _itr=None),
            idxs=ids,
            preferred_shape=arrays["shapedirs"].shape,
            _dirty_vars={"a"},
        ),
        "J_regressor": _held(
            csc,
            _shape=dense.shape,
            data=dense[row, column],
            indices=(row + row_shift).astype(np.int32),
            indptr=np.searchsorted(column, np.arange(len(dense.T) + 1)).astype("i4"),
            maxprint=50,
        ),
    }
    path.write_bytes(python2_pickle.dumps(data))
    return path


def _plain(path, arrays):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(arrays, protocol=4))
    return path


def _same(file, other):
    return file.sha256 == other.sha256 and np.array_equal(file.faces, other.faces)


# The open hand.


def test_open_hand_is_in_manos_format():
    file = model_files.load()
    assert (file.name, file.is_right) == ("open", True)
    assert tuple(file.parents) == skeleton.MANO_PARENTS
    assert len(set(file.tip_ids)) == 5
    np.testing.assert_allclose(file.weights.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(file.J_regressor.sum(axis=1), 1, atol=1e-5)


def test_tips_lie_beyond_the_last_joints():
    file = model_files.load()
    joints = model_files.joint_regressor(file) @ file.v_template
    for finger in range(5):
        last = joints[[4 * finger + i for i in (2, 3, 4)]]
        bone, end = last[1] - last[0], last[2] - last[1]
        assert bone @ end > 0.7 * np.linalg.norm(bone) * np.linalg.norm(end)


def test_joint_regressor_gathers_named_joints():
    file = model_files.load()
    regressor = model_files.joint_regressor(file)
    assert regressor.shape == (21, 778)
    for name in skeleton.MANO_JOINTS:
        row = file.J_regressor[skeleton.MANO_JOINTS.index(name)]
        np.testing.assert_array_equal(regressor[skeleton.JOINTS.index(name)], row)
    for finger, vertex in zip(skeleton.FINGERS, file.tip_ids, strict=True):
        row = regressor[skeleton.JOINTS.index(f"{finger}4")]
        assert (row[vertex], np.abs(row).sum()) == (1, 1)


def test_wrist_loop_is_the_boundary_in_order():
    file = model_files.load()
    directed = {(a, b) for f in file.faces.tolist() for a, b in zip(f, f[1:] + f[:1])}  # noqa: B905
    loop = file.wrist_loop.tolist()
    assert len(set(loop)) == len(loop) >= 8
    for a, b in zip(loop, loop[1:] + loop[:1], strict=True):
        assert (a, b) in directed
        assert (b, a) not in directed
    with np.load(model_files.OPEN_HAND) as data:
        assert set(loop) == set(data["wrist_loop"].tolist())


def test_mirroring_twice_is_the_same_hand():
    file = model_files.load()
    left = model_files.load(side="left")
    assert not left.is_right
    assert left.sha256 != file.sha256
    back = model_files.mirror(left)
    assert back.skeleton == file.skeleton
    for field, value in file._replace(skeleton=None)._asdict().items():
        np.testing.assert_array_equal(
            getattr(back._replace(skeleton=None), field), value
        )


# Files.


def test_python_2_pickle_loads_exactly_and_silently(tmp_path, monkeypatch):
    path = _python2_pickle(tmp_path / "MANO_RIGHT.pkl", _arrays(), monkeypatch)
    content = path.read_bytes()
    for name in (b"cnumpy.core.multiarray\n_reconstruct", b"cnumpy\nndarray"):
        assert name in content
    for name in (
        b"cchumpy.ch\nCh",
        b"cchumpy.reordering\nSelect",
        b"c__builtin__\nset",
    ):
        assert name in content
    assert b"cscipy.sparse.csc\ncsc_matrix" in content
    for module in ("chumpy.ch", "chumpy.reordering", "scipy.sparse.csc"):
        monkeypatch.delitem(sys.modules, module)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        file = model_files.load(path, tips=TIPS)
    expected = model_files.load()
    for field in ("v_template", "shapedirs", "posedirs", "J_regressor", "weights"):
        np.testing.assert_array_equal(getattr(file, field), getattr(expected, field))
    assert file.name == "mano"
    assert _same(file, expected)
    assert "chumpy.ch" not in sys.modules


def test_npz_re_exports_give_the_same_hash(tmp_path, monkeypatch):
    import scipy.sparse

    arrays = _arrays()
    pickled = _python2_pickle(tmp_path / "MANO_RIGHT.pkl", arrays, monkeypatch)
    monkeypatch.undo()
    np.savez(tmp_path / "dense.npz", **arrays)
    singles = {k: np.float32(v) if k == "posedirs" else v for k, v in arrays.items()}
    np.savez_compressed(tmp_path / "single.npz", **singles)
    sparse = arrays | {"J_regressor": scipy.sparse.csc_matrix(arrays["J_regressor"])}
    np.savez(tmp_path / "sparse.npz", **sparse)
    expected = model_files.load(pickled, tips=TIPS)
    for name in ("dense", "single", "sparse"):
        file = model_files.load(tmp_path / f"{name}.npz", tips=TIPS)
        assert _same(file, expected), name
    other = arrays | {"v_template": arrays["v_template"] + 1e-5}
    np.savez(tmp_path / "other.npz", **other)
    assert not _same(model_files.load(tmp_path / "other.npz", tips=TIPS), expected)


@pytest.mark.parametrize("folder", ["", "models", "mano/models", "mano_v1_2/models"])
def test_folders_are_searched(tmp_path, folder):
    path = _plain(tmp_path / folder / "MANO_RIGHT.pkl", _arrays())
    assert model_files.find(tmp_path, "right") == path
    assert not model_files.load(tmp_path, tips=TIPS).name == "open"


def test_a_missing_file_says_what_to_do(tmp_path):
    for source in (tmp_path, tmp_path / "MANO_RIGHT.pkl"):
        with pytest.raises(FileNotFoundError) as error:
            model_files.load(source)
        for part in (
            str(tmp_path / "MANO_RIGHT.pkl"),
            "https://mano.is.tue.mpg.de",
            "--config.hand.source=PATH",
            "--config.hand.source=open",
        ):
            assert part in str(error.value)
    with pytest.raises(FileNotFoundError, match="MANO_LEFT"):
        model_files.load(tmp_path, side="left")


def test_an_attack_in_a_model_file_is_named(tmp_path):
    path = tmp_path / "MANO_RIGHT.pkl"
    path.write_bytes(b"\x80\x02cposix\nsystem\nU\x04true\x85R.")
    with pytest.raises(safe_pickle.RefusedPickleError, match=r"posix\.system"):
        model_files.load(path)


def test_the_wrong_side_is_refused(tmp_path):
    path = _plain(tmp_path / "hand.pkl", _arrays("left"))
    with pytest.raises(ValueError, match=r"holds a left hand .* side='right'"):
        model_files.load(path, tips=TIPS)
    path = _plain(tmp_path / "hand.pkl", _arrays("right"))
    with pytest.raises(ValueError, match=r"holds a right hand .* side='left'"):
        model_files.load(path, tips=TIPS, side="left")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"v_template": np.zeros((6890, 3))}, r"v_template has shape \(6890, 3\)"),
        ({"shapedirs": np.zeros((778, 3, 4))}, r"shapedirs has shape"),
        ({"posedirs": np.full((778, 3, 135), np.nan)}, "not finite"),
        ({"f": np.full((1538, 3), 778)}, "refers to vertices 778 to 778"),
        ({"kintree_table": np.zeros((2, 16), int)}, "parents"),
        ({"weights": "oops"}, "weights is not an array of numbers"),
    ],
)
def test_wrong_content_is_named(tmp_path, changes, message):
    path = _plain(tmp_path / "MANO_RIGHT.pkl", _arrays() | changes)
    with pytest.raises(ValueError, match=message):
        model_files.load(path, tips=TIPS)


def test_wrong_kinds_of_files_are_named(tmp_path, monkeypatch):
    arrays = _arrays()
    path = _plain(tmp_path / "a.pkl", {"v_template": 1})
    with pytest.raises(ValueError, match=r"no \['J_regressor', 'f'"):
        model_files.load(path)
    with pytest.raises(ValueError, match="expected a dict"):
        model_files.load(_plain(tmp_path / "a.pkl", [1, 2]))
    whole = _plain(tmp_path / "a.pkl", arrays).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="not a complete pickle"):
        model_files.load(path)
    _python2_pickle(path, arrays | {"f": arrays["f"][:5]}, monkeypatch)
    with pytest.raises(ValueError, match=r"f has shape \(5, 3\)"):
        model_files.load(path)


def test_a_sparse_matrix_that_points_outside_itself_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "MANO_RIGHT.pkl"
    _python2_pickle(path, _arrays(), monkeypatch, row_shift=1000)
    with pytest.raises(ValueError, match="J_regressor: damaged csc_matrix"):
        model_files.load(path, tips=TIPS)


# Options.


def test_options_are_checked():
    for options in ({"side": "Right"}, {"left_shapedirs": "fixed"}):
        with pytest.raises(ValueError, match="not"):
            model_files.load(**options)


def test_tip_conventions(tmp_path):
    with pytest.raises(ValueError, match="its own vertex order"):
        model_files.load("open", tips="smplx")
    path = _plain(tmp_path / "MANO_RIGHT.pkl", _arrays())
    with pytest.raises(ValueError, match="not on the thumb tip"):
        model_files.load(path)  # the open hand's mesh with MANO's ids
    with pytest.raises(ValueError, match=r"not one of \['freihand'"):
        model_files.load(path, tips="openpose")
    with pytest.raises(ValueError, match="five vertices"):
        model_files.load(path, tips=(1, 2, 3))
    assert tuple(model_files.load(path, tips=TIPS).tip_ids) == TIPS


@pytest.mark.parametrize("name", [None, "", *skeleton.MANO_TIPS])
@pytest.mark.parametrize("side", ["right", "left"])
def test_named_tips_are_used(tmp_path, name, side):
    """On a mesh whose tips are where MANO's are."""
    arrays = _arrays(side)
    weights = arrays["weights"] = np.array(arrays["weights"])
    for table in (*skeleton.MANO_TIPS.values(), *skeleton.MANO_TIPS_LEFT.values()):
        for finger, vertex in zip(skeleton.FINGERS, table, strict=True):
            weights[vertex] = 0
            weights[vertex, skeleton.MANO_JOINTS.index(f"{finger}3")] = 1
    path = _plain(tmp_path / f"MANO_{side.upper()}.pkl", arrays)
    option = {"left_shapedirs": "x_negated"} if side == "left" else {}
    file = model_files.load(path, side=side, tips=name, **option)
    expected = skeleton.MANO_TIPS[name or "smplx"]
    if (side, name) == ("left", "manopth"):
        expected = (745, 317, 445, 556, 673)
    assert tuple(file.tip_ids) == expected


def _left_with_defect():
    return _arrays("left") | {"shapedirs": _arrays("right")["shapedirs"]}


def test_a_lone_left_file_warns_and_is_cured_on_demand(tmp_path):
    path = _plain(tmp_path / "MANO_LEFT.pkl", _left_with_defect())
    right = model_files.load().shapedirs
    with pytest.warns(UserWarning, match=r"may be those of the right.*x_negated"):
        as_is = model_files.load(path, side="left", tips=TIPS)
    np.testing.assert_array_equal(as_is.shapedirs, right)
    cured = model_files.load(path, side="left", tips=TIPS, left_shapedirs="x_negated")
    np.testing.assert_array_equal(
        cured.shapedirs, model_files.load(side="left").shapedirs
    )
    negated = model_files.load(
        path, side="left", tips=TIPS, left_shapedirs="all_negated"
    )
    np.testing.assert_array_equal(negated.shapedirs, -right)
    assert len({as_is.sha256, cured.sha256, negated.sha256}) == 3


def test_beside_a_right_file_the_defect_is_known(tmp_path):
    _plain(tmp_path / "MANO_RIGHT.pkl", _arrays())
    path = _plain(tmp_path / "MANO_LEFT.pkl", _left_with_defect())
    with pytest.warns(UserWarning, match="are those of the right"):
        model_files.load(tmp_path, side="left", tips=TIPS)
    _plain(path, _arrays("left"))
    file = model_files.load(tmp_path, side="left", tips=TIPS)  # cured file: no warning
    assert _same(file, model_files.load(side="left"))
    with pytest.raises(ValueError, match="already differ"):
        model_files.load(tmp_path, side="left", tips=TIPS, left_shapedirs="x_negated")


# Bodies.


def test_a_body_is_read_with_its_own_counts(tmp_path):
    synthetic_body.save(tmp_path / "body.npz", sides=5, rings=3)
    file = model_files.load(tmp_path / "body.npz")
    assert (file.name, file.is_right, len(file.v_template)) == ("body", True, 24 * 17)
    assert tuple(file.parents) == skeleton.SMPL_PARENTS
    assert file.hands_components.shape == (69, 69) and not file.hands_mean.any()
    assert file.skeleton.joints[:24] == skeleton.SMPL_JOINTS
    assert file.skeleton.roots == {"pelvis": 0}
    # One bone to every joint but the first, and end points hang on the last bones.
    children = [child for _, child in file.skeleton.bones]
    assert children == list(range(1, len(file.skeleton.joints)))
    names = file.skeleton.joints
    named = {names[child]: names[parent] for parent, child in file.skeleton.bones}
    assert named["left_wrist"] == "left_elbow" and named["head_top"] == "head"
    assert named["right_fingers"] == "right_hand"


def test_joints_of_a_body_are_its_regressed_joints_then_its_end_points(tmp_path):
    arrays = synthetic_body.arrays()
    file = model_files.load(_plain(tmp_path / "body.pkl", arrays))
    joints = model_files.joint_regressor(file) @ file.v_template
    expected = arrays["J_regressor"] @ arrays["v_template"]
    np.testing.assert_allclose(joints[:24], expected, atol=1e-12)
    np.testing.assert_array_equal(joints[24:], arrays["v_template"][arrays["tips"]])


def test_the_published_form_of_a_body_is_read_without_end_points(tmp_path, monkeypatch):
    """Python 2 with chumpy and scipy, more shapes than ten, nothing of ours."""
    arrays = synthetic_body.arrays()
    expected = model_files.load(_plain(tmp_path / "plain.pkl", arrays))
    del arrays["tips"], arrays["tip_names"]
    path = _python2_pickle(tmp_path / "smpl.pkl", arrays, monkeypatch)
    file = model_files.load(path)
    assert _same(file, expected) and file.skeleton.joints == skeleton.SMPL_JOINTS
    more = arrays | {"shapedirs": np.repeat(arrays["shapedirs"], 30, axis=2)}
    assert model_files.load(_plain(path, more)).shapedirs.shape[-1] == 10


def test_another_tree_than_smpls_has_numbered_joints(tmp_path):
    arrays = synthetic_body.arrays()
    kept = np.arange(12)
    part = arrays | {
        "J_regressor": arrays["J_regressor"][kept],
        "weights": arrays["weights"][:, kept],
        "kintree_table": arrays["kintree_table"][:, kept],
        "posedirs": arrays["posedirs"][:, :, : 9 * 11],
    }
    file = model_files.load(_plain(tmp_path / "animal.pkl", part))
    assert file.skeleton.joints[:12] == tuple(f"joint{i}" for i in range(12))
    assert file.skeleton.roots == {"joint0": 0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"weights": np.zeros((624, 23))},
            r"weights has shape .*24 joints and 624 ver",
        ),
        (
            {"posedirs": np.zeros((624, 3, 135))},
            r"posedirs has shape .* \(624, 3, 207\)",
        ),
        ({"shapedirs": np.zeros((624, 3, 4))}, "shapedirs has shape"),
        ({"v_template": np.zeros((600, 3))}, "shapedirs has shape"),
        ({"v_template": np.full((624, 3), np.inf)}, "v_template holds values"),
        ({"f": np.full((9, 3), 624)}, "refers to vertices 624 to 624; there are 624"),
        ({"kintree_table": np.full((2, 24), 30)}, "each must hang on an earlier one"),
        ({"kintree_table": np.array(24)}, "SMPL's format with 0 joints"),
        ({"tips": np.array([1, 2, 3, 4, 999])}, "one vertex from 0 to 623"),
        ({"tip_names": np.array(["head"] * 5)}, "differ from each other"),
    ],
)
def test_wrong_content_of_a_body_is_named(tmp_path, changes, message):
    path = _plain(tmp_path / "body.pkl", synthetic_body.arrays() | changes)
    with pytest.raises(ValueError, match=message):
        model_files.load(path)


def test_a_body_has_no_side_and_no_finger_tips(tmp_path):
    path = _plain(tmp_path / "body.pkl", synthetic_body.arrays())
    with pytest.raises(ValueError, match="has no side"):
        model_files.load(path, side="left")
    with pytest.raises(ValueError, match="leave side='right' and tips empty"):
        model_files.load(path, tips="smplx")
