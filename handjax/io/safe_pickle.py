"""Unpickle only what the caller allows.

A pickle is a program: it names importable objects ("globals") and calls them. Here the
caller gives a table of the globals that a format needs, with a stand-in for each; any
other global is refused by name before it is imported. Stand-ins are made anew for every
file, because a pickle may also set attributes on them.
"""

import io
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from handjax.errors import UserError

Allowed = Mapping[tuple[str, str], Any]
"""(module, name) of a global -> the object that the pickle gets instead."""

_MOVED = (
    (re.compile(r"^__builtin__$"), "builtins"),
    (re.compile(r"^numpy\._core\b"), "numpy.core"),
    (re.compile(r"^scipy\.sparse\._(?=[a-z])"), "scipy.sparse."),
)
"""Modules that Python 3, numpy 2 and scipy 1.8 renamed: both spellings find one entry
of the table, and none is imported (which would warn)."""


class RefusedPickleError(UserError):
    """A pickle names a global that its format does not need."""


class _Marker:
    """Stands for a class that a pickle passes around but must not call."""

    def __init__(self, name: str):
        self._name = name

    def __call__(self, *args, **kwargs):
        raise RefusedPickleError(f"a pickle tried to call {self._name} itself")


class Holder:
    """An inert object that keeps the state a pickle gives it; see `holder`."""

    state: Mapping[str, Any] = {}

    def __setstate__(self, state):
        if not isinstance(state, dict):
            raise UserError(
                f"{type(self).__name__} has a state of type "
                f"{type(state).__name__}; expected a dict"
            )
        self.state = state


def holder(name: str) -> type[Holder]:
    """Return a new inert class to stand in for the class called `name`."""
    return type(name, (Holder,), {})


def numpy_globals() -> dict[tuple[str, str], Any]:
    """Return stand-ins for the three globals that plain numpy arrays need."""
    ndarray = _Marker("numpy.ndarray")

    def reconstruct(subtype, shape, typecode):
        if subtype is not ndarray:
            raise RefusedPickleError("a pickle makes an array of a foreign class")
        return np.empty((0,), np.int8)  # the state that follows holds the content

    def dtype(spec, align=False, copy=True):
        if not isinstance(spec, str):
            raise RefusedPickleError(f"a pickle makes a dtype of {spec!r}")
        # Always a copy: the state that follows is set on it.
        return np.dtype(spec, align=bool(align), copy=True)

    return {
        ("numpy.core.multiarray", "_reconstruct"): reconstruct,
        ("numpy", "ndarray"): ndarray,
        ("numpy", "dtype"): dtype,
    }


def plain_globals() -> dict[tuple[str, str], Any]:
    """Return stand-ins for all that arrays, their scalars and plain values need.

    Beside `numpy_globals`: single numbers, arrays of protocol 5, and bytes and sets as
    older protocols write them.
    """

    def numbers(dtype, data):
        if not isinstance(dtype, np.dtype) or dtype.hasobject:
            raise RefusedPickleError(f"a pickle makes numbers of type {dtype!r}")
        # Strings of Python 2 hold bytes, which `latin1` keeps as they are.
        raw = data.encode("latin1") if isinstance(data, str) else bytes(data)
        return np.frombuffer(raw, dtype)

    def scalar(dtype, data):
        (value,) = numbers(dtype, data)
        return value

    def frombuffer(data, dtype, shape, order, axis_order=None):
        if axis_order is not None or order not in ("C", "F"):
            raise RefusedPickleError("a pickle makes an array of unusual layout")
        return numbers(dtype, data).reshape(shape, order=order).copy(order)

    def encode(text, encoding="latin1"):
        if encoding not in ("latin1", "latin-1") or not isinstance(text, str):
            raise RefusedPickleError(f"a pickle encodes text as {encoding!r}")
        return text.encode("latin1")

    return numpy_globals() | {
        ("numpy.core.multiarray", "scalar"): scalar,
        ("numpy.core.numeric", "_frombuffer"): frombuffer,
        ("_codecs", "encode"): encode,
        ("builtins", "set"): set,
        ("builtins", "bytearray"): bytearray,
    }


