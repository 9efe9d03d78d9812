"""A mesh at several resolutions: which vertices stay, and the way back up.

    hierarchy = mesh_hierarchy.build(hand.v_template, hand.faces)
    coarse = hierarchy.levels[1]  # 195 of a hand's 778 vertices
    vertices = hierarchy.upsampling(1) @ vertices[..., coarse.kept, :]

Each level keeps a quarter of the one before's vertices, in place (`edge_collapse`).
Up-sampling puts a finer vertex at the nearest point of the coarser surface: weights of
at most three corners, not negative, that sum to one, so that meshes may stand anywhere.
The matrices that METRO's and FastMETRO's networks were published with are not like
that (rows sum to 0.93 to 1.22): `from_files` reads them for converted weights.

Vertices are rounded to float32 first, so that a hand model's file and the constants
made of it have one hierarchy. It is the same, bit for bit, on every platform: sums are
written out, for the order in which a library adds is the processor's. numpy only.
"""

import functools
import os
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from handjax.errors import UserError
from handjax.geometry import closest_points, edge_collapse
from handjax.io import array_files, safe_pickle


class Level(NamedTuple):
    """One resolution; the arrays are shared and cannot be written to."""

    faces: Int[np.ndarray, "face 3"]
    """Between this level's vertices."""
    kept: Int[np.ndarray, "vertex"]
    """Its vertices as numbers of level 0, sorted."""
    corners: Int[np.ndarray, "finer corner"] | None = None
    """Vertices that each vertex of the next finer level is a mean of; None at 0."""
    weights: Float[np.ndarray, "finer corner"] | None = None
    """Of that mean; 0 where there are fewer corners than columns."""

    @property
    def adjacency(self) -> Bool[np.ndarray, "vertex vertex"]:
        """Whether two vertices share an edge or are one."""
        found = np.eye(len(self.kept), dtype=bool)
        for k in range(3):
            a, b = self.faces[:, k], self.faces[:, k - 1]
            found[a, b] = found[b, a] = True
        return found

    @property
    def up(self) -> Float[np.ndarray, "finer vertex"] | None:
        """Matrix from this level's vertices to the next finer level's; None at 0."""
        if self.corners is None:
            return None
        return _gathered(self, np.eye(len(self.kept))).astype(np.float32)


class MeshHierarchy(NamedTuple):
    """A mesh and its coarser versions."""

    levels: tuple[Level, ...]
    """From the full mesh to the coarsest."""

    def upsampling(
        self, coarse: int, fine: int = 0
    ) -> Float[np.ndarray, "fine coarse"]:
        """Return the matrix from the vertices of level `coarse` to those of `fine`.

        Raises:
            ValueError: There is no such level, or `coarse` is the finer one.
        """
        if not 0 <= fine <= coarse < len(self.levels):
            raise UserError(
                f"There is no way up from level {coarse} to level {fine}: levels go "
                f"from 0, the full mesh, to {len(self.levels) - 1}, the coarsest."
            )
        matrix = np.eye(len(self.levels[coarse].kept))
        for level in reversed(self.levels[fine + 1 : coarse + 1]):
            matrix = _gathered(level, matrix)
        return matrix.astype(np.float32)


def _gathered(level: Level, matrix: np.ndarray) -> np.ndarray:
    """Compute `level.up @ matrix`, summed corner after corner."""
    assert level.corners is not None
    assert level.weights is not None
    total = np.zeros((len(level.corners), matrix.shape[1]))
    for corner, weight in zip(level.corners.T, level.weights.T, strict=True):
        total += weight[:, None].astype(np.float64) * matrix[corner]
    return total


# --- made from a mesh ---------------------------------------------------------------


def build(
    vertices: Float[np.ndarray, "vertex 3"],
    faces: Int[np.ndarray, "face 3"],
    *,
    num_levels: int = 5,
    factor: int = 4,
) -> MeshHierarchy:
    """Make the hierarchy of a mesh, or take it from memory: 778, 195, 49, 13, 4.

    Args:
        vertices: Of a mesh at rest, in any unit.
        faces: Triangles, turned alike; the mesh may be open and have several parts.
        num_levels: How many, the full mesh counted.
        factor: A level has 1/factor of the vertices of the one before, rounded up.

    Raises:
        ValueError: The mesh is not manifold, has vertices that are not finite or is
            too small for so many levels.
    """
    points, triangles = np.asarray(vertices, "<f4"), np.asarray(faces, "<i4")
    if num_levels < 1 or factor < 2:
        raise UserError(
            f"num_levels={num_levels} must be 1 or more and factor={factor} 2 or more."
        )
    if not np.isfinite(points).all():
        wrong = int(np.argmin(np.isfinite(points).all(axis=1)))
        raise UserError(f"vertex {wrong} is {points[wrong].tolist()}: not finite.")
    return _built(points.tobytes(), triangles.tobytes(), num_levels, factor)


