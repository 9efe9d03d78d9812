"""What `handjax.predict` writes for a photo: JSON, overlay, meshes; all or nothing."""

import io
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from PIL import Image

from handjax.geometry.skeleton import HAND
from handjax.inference import explanations
from handjax.inference.photos import Intrinsics, Photo
from handjax.io.atomic_files import write_bytes, write_json
from handjax.visualization import mesh_export, render

if TYPE_CHECKING:
    from handjax.inference.prediction import HandPrediction

SCHEMA = "handjax/prediction"
SCHEMA_VERSION = 1

FRAMES = {
    "vertices": "camera axes of the photo, relative to the root joint",
    "joints3d": "camera axes of the photo, relative to the root joint",
    "translation": "root joint in the camera's frame; add it to vertices and joints3d",
    "camera_axes": "OpenCV: x right, y down, z forward",
    "mano": "radians, axis-angle, global_orient in camera axes, hand_pose absolute: 0 "
    "is the flat hand; of a left hand, those of the right hand in its mirror",
    "joints2d": "pixels of the upright photo (EXIF orientation applied), x right, y "
    "down, centre of the first pixel (0, 0)",
    "meshes": "GLB and OBJ: metres, x right, y up, z towards the viewer (camera axes "
    "turned 180 degrees about x), translation included",
    "hypotheses": "hands drawn from the model besides the answer, the most confident "
    "first, in the answer's frames; weight: confidence / sum of confidences",
    "joint_uncertainty_mm": "weighted standard deviation of the hypotheses' joints, "
    "relative to the root joint, over three axes: 1000 sqrt(sum w |p - mean p|^2)",
}
UNITS = {"3d": "metres", "2d": "pixels"}

_PANEL_PX = 448
_MAX_PANEL_WIDTH_PX = 1024
_UNCERTAIN_MM = 20.0
"""Spread from which a joint's ring is red."""
_SIDE_COLORS = {True: render.PREDICTION_COLOR, False: (0.82, 0.66, 0.98)}
"""Right hands are blue, left ones violet."""


def side(hand: "HandPrediction") -> str | None:
    """Return "right" or "left"; None for a body."""
    if hand.skeleton is not HAND:
        return None
    return "right" if hand.box.is_right else "left"


def named(hand: "HandPrediction") -> str:
    """Name what was detected: "right hand", "left hand" or "body"."""
    which = side(hand)
    return f"{which} hand" if which else "body"


def as_json(
    photo: Photo,
    hands: "Sequence[HandPrediction]",
    *,
    intrinsics: Intrinsics,
    model: str,
    root: str,
    licence: str | None = None,
    files: Sequence[Sequence[str]] = (),
) -> dict[str, Any]:
    """Return all predictions as JSON values, with frames and units stated.

    `assets/prediction.schema.json` describes them. `licence` is that of the model's
    weights, None where it is not known.
    """
    height, width = photo.image.shape[:2]
    return {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "photo": {"file": photo.path.name, "width": width, "height": height},
        "model": model,
        "weights_licence": licence,
        "units": UNITS,
        "frames": FRAMES,
        "root_joint": root,
        "joint_names": list((hands[0].skeleton if hands else HAND).joints),
        "faces": {
            side(hand) or "body": np.asarray(hand.faces).tolist() for hand in hands
        },
        "camera": {
            "intrinsics": _rounded(intrinsics.matrix, 4),
            "source": intrinsics.source,
            "note": _CAMERA_NOTES[intrinsics.source],
        },
        "hands": [
            _hand_json(hand, files[i] if files else ()) for i, hand in enumerate(hands)
        ],
    }


_CAMERA_NOTES = {
    "given": "as given",
    "exif": "35 mm equivalent focal length from EXIF, principal point in the middle",
    "assumed": "focal length = diagonal of the photo, principal point in the middle; "
    "distances scale with the true focal length",
}


