"""pred.json, pred.zip and the published lists: read, written, checked."""

import json
import zipfile

import numpy as np
import protocol_hands
import pytest

from handjax.evaluation import protocols
from handjax.evaluation.protocols import PhotoHands, mesh_files, plausible
from handjax.evaluation.protocols.mesh_scores import Meshes
from handjax.geometry import skeleton


@pytest.fixture(scope="module")
def meshes():
    return Meshes(*protocol_hands.hands(3))


def small(value):
    """A list of the right form with few numbers."""
    return [[[[value, 0.0, 1.0]] * 21] * 2, [[[value, 0.0, 1.0]] * 4] * 2]


def written(folder, value, name="pred.json"):
    path = folder / name
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def photo_hands(joints3d, vertices):
    n = len(joints3d)
    keys = tuple(str(i) for i in range(n))
    right = np.ones(n, bool)
    return PhotoHands(keys, joints3d, vertices, None, right, joints3d)


@pytest.mark.parametrize("suffix", ["json", "zip"])
def test_what_is_written_can_be_read(meshes, tmp_path, suffix):
    path = tmp_path / f"pred.{suffix}"
    mesh_files.write(path, meshes)
    first = path.read_bytes()
    found = mesh_files.read(path)
    for a, b in zip(found, meshes, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=0.51e-6)
    mesh_files.write(path, meshes)
    assert path.read_bytes() == first
    if suffix == "zip":
        with zipfile.ZipFile(path) as archive:
            assert archive.namelist() == ["pred.json"]
            assert len(json.loads(archive.read("pred.json"))) == 2


def test_meshes_of_different_sizes_are_kept_apart(tmp_path):
    value = small(0.5)
    value[1][1] = value[1][1][:3]
    found = mesh_files.read(written(tmp_path, value))
    assert [v.shape for v in found.vertices] == [(4, 3), (3, 3)]
    value[1][0] = []
    found = mesh_files.read(written(tmp_path, value))
    assert [v.shape for v in found.vertices] == [(0, 3), (3, 3)]


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda v: v[:1], "holds 1 lists; a list of two"),
        (lambda v: {"xyz": v}, "holds dict; a list of two"),
        (lambda v: [v[0], 3], "the vertices are not a list"),
        (lambda v: [v[0][:1], v[1]], "joints of 1 samples and vertices of 2"),
        (lambda v: [[v[0][0], v[0][1][:20]], v[1]], "sample 1 has 20 joints"),
        (lambda v: [[v[0][0], v[0][1][:20] + ["x"]], v[1]], "sample 1 are not rows"),
        (lambda v: [[v[0][0], [None] * 21], v[1]], "sample 1"),
        (lambda v: [np.array(v[0])[..., :2].tolist(), v[1]], r"shape \(21, 2\)"),
        (lambda v: [v[0], [v[1][0], v[1][1][0]]], r"vertices of sample 1.*\(3,\)"),
    ],
)
def test_other_formats_are_refused(tmp_path, spoil, match):
    path = written(tmp_path, spoil(small(0.1)))
    with pytest.raises(ValueError, match=match):
        mesh_files.read(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_named(tmp_path, value):
    lists = small(0.1)
    lists[1][1] = [[value, 0, 1]] * 4
    with pytest.raises(
        ValueError, match=r"vertices of 1 of 2 samples hold NaN.*first.*1"
    ):
        mesh_files.read(written(tmp_path, lists))


def test_damaged_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"pred\.json: not complete JSON"):
        mesh_files.read(written(tmp_path, "[[[0.1, 0.2"))
    with pytest.raises(ValueError, match=r"pred\.zip: not a complete zip"):
        mesh_files.read(written(tmp_path, "PK", "pred.zip"))
    with pytest.raises(FileNotFoundError):
        mesh_files.read(tmp_path / "none.zip")
    path = tmp_path / "pred.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("folder/pred.json", json.dumps(small(0.1)))
    with pytest.raises(ValueError, match=r"folder/pred.json.*at its root"):
        mesh_files.read(path)