# A second or two for a body's 6890 vertices: no file is needed.
@functools.lru_cache(maxsize=4)
def _built(vertices: bytes, faces: bytes, num_levels: int, factor: int):
    points = np.frombuffer(vertices, "<f4").reshape(-1, 3).astype(np.float64)
    triangles = np.frombuffer(faces, "<i4").reshape(-1, 3).astype(np.int64)
    edge_collapse.check_manifold(triangles, len(points))
    kept = np.arange(len(points))
    levels = [_level(triangles, kept)]
    for _ in range(1, num_levels):
        fine = points[kept]
        count = -(-len(kept) // factor)
        chosen, triangles = edge_collapse.collapse(fine, triangles, count)
        corners, weights = closest_points.on_surface(fine, fine[chosen], triangles)
        # A kept vertex is itself, even where the surface folds onto it.
        corners[chosen] = np.arange(count)[:, None]
        weights[chosen] = [1, 0, 0]
        kept = kept[chosen]
        levels.append(_level(triangles, kept, corners, weights))
    return MeshHierarchy(tuple(levels))


def _level(faces, kept, corners=None, weights=None) -> Level:
    level = Level(
        faces.astype(np.int32),
        kept.astype(np.int32),
        None if corners is None else corners.astype(np.int32),
        None if weights is None else weights.astype(np.float32),
    )
    for array in level:
        if array is not None:
            array.flags.writeable = False
    return level


# --- read from METRO's files --------------------------------------------------------


def from_files(path: str | os.PathLike) -> MeshHierarchy:
    """Read the matrices that published networks were trained with.

    METRO, MeshGraphormer and FastMETRO ship them for hands as `mano_downsampling.npz`:
    object arrays, from fine to coarse, F (faces), D (one kept vertex a row) and U (up);
    A (adjacency) follows from F. Rows of U do not sum to one, so these matrices have
    to be applied to coordinates relative to the root, as in training. Nothing in the
    file is run (`safe_pickle`).

    Raises:
        RefusedPickleError: The file names a global that such files do not need.
        ValueError: It is damaged, or its levels do not fit each other.
        OSError: It cannot be read.
    """
    name = os.fspath(path)
    data = array_files.load_npz(path, _allowed())
    if missing := sorted({"F", "D", "U"} - set(data)):
        raise UserError(
            f"{name}: no arrays {', '.join(missing)} among {', '.join(sorted(data))}; "
            "expected METRO's mano_downsampling.npz with F, D and U."
        )
    faces = [np.asarray(f) for f in data["F"]]
    down = [_matrix(value, f"{name}: D[{k}]") for k, value in enumerate(data["D"])]
    up = [_matrix(value, f"{name}: U[{k}]") for k, value in enumerate(data["U"])]
    if not len(faces) - 1 == len(down) == len(up) > 0:
        raise UserError(
            f"{name}: {len(faces)} meshes (F), {len(down)} ways down (D) and {len(up)} "
            "up (U) do not fit: between two meshes there is one of each."
        )
    kept = np.arange(down[0].shape[1])
    levels = [_level(_checked(faces[0], len(kept), f"{name}: F[0]"), kept)]
    for k, (D, U) in enumerate(zip(down, up, strict=True)):
        count = len(D)
        one = (D != 0).sum(axis=1) == 1
        if not (one.all() and np.all(D[D != 0] == 1) and D.shape[1] == len(kept)):
            raise UserError(
                f"{name}: D[{k}] has shape {D.shape}; expected one 1 a row, at a kept "
                f"vertex of {len(kept)}, and 0 elsewhere."
            )
        if U.shape != (len(kept), count):
            raise UserError(
                f"{name}: U[{k}] has shape {U.shape}; D[{k}] asks for "
                f"{(len(kept), count)}."
            )
        kept = kept[D.argmax(axis=1)]
        corners, weights = _rows(U)
        triangles = _checked(faces[k + 1], count, f"{name}: F[{k + 1}]")
        levels.append(_level(triangles, kept, corners, weights))
    return MeshHierarchy(tuple(levels))


def _allowed() -> safe_pickle.Allowed:
    sparse = {
        (f"scipy.sparse.{kind}", f"{kind}_matrix"): safe_pickle.holder(f"{kind}_matrix")
        for kind in ("csc", "csr", "coo")
    }
    return {**safe_pickle.plain_globals(), **sparse}


def _matrix(value: Any, name: str) -> np.ndarray:
    """Convert a sparse (or plain) matrix of a file to a dense one."""
    import scipy.sparse

    held = isinstance(value, safe_pickle.Holder)
    kind, state = (value.kind, value.state) if held else (type(value).__name__, {})
    try:
        if not held:
            dense = np.asarray(value, np.float64)
        elif kind == "coo_matrix":
            where = state.get("coords") or (state["row"], state["col"])
            parts = (state["data"], tuple(where))
            dense = scipy.sparse.coo_matrix(parts, shape=state["_shape"]).toarray()
        else:
            parts = (state["data"], state["indices"], state["indptr"])
            matrix = getattr(scipy.sparse, kind)(parts, shape=state["_shape"])
            matrix.check_format(full_check=True)  # toarray trusts the indices
            dense = matrix.toarray()
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise UserError(f"{name} is not a matrix ({kind}): {error!r}.") from error
    if dense.ndim != 2 or dense.dtype.kind not in "fiu" or not np.isfinite(dense).all():
        raise UserError(f"{name} is not a matrix of finite numbers ({kind}).")
    return dense.astype(np.float64)


def _rows(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the nonzero entries of each row: columns, in order, and values."""
    width = max(1, int((matrix != 0).sum(axis=1).max()))
    columns = np.argsort(matrix == 0, axis=1, kind="stable")[:, :width]
    return columns, np.take_along_axis(matrix, columns, axis=1)


def _checked(faces: np.ndarray, count: int, name: str) -> np.ndarray:
    """Return the faces after checking that they index `count` vertices."""
    if faces.dtype.kind not in "iu" or faces.ndim != 2 or faces.shape[1] != 3:
        raise UserError(f"{name} has shape {faces.shape}: no triangles.")
    if faces.size and not 0 <= faces.min() <= faces.max() < count:
        raise UserError(
            f"{name} refers to vertices {faces.min()} to {faces.max()}; there are "
            f"{count}."
        )
    return faces