def _hand_json(hand: "HandPrediction", files: Sequence[str]) -> dict[str, Any]:
    tokens = hand.token_confidence is not None
    return {
        "side": side(hand),
        "box_px": _rounded(hand.box.box_px, 3),
        "box_source": hand.box.source,
        "translation": _rounded(hand.translation, 6),
        "translation_source": hand.translation_source,
        "joints3d": _rounded(hand.joints3d, 6),
        "joints2d": _rounded(hand.joints2d, 3),
        "vertices": _rounded(hand.vertices, 6),
        "confidence": None if hand.confidence is None else round(hand.confidence, 5),
        "token_indices": hand.indices.tolist() if hand.indices is not None else None,
        "token_confidence": _rounded(hand.token_confidence, 5) if tokens else None,
        "presence": None if hand.presence is None else round(hand.presence, 5),
        "not_sure": hand.not_sure,
        "mano": _mano_json(hand),
        "hypotheses": _hypotheses_json(hand),
        "files": list(files),
    }


def _mano_json(hand: "HandPrediction") -> dict[str, Any] | None:
    if hand.mano_pose is None or hand.betas is None:
        return None
    return {
        "global_orient": _rounded(hand.mano_pose[0], 6),
        "hand_pose": _rounded(hand.mano_pose[1:], 6),
        "betas": _rounded(hand.betas, 5),
    }


def _hypotheses_json(hand: "HandPrediction") -> dict[str, Any] | None:
    drawn = hand.hypotheses
    if drawn is None:
        return None
    return {
        "joint_uncertainty_mm": _rounded(drawn.joint_uncertainty_mm, 3),
        "hands": [
            {
                "confidence": _rounded(other.confidence, 5),
                "weight": _rounded(weight, 5),
                "translation": _rounded(other.translation, 6),
                "translation_source": other.translation_source,
                "joints3d": _rounded(other.joints3d, 6),
                "joints2d": _rounded(other.joints2d, 3),
                "vertices": _rounded(other.vertices, 6),
                "token_indices": None
                if other.indices is None
                else other.indices.tolist(),
            }
            for other, weight in zip(drawn.hands, drawn.weights, strict=True)
        ],
    }


def _rounded(values, digits: int):
    return np.round(np.asarray(values, np.float64), digits).tolist()


# --- picture ------------------------------------------------------------------------


