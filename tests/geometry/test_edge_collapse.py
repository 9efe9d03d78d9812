"""Edge collapse: against a slow reference; topology; what is refused."""

import meshes
import numpy as np
import pytest

from handjax.geometry import edge_collapse


def slow_quadrics(vertices, faces):
    """As matrices, face by face and boundary edge by boundary edge."""
    quadrics = np.zeros((len(vertices), 4, 4))
    directed = {(f[i], f[(i + 1) % 3]): f for f in faces.tolist() for i in range(3)}

    def add(corners, normal, point):
        normal = normal / np.linalg.norm(normal)
        plane = np.append(normal, -normal @ point)
        for v in corners:
            quadrics[v] += np.outer(plane, plane)

    def normal_of(face):
        a, b, c = vertices[face]
        return np.cross(b - a, c - a)

    for face in faces.tolist():
        add(face, normal_of(face), vertices[face[0]])
    for (a, b), face in directed.items():
        if (b, a) not in directed:
            along = vertices[b] - vertices[a]
            add((a, b), np.cross(along, normal_of(face)), vertices[a])
    return quadrics


def slow(vertices, faces, count):
    """Look at every edge at every step, and take the cheapest that may go."""
    quadrics = slow_quadrics(vertices, faces)
    faces = [tuple(face) for face in faces.tolist()]
    shape = meshes.shape_of(faces)[0], count_loops(faces)
    alive = len(vertices)
    while alive > count:
        options = []
        for a, b in sorted({tuple(sorted(e)) for f in faces for e in edges_of(f)}):
            both = quadrics[a] + quadrics[b]
            for kept, gone in ((a, b), (b, a)):
                point = np.append(vertices[kept], 1)
                options.append((point @ both @ point, a, b, kept, gone))
        for _, _, _, kept, gone in sorted(options):
            moved = [tuple(kept if v == gone else v for v in f) for f in faces]
            moved = [f for f in moved if len(set(f)) == 3]
            if moved and keeps_shape(moved, shape):
                break
        faces = moved
        quadrics[kept] += quadrics[gone]
        alive -= 1
    return np.unique(faces), faces


def edges_of(face):
    return zip(face, face[1:] + face[:1], strict=True)


def keeps_shape(faces, shape):
    try:
        return (meshes.shape_of(faces)[0], count_loops(faces)) == shape
    except AssertionError:
        return False


def count_loops(faces):
    directed = {e for f in faces for e in edges_of(f)}
    follow = {a: b for a, b in directed if (b, a) not in directed}
    loops = 0
    while follow:
        loops += 1
        at = next(iter(follow))
        while at in follow:
            at = follow.pop(at)
    return loops


@pytest.mark.parametrize(
    ("mesh", "count"),
    [
        (meshes.ball(4, 7), 4),
        (meshes.grid(6, 6), 3),
        (meshes.torus(9, 5), 12),
    ],
    ids=["ball", "sheet", "torus"],
)
def test_it_takes_the_edges_that_a_slow_search_takes(mesh, count):
    vertices, faces = meshes.bumpy(mesh)
    kept, coarse = edge_collapse.collapse(vertices, faces, count)
    expected, triangles = slow(vertices, faces, count)
    np.testing.assert_array_equal(kept, expected)
    assert {frozenset(f) for f in kept[coarse].tolist()} == {
        frozenset(f) for f in triangles
    }


@pytest.mark.parametrize("count", [100, 40, 15])
def test_a_torus_stays_a_torus(count):
    kept, faces = edge_collapse.collapse(*meshes.bumpy(meshes.torus(20, 10)), count)
    assert len(kept) == count
    assert meshes.shape_of(faces) == (0, 0)


def test_faces_stay_turned_outwards():
    vertices, faces = meshes.ball(20, 20)
    kept, faces = edge_collapse.collapse(vertices, faces, 60)
    a, b, c = (vertices[kept][faces[:, k]] for k in range(3))
    assert (np.sum(np.cross(b - a, c - a) * a, axis=1) > 0).all()


