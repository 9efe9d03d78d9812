"""Explanation sheets: what a model attended to for one hand, as pictures.

"clusters": the crop; the reconstructed joints and mesh in it; the cells that hold the
mesh, which token reduction supervision leaves alone (TORE's Figure 7); the mean of all
clusters, with the weight that every cell of a uniform one has; then the heat map of
each cluster of the image's tokens (Figure 6), from its least weight to its most, named
after the joint nearest to its hottest cell, with the weight of that cell.

"attention": the mesh from the front and the back, coloured by the joint that each
vertex attends to, as skinning weights are shown; then the attention of the vertices to
each joint (Figure 8), with the largest below the picture.
"""

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from handjax.geometry import crop
from handjax.inference import placement
from handjax.inference.placement import CropView
from handjax.inference.prediction import ExplanationView, HandPrediction
from handjax.types import Explanation
from handjax.visualization import render

Picture = UInt8[np.ndarray, "_ _ 3"]

_CELL_PX = 168
"""Side of one picture in a sheet."""
_CAPTION_PX = 18
_CLUSTER_COLUMNS = 8
_JOINT_COLUMNS = 4  # of a hand, each row is a finger


def of(
    hand: HandPrediction,
    image: UInt8[np.ndarray, "size size 3"],
    view: CropView,
    explanation: Explanation,
) -> ExplanationView:
    """Bring a hand and its explanation into one crop, un-mirrored.

    Args:
        hand: Placed in the photo.
        image: The crop that the network was given, of a left hand mirrored.
        view: Of that crop.
        explanation: Of the model, one example of a batch.
    """
    shown = placement.unmirrored(view, len(image))
    vertices_px = crop.project(hand.vertices + hand.translation, hand.intrinsics.matrix)
    clusters, attention = (None if x is None else np.asarray(x) for x in explanation)
    if not view.is_right:
        image = image[:, ::-1]
        clusters = None if clusters is None else clusters[..., ::-1]
    return ExplanationView(
        crop=image,
        joints_px=shown.to_crop_px(hand.joints2d),
        vertices_px=shown.to_crop_px(vertices_px),
        clusters=clusters,
        attention=attention,
    )


def sheets(hand: HandPrediction) -> dict[str, Picture]:
    """Return the sheets of what the model of a hand explains, by name."""
    found, view = {}, hand.explanation
    if view is not None and view.clusters is not None:
        found["clusters"] = cluster_sheet(hand, view)
    if view is not None and view.attention is not None:
        found["attention"] = attention_sheet(hand, view)
    return found


# --- clusters of the image's tokens -------------------------------------------------


def cluster_sheet(hand: HandPrediction, view: ExplanationView) -> Picture:
    """Draw heat maps of the clusters over the crop."""
    assert view.clusters is not None
    names = hand.skeleton.joints
    picture = cv2.resize(view.crop, (_CELL_PX, _CELL_PX), interpolation=cv2.INTER_AREA)
    scale = _CELL_PX / len(view.crop)
    joints_px, vertices_px = (
        (points + 0.5) * scale - 0.5 for points in (view.joints_px, view.vertices_px)
    )
    skeleton = render.draw_skeleton(picture, joints_px, skeleton=hand.skeleton)
    cells = covered_cells(view)
    even = 1 / cells.size
    stretched = np.stack([_stretched(cluster) for cluster in view.clusters])
    panels = [
        _captioned(picture, "crop of the network"),
        _captioned(skeleton, "joints"),
        _captioned(_dotted(picture, vertices_px), "mesh"),
        _captioned(
            _heated(picture, cells.astype(float), cv2.INTER_NEAREST), "its cells"
        ),
        _captioned(_heated(picture, stretched.mean(axis=0)), f"mean; even: {even:.2f}"),
    ]
    panels = _row_of(panels, _CLUSTER_COLUMNS)
    for i, (weights, heat) in enumerate(zip(view.clusters, stretched, strict=True)):
        name = names[nearest_joint(weights, view)]
        text = f"{i} {name} {weights.max():.2f}"
        panels.append(_captioned(_heated(picture, heat), text))
    return render.side_by_side(panels, columns=_CLUSTER_COLUMNS)


def covered_cells(view: ExplanationView) -> Bool[np.ndarray, "height width"]:
    """Return the cells of the map that hold at least one vertex."""
    assert view.clusters is not None
    grid = view.clusters.shape[1:]
    cells = np.zeros(grid, bool)
    share = (view.vertices_px[:, ::-1] + 0.5) / len(view.crop)
    inside = share[((share >= 0) & (share < 1)).all(axis=1)]  # not finite is outside
    rows, columns = np.floor(inside * grid).astype(int).T
    cells[rows, columns] = True
    return cells


