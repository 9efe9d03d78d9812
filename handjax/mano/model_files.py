"""Model files in MANO's format (the built-in open hand, pickles, npz) or in SMPL's.

Conventions: metres; the flat hand lies in MANO's own frame (a right hand's fingers
point along -x, the back of the hand +y, the thumb side +z; a left hand is its mirror
image in x); joints in `skeleton.MANO_JOINTS` order; `posedirs` columns are the
row-major R - I of joints 1 to 15. numpy only, so that data workers can use it.

Bodies. A file with another number of joints than MANO's sixteen is a body model: SMPL's
24 joints with SMPL's names, or any other tree; any number of vertices. The joints that
networks predict are then those of the tree, in file order, and behind them the vertices
that the file names as end points (arrays `tips` and `tip_names`; SMPL's own has none).

Left hands. The published MANO_LEFT file holds the right hand's `shapedirs` (up to 48 mm
of error). Projects disagree on the cure, so it is a named option: `as_is`, `x_negated`
(InterHand2.6M's and ARCTIC's practice; geometrically right), `all_negated` (HO-3D's
set-up script). Data must be re-posed with what its annotators used: DexYCB used
`as_is`. A left file alone cannot prove the defect, for that takes the right file's
shapedirs: beside a right file the two are compared, otherwise `as_is` always warns.
"""

import hashlib
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from handjax.errors import MissingFileError, UserError
from handjax.geometry import skeleton
from handjax.geometry.skeleton import Skeleton
from handjax.mano.arrays import is_body, read

OPEN_HAND = Path(__file__).parents[1] / "assets" / "open_hand.npz"
LEFT_SHAPEDIRS = ("as_is", "x_negated", "all_negated")

_FOLDERS = ("", "models", "mano", "mano/models", "mano_v1_2/models")
"""Where a folder given by the user may keep the files: the official archive's layout
and those that other projects ask for."""

_HASHED = ("v_template", "shapedirs", "posedirs", "J_regressor", "weights", "faces")


class ManoFile(NamedTuple):
    """The numeric content of one hand (or body) model, float64.

    A hand has 778 vertices, 1538 faces, 16 bones, 10 betas, 135 correctives and 21
    joints.
    """

    v_template: Float[np.ndarray, "vertex 3"]
    """Flat rest mesh, metres."""
    shapedirs: Float[np.ndarray, "vertex 3 beta"]
    """Displacement of each vertex per unit of each beta, metres."""
    posedirs: Float[np.ndarray, "vertex 3 corrective"]
    """Displacement per unit of each entry of R - I of joints 1..15, metres."""
    J_regressor: Float[np.ndarray, "bone vertex"]
    """Rest joints from the shaped rest mesh; rows sum to 1."""
    weights: Float[np.ndarray, "vertex bone"]
    """Skinning weights; rows sum to 1."""
    faces: Int[np.ndarray, "face 3"]
    """Counter-clockwise seen from outside."""
    parents: Int[np.ndarray, "bone"]
    """Parent of each joint; -1 for the wrist."""
    hands_mean: Float[np.ndarray, "angle"]
    """Mean of the pose space, axis-angle of joints 1..15, radians; zero for a body."""
    hands_components: Float[np.ndarray, "angle angle"]
    """Principal components of the pose space, one a row; of a body, the axes."""
    tip_ids: Int[np.ndarray, "tip"]
    """Finger-tip vertices: thumb, index, middle, ring, little; or a body's ends."""
    skeleton: Skeleton
    """The joints that networks predict."""
    joint_order: Int[np.ndarray, "joint"]
    """Gathers them from the model's own joints, then the tips."""
    is_right: bool
    name: str
    """`"open"` (names its own finger tips), `"mano"` or `"body"`."""
    wrist_loop: Int[np.ndarray, "loop"]
    """Vertices of the opening at the wrist, in the order of the faces beside it."""
    sha256: str
    """Of the arrays as used (float32), after any left-hand cure: the same for a pickle
    and an npz re-export of it. Finger tips are not part of it."""

    @property
    def is_hand(self) -> bool:
        """Whether its tree is MANO's; a body has any other."""
        return tuple(self.parents) == skeleton.MANO_PARENTS


