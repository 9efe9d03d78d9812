"""Pictures of hands: meshes over photos, turned views, sheets of predictions.

Conventions: metres and OpenCV camera axes (x right, y down, z forward); pixel centres
at whole numbers; pictures are uint8 RGB arrays.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8

from handjax.geometry.skeleton import HAND, Skeleton
from handjax.types import AnyArray, Batch, HandOutput
from handjax.visualization.rasterizer import interpolate, rasterize

# No colour of skin, so that a mesh is told from the hand below it.
PREDICTION_COLOR = (0.55, 0.72, 0.98)
TARGET_COLOR = (0.60, 0.86, 0.58)
LIMB_COLORS = (
    (230, 70, 70),
    (240, 170, 40),
    (80, 190, 80),
    (60, 140, 240),
    (180, 90, 220),
    (50, 195, 195),
)
"""Thumb, index, middle, ring, little; of a body, one limb after the other."""

Color = Sequence[float] | Float[np.ndarray, "vertex 3"]

_SUPERSAMPLE = 2
_PAPER = 245
_GAP = 4
# Towards the light; the viewer looks along +z, so light from the viewer has z < 0.
_LIGHTS = (((-0.4, -0.6, -0.7), 0.65), ((0.8, 0.2, -0.5), 0.2))
_AMBIENT = 0.25


def vertex_normals(
    vertices: Float[np.ndarray, "vertex 3"], faces: Int[np.ndarray, "face 3"]
) -> Float[np.ndarray, "vertex 3"]:
    """Return unit normals, each the area-weighted mean of its faces' normals."""
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    face_normals = np.cross(b - a, c - a)
    normals = np.zeros_like(vertices)
    for k in range(3):
        np.add.at(normals, faces[:, k], face_normals)
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)


def draw_mesh(
    image: UInt8[np.ndarray, "height width 3"],
    vertices: Float[np.ndarray, "vertex 3"],
    faces: Int[np.ndarray, "face 3"],
    intrinsics: Float[np.ndarray, "3 3"],
    *,
    color: Color = PREDICTION_COLOR,
    alpha: float = 0.85,
) -> UInt8[np.ndarray, "height width 3"]:
    """Draw a shaded mesh over a picture, seen by the camera that took it.

    Args:
        image: The picture.
        vertices: In that camera's axes, metres from its centre; those behind it are
            not drawn.
        faces: Vertex indices.
        intrinsics: Camera matrix, pixels of `image`.
        color: RGB of the surface, 0..1; one for all, or one per vertex.
        alpha: 1 hides what is behind the hand.
    """
    vertices = np.asarray(vertices, np.float64)
    depth = vertices[:, 2]
    safe = np.where(depth > 1e-6, depth, 1.0)
    points_px = vertices @ np.asarray(intrinsics, np.float64)[:2].T / safe[:, None]
    return _composite(image, points_px, vertices, faces, color, alpha, perspective=True)


def turned_view(
    vertices: Float[np.ndarray, "vertex 3"],
    faces: Int[np.ndarray, "face 3"],
    *,
    size: int = 224,
    yaw_deg: float = 0.0,
    pitch_deg: float = 0.0,
    color: Color = PREDICTION_COLOR,
    radius: float | None = None,
) -> UInt8[np.ndarray, "size size 3"]:
    """Draw the mesh alone, turned about its centre, in an orthographic view.

    Args:
        vertices: Camera axes, metres.
        faces: Vertex indices.
        size: Side of the picture, pixels.
        yaw_deg: Turn about the vertical; 90 shows the side that faced +x.
        pitch_deg: Turn about the horizontal; 90 shows it from above.
        color: RGB of the surface, 0..1; one for all, or one per vertex.
        radius: Half of the picture's side in metres; None fits the mesh.
    """
    vertices = np.asarray(vertices, np.float64)
    centred = vertices - (vertices.max(axis=0) + vertices.min(axis=0)) / 2
    if radius is None:
        radius = 1.08 * float(np.linalg.norm(centred, axis=1).max())
    turned = centred @ _turn(yaw_deg, pitch_deg).T
    half = (size - 1) / 2
    points_px = turned[:, :2] * (half / max(radius, 1e-9)) + half
    blank = np.full((size, size, 3), _PAPER, np.uint8)
    return _composite(blank, points_px, turned, faces, color, 1.0, perspective=False)