def test_a_hole_stays_open_to_its_last_three_edges():
    vertices, faces = meshes.ball(8, 8)
    north = len(vertices) - 2
    faces = faces[(faces != north).all(axis=1)]
    vertices, faces = np.delete(vertices, north, 0), faces - (faces > north)
    kept, faces = edge_collapse.collapse(vertices, faces, 4)
    assert meshes.shape_of(faces) == (1, 3)
    assert len(kept) == 4


def test_corners_of_a_cube_are_the_last_to_go():
    vertices, faces = meshes.cube(5)
    kept, coarse = edge_collapse.collapse(vertices, faces, 8)
    assert set(np.unique(vertices[kept])) == {0, 5}
    assert meshes.shape_of(coarse) == (2, 0)


def test_equal_costs_go_to_the_lower_vertices():
    """Everything on a flat sheet's inside costs nothing; 0 takes in its neighbours."""
    vertices, faces = meshes.grid(4, 4)
    kept, _ = edge_collapse.collapse(vertices, faces, 15)
    assert list(kept) == [0, *range(2, 16)]


def test_a_face_without_area_does_no_harm():
    vertices, faces = meshes.grid(5, 5)
    vertices[6] = vertices[7]
    kept, coarse = edge_collapse.collapse(vertices, faces, 8)
    assert len(kept) == 8
    assert meshes.shape_of(coarse)[0] == 1


@pytest.mark.parametrize(
    ("mesh", "count"),
    [(meshes.ball(3, 4), 3), (meshes.grid(3, 3), 2), (meshes.torus(6, 6), 5)],
)
def test_too_few_vertices_are_refused(mesh, count):
    with pytest.raises(ValueError, match=rf"{count} vertices are too few.* fewer lev"):
        edge_collapse.collapse(*meshes.bumpy(mesh), count)


def joined_at_a_point():
    """Two sheets that share one vertex."""
    _, faces = meshes.grid(2, 2)
    return np.concatenate([faces, np.where(faces == 0, 0, faces + 3)])


@pytest.mark.parametrize(
    ("faces", "message"),
    [
        ([[0, 1, 2], [0, 1, 3]], "faces 0 and 1 both go from vertex 0 to 1.* turned"),
        ([[0, 1, 2], [1, 0, 3], [0, 1, 4]], "faces 0 and 2 both go from vertex 0 to 1"),
        ([[0, 1, 1]], r"face 0 is \[0, 1, 1\]: three different"),
        ([[0, 1, 5]], "vertices 0 to 5, but there are 5"),
        ([[0, 1, -1]], "vertices -1 to 1, but"),
        ([[0, 1, 2]], "vertex 3 is in no face"),
    ],
)
def test_what_is_no_manifold_is_named(faces, message):
    with pytest.raises(ValueError, match=message):
        edge_collapse.check_manifold(np.array(faces), 5)


def test_a_mesh_without_faces_is_refused():
    with pytest.raises(ValueError, match="no faces"):
        edge_collapse.check_manifold(np.zeros((0, 3), int), 5)


def test_parts_that_touch_in_a_point_are_named():
    with pytest.raises(ValueError, match="vertex 0 joins parts of the mesh"):
        edge_collapse.check_manifold(joined_at_a_point(), 7)
    vertices, ball = meshes.ball(4, 4)
    touching = np.concatenate([ball, np.where(ball == 3, 3, ball + len(vertices))])
    touching -= touching > len(vertices) + 3
    with pytest.raises(ValueError, match="vertex 3 joins parts of the mesh"):
        edge_collapse.check_manifold(touching, 2 * len(vertices) - 1)


@pytest.mark.parametrize(
    "mesh", [meshes.grid(3, 4), meshes.ball(3, 5), meshes.torus(5, 4), meshes.cube(2)]
)
def test_meshes_of_the_tests_are_manifold(mesh):
    vertices, faces = mesh
    edge_collapse.check_manifold(faces, len(vertices))
    meshes.shape_of(faces)
