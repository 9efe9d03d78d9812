import json
import struct

import numpy as np
import pytest
import trimesh

from handjax.io import atomic_files
from handjax.mano import model_files
from handjax.visualization import mesh_export
from handjax.visualization.mesh_export import HandMesh, outward_faces

FILE = model_files.load("open")
RIGHT = np.asarray(FILE.v_template, np.float64) + [0.1, 0.05, 0.6]
FACES = np.asarray(FILE.faces)
LEFT = RIGHT * [-1, 1, 1]


def volume_with_closed_wrist(vertices, faces):
    """Signed volume; positive when faces are counter-clockwise seen from outside."""
    a, b, c = (vertices[faces[:, k]] - vertices.mean(axis=0) for k in range(3))
    return np.einsum("ij,ij->i", a, np.cross(b, c)).sum() / 6


def read_obj(path):
    objects, vertices = [], []
    for line in path.read_text().splitlines():
        kind, *rest = line.split()
        if kind == "o":
            objects.append((rest[0], len(vertices), []))
        elif kind == "v":
            vertices.append([float(x) for x in rest])
        elif kind == "f":
            objects[-1][2].append([int(x) - 1 for x in rest])
    vertices = np.array(vertices)
    return {name: (vertices[start:], np.array(f) - start) for name, start, f in objects}


def meshes():
    return [
        HandMesh("right_0", RIGHT, FACES),
        HandMesh("left_1", LEFT, outward_faces(FACES, is_right=False)),
    ]


def test_obj_keeps_vertices_and_turns_axes(tmp_path):
    mesh_export.write_obj(tmp_path / "hand.obj", meshes())
    back = read_obj(tmp_path / "hand.obj")
    right, faces = back["right_0"][0][:778], back["right_0"][1]
    np.testing.assert_allclose(right, RIGHT * [1, -1, -1], atol=1e-7)
    assert (faces == FACES).all()
    assert (tmp_path / "hand.obj").read_text().splitlines()[0].startswith("# ")


@pytest.mark.parametrize("name", ["right_0", "left_1"])
def test_faces_look_outward_on_both_sides(tmp_path, name):
    mesh_export.write_obj(tmp_path / "hand.obj", meshes())
    vertices, faces = read_obj(tmp_path / "hand.obj")[name]
    assert volume_with_closed_wrist(vertices[:778], faces) > 1e-5
    mesh_export.write_glb(tmp_path / "hand.glb", meshes())
    geometry = trimesh.load(tmp_path / "hand.glb").geometry[name]
    assert volume_with_closed_wrist(geometry.vertices, geometry.faces) > 1e-5


def test_glb_keeps_order_names_normals_and_extras(tmp_path):
    path = tmp_path / "hand.glb"
    mesh_export.write_glb(path, meshes(), extras={"units": "metres"})
    scene = trimesh.load(path)
    np.testing.assert_allclose(
        scene.geometry["right_0"].vertices, RIGHT * [1, -1, -1], atol=1e-6
    )
    assert set(scene.graph.nodes_geometry) == {"right_0", "left_1"}
    data = path.read_bytes()
    header = json.loads(data[20 : 20 + struct.unpack("<I", data[12:16])[0]])
    assert header["scenes"][0]["extras"]["units"] == "metres"
    assert "NORMAL" in header["meshes"][0]["primitives"][0]["attributes"]


def test_failed_write_leaves_nothing_and_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    atomic_files.write_json(path, {"x": 1})
    with pytest.raises(ValueError, match="JSON"):
        atomic_files.write_json(path, {"x": float("nan")})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space"):
        atomic_files.write_json(path, {"x": 2})
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert json.loads(path.read_text()) == {"x": 1}
