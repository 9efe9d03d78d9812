"""Convert each data set's own conventions to those of a record.

One row per data set. Records have metres, OpenCV camera axes, the 21 joints of
`skeleton.JOINTS`, and poses as absolute axis-angle; every difference from that is in
the row and nowhere else:

    order       of the 21 joints: a gather, `skeleton.ORDERS`
    unit        metres in one unit of 3-D points: 1, 0.01 or 0.001
    axes        factors that make its camera axes OpenCV's: `OPENCV`, `OPENGL`
    first_pixel coordinate of the centre of the first one: 0, or 1 as Matlab counts
    pose        what MANO's 45 numbers are: `POSES`
    tips        vertices that are its finger tips: `skeleton.MANO_TIPS`
    left        cure of MANO_LEFT that its annotators used: `model_files.LEFT_SHAPEDIRS`

numpy only. Left hands stay left here; readers mirror them (`loading/annotations.py`).
"""

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Shaped
from scipy.spatial.transform import Rotation

from handjax.geometry import skeleton
from handjax.mano import model_files
from handjax.mano.model_files import ManoFile

OPENCV = (1.0, 1.0, 1.0)
OPENGL = (1.0, -1.0, -1.0)
"""y up, the camera looks along -z: half a turn about x, so rotations stay such."""

POSES = ("none", "flat", "mean", "pca")
"""Meaning of the finger numbers of a MANO pose: absent; absolute axis-angle;
axis-angle relative to the mean pose of the model's file (added number by number);
coefficients of its principal components, then relative to that mean."""

_LEFT_MODEL = {"as_is": 1, "x_negated": 2, "all_negated": 3}
"""`left_model` of a record."""


class Convention(NamedTuple):
    """Conventions of one data set; see the module."""

    source: str
    """Source of these facts."""
    order: str = "openpose"
    unit: float = 1.0
    axes: tuple[float, float, float] = OPENCV
    first_pixel: int = 0
    pose: str = "none"
    tips: str = "smplx"
    left: str = ""
    """"" where the data set has no left MANO hands."""


_HONNOTATE = Convention(
    source="shreyashampali/ho3d, vis_HO3D.py, vis_H2O3D.py, setup_mano.py, utils",
    order="mano",
    axes=OPENGL,
    pose="flat",
    tips="ho3d",
)

ROWS: dict[str, Convention] = {
    "freihand": Convention(
        source="lmb-freiburg/freihand, utils/fh_utils.py and utils/mano_utils.py",
        pose="mean",
        tips="freihand",
    ),
    "ho3d_v2": _HONNOTATE,
    "ho3d_v3": _HONNOTATE,
    "dexycb": Convention(
        source="NVlabs/dex-ycb-toolkit, dex_ycb_toolkit/dex_ycb.py and README.md",
        pose="pca",
        tips="manopth",
        left="as_is",
    ),
    "interhand26m": Convention(
        source="facebookresearch/InterHand2.6M, data/InterHand2.6M/dataset.py, MANO_*",
        order="interhand",
        unit=0.001,
        pose="mean",
        left="x_negated",
    ),
    "rhd": Convention(
        source="lmb-freiburg/hand3d, data/BinaryDbReader.py; README of the data set",
        order="rhd",
    ),
    "mtc": Convention(
        source="CMU-Perceptual-Computing-Lab/MonocularTotalCapture, data README",
        unit=0.01,
    ),
    "coco_wholebody": Convention(source="jin-s13/COCO-WholeBody, data_format.md"),
    "halpe": Convention(source="Fang-Haoshu/Halpe-FullBody, README.md"),
    "mpii_nzsl": Convention(
        # The readers in use take points as they are, though MPII's own count from one.
        source="README of hand_labels; readers in public projects",
    ),
    "hint": Convention(source="ddshan/hint, README.md; geopavlakos/hamer, eval.py"),
    "asl": Convention(source="no joints"),
    "h2o3d": _HONNOTATE._replace(left="all_negated"),
}
"""By the data set's name."""


class HandModels(NamedTuple):
    """MANO as a data set's annotators used it; None if not given."""

    right: ManoFile | None = None
    left: ManoFile | None = None

    def of(self, is_right: bool | np.bool_) -> ManoFile | None:
        """Return the model of one side."""
        return self.right if is_right else self.left


def load_models(name: str, hand: str | Path) -> HandModels:
    """Read the hand models that re-pose a data set.

    Args:
        name: Name of the data set.
        hand: `"open"`, or the folder with MANO_RIGHT and MANO_LEFT, or a single file
            where only right hands are annotated; "" for none.

    Raises:
        MissingFileError: With the paths tried and where to get MANO.
        ValueError: It is not a hand model in MANO's format.
    """
    row = ROWS[name]
    if not hand or row.pose == "none":
        return HandModels()
    right = _model(row, hand, "right")
    return HandModels(right, _model(row, hand, "left") if row.left else None)


