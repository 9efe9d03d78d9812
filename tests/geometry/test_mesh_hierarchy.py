"""The hierarchy of a mesh: counts, up-sampling, the same everywhere; METRO's files."""

import hashlib
import itertools
import os

import meshes
import numpy as np
import pytest
import scipy.sparse

from handjax.geometry import mesh_hierarchy
from handjax.io import safe_pickle
from handjax.mano import model_files

HAND = model_files.load()
COUNTS = (778, 195, 49, 13, 4)
KEPT_SHA256 = "c319c3af26bcdd8215f0524f858a946796e2b4a04961be72d4618ed3f42bba85"
ALL_SHA256 = "f0e7f5a46dceb2a4b5e9d2c44b69796b01dc89f4aec58d141f17e7f87da89b50"


def hand():
    return mesh_hierarchy.build(HAND.v_template, HAND.faces)


def upsampled(hierarchy, coarse, vertices, fine=0):
    kept = hierarchy.levels[coarse].kept
    return hierarchy.upsampling(coarse, fine) @ vertices[kept]


def digest(arrays):
    sha256 = hashlib.sha256()
    for array in arrays:
        little = array.dtype.newbyteorder("<")
        sha256.update(np.ascontiguousarray(array, little).tobytes())
    return sha256.hexdigest()


# Levels.


def test_a_hand_has_the_counts_of_the_papers():
    levels = hand().levels
    assert tuple(len(level.kept) for level in levels) == COUNTS
    assert levels[0].up is None
    for finer, level in itertools.pairwise(levels):
        assert set(level.kept) < set(finer.kept)
        assert (np.diff(level.kept) > 0).all()
        assert level.up.shape == (len(finer.kept), len(level.kept))


def test_every_level_of_a_hand_is_one_open_surface():
    boundaries = [meshes.shape_of(level.faces) for level in hand().levels]
    assert [euler for euler, _ in boundaries] == [1] * 5
    assert boundaries[0][1] == len(HAND.wrist_loop)


def test_adjacency_is_that_of_the_edges():
    for level in hand().levels:
        adjacency = level.adjacency
        expected = np.eye(len(level.kept), dtype=bool)
        for a, b, c in level.faces:
            for i, j in ((a, b), (b, c), (c, a)):
                expected[i, j] = expected[j, i] = True
        np.testing.assert_array_equal(adjacency, expected)


def test_a_mesh_of_several_parts_keeps_them():
    vertices, faces = meshes.ball(6, 8)
    both = np.concatenate([vertices, vertices + 5])
    pair = np.concatenate([faces, faces + len(vertices)])
    levels = mesh_hierarchy.build(both, pair, num_levels=2).levels
    assert [len(level.kept) for level in levels] == [100, 25]
    assert meshes.shape_of(levels[1].faces) == (4, 0)
    # Two closed parts need eight vertices.
    with pytest.raises(ValueError, match="7 vertices are too few"):
        mesh_hierarchy.build(both, pair, num_levels=3)


@pytest.mark.slow
def test_a_body_of_6890_vertices():
    vertices, faces = meshes.ball(82, 84)
    hierarchy = mesh_hierarchy.build(vertices, faces, num_levels=3)
    assert [len(level.kept) for level in hierarchy.levels] == [6890, 1723, 431]
    for level in hierarchy.levels[1:]:
        assert meshes.shape_of(level.faces) == (2, 0)
    apart = [
        np.linalg.norm(upsampled(hierarchy, k, vertices) - vertices, axis=1).max()
        for k in (1, 2)
    ]
    assert apart[0] < apart[1] < 0.03


# Up-sampling.


def test_rows_are_weights_of_at_most_three_vertices():
    for level in hand().levels[1:]:
        assert (level.up >= 0).all()
        assert ((level.up > 0).sum(axis=1) <= 3).all()
        np.testing.assert_allclose(level.up.sum(axis=1), 1, atol=2e-7)


def test_kept_vertices_are_themselves():
    hierarchy = hand()
    for k, level in enumerate(hierarchy.levels):
        rows = hierarchy.upsampling(k)[level.kept]
        np.testing.assert_array_equal(rows, np.eye(len(level.kept)))


def test_upsampling_over_levels_is_the_product():
    hierarchy = hand()
    product = np.eye(COUNTS[3])
    for k in (3, 2, 1):
        product = hierarchy.levels[k].up.astype(np.float64) @ product
        np.testing.assert_allclose(hierarchy.upsampling(3, k - 1), product, atol=1e-7)
    np.testing.assert_array_equal(hierarchy.upsampling(2, 2), np.eye(COUNTS[2]))


