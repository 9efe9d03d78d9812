"""Pictures that tell an image generator how a hand is held: ControlNet's conditions.

Conventions: metres and OpenCV camera axes (x right, y down, z forward), pixel centres
at whole numbers, square uint8 RGB pictures. Each is of the whole hand: what covers it
in the photo is not drawn.
"""

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8

from handjax.errors import UserError
from handjax.geometry.skeleton import BONES
from handjax.visualization import render
from handjax.visualization.rasterizer import Raster, interpolate, rasterize

KINDS = {
    "mesh": "shaded mesh on black",
    "depth": "grey, nearest 255, farthest 1, in metres linear between the two of "
    "depth_range_m; 0 where there is no hand",
    "normals": "camera-space normals as ControlNet's detectors write them: red left, "
    "green up, blue towards the camera, 127.5 (1 + n); (128, 128, 255) where there is "
    "no hand",
    "pose2d": "2-D joints and bones in OpenPose's hand colours on black",
    "both": "pose2d drawn on mesh",
}
"""What can be drawn, and what its pixels mean."""

NEEDS_MESH = frozenset(KINDS) - {"pose2d"}

MESH_COLOR = (0.85, 0.85, 0.85)
"""Grey, so that the picture does not tell the skin's colour."""

_FINGER_COLORS = ((1, 0, 0), (1, 1, 0), (0, 1, 0.5), (0, 0.5, 1), (1, 0, 1))
_LEVELS = (100, 150, 200, 255)
JOINT_COLORS = np.array(
    [(100, 100, 100)]
    + [np.multiply(c, level) for c in _FINGER_COLORS for level in _LEVELS]
).astype(int)
"""RGB of each joint and of the bone that ends there: OpenPose's rendering (its
`handParameters.hpp`), a hue for each finger, brighter towards the tip."""

NO_NORMAL = (128, 128, 255)
"""A surface that looks at the camera, which ControlNet's normals have behind things."""


class HandInView(NamedTuple):
    """What is drawn: one hand before one camera."""

    intrinsics: Float[np.ndarray, "3 3"]
    """Of the picture, pixels."""
    joints2d: Float[np.ndarray, "joint 2"]
    """Pixels; not finite where unknown."""
    vertices: Float[np.ndarray, "vertex 3"] | None = None
    """Camera axes, metres from the camera; None where there is no mesh."""
    faces: Int[np.ndarray, "face 3"] | None = None
    """Outward for the side of the hand."""


class Drawn(NamedTuple):
    """A control picture and what reading it takes."""

    image: UInt8[np.ndarray, "size size 3"]
    depth_range_m: tuple[float, float] | None = None
    """Metres of grey 255 and grey 1 (depth pictures; None where no hand is seen)."""


def draw(kind: str, hand: HandInView, size: int) -> Drawn:
    """Draw a picture of a kind of `KINDS`, `size` pixels wide and high."""
    return _DRAW[kind](hand, size)


def mesh(hand: HandInView, size: int) -> Drawn:
    """Draw the shaded surface, anti-aliased."""
    vertices, faces = _surface(hand)
    black = np.zeros((size, size, 3), np.uint8)
    return Drawn(
        render.draw_mesh(
            black, vertices, faces, hand.intrinsics, color=MESH_COLOR, alpha=1.0
        )
    )


def depth(hand: HandInView, size: int) -> Drawn:
    """Draw the distance along the optical axis, without mixed values at edges."""
    raster = _raster(hand, size)
    seen = raster.face_index >= 0
    grey = np.zeros((size, size), np.uint8)
    if not seen.any():
        return Drawn(_rgb(grey))
    z = raster.zbuffer[seen].astype(np.float64)
    near, far = float(z.min()), float(z.max())
    share = (far - z) / max(far - near, 1e-9)
    grey[seen] = np.rint(1 + 254 * share).astype(np.uint8)
    return Drawn(_rgb(grey), (round(near, 5), round(far, 5)))


def normals(hand: HandInView, size: int) -> Drawn:
    """Smooth unit normals of what is seen, the inside of an open wrist included."""
    vertices, faces = _surface(hand)
    raster = _raster(hand, size)
    seen = raster.face_index >= 0
    image = np.full((size, size, 3), NO_NORMAL, np.uint8)
    n = interpolate(raster, faces, render.vertex_normals(vertices, faces))[seen]
    n /= np.maximum(np.linalg.norm(n, axis=-1, keepdims=True), 1e-12)
    # By the face, not by n: at the outline smooth normals may look a little away.
    corners = vertices[faces[raster.face_index[seen]]]
    outward = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    inside = (outward * corners[:, 0]).sum(axis=-1) > 0
    n[inside] *= -1
    # OpenCV's right, down and forward are left, up and towards the camera, negated.
    image[seen] = np.rint(127.5 * (1 - n)).astype(np.uint8)
    return Drawn(image)


def pose2d(hand: HandInView, size: int) -> Drawn:
    """Draw joints and bones, leaving out those whose place is not known."""
    return Drawn(_draw_pose(np.zeros((size, size, 3), np.uint8), hand.joints2d))


def both(hand: HandInView, size: int) -> Drawn:
    """Draw the pose on the mesh."""
    return Drawn(_draw_pose(mesh(hand, size).image, hand.joints2d))


_DRAW: dict[str, Callable[[HandInView, int], Drawn]] = {
    "mesh": mesh,
    "depth": depth,
    "normals": normals,
    "pose2d": pose2d,
    "both": both,
}


def _surface(hand: HandInView) -> tuple[np.ndarray, np.ndarray]:
    if hand.vertices is None or hand.faces is None:
        raise UserError("This picture is of a mesh, and the hand has none.")
    return np.asarray(hand.vertices, np.float64), hand.faces


def _raster(hand: HandInView, size: int) -> Raster:
    vertices, faces = _surface(hand)
    projected = vertices @ np.asarray(hand.intrinsics, np.float64).T
    # What is behind the camera is not drawn; its pixels do not matter.
    safe = np.where(projected[:, 2:] > 1e-6, projected[:, 2:], 1.0)
    return rasterize(projected[:, :2] / safe, vertices[:, 2], faces, size, size)


def _rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=-1)


def _draw_pose(image: np.ndarray, joints2d: np.ndarray) -> np.ndarray:
    out, size = image.copy(), image.shape[0]
    thickness, radius = max(1, round(size / 64)), max(1, round(size / 56))
    # cv2 takes fixed-point coordinates; far-off points would overflow them.
    near = np.isfinite(joints2d) & (np.abs(joints2d) < 8 * size)
    points = [
        tuple(int(v) for v in np.rint(16 * p)) if ok.all() else None
        for p, ok in zip(np.asarray(joints2d, np.float64), near, strict=True)
    ]
    colors = [tuple(color) for color in JOINT_COLORS.tolist()]
    for a, b in BONES:
        start, end = points[a], points[b]
        if start is not None and end is not None:
            cv2.line(out, start, end, colors[b], thickness, cv2.LINE_AA, shift=4)
    for point, color in zip(points, colors, strict=True):
        if point is not None:
            cv2.circle(out, point, 16 * radius, color, -1, cv2.LINE_AA, shift=4)
    return out
