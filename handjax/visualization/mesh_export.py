"""Hand meshes as GLB and OBJ files for other programs.

Both files are in metres with x right, y up and z towards the viewer (glTF's axes), the
camera at the origin looking along -z: the OpenCV camera frame turned by 180 degrees
about x, which keeps the winding. Faces are counter-clockwise seen from outside.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import trimesh
from jaxtyping import Float, Int

from handjax.io import atomic_files

OPENCV_TO_GLTF = np.diag([1.0, -1.0, -1.0])

_SKIN_RGBA = (222, 180, 150, 255)


class HandMesh(NamedTuple):
    """One hand to export."""

    name: str
    vertices: Float[np.ndarray, "vertex 3"]
    """OpenCV camera axes, metres."""
    faces: Int[np.ndarray, "face 3"]
    """Outward winding; see `outward_faces`."""


def outward_faces(
    faces: Int[np.ndarray, "face 3"], *, is_right: bool
) -> Int[np.ndarray, "face 3"]:
    """Return the faces of a hand of that side, from the right-hand model's.

    A left hand is the right one mirrored, and mirroring turns faces inside out.
    """
    return faces if is_right else faces[:, ::-1]


def write_glb(
    path: str | Path,
    meshes: Sequence[HandMesh],
    *,
    extras: dict[str, Any] | None = None,
) -> None:
    """Write all hands as named nodes of one binary glTF file.

    Args:
        path: File to make; it appears when complete.
        meshes: Hands in one camera's frame.
        extras: Metadata of the scene (JSON values), e.g. units and camera.
    """
    scene = trimesh.Scene(metadata=extras or {})
    for mesh in meshes:
        material = trimesh.visual.material.PBRMaterial(
            baseColorFactor=_SKIN_RGBA, metallicFactor=0.0, roughnessFactor=0.7
        )
        geometry = trimesh.Trimesh(
            mesh.vertices @ OPENCV_TO_GLTF,
            mesh.faces,
            process=False,  # keeps vertex order and count
            visual=trimesh.visual.TextureVisuals(material=material),
        )
        # Normals in the file give smooth shading everywhere.
        _ = geometry.vertex_normals
        scene.add_geometry(geometry, geom_name=mesh.name, node_name=mesh.name)
    data = scene.export(file_type="glb", include_normals=True)
    atomic_files.write_bytes(path, data)


def write_obj(path: str | Path, meshes: Sequence[HandMesh]) -> None:
    """Write all hands as named objects of one Wavefront OBJ text file."""
    lines = ["# handjax hand mesh; metres; x right, y up, z towards the viewer"]
    offset = 1
    for mesh in meshes:
        lines.append(f"o {mesh.name}")
        vertices = np.asarray(mesh.vertices, np.float64) @ OPENCV_TO_GLTF
        lines += [f"v {x:.7f} {y:.7f} {z:.7f}" for x, y, z in vertices]
        lines += [f"f {a} {b} {c}" for a, b, c in mesh.faces + offset]
        offset += len(vertices)
    atomic_files.write_bytes(path, ("\n".join(lines) + "\n").encode())