def test_flat_sides_come_back_exactly():
    vertices, faces = meshes.cube(8)
    hierarchy = mesh_hierarchy.build(vertices, faces, num_levels=3)
    for k in (1, 2):
        back = upsampled(hierarchy, k, vertices)
        np.testing.assert_allclose(back, vertices, atol=2e-6)


def test_affine_functions_come_through_exactly():
    """What is linear in space and shifted stays so: moved meshes are moved meshes."""
    hierarchy, rng = hand(), np.random.default_rng(0)
    matrix, shift = rng.normal(size=(3, 3)), 10 * rng.normal(size=3)
    for k in range(1, 5):
        up = hierarchy.upsampling(k).astype(np.float64)
        coarse = HAND.v_template[hierarchy.levels[k].kept]
        moved = up @ (coarse @ matrix + shift)
        np.testing.assert_allclose(moved, up @ coarse @ matrix + shift, atol=5e-6)


def test_the_error_grows_with_every_level():
    hierarchy = hand()
    apart_mm = [
        1000 * np.linalg.norm(upsampled(hierarchy, k, HAND.v_template) - v, axis=1)
        for v in [HAND.v_template]
        for k in range(5)
    ]
    means = [apart.mean() for apart in apart_mm]
    assert means[0] == 0
    assert (np.diff(means) > 0).all()
    assert means[1] < 0.5
    assert apart_mm[1].max() < 3


def test_levels_that_are_not_there_are_refused():
    for coarse, fine in ((5, 0), (0, 1), (1, -1)):
        with pytest.raises(ValueError, match=f"from level {coarse} to level {fine}"):
            hand().upsampling(coarse, fine)


# The same everywhere.


def test_golden_digest():
    """A changed digest means other meshes: trained networks lose their meaning.

    If it differs on one platform only, a sum is not written out in its order.
    """
    levels = hand().levels
    assert digest(level.kept for level in levels) == KEPT_SHA256
    everything = [x for level in levels for x in level if x is not None]
    assert digest(everything) == ALL_SHA256


def test_a_file_and_its_float32_constants_have_one_hierarchy():
    from_constants = mesh_hierarchy.build(
        HAND.v_template.astype(np.float32), HAND.faces.astype(np.int32)
    )
    assert from_constants is hand()  # from memory: nothing is computed again


def test_shared_arrays_cannot_be_written_to():
    with pytest.raises(ValueError, match="read-only"):
        hand().levels[1].kept[0] = 3


# What is refused.


def test_values_that_are_not_finite_are_named():
    vertices = HAND.v_template.copy()
    vertices[17, 1] = np.nan
    with pytest.raises(ValueError, match=r"vertex 17 is \[.*nan.*not finite"):
        mesh_hierarchy.build(vertices, HAND.faces)


def test_what_is_no_manifold_is_refused():
    faces = np.concatenate([HAND.faces, HAND.faces[:1]])
    with pytest.raises(ValueError, match="faces 0 and 1538 both go from vertex"):
        mesh_hierarchy.build(HAND.v_template, faces)


def test_too_many_levels_are_refused():
    with pytest.raises(ValueError, match=r"1 vertices are too few.*fewer levels"):
        mesh_hierarchy.build(HAND.v_template, HAND.faces, num_levels=6)
    with pytest.raises(ValueError, match="num_levels=0 must be 1 or more"):
        mesh_hierarchy.build(HAND.v_template, HAND.faces, num_levels=0)


# METRO's files.


def _objects(values):
    array = np.empty(len(values), object)
    array[:] = values
    return array


def official(path, kind="csc", **changes):
    """What METRO's file holds, for a sheet of 12, 4 and 3 vertices."""
    rng = np.random.default_rng(0)
    vertices, faces = meshes.grid(3, 4)
    sparse = getattr(scipy.sparse, f"{kind}_matrix")
    triangles = [faces, np.array([[0, 1, 3], [0, 3, 2]]), np.array([[0, 1, 2]])]
    kept = [[0, 3, 8, 11], [0, 1, 3]]
    down, up = [], []
    for chosen, count in zip(kept, (12, 4), strict=True):
        down.append(np.eye(count, dtype=np.float32)[chosen])
        matrix = np.zeros((count, len(chosen)), np.float32)
        for row in range(count):
            corners = rng.choice(len(chosen), 1 + row % 3, replace=False)
            matrix[row, corners] = rng.normal(0.4, 0.3, len(corners))
        up.append(matrix)
    arrays = {
        "A": [sparse(np.eye(n)) for n in (12, 4, 3)],
        "F": [f.astype(np.uint32) for f in triangles],
        "D": [sparse(d) for d in down],
        "U": [sparse(u) for u in up],
        "V": [vertices, vertices[kept[0]], vertices[kept[0]][kept[1]]],
    } | changes
    np.savez(path, **{key: _objects(value) for key, value in arrays.items()})
    return faces, up


