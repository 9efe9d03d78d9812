"""Arrays out of a file in MANO's or SMPL's format: pickle or npz, dense, checked.

The published pickles were written by Python 2 with scipy (the joint regressor) and
chumpy (`shapedirs`, the first ten of twenty columns). Neither is needed to read them:
`safe_pickle` gives inert holders, whose content is evaluated here. numpy only.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from handjax.errors import UserError
from handjax.io import array_files, safe_pickle

KEYS = (
    *("v_template", "shapedirs", "posedirs", "J_regressor"),
    *("weights", "f", "kintree_table"),
)
"""What every file has; `f` are the faces, `kintree_table` parents and joints."""

_MANO_BONES = 16


def _shapes(vertices: int, faces: int, bones: int) -> dict[str, tuple[int, ...]]:
    return {
        "v_template": (vertices, 3),
        "shapedirs": (vertices, 3, 10),
        "posedirs": (vertices, 3, 9 * (bones - 1)),
        "J_regressor": (bones, vertices),
        "weights": (vertices, bones),
        "f": (faces, 3),
        "kintree_table": (2, bones),
    }


_MANO = _shapes(778, 1538, _MANO_BONES) | {
    "hands_mean": (45,),
    "hands_components": (45, 45),
}


def is_body(arrays: Mapping[str, np.ndarray]) -> bool:
    """Return whether the arrays are a body's: MANO's sixteen joints make a hand."""
    return (0, *arrays["kintree_table"].shape)[-1] != _MANO_BONES


def read(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of one pickle or npz, by MANO's and SMPL's names.

    A file of sixteen joints is a hand and has MANO's counts and pose space; any other
    is a body, whose counts are its own. Also `tips` and `tip_names` where the file
    names its own finger tips or end points.

    Raises:
        RefusedPickleError: The file names a global that these files do not need.
        UserError: It is damaged, or an array is missing or has another shape.
        OSError: It cannot be read.
    """
    allowed = safe_pickle.plain_globals() | {
        ("chumpy.ch", "Ch"): safe_pickle.holder("Ch"),
        ("chumpy.reordering", "Select"): safe_pickle.holder("Select"),
        ("scipy.sparse.csc", "csc_matrix"): safe_pickle.holder("csc_matrix"),
    }
    read = array_files.load_npz if path.suffix == ".npz" else safe_pickle.load
    data = read(path, allowed)
    if not isinstance(data, Mapping):
        raise UserError(f"{path}: expected a dict of arrays, found {type(data)}.")
    _require(KEYS, data, path)
    arrays = {key: _dense(data[key], path, key) for key in KEYS}
    if is_body(arrays):
        # Newer files have 300 shape directions, the first ten of which are SMPL's.
        arrays["shapedirs"] = arrays["shapedirs"][..., :10]
        vertices, faces = ((*arrays[key].shape, 0)[0] for key in ("v_template", "f"))
        bones = (0, *arrays["kintree_table"].shape)[-1]
        expected = _shapes(vertices, faces, bones)
        form = f"SMPL's format with {bones} joints and {vertices} vertices has"
        question = "All arrays have to be of one model."
    else:
        _require(_MANO, data, path)
        extra = {key: _dense(data[key], path, key) for key in set(_MANO) - set(KEYS)}
        arrays, expected, form = arrays | extra, _MANO, "MANO's format has"
        question = "Is this a hand model (MANO_RIGHT.pkl, MANO_LEFT.pkl)?"
    for key, shape in expected.items():
        if arrays[key].shape != shape:
            raise UserError(
                f"{path}: {key} has shape {arrays[key].shape}, {form} {shape}. "
                f"{question}"
            )
        if not np.isfinite(arrays[key]).all():
            raise UserError(f"{path}: {key} holds values that are not finite.")
    return arrays | {k: np.asarray(data[k]) for k in ("tips", "tip_names") if k in data}


def _require(keys: Iterable[str], data: Mapping, path: Path) -> None:
    missing = sorted(set(keys) - set(data))
    if missing:
        raise UserError(
            f"{path}: not a model in MANO's or SMPL's format: no {missing} among "
            f"{sorted(map(str, data))}."
        )


def _dense(value: Any, path: Path, key: str) -> np.ndarray:
    """Turn what the file holds for one key into a plain array."""
    held = isinstance(value, safe_pickle.Holder)
    kind, state = (value.kind, value.state) if held else ("", {})
    try:
        if kind == "csc_matrix":
            import scipy.sparse

            parts = (state["data"], state["indices"], state["indptr"])
            shape = tuple(state["_shape"])
            matrix = scipy.sparse.csc_matrix(parts, shape=shape)
            matrix.check_format(full_check=True)  # toarray trusts the indices
            return matrix.toarray()
        if kind == "Ch":
            return np.asarray(state["x"])
        if kind == "Select":
            flat = _dense(state["a"], path, key).ravel()
            return flat[np.asarray(state["idxs"])].reshape(state["preferred_shape"])
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(f"{path}: {key}: damaged {kind}: {error!r}.") from error
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise UserError(f"{path}: {key} is not an array of numbers ({type(value)}).")
    return array
