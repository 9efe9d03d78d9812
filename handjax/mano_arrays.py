"""Arrays out of a file in MANO's format: pickle or npz, made dense, shapes checked.

The published pickles were written by Python 2 with scipy (the joint regressor) and
chumpy (`shapedirs`, the first ten of twenty columns). Neither is needed to read them:
`safe_pickle` gives inert holders, whose content is evaluated here. numpy only.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from handjax import safe_pickle

SHAPES = {
    "v_template": (778, 3),
    "shapedirs": (778, 3, 10),
    "posedirs": (778, 3, 135),
    "J_regressor": (16, 778),
    "weights": (778, 16),
    "f": (1538, 3),
    "kintree_table": (2, 16),
    "hands_mean": (45,),
    "hands_components": (45, 45),
}
"""What every file has; `f` are the faces, `kintree_table` parents and joints."""


def read(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of one pickle or npz, by MANO's names.

    Also `tips` and `tip_names` where the file names its own finger tips.

    Raises:
        RefusedPickleError: The file names a global that MANO's files do not need.
        ValueError: It is damaged, or an array is missing or has another shape.
        OSError: It cannot be read.
    """
    allowed = safe_pickle.numpy_globals() | {
        ("__builtin__", "set"): set,
        ("chumpy.ch", "Ch"): safe_pickle.holder("Ch"),
        ("chumpy.reordering", "Select"): safe_pickle.holder("Select"),
        ("scipy.sparse.csc", "csc_matrix"): safe_pickle.holder("csc_matrix"),
    }
    read = safe_pickle.load_npz if path.suffix == ".npz" else safe_pickle.load
    data = read(path, allowed)
    if not isinstance(data, Mapping):
        raise ValueError(f"{path}: expected a dict of arrays, found {type(data)}.")
    missing = sorted(set(SHAPES) - set(data))
    if missing:
        raise ValueError(
            f"{path}: not a hand model in MANO's format: no {missing} among "
            f"{sorted(map(str, data))}."
        )
    arrays = {key: _dense(data[key], path, key) for key in SHAPES}
    for key, shape in SHAPES.items():
        if arrays[key].shape != shape:
            raise ValueError(
                f"{path}: {key} has shape {arrays[key].shape}, MANO's format has "
                f"{shape}. Is this a hand model (MANO_RIGHT.pkl, MANO_LEFT.pkl)?"
            )
        if not np.isfinite(arrays[key]).all():
            raise ValueError(f"{path}: {key} holds values that are not finite.")
    return arrays | {k: np.asarray(data[k]) for k in ("tips", "tip_names") if k in data}


def _dense(value: Any, path: Path, key: str) -> np.ndarray:
    """Turn what the file holds for one key into a plain array."""
    kind, state = type(value).__name__, getattr(value, "state", {})
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
        raise ValueError(f"{path}: {key}: damaged {kind}: {error!r}.") from error
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{path}: {key} is no array of numbers ({type(value)}).")
    return array