@pytest.mark.parametrize("kind", ["csc", "csr", "coo"])
def test_official_files_are_read(tmp_path, kind):
    path = tmp_path / "mano_downsampling.npz"
    faces, up = official(path, kind)
    hierarchy = mesh_hierarchy.from_files(path)
    kept = [level.kept.tolist() for level in hierarchy.levels]
    assert kept == [list(range(12)), [0, 3, 8, 11], [0, 3, 11]]
    np.testing.assert_array_equal(hierarchy.levels[0].faces, faces)
    assert hierarchy.levels[1].adjacency.sum() == 4 + 2 * 5
    for level, matrix in zip(hierarchy.levels[1:], up, strict=True):
        np.testing.assert_array_equal(level.up, matrix)
    np.testing.assert_allclose(hierarchy.upsampling(2), up[0] @ up[1], atol=1e-6)


def test_a_hierarchy_survives_the_official_format(tmp_path):
    """Ours, written as METRO's, comes back bit for bit."""
    path, made = tmp_path / "mano_downsampling.npz", hand()
    down = []
    for finer, level in itertools.pairwise(made.levels):
        rows = np.searchsorted(finer.kept, level.kept)
        down.append(scipy.sparse.csc_matrix(np.eye(len(finer.kept))[rows]))
    up = [scipy.sparse.csc_matrix(level.up) for level in made.levels[1:]]
    official(path, F=[level.faces for level in made.levels], D=down, U=up)
    read = mesh_hierarchy.from_files(path)
    for ours, theirs in zip(made.levels, read.levels, strict=True):
        np.testing.assert_array_equal(ours.kept, theirs.kept)
        np.testing.assert_array_equal(ours.faces, theirs.faces)
    for k in range(1, 5):
        np.testing.assert_array_equal(made.upsampling(k), read.upsampling(k))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"U": []}, r"3 meshes \(F\), 2 ways down \(D\) and 0 up \(U\)"),
        ({"U": [np.eye(12), np.eye(4)]}, r"U\[0\] has shape \(12, 12\); .*\(12, 4\)"),
        ({"D": [np.ones((4, 12)), np.eye(4)[:3]]}, r"D\[0\].*expected one 1 a row"),
        (
            {"U": [np.full((12, 4), np.nan), np.eye(4)]},
            r"U\[0\] is not a matrix of fin",
        ),
        ({"U": ["oops", np.eye(4)]}, r"U\[0\] is not a matrix"),
        ({"F": [np.eye(4), np.eye(3), np.eye(3)]}, r"F\[0\] has shape .*triangles"),
        (
            {"F": [np.array([[0, 1, 12]])] * 3},
            r"F\[0\] refers to vertices 0 to 12; there are 12",
        ),
    ],
)
def test_damaged_files_are_named(tmp_path, changes, message):
    path = tmp_path / "mano_downsampling.npz"
    official(path, **changes)
    with pytest.raises(ValueError, match=message):
        mesh_hierarchy.from_files(path)


def test_indices_outside_of_a_matrix_are_refused(tmp_path):
    path = tmp_path / "mano_downsampling.npz"
    wrong = scipy.sparse.csc_matrix(np.eye(12)[:, :4])
    wrong.indices[0] = 10**9
    official(path, U=[wrong, np.eye(4)[:, :3]])
    with pytest.raises(ValueError, match=r"U\[0\] is not a matrix"):
        mesh_hierarchy.from_files(path)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "other.npz"
    np.savez(path, v_template=np.zeros(3))
    with pytest.raises(ValueError, match="no arrays D, F, U among v_template"):
        mesh_hierarchy.from_files(path)


class _Attack:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_an_attack_is_refused_and_not_run(tmp_path):
    path, trace = tmp_path / "mano_downsampling.npz", tmp_path / "trace"
    official(path, A=[_Attack(f"touch {trace}")])
    with pytest.raises(safe_pickle.RefusedPickleError, match=r"system"):
        mesh_hierarchy.from_files(path)
    assert not trace.exists()