def load(
    source: str | os.PathLike = "open",
    *,
    side: str = "right",
    tips: str | Sequence[int] | None = None,
    left_shapedirs: str = "as_is",
) -> ManoFile:
    """Read a hand model.

    Args:
        source: `"open"` for the built-in hand, or a pickle or npz in MANO's format, or
            a folder that holds MANO_RIGHT / MANO_LEFT; or a body model's file.
        side: `"right"` or `"left"`. The open hand is mirrored; a file must hold it.
            A body has none: leave the default.
        tips: Finger-tip vertices: a name in `skeleton.MANO_TIPS` or five ids (thumb to
            little). By default what the file names, else `"smplx"`. Only for hands.
        left_shapedirs: Cure for MANO_LEFT, see above; other hands ignore it.

    Raises:
        MissingFileError: With the paths tried and what to do.
        UserError: Wrong option, damaged file, wrong shapes or the other side's hand.
    """
    if side not in ("right", "left"):
        raise UserError(f"side={side!r} is not one of 'right', 'left'.")
    if left_shapedirs not in LEFT_SHAPEDIRS:
        raise UserError(f"left_shapedirs={left_shapedirs!r}: not in {LEFT_SHAPEDIRS}.")
    path = OPEN_HAND if source == "open" else find(source, side)
    arrays = read(path)
    if is_body(arrays):
        return _body(arrays, tips, side=side, path=path)
    right_hand = _points_along_negative_x(arrays)
    if right_hand != (side == "right"):
        if source != "open":
            raise UserError(
                f"{path} holds a {'right' if right_hand else 'left'} hand (its fingers "
                f"point along {'-' if right_hand else '+'}x) but side={side!r}. Give "
                f"the other file, or mirror this one with mano_files.mirror."
            )
        return mirror(_make(arrays, tips, is_right=right_hand, path=path))
    if side == "left" and "tips" not in arrays:
        arrays["shapedirs"] = _cured(arrays["shapedirs"], path, left_shapedirs)
    return _make(arrays, tips, is_right=side == "right", path=path)


def find(source: str | os.PathLike, side: str) -> Path:
    """Return the model file that `source` (a file or a folder) means for `side`.

    Raises:
        MissingFileError: With the paths tried and what to do.
    """
    source = Path(source).expanduser()
    if source.is_file():
        return source
    names = [f"MANO_{side.upper()}{suffix}" for suffix in (".pkl", ".npz")]
    tried = [source / folder / name for folder in _FOLDERS for name in names]
    for path in tried if source.is_dir() else ():
        if path.is_file():
            return path
    looked = "\n  ".join(str(path) for path in (tried if source.is_dir() else [source]))
    raise MissingFileError(
        f"No hand model at {str(source)!r}. Looked at:\n  {looked}\n"
        f"MANO is licensed: register at https://mano.is.tue.mpg.de, download "
        f"mano_v1_2.zip and give its folder or file with --config.hand.source=PATH. "
        f"Without it, --config.hand.source=open uses the built-in open hand. A body "
        f"model in SMPL's format is given by its file."
    )


def joint_regressor(file: ManoFile) -> Float[np.ndarray, "joint vertex"]:
    """Return the map from mesh to joints: `joints3d = joint_regressor @ vertices`.

    Rows in the order of `file.skeleton` (a hand's `skeleton.JOINTS`): the file's own
    regressor for its 16 joints, the finger-tip vertices themselves for the tips.
    """
    count = len(file.tip_ids)
    tips = np.zeros((count, len(file.v_template)), file.J_regressor.dtype)
    tips[np.arange(count), file.tip_ids] = 1
    return np.concatenate([file.J_regressor, tips])[file.joint_order]


def mirror(file: ManoFile) -> ManoFile:
    """Return the same hand of the other side: x -> -x.

    Poses of the mirrored hand are axis-angle times (1, -1, -1).
    """
    flip = np.array([-1.0, 1.0, 1.0])
    turn = np.tile([1.0, -1.0, -1.0], 15)
    entries = np.tile(np.outer(flip, flip).ravel(), 15)
    mirrored = file._replace(
        v_template=file.v_template * flip,
        shapedirs=file.shapedirs * flip[:, None],
        posedirs=file.posedirs * flip[:, None] * entries,
        faces=file.faces[:, ::-1].copy(),
        hands_mean=file.hands_mean * turn,
        hands_components=file.hands_components * turn,
        wrist_loop=file.wrist_loop[::-1].copy(),
        is_right=not file.is_right,
    )
    return mirrored._replace(sha256=_digest(mirrored))


