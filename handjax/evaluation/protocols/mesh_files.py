"""Read and write pred.json and pred.zip of FreiHAND and HO3D, and their truth.

pred.json is a list of two lists, joints (sample, 21, 3) and vertices (sample, 778, 3),
in metres and in the order of the data set; pred.zip has it at its root. The ground
truth is two files of one such list each.
"""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from handjax.errors import MissingFileError, UserError
from handjax.evaluation.protocols.mesh_scores import Meshes
from handjax.geometry.skeleton import NUM_JOINTS, NUM_VERTICES
from handjax.io import array_files, json_files, limits
from handjax.io.atomic_files import write_bytes

MEMBER = "pred.json"
DIGITS = 6
"""Decimals of written metres: a micrometre, far under what is measured."""


# --- reading ------------------------------------------------------------------------


def read(path: Path) -> Meshes:
    """Read predictions of a pred.json, or of the one in a pred.zip.

    Raises:
        UserError: It has another format, or holds numbers that are not finite.
        OSError: It cannot be read.
    """
    value = parsed(member_text(path, MEMBER, ".json"), path)
    if not (isinstance(value, list) and len(value) == 2):
        what = (
            f"{len(value)} lists" if isinstance(value, list) else type(value).__name__
        )
        raise UserError(
            f"{path}: holds {what}; a list of two lists is needed, joints of all "
            f"samples ({NUM_JOINTS} x 3) and vertices of all samples "
            f"({NUM_VERTICES} x 3)."
        )
    joints, vertices = (
        _samples(part, path, name) for part, name in _parts(value, path)
    )
    if len(joints) != len(vertices):
        raise UserError(
            f"{path}: joints of {len(joints):,} samples and vertices of "
            f"{len(vertices):,}; both lists need one entry for each sample."
        )
    _check_joints(joints, path)
    return Meshes(np.asarray(joints), vertices)


def _parts(value: list, path: Path):
    for part, name in zip(value, ("joints", "vertices"), strict=True):
        if not isinstance(part, list):
            raise UserError(f"{path}: the {name} are not a list of samples.")
        yield part, name


def read_truth(folder: Path, where_from: str, split: str = "evaluation") -> Meshes:
    """Read `<split>_xyz.json` and `<split>_verts.json` of a folder, or of its `ref`.

    Raises:
        MissingFileError: One of them is missing.
        UserError: They are damaged, or do not belong together.
    """
    found = []
    for name in ("xyz", "verts"):
        path = truth_file(folder, f"{split}_{name}.json", where_from)
        value = parsed(path.read_bytes(), path)
        if not isinstance(value, list) or not value:
            raise UserError(f"{path}: does not hold a list of samples. {where_from}")
        found.append(_samples(value, path, name))
    joints, vertices = found
    if len(joints) != len(vertices):
        raise UserError(
            f"{folder}: {split}_xyz.json has {len(joints):,} samples, "
            f"{split}_verts.json {len(vertices):,}; they are not of one release. "
            f"{where_from}"
        )
    _check_joints(joints, folder)
    return Meshes(np.asarray(joints), vertices)


def truth_file(folder: Path, name: str, where_from: str) -> Path:
    """Find a file of the ground truth, in the folder or in `ref` as scripts do.

    Raises:
        MissingFileError: It is in neither.
    """
    for path in (folder / name, folder / "ref" / name):
        if path.is_file():
            return path
    raise MissingFileError(f"{str(folder)!r} has no {name}. {where_from}")


def _check_joints(joints: Any, path: Path) -> None:
    for i, hand in enumerate(joints):
        if len(hand) != NUM_JOINTS:
            raise UserError(
                f"{path}: sample {i} has {len(hand)} joints; {NUM_JOINTS} are needed."
            )