def overlay(photo: Photo, hands: "Sequence[HandPrediction]") -> np.ndarray:
    """Draw the photo with boxes, with meshes and skeletons, and two turned views.

    Where hypotheses were drawn, a panel shows them (`spread_panel`).

    Panels are about 448 pixels high whatever the photo's size, so that small crops can
    be looked at and large photos stay small files.
    """
    height, width = photo.image.shape[:2]
    scale = min(_PANEL_PX / height, _MAX_PANEL_WIDTH_PX / width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    smooth = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    first = cv2.resize(photo.image, size, interpolation=smooth)
    ratio = np.array(size) / (width, height)
    second = first
    # Far hands first, so that near ones cover them.
    for hand in sorted(hands, key=lambda h: -h.translation[2]):
        color = _SIDE_COLORS[hand.box.is_right]
        intrinsics = hand.intrinsics.matrix.copy()
        intrinsics[:2] *= ratio[:, None]
        intrinsics[:2, 2] += 0.5 * ratio - 0.5
        second = render.draw_mesh(
            second,
            hand.vertices + hand.translation,
            hand.faces,
            intrinsics,
            color=color,
            alpha=0.75,
        )
    for hand in hands:
        joints2d = (hand.joints2d + 0.5) * ratio - 0.5
        second = render.draw_skeleton(second, joints2d, skeleton=hand.skeleton)
        box = (np.reshape(hand.box.box_px, (2, 2)) + 0.5) * ratio - 0.5
        first = render.draw_box(first, box.ravel().tolist())
    panels = [first, second]
    if any(hand.hypotheses for hand in hands):
        resized = cv2.resize(photo.image, size, interpolation=smooth)
        panels.append(spread_panel(resized, hands, ratio))
    for hand in hands:
        panels += [
            render.turned_view(
                hand.vertices,
                hand.faces,
                size=_PANEL_PX,
                yaw_deg=yaw,
                color=_SIDE_COLORS[hand.box.is_right],
            )
            for yaw in (-90.0, 90.0)
        ]
    return render.side_by_side(panels)


def spread_panel(
    image: np.ndarray, hands: "Sequence[HandPrediction]", ratio: np.ndarray
) -> np.ndarray:
    """Draw hypotheses as thin skeletons, and each joint's uncertainty as a ring.

    A ring's radius is `joint_uncertainty_mm` at the joint's distance, true to scale and
    two pixels at least; its colour goes from green (0) over yellow to red (20 mm).

    Args:
        image: The photo, resized.
        hands: With hypotheses or without.
        ratio: Its size in x and y over the photo's.
    """
    # Faded, so that thin lines are seen on any photo.
    panel = (image * 0.5 + 60).astype(np.uint8)
    lines = []
    for hand in hands:
        if hand.hypotheses is None:
            continue
        for other in hand.hypotheses.hands:
            joints2d = (other.joints2d + 0.5) * ratio - 0.5
            panel = render.draw_skeleton(
                panel, joints2d, skeleton=hand.skeleton, thin=True
            )
        apart_mm = hand.hypotheses.joint_uncertainty_mm
        depth = np.maximum((hand.joints3d + hand.translation)[:, 2], 1e-3)
        focal_px = float(hand.intrinsics.matrix[0, 0] * ratio[0])
        radius_px = np.maximum(1e-3 * apart_mm * focal_px / depth, 2.0)
        panel = render.draw_rings(
            panel,
            (hand.joints2d + 0.5) * ratio - 0.5,
            radius_px,
            render.warning_colors(apart_mm, _UNCERTAIN_MM),
        )
        lines.append(
            f"{named(hand)}: {len(hand.hypotheses.hands)} hypotheses, "
            f"uncertain by {apart_mm.mean():.1f} mm, at most {apart_mm.max():.1f}"
        )
    return render.draw_text(panel, lines)


# --- all or nothing -----------------------------------------------------------------


def write(
    folder: str | Path,
    stem: str,
    photo: Photo,
    hands: "Sequence[HandPrediction]",
    *,
    intrinsics: Intrinsics,
    model: str,
    root: str,
    licence: str | None = None,
) -> list[Path]:
    """Write the files of one photo; on any error none of them is left.

    Returns:
        `<stem>.json`, `<stem>_overlay.png`, and `<stem>_<i>.glb` and `.obj` per hand;
        what was explained, as `<stem>_<i>_<what>.png`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{stem}.", dir=folder))
    try:
        files = []
        for i, hand in enumerate(hands):
            name = f"{named(hand).replace(' ', '_')}_{i}"
            vertices = np.asarray(hand.vertices + hand.translation, np.float64)
            mesh = mesh_export.HandMesh(name, vertices, hand.faces)
            names = [f"{stem}_{i}.glb", f"{stem}_{i}.obj"]
            extras = {"units": UNITS["3d"], "frame": FRAMES["meshes"]}
            mesh_export.write_glb(staging / names[0], [mesh], extras=extras)
            mesh_export.write_obj(staging / names[1], [mesh])
            for what, picture in explanations.sheets(hand).items():
                names.append(f"{stem}_{i}_{what}.png")
                write_bytes(staging / names[-1], _png(picture))
            files.append(names)
        write_bytes(staging / f"{stem}_overlay.png", _png(overlay(photo, hands)))
        report = as_json(
            photo,
            hands,
            intrinsics=intrinsics,
            model=model,
            root=root,
            licence=licence,
            files=files,
        )
        write_json(staging / f"{stem}.json", report)
        written = []
        # The JSON comes last: where it stands, the rest is complete.
        for path in sorted(staging.iterdir(), key=lambda p: p.suffix == ".json"):
            os.replace(path, folder / path.name)
            written.append(folder / path.name)
        return sorted(written)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()
