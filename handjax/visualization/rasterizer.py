"""Z-buffer for triangle meshes on the CPU, without OpenGL.

Conventions: pixel (row y, column x) has its centre at the point (x, y), as in
`types.Batch`; depth grows away from the viewer. The caller projects, so perspective,
weak-perspective and orthographic views all use this one function. Scenes of several
meshes are concatenated (`faces` offset by the vertices before them).
"""

from typing import NamedTuple, no_type_check

import numba
import numpy as np
from jaxtyping import Float, Float32, Int, Int32


class Raster(NamedTuple):
    """What each pixel sees."""

    zbuffer: Float32[np.ndarray, "height width"]
    """Depth of the nearest surface, in the unit of `depth`; inf where there is none."""
    face_index: Int32[np.ndarray, "height width"]
    """Row of `faces` that is seen; -1 where there is none."""
    barycentric: Float32[np.ndarray, "height width 3"]
    """Weights of that face's three corners; they sum to 1, or are 0 where empty."""


def rasterize(
    points_px: Float[np.ndarray, "vertex 2"],
    depth: Float[np.ndarray, "vertex"],
    faces: Int[np.ndarray, "face 3"],
    height: int,
    width: int,
    *,
    near: float = 1e-6,
    perspective: bool = True,
) -> Raster:
    """Find the nearest face at each pixel centre.

    Args:
        points_px: Projected vertices, pixels.
        depth: Distance of each vertex along the viewing axis.
        faces: Vertex indices; either winding is drawn.
        height: Rows of the picture.
        width: Columns of the picture.
        near: Faces with a corner at or before this depth are dropped whole (perspective
            only): a hand that crosses the camera plane has no picture.
        perspective: Barycentric weights and depth follow the surface in space (1/depth
            is linear in the picture); False for orthographic views, where depth is.

    Returns:
        The picture; equal depths keep the face that comes first.
    """
    zbuffer = np.full((height, width), np.inf, np.float32)
    face_index = np.full((height, width), -1, np.int32)
    barycentric = np.zeros((height, width, 3), np.float32)
    _fill(
        np.ascontiguousarray(points_px, np.float64),
        np.ascontiguousarray(depth, np.float64),
        np.ascontiguousarray(faces, np.int64),
        float(near) if perspective else -np.inf,
        perspective,
        (zbuffer, face_index, barycentric),
    )
    return Raster(zbuffer, face_index, barycentric)


def interpolate(
    raster: Raster,
    faces: Int[np.ndarray, "face 3"],
    attribute: Float[np.ndarray, "vertex dim"],
) -> Float[np.ndarray, "height width dim"]:
    """Interpolate a vertex attribute (colour, ...) per pixel; zero where empty."""
    seen = raster.face_index >= 0
    corners = attribute[faces[raster.face_index[seen]]]
    out = np.zeros((*raster.face_index.shape, attribute.shape[1]), attribute.dtype)
    weights = raster.barycentric[seen].astype(attribute.dtype)
    out[seen] = np.einsum("pk,pkd->pd", weights, corners)
    return out


# no_type_check: numba compiles the plain function; no fastmath: pictures must not
# depend on the machine, and inf marks the empty pixels.
@numba.njit(cache=True, nogil=True)
@no_type_check
def _fill(points_px, depth, faces, near, perspective, out):
    zbuffer, face_index, barycentric = out
    height, width = zbuffer.shape
    for f in range(faces.shape[0]):
        i, j, k = faces[f, 0], faces[f, 1], faces[f, 2]
        zi, zj, zk = depth[i], depth[j], depth[k]
        if not (zi > near and zj > near and zk > near):
            continue
        xi, yi = points_px[i, 0], points_px[i, 1]
        xj, yj = points_px[j, 0], points_px[j, 1]
        xk, yk = points_px[k, 0], points_px[k, 1]
        area = (xj - xi) * (yk - yi) - (xk - xi) * (yj - yi)
        if area == 0.0 or not np.isfinite(area):
            continue
        x_first = int(np.ceil(max(0.0, min(xi, xj, xk))))
        x_last = int(np.floor(min(width - 1.0, max(xi, xj, xk))))
        y_first = int(np.ceil(max(0.0, min(yi, yj, yk))))
        y_last = int(np.floor(min(height - 1.0, max(yi, yj, yk))))
        # Screen-space barycentric weights are affine: w = w0 + x dw/dx + y dw/dy.
        wi_dx, wi_dy = (yj - yk) / area, (xk - xj) / area
        wj_dx, wj_dy = (yk - yi) / area, (xi - xk) / area
        for y in range(y_first, y_last + 1):
            for x in range(x_first, x_last + 1):
                wi = wi_dx * (x - xk) + wi_dy * (y - yk)
                wj = wj_dx * (x - xk) + wj_dy * (y - yk)
                wk = 1.0 - wi - wj
                # The margin closes cracks between neighbours that round differently.
                if wi < -1e-9 or wj < -1e-9 or wk < -1e-9:
                    continue
                if perspective:
                    z = 1.0 / (wi / zi + wj / zj + wk / zk)
                    wi, wj, wk = wi * z / zi, wj * z / zj, wk * z / zk
                else:
                    z = wi * zi + wj * zj + wk * zk
                if np.float32(z) < zbuffer[y, x]:
                    zbuffer[y, x] = z
                    face_index[y, x] = f
                    barycentric[y, x, 0] = wi
                    barycentric[y, x, 1] = wj
                    barycentric[y, x, 2] = wk