def _turn(yaw_deg: float, pitch_deg: float) -> np.ndarray:
    cy, sy = np.cos(np.deg2rad(yaw_deg)), np.sin(np.deg2rad(yaw_deg))
    cp, sp = np.cos(np.deg2rad(pitch_deg)), np.sin(np.deg2rad(pitch_deg))
    # Yaw brings +x to the front (-z), pitch brings the top (-y) to the front.
    yaw = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    pitch = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    return pitch @ yaw


def _composite(image, points_px, vertices, faces, color, alpha, *, perspective):
    """Draw into the part of the picture that the mesh covers, anti-aliased."""
    height, width = image.shape[:2]
    out = image.copy()
    finite = points_px[np.isfinite(points_px).all(axis=1)]
    if not len(finite):
        return out
    low = np.clip(np.floor(finite.min(axis=0)) - 1, 0, [width, height]).astype(int)
    high = np.clip(np.ceil(finite.max(axis=0)) + 2, 0, [width, height]).astype(int)
    w, h = (int(v) for v in high - low)
    if w <= 0 or h <= 0:
        return out
    s = _SUPERSAMPLE
    # Pixel p covers p - 0.5 .. p + 0.5, so its fine pixels start at s p.
    fine_px = (points_px - low + 0.5) * s - 0.5
    raster = rasterize(
        fine_px, vertices[:, 2], faces, h * s, w * s, perspective=perspective
    )
    seen = (raster.face_index >= 0)[..., None]
    shaded = _shade(raster, vertices, faces, perspective)[..., None]
    color = np.asarray(color, np.float64)
    if color.ndim == 2:
        color = interpolate(raster, faces, color)
    layer = np.where(seen, shaded * color, 0.0)
    cover = alpha * _downsample(seen.astype(np.float64))
    layer = alpha * _downsample(layer)
    region = out[low[1] : high[1], low[0] : high[0]]
    mixed = region * (1 - cover) + 255 * layer
    region[:] = np.clip(np.rint(mixed), 0, 255).astype(np.uint8)
    return out


def _shade(raster, vertices, faces, perspective):
    normals = interpolate(raster, faces, vertex_normals(vertices, faces))
    normals /= np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-12)
    # Two-sided: the inside of an open wrist is lit as well.
    view = (
        interpolate(raster, faces, vertices) if perspective else np.array([0.0, 0, 1])
    )
    away = np.sum(normals * view, axis=-1, keepdims=True) > 0
    normals = np.where(away, -normals, normals)
    brightness = np.full(raster.face_index.shape, _AMBIENT)
    for direction, strength in _LIGHTS:
        light = np.asarray(direction) / np.linalg.norm(direction)
        brightness += strength * np.clip(normals @ light, 0, None)
    return np.clip(brightness, 0, 1)