class _Unpickler(pickle.Unpickler):
    def __init__(
        self,
        file,
        allowed: Allowed,
        path: str,
        resolve: Callable[[Any], Any] | None,
        stand_in: Callable[[str, str], Any] | None,
    ):
        super().__init__(file, encoding="latin1")  # strings of Python 2
        self._path, self._resolve, self._stand_in = path, resolve, stand_in
        self._allowed = {(_current(m), n): value for (m, n), value in allowed.items()}

    def find_class(self, module, name):
        key = (_current(module), name)
        if key in self._allowed:
            return self._allowed[key]
        stand_in = self._stand_in(*key) if self._stand_in is not None else None
        if stand_in is None:
            raise refusal(self._path, f"{module}.{name}", self._allowed)
        return stand_in

    def persistent_load(self, pid):
        if self._resolve is None:
            raise RefusedPickleError(
                f"{self._path}: refused to load persistent id {pid!r}"
            )
        return self._resolve(pid)


def refusal(path: str, name: str, allowed: Allowed) -> RefusedPickleError:
    """Return the error for a global that a format does not need."""
    names = sorted(f"{m}.{n}" for m, n in allowed)
    return RefusedPickleError(
        f"{path}: refused to load {name}, which is not in this format. Allowed: "
        f"{', '.join(names)}. Nothing was run. If you trust the file, open it with the "
        f"tool that made it and save its arrays alone."
    )


def _current(module: str) -> str:
    for pattern, replacement in _MOVED:
        module = pattern.sub(replacement, module)
    return module


def load(path: str | os.PathLike, allowed: Allowed) -> Any:
    """Read one pickle, giving it only the globals of `allowed`.

    Args:
        path: File to read.
        allowed: Globals that the format needs; see `numpy_globals` and `holder`.

    Raises:
        RefusedPickleError: It names another global; the message says which.
        UserError: It is truncated or not a pickle.
        OSError: The file cannot be read.
    """
    with open(path, "rb") as file:
        return load_from(file, allowed, os.fspath(path))


def loads(data: bytes, allowed: Allowed, path: str) -> Any:
    """Read one pickle from memory; messages call it `path`. See `load`."""
    return load_from(io.BytesIO(data), allowed, path)


def load_npz(path: str | os.PathLike, allowed: Allowed) -> dict[str, Any]:
    """Read an npz; object arrays in it (pickles) get only `allowed`.

    Zero-dimensional object arrays come back as the object they hold.

    Raises:
        RefusedPickleError: An object array names a global that is not in `allowed`.
        UserError: It is truncated or not an npz.
        OSError: The file cannot be read.
    """
    name = os.fspath(path)
    try:
        with zipfile.ZipFile(path) as archive:
            return {
                member.removesuffix(".npy"): _read_member(
                    archive, member, allowed, name
                )
                for member in archive.namelist()
                if member.endswith(".npy")
            }
    except (zipfile.BadZipFile, EOFError) as error:
        raise UserError(
            f"{name}: not a complete npz file ({error}). Copy it again."
        ) from error


def _read_member(archive: zipfile.ZipFile, member: str, allowed: Allowed, path: str):
    with archive.open(member) as file:
        try:
            return np.lib.format.read_array(file, allow_pickle=False)
        except ValueError as error:
            if "Object arrays" not in str(error):
                raise UserError(f"{path}: array {member!r}: {error}") from error
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        header(file)
        array = load_from(file, allowed, f"{path}, array {member!r}")
    return array.item() if isinstance(array, np.ndarray) and array.ndim == 0 else array


def load_from(
    file: Any,
    allowed: Allowed,
    path: str,
    persistent_load: Callable[[Any], Any] | None = None,
    stand_in: Callable[[str, str], Any] | None = None,
) -> Any:
    """Read the next pickle of an open file.

    Args:
        file: Open, in binary; stands behind the pickle afterwards.
        allowed: Globals that the format needs; see `numpy_globals` and `holder`.
        path: Name of the file in messages.
        persistent_load: Resolves the persistent ids that the format uses; None refuses
            them.
        stand_in: Given module and name of a global that is not in `allowed`, returns
            something inert in its place, or None to refuse it.

    Raises:
        RefusedPickleError: It names another global; the message says which.
        UserError: It is truncated or not a pickle.
    """
    try:
        return _Unpickler(file, allowed, path, persistent_load, stand_in).load()
    except RefusedPickleError:
        raise
    except MemoryError:
        raise
    except Exception as error:
        # A damaged pickle can fail anywhere in the unpickler.
        raise UserError(
            f"{path}: not a complete pickle ({type(error).__name__}: {error}). "
            f"Download or copy it again."
        ) from error
