"""Surfaces that tests of meshes share: vertices float64, faces turned outwards."""

import numpy as np


def grid(rows, columns):
    """A flat open sheet of unit squares, each cut in two."""
    y, x = np.mgrid[:rows, :columns]
    vertices = np.stack([x, y, 0 * x], axis=-1).reshape(-1, 3).astype(float)
    a = (np.arange(rows - 1)[:, None] * columns + np.arange(columns - 1)).ravel()
    b, c, d = a + 1, a + columns, a + columns + 1
    faces = np.concatenate([np.stack([a, b, d], 1), np.stack([a, d, c], 1)])
    return vertices, faces


def ball(rings, segments):
    """A unit sphere of `rings * segments + 2` vertices; the last two are the poles."""
    polar = np.linspace(0, np.pi, rings + 2)[1:-1, None]
    turn = np.arange(segments) * 2 * np.pi / segments
    x, y = np.sin(polar) * np.cos(turn), np.sin(polar) * np.sin(turn)
    z = np.cos(polar) + 0 * turn
    sides = np.stack([x, y, z], axis=-1).reshape(-1, 3)
    vertices = np.concatenate([sides, [[0, 0, 1], [0, 0, -1]]])
    number = np.arange(rings * segments).reshape(rings, segments)
    after = np.roll(number, -1, axis=1)
    north, south = np.full((2, segments), [[len(sides)], [len(sides) + 1]])
    triangles = [
        (number[:-1], number[1:], after[:-1]),
        (after[:-1], number[1:], after[1:]),
        (north, number[0], after[0]),
        (south, after[-1], number[-1]),
    ]
    faces = [np.stack(t, axis=-1).reshape(-1, 3) for t in triangles]
    return vertices, np.concatenate(faces)


def torus(around, across):
    """A surface with a hole through it: radii 3 and 1."""
    big = np.arange(around)[:, None] * 2 * np.pi / around
    small = np.arange(across) * 2 * np.pi / across
    radius = 3 + np.cos(small)
    vertices = np.stack(
        [np.cos(big) * radius, np.sin(big) * radius, 0 * big + np.sin(small)], axis=-1
    )
    a = np.arange(around * across).reshape(around, across)
    b, c = np.roll(a, -1, axis=0), np.roll(a, -1, axis=1)
    d = np.roll(b, -1, axis=1)
    faces = np.stack([np.stack([a, b, d], -1), np.stack([a, d, c], -1)])
    return vertices.reshape(-1, 3), faces.reshape(-1, 3)


def cube(cells):
    """A cube of flat sides, each `cells` by `cells` squares."""
    sheet, triangles = grid(cells + 1, cells + 1)
    sides = []
    for axis in range(3):
        for level in (0, cells):
            points = np.empty_like(sheet)
            points[:, axis] = level
            # Turned so that x, y and the side's outward axis are right-handed.
            x, y = (axis + 1) % 3, (axis + 2) % 3
            points[:, [x, y] if level else [y, x]] = sheet[:, :2]
            sides.append(points)
    points = np.concatenate(sides)
    faces = np.concatenate([triangles + len(sheet) * i for i in range(6)])
    vertices, number = np.unique(points, axis=0, return_inverse=True)
    return vertices, number.reshape(-1)[faces]


def bumpy(mesh, size=0.05, seed=0):
    """The same mesh, its vertices moved a little at random: no two costs are equal."""
    vertices, faces = mesh
    rng = np.random.default_rng(seed)
    return vertices + size * rng.normal(size=vertices.shape), faces


def shape_of(faces):
    """Vertices - edges + faces, and boundary edges; fails where no manifold is.

    Edge by edge and vertex by vertex: the slow way.
    """
    faces = [tuple(int(v) for v in face) for face in faces]
    assert len({frozenset(face) for face in faces}) == len(faces)
    sides = {}
    for face in faces:
        assert len(set(face)) == 3
        for a, b in zip(face, face[1:] + face[:1], strict=True):
            sides.setdefault(frozenset((a, b)), []).append((a, b))
    for directed in sides.values():
        assert len(directed) <= 2
        assert len(directed) == len(set(directed))  # turned alike
    vertices = {v for face in faces for v in face}
    for v in vertices:
        link = [set(face) - {v} for face in faces if v in face]
        reached = set(link[0])
        while grown := [
            edge for edge in link if edge & reached and not edge <= reached
        ]:
            reached |= grown[0]
        assert reached == set().union(*link)  # one fan
    boundary = sum(len(directed) == 1 for directed in sides.values())
    return len(vertices) - len(sides) + len(faces), boundary