def _model(row: Convention, hand: str | Path, side: str) -> ManoFile:
    with warnings.catch_warnings():
        # Keeping the defect of MANO_LEFT is what `left="as_is"` asks for.
        warnings.simplefilter("ignore", UserWarning)
        options: dict[str, Any] = {"side": side}
        if side == "left":
            options["left_shapedirs"] = row.left
        file = model_files.load(hand, **options)
        if file.name == "mano":  # other meshes name their own finger tips
            file = model_files.load(hand, tips=row.tips, **options)
    return file


# --- points -------------------------------------------------------------------------


def to_joints(name: str, points: Shaped[np.ndarray, "21 *k"]) -> np.ndarray:
    """Reorder rows of a data set's joints (3-D, 2-D, flags) to `skeleton.JOINTS`."""
    return np.asarray(points)[skeleton.ORDERS[ROWS[name].order]]


def to_camera(name: str, points: Float[np.ndarray, "*n 3"]) -> np.ndarray:
    """Convert a data set's points to metres in OpenCV axes; the order stays."""
    row = ROWS[name]
    return np.asarray(points, np.float64) * (row.unit * np.array(row.axes))


def to_pixels(name: str, points: Float[np.ndarray, "*n 2"]) -> np.ndarray:
    """Convert to pixels with the centre of the first one at (0, 0)."""
    return np.asarray(points, np.float64) - ROWS[name].first_pixel


def left_model(name: str, is_right: bool) -> int:
    """Return `left_model` of a record with MANO parameters."""
    row = ROWS[name]
    return 0 if is_right or not row.left else _LEFT_MODEL[row.left]


# --- MANO parameters ----------------------------------------------------------------


def absolute_pose(
    name: str, pose: Float[np.ndarray, "48"], model: ManoFile | None
) -> Float[np.ndarray, "48"] | None:
    """Convert a data set's pose to absolute axis-angle, in its own axes.

    Args:
        name: Name of the data set.
        pose: Three numbers of the wrist, and 45 of the fingers in the data set's form.
        model: Hand of that side, for its mean pose and components.

    Returns:
        None if the form needs a model and none is given.
    """
    pose, form = np.array(pose, np.float64), ROWS[name].pose
    if form == "flat":
        return pose
    if model is None:
        return None
    if form == "pca":
        # Not `@`: rounding in BLAS may depend on the number of threads.
        pose[3:] = np.einsum("c,ca->a", pose[3:], model.hands_components)
    pose[3:] += model.hands_mean
    return pose


def rest_wrist(model: ManoFile, betas: Float[np.ndarray, "10"]) -> np.ndarray:
    """Return the wrist of the shaped hand at rest: the point that it turns about."""
    shaped = model.v_template + np.einsum("vxb,b->vx", model.shapedirs, betas)
    return np.einsum("v,vx->x", model.J_regressor[0], shaped)


def parameters(
    name: str,
    model: ManoFile | None,
    *,
    is_right: bool,
    pose: Float[np.ndarray, "48"],
    betas: Float[np.ndarray, "10"],
    transl: Float[np.ndarray, "3"] | None = None,
    R: Float[np.ndarray, "3 3"] | None = None,
    t: Float[np.ndarray, "3"] | None = None,
) -> dict[str, Any]:
    """Convert a data set's MANO parameters to the fields of a record.

    A hand turns about its shaped rest wrist w: x = R_hand (p - w) + w + transl. Points
    that move to x' = R x + t keep that form, with R_hand' = R R_hand and
    transl' = R (w + transl) + t - w.

    Args:
        name: Name of the data set.
        model: Hand of that side, or None; parameters that need it are left out.
        is_right: Side of the hand.
        pose: As `absolute_pose` takes it.
        betas: Shape.
        transl: Added after skinning; metres in every data set, even where points are
            in millimetres.
        R: Rotation to the camera, `camera <- theirs`; by default the row's axes.
        t: The same, metres.
    """
    row = ROWS[name]
    R = np.diag(row.axes) if R is None else np.asarray(R, np.float64)
    t = np.zeros(3) if t is None else np.asarray(t, np.float64)
    fields: dict[str, Any] = {"mano_betas": np.asarray(betas, np.float64)}
    if not is_right and row.left:
        fields["left_model"] = left_model(name, is_right)
    absolute = absolute_pose(name, pose, model)
    if absolute is None:
        return fields
    turned = Rotation.from_matrix(R) * Rotation.from_rotvec(absolute[:3])
    absolute[:3] = turned.as_rotvec()
    fields["mano_pose"] = absolute
    if transl is not None:
        moved = np.einsum("ab,b->a", R, np.asarray(transl, np.float64)) + t
        if (R == np.eye(3)).all():
            fields["mano_transl"] = moved
        elif model is not None:
            wrist = rest_wrist(model, betas)
            fields["mano_transl"] = np.einsum("ab,b->a", R, wrist) + moved - wrist
    return fields


def left_out(name: str) -> str:
    """Name the MANO parameters that a record lacks without a hand model; "" if none."""
    row = ROWS[name]
    if row.pose in ("mean", "pca"):
        return "poses"
    return "translations" if row.pose == "flat" and row.axes != OPENCV else ""