def _make(
    arrays: Mapping[str, np.ndarray],
    tips: str | Sequence[int] | None,
    *,
    is_right: bool,
    path: Path,
) -> ManoFile:
    parents = _parents(arrays)
    if tuple(parents) != skeleton.MANO_PARENTS:
        raise UserError(
            f"{path}: kintree_table has parents {parents.tolist()}, MANO's format has "
            f"{list(skeleton.MANO_PARENTS)}."
        )
    faces = _faces(arrays, path)
    file = ManoFile(
        **_floats(arrays),
        faces=faces,
        parents=parents,
        tip_ids=_tip_ids(arrays, tips, is_right=is_right, path=path),
        skeleton=skeleton.HAND,
        joint_order=skeleton.MANO_TO_JOINTS,
        is_right=is_right,
        name="open" if "tips" in arrays else "mano",
        wrist_loop=_boundary(faces),
        sha256="",
    )
    return file._replace(sha256=_digest(file))


def _body(
    arrays: Mapping[str, np.ndarray],
    tips: str | Sequence[int] | None,
    *,
    side: str,
    path: Path,
) -> ManoFile:
    """Check a body model's arrays and add the pose space that its file has not."""
    if side != "right" or tips:
        raise UserError(
            f"{path} holds a body model, which has no side and names its own end "
            f"points: leave side='right' and tips empty, not {side!r} and {tips!r}."
        )
    parents = _parents(arrays)
    if not all(0 <= parent < joint for joint, parent in enumerate(parents) if joint):
        raise UserError(
            f"{path}: kintree_table has parents {parents.tolist()}; after the first "
            f"joint each must hang on an earlier one."
        )
    faces, angles = _faces(arrays, path), 3 * (len(parents) - 1)
    names, vertices = _end_points(arrays, path)
    bones = arrays["weights"][vertices].argmax(axis=1).tolist()
    joints = skeleton.of_body(parents.tolist(), list(zip(names, bones, strict=True)))
    file = ManoFile(
        **_floats(arrays),
        faces=faces,
        parents=parents,
        hands_mean=np.zeros(angles),
        hands_components=np.eye(angles),
        tip_ids=vertices,
        skeleton=joints,
        joint_order=np.arange(len(joints.joints)),
        is_right=True,
        name="body",
        wrist_loop=_boundary(faces),
        sha256="",
    )
    return file._replace(sha256=_digest(file))