def nearest_joint(
    weights: Float[np.ndarray, "height width"], view: ExplanationView
) -> int:
    """Return the joint that is nearest to the middle of a heat map's hottest cell."""
    row, column = np.unravel_index(int(weights.argmax()), weights.shape)
    middle = (np.array([column, row]) + 0.5) / weights.shape[::-1] * len(view.crop)
    apart = np.linalg.norm(view.joints_px + 0.5 - middle, axis=1)
    return int(np.argmin(np.where(np.isfinite(apart), apart, np.inf)))


def _stretched(weights: np.ndarray) -> np.ndarray:
    """Stretch to 0..1, as in TORE's supervision; equal weights become 0."""
    low, high = float(weights.min()), float(weights.max())
    return (weights - low) / max(high - low, 1e-12)


def _heated(
    picture: Picture, heat: np.ndarray, interpolation: int = cv2.INTER_CUBIC
) -> Picture:
    """Draw a heat map over a crop in grey; cell i of n covers its i-th n-th."""
    gray = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[..., None]
    size = picture.shape[1::-1]
    smooth = cv2.resize(heat.astype(np.float32), size, interpolation=interpolation)
    colors = 255 * heat_colors(np.clip(smooth, 0, 1))
    return np.rint(0.5 * gray + 0.5 * colors).astype(np.uint8)


def _dotted(picture: Picture, points: Float[np.ndarray, "point 2"]) -> Picture:
    out = picture.copy()
    near = points[(np.abs(points) < 2 * len(picture)).all(axis=1)]
    for x, y in np.rint(near).astype(int).tolist():
        cv2.circle(out, (x, y), 1, (255, 220, 60), -1)
    return out


# --- attention of vertices to joints ------------------------------------------------


def attention_sheet(hand: HandPrediction, view: ExplanationView) -> Picture:
    """Draw the mesh coloured by the joints that its vertices attend to."""
    attention = view.attention
    assert attention is not None
    total = np.maximum(attention.sum(axis=1, keepdims=True), 1e-12)
    mixed = attention / total @ joint_colors(hand)
    panels = [_captioned(_both_sides(hand, mixed), "attention to joints")]
    for name, column in zip(hand.skeleton.joints, attention.T, strict=True):
        colors = heat_colors(column / max(float(column.max()), 1e-12))
        text = f"{name} {column.max():.2f}"
        panels.append(_captioned(_both_sides(hand, colors), text))
    panels = _row_of(panels[:2], _JOINT_COLUMNS) + panels[2:]
    return render.side_by_side(panels, columns=_JOINT_COLUMNS)


def joint_colors(hand: HandPrediction) -> Float[np.ndarray, "joint 3"]:
    """Return a colour for each joint: its finger's, lighter towards the tip."""
    colors = np.full((len(hand.skeleton.joints), 3), 0.5)
    steps: dict[int, int] = {}
    limbs = render.limbs(hand.skeleton)
    for (_, joint), limb in zip(hand.skeleton.bones, limbs, strict=True):
        step = steps[limb] = steps.get(limb, 0) + 1
        share = min(0.2 * (step - 1), 0.8)
        color = np.array(render.LIMB_COLORS[limb % len(render.LIMB_COLORS)]) / 255
        colors[joint] = color + share * (1 - color)
    return colors


def _both_sides(hand: HandPrediction, colors: np.ndarray) -> Picture:
    views = [
        render.turned_view(
            hand.vertices, hand.faces, size=_CELL_PX, yaw_deg=yaw, color=colors
        )
        for yaw in (0.0, 180.0)
    ]
    return np.concatenate(views, axis=1)


# --- both ---------------------------------------------------------------------------


def heat_colors(heat: Float[np.ndarray, "*place"]) -> Float[np.ndarray, "*place 3"]:
    """Return RGB for 0..1: dark blue over green and yellow to dark red."""
    levels = np.rint(255 * np.clip(heat, 0, 1)).astype(np.uint8)
    colors = cv2.applyColorMap(levels.reshape(-1, 1), cv2.COLORMAP_TURBO)
    return colors[:, 0, ::-1].reshape(*heat.shape, 3) / 255


def _row_of(panels: list[Picture], columns: int) -> list[Picture]:
    """Fill a row up with white."""
    return panels + [np.full_like(panels[0], 255)] * (columns - len(panels))


def _captioned(picture: Picture, text: str) -> Picture:
    """Put a line of text below a picture."""
    strip = np.full((_CAPTION_PX, picture.shape[1], 3), 255, np.uint8)
    font, black = cv2.FONT_HERSHEY_SIMPLEX, (30, 30, 30)
    cv2.putText(strip, text, (2, _CAPTION_PX - 5), font, 0.4, black, 1, cv2.LINE_AA)
    return np.concatenate([picture, strip])
