"""Read npz and npy files: sizes are compared before memory is taken.

`numpy.load` takes what a header asks for and unpacks whole members; these readers first
compare what a file says of itself with what is there. Pickles in it run nothing.
"""

import contextlib
import errno
import io
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from handjax.errors import HandjaxError, UserError
from handjax.io import limits, safe_pickle

_CHUNK = 1 << 24

_ARCHIVE_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,  # a method of packing that Python lacks
    RuntimeError,  # a password
    OverflowError,
    ValueError,
    struct.error,
)
"""What `zipfile` raises for a damaged or a strange archive."""


@contextlib.contextmanager
def archive_errors(what: str, advice: str = "Copy it again.") -> Iterator[None]:
    """Turn what `zipfile` raises into one line.

    Args:
        what: Name of the file and what it is not; begins the message.
        advice: What to do; ends the message.

    Raises:
        UserError: The archive is damaged, or needs more memory than there is.
    """
    try:
        yield
    except HandjaxError:
        raise
    except MemoryError as error:
        raise UserError(f"{what}: it needs more memory than there is.") from error
    except _ARCHIVE_ERRORS as error:
        raise UserError(f"{what} ({error}). {advice}") from error
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # A place before the beginning of the file; a disk that fails says otherwise.
        raise UserError(f"{what} (wrong offsets). {advice}") from error


def load_npz(
    path: str | os.PathLike,
    allowed: safe_pickle.Allowed | None = None,
    names: Iterable[str] | None = None,
) -> dict[str, Any]:
    """Read an npz; object arrays in it (pickles) get only `allowed`.

    Zero-dimensional object arrays come back as the object they hold.

    Args:
        path: File to read.
        allowed: Globals of object arrays; None refuses object arrays.
        names: Arrays to read; None reads all.

    Raises:
        RefusedPickleError: An object array names a global that is not in `allowed`.
        UserError: It is truncated, not an npz, lacks a name, or unpacks to more than
            `limits` allow.
        OSError: The file cannot be read.
    """
    name = os.fspath(path)
    with archive_errors(f"{name}: not a complete npz file"):
        with zipfile.ZipFile(path) as archive:
            members = {
                member.filename.removesuffix(".npy"): member
                for member in archive.infolist()
                if member.filename.endswith(".npy")
            }
            wanted = members if names is None else list(names)
            if missing := sorted(set(wanted) - set(members)):
                raise UserError(
                    f"{name}: no arrays {', '.join(missing)} among "
                    f"{', '.join(sorted(members))[:200]}."
                )
            whole = sum(members[key].file_size for key in wanted)
            packed = sum(members[key].compress_size for key in wanted)
            limits.check_unpacked(min(packed, Path(path).stat().st_size), whole, name)
            return {
                key: _member(archive, members[key], allowed, name) for key in wanted
            }


def load_npy(path: str | os.PathLike) -> np.ndarray:
    """Read an npy file of numbers or texts.

    Raises:
        UserError: It is truncated, not an npy file, or holds objects.
        OSError: The file cannot be read.
    """
    name = os.fspath(path)
    with archive_errors(f"{name}: not a complete npy file"):
        with open(path, "rb") as file:
            return _array(file, Path(path).stat().st_size, None, name)


def _member(
    archive: zipfile.ZipFile,
    member: zipfile.ZipInfo,
    allowed: safe_pickle.Allowed | None,
    path: str,
) -> Any:
    # `zipfile` never unpacks more than the size that the archive says.
    with archive.open(member) as file:
        where = f"{path}, array {member.filename!r}"
        return _array(file, member.file_size, allowed, where)


def _array(file: Any, size: int, allowed: safe_pickle.Allowed | None, name: str) -> Any:
    """Read one array of a file that has `size` bytes."""
    try:
        version = np.lib.format.read_magic(file)
        headers = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        if version not in headers:
            raise ValueError(f"version {version} of the format is not known")
        shape, fortran, dtype = headers[version](file)
    except (EOFError, zlib.error, zipfile.BadZipFile):
        raise
    except Exception as error:  # Python's parser of literals raises many kinds
        raise UserError(f"{name}: not an array ({error}). Copy it again.") from error
    if dtype.hasobject:
        if allowed is None:
            raise UserError(f"{name}: it holds objects; arrays of numbers are allowed.")
        reader = io.BufferedReader(file)
        array = safe_pickle.load_from(reader, allowed, name, is_packed=True)
        is_single = isinstance(array, np.ndarray) and array.ndim == 0
        return array.item() if is_single else array
    count = math.prod(shape)
    left = size - file.tell()
    if min(shape, default=0) < 0 or len(shape) > 32 or not 0 < dtype.itemsize < 2**31:
        raise UserError(f"{name}: an array of shape {shape[:4]} and type {dtype}.")
    if count * dtype.itemsize > left:
        raise UserError(
            f"{name}: shape {shape} of {dtype} takes {count * dtype.itemsize:,} bytes; "
            f"there are {left:,}. Copy it again."
        )
    array = np.empty(shape, dtype, order="F" if fortran else "C")
    if not count:
        return array
    content = memoryview(array.ravel(order="K").view(np.uint8))
    while len(content):
        taken = file.readinto(content[:_CHUNK])
        if not taken:
            raise EOFError("its end is missing")
        content = content[taken:]
    return array