def _downsample(picture):
    h, w, c = picture.shape
    s = _SUPERSAMPLE
    return picture.reshape(h // s, s, w // s, s, c).mean(axis=(1, 3))


def draw_skeleton(
    image: UInt8[np.ndarray, "height width 3"],
    joints2d: Float[np.ndarray, "joint 2"],
    *,
    skeleton: Skeleton = HAND,
    thin: bool = False,
) -> UInt8[np.ndarray, "height width 3"]:
    """Draw bones coloured by finger (limb) and joints as dots, if finite.

    Args:
        image: The picture.
        joints2d: Its pixels.
        skeleton: Whose bones.
        thin: Lines of one pixel and no dots, for skeletons that stand behind others.
    """
    out = image.copy()
    scale = max(image.shape[:2]) / 224
    thickness, radius = max(1, round(1.5 * scale)), max(1, round(2 * scale))
    points = _fixed_points(joints2d, image)
    colors = {0: (255, 255, 255)}
    for (a, b), limb in zip(skeleton.bones, limbs(skeleton), strict=True):
        color = colors[b] = LIMB_COLORS[limb % len(LIMB_COLORS)]
        if points[a] is not None and points[b] is not None:
            width = 1 if thin else thickness
            cv2.line(out, points[a], points[b], color, width, cv2.LINE_AA, shift=4)
    for i, point in enumerate(points):
        if point is not None and not thin:
            cv2.circle(out, point, radius * 16, colors[i], -1, cv2.LINE_AA, shift=4)
    return out


def draw_rings(
    image: UInt8[np.ndarray, "height width 3"],
    joints2d: Float[np.ndarray, "joint 2"],
    radius_px: Float[np.ndarray, "joint"],
    colors: Float[np.ndarray, "joint 3"],
) -> UInt8[np.ndarray, "height width 3"]:
    """Draw a circle about each joint, of its own radius and colour (0..1)."""
    out = image.copy()
    width = max(1, round(max(image.shape[:2]) / 336))
    for i, point in enumerate(_fixed_points(joints2d, image)):
        if point is not None and np.isfinite(radius_px[i]):
            radius = round(16 * min(float(radius_px[i]), 2.0 * max(image.shape[:2])))
            color = tuple(int(v) for v in np.rint(255 * colors[i]))
            cv2.circle(out, point, radius, color, width, cv2.LINE_AA, shift=4)
    return out


def warning_colors(
    values: Float[np.ndarray, "n"], top: float
) -> Float[np.ndarray, "n 3"]:
    """Return green at 0, yellow at half of `top`, red from `top` on."""
    t = np.clip(np.asarray(values, np.float64) / top, 0, 1)[:, None]
    green, yellow, red = np.array([[0.2, 0.8, 0.3], [1, 0.85, 0.1], [0.9, 0.1, 0.1]])
    up = green + (yellow - green) * np.minimum(2 * t, 1)
    return up + (red - yellow) * np.maximum(2 * t - 1, 0)


def draw_text(
    image: UInt8[np.ndarray, "height width 3"], lines: Sequence[str]
) -> UInt8[np.ndarray, "height width 3"]:
    """Draw white lines of text on a darkened strip along the lower edge."""
    out = image.copy()
    size = max(image.shape[:2]) / 896
    strip = out[max(0, image.shape[0] - round((34 * len(lines) + 8) * size)) :]
    strip[:] = strip // 3
    for i, line in enumerate(reversed(lines)):
        place = (round(12 * size), round(image.shape[0] - (14 + 34 * i) * size))
        font, width = cv2.FONT_HERSHEY_SIMPLEX, max(1, round(2 * size))
        white = (255, 255, 255)
        cv2.putText(out, line, place, font, 0.9 * size, white, width, cv2.LINE_AA)
    return out


def _fixed_points(joints2d, image) -> list[tuple[int, int] | None]:
    """Convert to sixteenths of pixels, as cv2 takes them; None if far outside."""
    limit = 8 * max(image.shape[:2])
    joints = np.where(np.abs(joints2d) < limit, joints2d, np.nan)
    return [
        (int(np.rint(16 * x)), int(np.rint(16 * y)))
        if np.isfinite([x, y]).all()
        else None
        for x, y in np.asarray(joints, np.float64)
    ]


def limbs(skeleton: Skeleton) -> list[int]:
    """Number each bone's finger or limb, with a new number at every fork."""
    parents = [parent for parent, _ in skeleton.bones]
    found: dict[int, int] = {}
    for parent, child in skeleton.bones:
        goes_on = parent in found and parents.count(parent) == 1
        found[child] = found[parent] if goes_on else max(found.values(), default=-1) + 1
    return [found[child] for _, child in skeleton.bones]


def draw_box(
    image: UInt8[np.ndarray, "height width 3"], box_px: Sequence[float | int]
) -> UInt8[np.ndarray, "height width 3"]:
    """Draw the outline of a box x0, y0, x1, y1."""
    out = image.copy()
    x0, y0, x1, y1 = (round(float(v)) for v in box_px)
    thickness = max(1, round(max(image.shape[:2]) / 224))
    cv2.rectangle(out, (x0, y0), (x1, y1), (255, 230, 60), thickness, cv2.LINE_AA)
    return out


def side_by_side(
    pictures: Sequence[UInt8[np.ndarray, "_ _ 3"]], *, columns: int | None = None
) -> UInt8[np.ndarray, "height width 3"]:
    """Lay out pictures in rows of `columns` (None: one row), with small gaps."""
    columns = columns or len(pictures)
    cell_h = max(p.shape[0] for p in pictures)
    widths = [max(p.shape[1] for p in pictures[c::columns]) for c in range(columns)]
    rows = -(-len(pictures) // columns)
    height = rows * cell_h + (rows + 1) * _GAP
    width = sum(widths) + (columns + 1) * _GAP
    out = np.full((height, width, 3), 255, np.uint8)
    for i, picture in enumerate(pictures):
        row, column = divmod(i, columns)
        y = _GAP + row * (cell_h + _GAP)
        x = _GAP + sum(widths[:column]) + column * _GAP
        out[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
    return out


def contact_sheet(
    batch: Batch,
    output: HandOutput,
    faces: Int[AnyArray, "face 3"],
    *,
    skeleton: Skeleton = HAND,
    num: int = 8,
    size: int = 160,
) -> UInt8[np.ndarray, "height width 3"]:
    """Draw the predictions of a batch, one hand a row, to look at while training.

    Columns: the crop with the predicted skeleton (where the model predicts 2-D joints;
    without a picture there is no such column), the predicted mesh over the crop, the
    annotated mesh over the crop, and both meshes from the side. Predicted meshes are
    placed at the annotated root: models predict the hand relative to it.
    """
    faces = np.asarray(faces)
    valid = np.flatnonzero(np.asarray(batch.example_valid))[:num]
    pictures = []
    for i in valid:
        crop, intrinsics = _crop_of(batch, i, size)
        root3d = np.asarray(batch.root3d[i], np.float64)
        target = np.asarray(batch.vertices[i], np.float64)
        prediction = np.asarray(output.vertices[i], np.float64)
        first = crop
        if output.joints2d is not None:
            scale = size / _crop_size(batch)
            joints2d = np.asarray(output.joints2d[i], np.float64)
            joints2d = (joints2d + 0.5) * scale - 0.5
            first = draw_skeleton(crop, joints2d, skeleton=skeleton)
        if batch.image is not None:
            pictures.append(first)
        for mesh, color in ((prediction, PREDICTION_COLOR), (target, TARGET_COLOR)):
            pictures.append(
                draw_mesh(crop, mesh + root3d, faces, intrinsics, color=color)
            )
        radius = 1.08 * float(
            np.linalg.norm(target - target.mean(axis=0), axis=1).max()
        )
        for mesh, color in ((prediction, PREDICTION_COLOR), (target, TARGET_COLOR)):
            pictures.append(
                turned_view(
                    mesh, faces, size=size, yaw_deg=90.0, color=color, radius=radius
                )
            )
    if not pictures:
        return np.full((size, size, 3), _PAPER, np.uint8)
    return side_by_side(pictures, columns=4 if batch.image is None else 5)


def _crop_size(batch) -> float:
    if batch.image is not None:
        return float(batch.image.shape[1])
    # Without a picture the principal point tells: crops are centred on it.
    return 2 * float(batch.intrinsics[0, 0, 2])


def _crop_of(batch, i, size):
    """Crop i resized to a square of `size`, and its camera matrix."""
    scale = size / _crop_size(batch)
    intrinsics = np.asarray(batch.intrinsics[i], np.float64).copy()
    intrinsics[:2] *= scale
    intrinsics[:2, 2] += 0.5 * scale - 0.5
    if batch.image is None:
        return np.full((size, size, 3), _PAPER, np.uint8), intrinsics
    image = np.asarray(batch.image[i])
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA), intrinsics