def _parents(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    parents = arrays["kintree_table"][0].astype(np.int64)
    parents[0] = -1  # stored as 2**32 - 1
    return parents


def _faces(arrays: Mapping[str, np.ndarray], path: Path) -> np.ndarray:
    faces, count = arrays["f"].astype(np.int64), len(arrays["v_template"])
    if faces.min(initial=0) < 0 or faces.max(initial=0) >= count:
        raise UserError(
            f"{path}: f refers to vertices {faces.min()} to {faces.max()}; there are "
            f"{count}."
        )
    return faces


def _floats(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    others = ("f", "kintree_table", "tips", "tip_names")
    return {
        key: np.asarray(value, np.float64)
        for key, value in arrays.items()
        if key not in others
    }


def _end_points(
    arrays: Mapping[str, np.ndarray], path: Path
) -> tuple[list[str], np.ndarray]:
    """Return names and vertices of the end points that a body's file names."""
    if "tips" not in arrays:
        return [], np.zeros(0, np.int64)
    names = [str(name) for name in arrays.get("tip_names", ())]
    vertices, count = arrays["tips"], len(arrays["v_template"])
    if (
        vertices.dtype.kind not in "iu"
        or vertices.shape != (len(names),)
        or len(set(names) | set(skeleton.SMPL_JOINTS)) != len(names) + 24
        or not ((vertices >= 0) & (vertices < count)).all()
    ):
        raise UserError(
            f"{path}: tips {vertices.tolist()} named {names}: need one vertex from 0 "
            f"to {count - 1} for each of tip_names, which must differ from each other "
            f"and from the names of joints."
        )
    return names, vertices.astype(np.int64)


def _tip_ids(
    arrays: Mapping[str, np.ndarray],
    tips: str | Sequence[int] | None,
    *,
    is_right: bool,
    path: Path,
) -> np.ndarray:
    """Return the five tip vertices; refuse ids that are not on their finger tip."""
    if tips is None or (isinstance(tips, str) and not tips):
        tips = "smplx" if "tips" not in arrays else "file"
    if not isinstance(tips, str):
        ids = np.asarray(tips, np.int64)
    elif "tips" in arrays:
        if tips != "file":
            raise UserError(
                f"tips={tips!r} names vertices of MANO's mesh, but {path} has its own "
                f"vertex order and finger tips. Leave tips empty."
            )
        names = [str(name).replace("pinky", "little") for name in arrays["tip_names"]]
        ids = arrays["tips"][[names.index(finger) for finger in skeleton.FINGERS]]
    else:
        table = skeleton.MANO_TIPS | ({} if is_right else skeleton.MANO_TIPS_LEFT)
        if tips not in table:
            raise UserError(f"tips={tips!r} is not one of {sorted(table)}.")
        ids = np.array(table[tips])
    ids = ids.astype(np.int64)
    if ids.shape != (5,) or ids.min() < 0 or ids.max() >= skeleton.NUM_VERTICES:
        raise UserError(
            f"tips={tips!r}: need five vertices, thumb to little, each from 0 to "
            f"{skeleton.NUM_VERTICES - 1}."
        )
    for finger, vertex in zip(skeleton.FINGERS, ids, strict=True):
        joint = skeleton.MANO_JOINTS.index(f"{finger}3")
        if arrays["weights"][vertex, joint] < 0.5:
            raise UserError(
                f"{path}: vertex {vertex} is not on the {finger} tip (its weight for "
                f"joint {finger}3 is {arrays['weights'][vertex, joint]:.2f}), so tips="
                f"{tips!r} is for another mesh. Give the five vertex ids of this one."
            )
    return ids


def _points_along_negative_x(arrays: Mapping[str, np.ndarray]) -> bool:
    joints = arrays["J_regressor"] @ arrays["v_template"]
    last = skeleton.MANO_JOINTS.index("middle3")
    return bool(joints[last, 0] < joints[0, 0])


def _cured(shapedirs: np.ndarray, path: Path, option: str) -> np.ndarray:
    """Apply `left_shapedirs`, compared with the right file when one lies beside it."""
    right = path.with_name(path.name.replace("LEFT", "RIGHT"))
    known = None
    if right != path and right.is_file():
        known = not np.abs(shapedirs - read(right)["shapedirs"]).sum() > 1e-6
    if known is False and option != "as_is":
        raise UserError(
            f"left_shapedirs={option!r}, but the shapedirs of {path} already differ "
            f"from those of {right}. Use left_shapedirs='as_is'."
        )
    if option == "as_is" and known is not False:
        warnings.warn(
            f"{path}: its shapedirs "
            + ("are" if known else "may be")
            + " those of the right hand (a known defect of MANO_LEFT: shapes are wrong "
            "by up to 48 mm). Set left_shapedirs='x_negated' to cure it, 'all_negated' "
            "for HO-3D and H2O-3D annotations; keep 'as_is' for DexYCB.",
            stacklevel=3,
        )
    cure = {"as_is": [1, 1, 1], "x_negated": [-1, 1, 1], "all_negated": [-1, -1, -1]}
    return shapedirs * np.array(cure[option], np.float64)[:, None]


def _boundary(faces: np.ndarray) -> np.ndarray:
    """Return the longest loop of edges that belong to one face only."""
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    both = {(int(a), int(b)) for a, b in edges}
    follow = {a: b for a, b in sorted(both) if (b, a) not in both}
    loops = []
    while follow:
        loop = [min(follow)]
        while (after := follow.pop(loop[-1], loop[0])) != loop[0]:
            loop.append(after)
        loops.append(loop)
    return np.array(max(loops, key=len, default=[]), np.int64)


def _digest(file: ManoFile) -> str:
    digest = hashlib.sha256()
    for key in (*_HASHED, "hands_mean", "hands_components"):
        array = getattr(file, key)
        digest.update(
            array.astype("<i4" if array.dtype.kind == "i" else "<f4").tobytes()
        )
    return digest.hexdigest()