def test_missing_truth_says_where_it_comes_from(tmp_path, meshes):
    benchmark = protocols.load("freihand")
    with pytest.raises(FileNotFoundError, match=r"evaluation_xyz.json.*eval\.zip"):
        benchmark.read_truth(tmp_path)
    protocol_hands.write_lists(tmp_path / "ref", *meshes)
    assert benchmark.read_truth(tmp_path).count == 3  # as the scripts want it
    (tmp_path / "ref" / "evaluation_verts.json").write_text("[[[0, 0, 1]]]")
    with pytest.raises(ValueError, match=r"3 samples.*1; they are not of one release"):
        benchmark.read_truth(tmp_path)


# --- axes and orders ----------------------------------------------------------------


def test_ho3d_is_written_in_opengl_axes_and_manos_order(meshes):
    """The order of the facts, which is not that of `skeleton.JOINTS`."""
    order = [0, 5, 6, 7, 9, 10, 11, 17, 18, 19, 13, 14, 15, 1, 2, 3, 4, 8, 12, 16, 20]
    for name in ("ho3d_v2", "ho3d_v3"):
        found = protocols.load(name).from_hands(photo_hands(*meshes), None)
        np.testing.assert_array_equal(
            found.joints3d, meshes.joints3d[:, order] * [1, -1, -1]
        )
        np.testing.assert_array_equal(found.vertices, meshes.vertices * [1, -1, -1])
    found = protocols.load("freihand").from_hands(photo_hands(*meshes), None)
    np.testing.assert_array_equal(found.joints3d, meshes.joints3d)
    np.testing.assert_array_equal(found.vertices, meshes.vertices)


def test_orders_are_permutations_that_keep_the_fingers():
    for name, gather in skeleton.ORDERS.items():
        assert sorted(gather) == list(range(21)), name
    assert skeleton.ORDERS["interhand"][:6].tolist() == [20, 3, 2, 1, 0, 7]
    rhd = skeleton.ORDERS["rhd"]
    assert rhd[:6].tolist() == [0, 4, 3, 2, 1, 8]
    np.testing.assert_array_equal(rhd[rhd], np.arange(21))


@pytest.mark.parametrize("given", skeleton.ORDERS)
@pytest.mark.parametrize("wanted", skeleton.ORDERS)
def test_a_wrong_joint_order_is_seen(meshes, given, wanted):
    joints = meshes.joints3d[:, np.argsort(skeleton.ORDERS[given])]
    found = plausible.joint_order(joints, wanted)
    assert bool(found) == (given != wanted)
    if found:
        assert f"in the order {given!r}; they have to be in {wanted!r}" in found[0]


def test_axes_units_and_constants_are_seen(meshes):
    joints = meshes.joints3d

    def findings(joints, **options):
        return plausible.findings(joints, order="openpose", **options)

    assert findings(joints) == []
    assert findings(joints * [1, -1, -1], opengl=True) == []
    (said,) = findings(joints * [1, -1, -1])
    assert "3 of 3 hands are behind the camera" in said and "negate y and z" in said
    assert "OpenGL" in findings(joints, opengl=True)[0]
    assert findings(joints - joints[:, :1]) == []  # relative to the wrist
    (said,) = findings(joints * 1000)
    assert "if the numbers are metres" in said
    assert findings(joints * 1000, unit_m=1e-3) == []
    assert "all 3 hands are the same" in findings(joints[[0, 0, 0]])[0]
    assert "3 of 3 hands have all joints in one place" in findings(joints * 0)[0]
    assert "no hand" in findings(joints[:0])[0]


def test_check_knows_the_official_numbers(meshes):
    found = protocols.load("freihand").check(meshes)
    assert found == ["3 samples; freihand has 3,960"]
    found = protocols.load("ho3d_v3").check(meshes)
    assert found[0] == "3 samples; ho3d_v3 has 20,137" and "OpenGL" in found[1]
    assert "'openpose'" in found[2] and "'mano'" in found[2]
    short = meshes._replace(vertices=[v[:700] for v in meshes.vertices])
    assert "meshes of 700 vertices" in protocols.load("freihand").check(short)[1]


def test_names_of_benchmarks_lead_to_their_files():
    for name in protocols.names():
        assert protocols.load(name).name == name
    with pytest.raises(ValueError, match=r"'freihnd' is not known.*ho3d_v2"):
        protocols.load("freihnd")
