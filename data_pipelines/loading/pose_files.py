"""Read captured hand poses from a file, for a discriminator to compare with.

An npz as HaMeR's motion capture comes: `hand_pose` (N, 48), axis-angle in radians,
wrist first, no mean pose subtracted, and `betas` (N, 10). Poses of bodies have three
numbers for each joint of the body model.
"""

import os
from pathlib import Path

import numpy as np

from handjax.errors import MissingFileError, UserError
from handjax.io import array_files


class PoseFile:
    """Random-access source of the file's poses, in its order.

    An item is what `synthetic.poses.PosePriorSource` gives: `mano_pose` (bones, 3) and
    `betas` (10,), float32.

    Args:
        path: The npz. It is read whole; arrays of Python objects, which are pickles,
            are refused.
        bones: Joints with a rotation, a hand's by default.

    Raises:
        MissingFileError: If there is no such file.
        UserError: If it is damaged or does not have these arrays.
    """

    def __init__(self, path: str | os.PathLike, bones: int = 16):
        self.path = Path(path)
        arrays = _read(self.path, {"hand_pose": 3 * bones, "betas": 10})
        counts = {name: len(array) for name, array in arrays.items()}
        if len(set(counts.values())) > 1 or not all(counts.values()):
            raise UserError(
                f"{path}: {counts['hand_pose']} rows of hand_pose and "
                f"{counts['betas']} of betas; both need the same number, at least one."
            )
        self.mano_pose = arrays["hand_pose"].reshape(-1, bones, 3)
        self.betas = arrays["betas"]

    def __len__(self) -> int:
        return len(self.betas)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {"mano_pose": self.mano_pose[index], "betas": self.betas[index]}


def _read(path: Path, columns: dict[str, int]) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise MissingFileError(
            f"There is no file {str(path)!r}; name an npz with hand_pose "
            f"(N, {columns['hand_pose']}) and betas (N, 10)."
        )
    arrays = array_files.load_npz(path, names=columns)
    return {
        name: _checked(arrays[name], name, path, wanted)
        for name, wanted in columns.items()
    }


def _checked(array: np.ndarray, name: str, path: Path, wanted: int) -> np.ndarray:
    if array.ndim != 2 or array.shape[1] != wanted or array.dtype.kind != "f":
        raise UserError(
            f"{path}, array {name!r} is {array.dtype} of shape {array.shape}; it must "
            f"be of floats and of shape (N, {wanted})."
        )
    if not np.isfinite(array).all():
        raise UserError(f"{path}, array {name!r} holds values that are not finite.")
    return array.astype(np.float32)