def _samples(values: list, path: Path, name: str) -> Any:
    """Return (sample, point, 3), or a list of (point, 3) where counts differ."""
    if not values:
        return np.zeros((0, 0, 3))
    try:
        array = np.asarray(values, np.float64)
        if array.ndim != 3:
            raise ValueError
        samples = array
    except (TypeError, ValueError, OverflowError):
        samples = [_points(value, path, name, i) for i, value in enumerate(values)]
        if len({len(points) for points in samples}) == 1:
            samples = np.asarray(samples)
    if isinstance(samples, np.ndarray) and samples.ndim == 3 and samples.shape[2] != 3:
        _points(values[0], path, name, 0)  # says what is wrong
    _check_finite(samples, path, name)
    return samples


def _points(value: Any, path: Path, name: str, sample: int) -> np.ndarray:
    try:
        points = np.asarray(value, np.float64)
    except (TypeError, ValueError, OverflowError):
        raise UserError(
            f"{path}: the {name} of sample {sample} are not rows of three numbers."
        ) from None
    if points.size == 0:
        return np.zeros((0, 3))
    if points.ndim != 2 or points.shape[1] != 3:
        raise UserError(
            f"{path}: the {name} of sample {sample} have shape {points.shape}; rows of "
            "three numbers (x, y, z in metres) are needed."
        )
    return points


def _check_finite(samples: Any, path: Path, name: str) -> None:
    bad = [i for i, points in enumerate(samples) if not np.isfinite(points).all()]
    if bad:
        raise UserError(
            f"{path}: the {name} of {len(bad):,} of {len(samples):,} samples hold NaN "
            f"or infinity, first of sample {bad[0]}. The official script stops there; "
            "every sample needs numbers."
        )


def member_text(path: Path, member: str, suffix: str) -> str:
    """Read the text of a file, or of the one at the root of a zip.

    Raises:
        UserError: The zip is damaged or has not one such file at its root.
        OSError: It cannot be read.
    """
    if not zipfile.is_zipfile(path):
        if path.suffix == ".zip":
            path.stat()  # a missing file says so
            raise UserError(f"{path}: not a complete zip file. Copy it again.")
        return path.read_bytes().decode("utf-8", "replace")
    with array_files.archive_errors(f"{path}: {member} in it is damaged"):
        with zipfile.ZipFile(path) as archive:
            inside = archive.namelist()
            at_root = [n for n in inside if "/" not in n and not n.startswith(".")]
            found = [n for n in at_root if n.endswith(suffix)]
            if member in found:
                found = [member]
            if len(found) != 1:
                raise UserError(
                    f"{path}: holds {str(inside[:5])[:200]}; {member} is needed at its "
                    "root, in no folder."
                )
            size = archive.getinfo(found[0]).file_size
            limits.check_unpacked(path.stat().st_size, size, f"{path}: {found[0]}")
            return archive.read(found[0]).decode("utf-8", "replace")


def parsed(text: str | bytes, path: Path) -> Any:
    """Read the JSON of a file.

    Raises:
        UserError: It is not JSON.
    """
    return json_files.parse(text, path)


# --- writing ------------------------------------------------------------------------


def write(path: Path, predictions: Meshes) -> None:
    """Write pred.json, or a pred.zip with it, by the suffix of `path`.

    The same predictions make the same bytes.
    """
    lists = [
        [np.round(points, DIGITS).tolist() for points in part]
        for part in (predictions.joints3d, predictions.vertices)
    ]
    text = json.dumps(lists, separators=(",", ":"), allow_nan=False)
    write_text(path, MEMBER, text)


def write_text(path: Path, member: str, text: str) -> None:
    """Write a text file, or a zip with it at its root, complete or not at all."""
    if path.suffix != ".zip":
        write_bytes(path, text.encode())
        return
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        # Without a ZipInfo the archive would hold the time of day.
        info = zipfile.ZipInfo(member)
        info.compress_type = zipfile.ZIP_DEFLATED
        info.external_attr = 0o644 << 16
        archive.writestr(info, text)
    write_bytes(path, buffer.getvalue())
