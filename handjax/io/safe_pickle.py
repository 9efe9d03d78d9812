"""Read pickles of arrays and plain values, and nothing else.

A pickle is a program: it names importable objects ("globals") and calls them. Here
`pickle_machine` interprets it, and the caller gives a table of the globals that a
format needs, with a stand-in for each; any other global is refused by name, and none
is ever imported. Types and arrays of numpy are stand-ins, too, until their content is
there and has been checked: numpy itself never sees a state from a file.
"""

import io
import math
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from handjax.errors import UserError, shown
from handjax.io import limits
from handjax.io.pickle_machine import (
    Function,
    Marker,
    RefusedPickleError,
    StandIn,
    Unfinished,
    key,
    run,
)

Allowed = Mapping[tuple[str, str], Any]
"""(module, name) of a global -> the stand-in that the pickle gets instead."""

PACKED_STEPS = 5_000_000
"""Opcodes of a pickle inside of a packed file, which may be small for its content."""

_MOVED = (
    (re.compile(r"^__builtin__$"), "builtins"),
    (re.compile(r"^numpy\._core\b"), "numpy.core"),
    (re.compile(r"^scipy\.sparse\._(?=[a-z])"), "scipy.sparse."),
)
"""Modules that Python 3, numpy 2 and scipy 1.8 renamed: both spellings find one entry
of the table, and none is imported (which would warn)."""

_PLAIN_TYPE = re.compile(r"[<>=|]?([biuf][1248]|\?|[SU]\d{1,6}|O[48]?)")
"""What may be said of a type: numbers, truth values, text, lists of objects. Not the
rest of numpy's language: no structures, dates, or pointers."""

_MAX_DIMENSIONS = 32


class Holder(StandIn):
    """An inert object that keeps the state a pickle gives it; see `holder`."""

    __slots__ = ("kind", "state")

    def __init__(self, kind: str):
        self.kind = kind
        self.state: Mapping[str, Any] = {}

    def __str__(self):
        return self.kind

    @property
    def parts(self) -> list[Any]:
        """Return what it holds, for `pickle_machine`'s check of extent."""
        return list(self.state.values())

    def with_state(self, state):
        """Keep a state, once."""
        if not isinstance(state, dict):
            raise UserError(f"{self.kind} has {shown(state)} as state; expected a dict")
        if self.state:
            self.refuse("set twice the state of")
        self.state = state
        return self


class HolderClass(StandIn):
    """A class of which a pickle may make holders."""

    __slots__ = ("_name",)

    def __init__(self, name: str):
        self._name = name

    def __str__(self):
        return self._name

    def new(self, args, kwargs):
        """Return a new holder."""
        if args or kwargs:
            self.refuse("give arguments to")
        return Holder(self._name)


def holder(name: str) -> HolderClass:
    """Return an inert class to stand in for the class called `name`."""
    return HolderClass(name)


# --- numpy --------------------------------------------------------------------------


class _Type(Unfinished):
    """A numpy.dtype whose byte order is still to come."""

    __slots__ = ("_spec",)

    def __init__(self, spec: Any, align: Any = False, copy: Any = True):
        super().__init__()
        del align, copy
        match = _PLAIN_TYPE.fullmatch(spec) if isinstance(spec, str) else None
        if match is None:
            raise RefusedPickleError(
                f"a pickle makes a dtype of {shown(spec)}; plain numbers are allowed"
            )
        self._spec = match[1]

    def __str__(self):
        return "numpy.dtype"

    def with_state(self, state):
        """Return the plain type that a state is of."""
        match state:
            case (int(), "<" | ">" | "=" | "|" as order, None, None, None, *sizes):
                pass
            case _:
                self.refuse("set an unusual state of")
        if len(sizes) not in (2, 3) or not all(type(size) is int for size in sizes):
            self.refuse("set an unusual state of")
        # Sizes and flags follow from the type: what the file says of them is not used.
        plain = object if self._spec[0] == "O" else order + self._spec
        return _FinishedType(np.dtype(plain))


class _FinishedType(StandIn):
    """A plain numpy.dtype that a pickle can pass on and nothing else."""

    __slots__ = ("plain",)

    def __init__(self, plain: np.dtype):
        self.plain = plain

    def __str__(self):
        return f"numpy.dtype {self.plain}"


class _Array(Unfinished):
    """A numpy.ndarray whose content is still to come."""

    __slots__ = ()

    def __str__(self):
        return "numpy.ndarray"

    def with_state(self, state):
        """Return an array of our own with this content."""
        match state:
            case (int(), tuple(shape), dtype, fortran, content):
                pass
            case (tuple(shape), dtype, fortran, content):  # before numpy 1.0
                pass
            case _:
                self.refuse("set an unusual state of")
        order = "F" if fortran else "C"
        if isinstance(dtype, _FinishedType) and dtype.plain.hasobject:
            return _objects(content, shape, order)
        return numbers(dtype, content, shape, order)


def _count(shape: Any) -> int:
    sizes = isinstance(shape, tuple) and len(shape) <= _MAX_DIMENSIONS
    if not sizes or not all(type(n) is int and 0 <= n < 2**48 for n in shape):
        raise UserError(f"an array of shape {shown(shape)}")
    return math.prod(shape)


def numbers(dtype: Any, data: Any, shape: tuple, order: str = "C") -> np.ndarray:
    """Return an array of numbers or texts, of the machine's byte order.

    Args:
        dtype: Stand-in of its type, as `numpy_globals` make it.
        data: Bytes, or text of Python 2.
        shape: Its size has to be that of the data.
        order: "C" or "F".

    Raises:
        RefusedPickleError: It would hold objects, or dtype is not a type.
        UserError: Sizes do not fit.
    """
    if not isinstance(dtype, _FinishedType) or dtype.plain.hasobject:
        raise RefusedPickleError(f"a pickle makes numbers of type {shown(dtype)}")
    # Strings of Python 2 hold bytes, which `latin1` keeps as they are.
    raw = data.encode("latin1") if isinstance(data, str) else data
    if not isinstance(raw, (bytes, bytearray)):
        raise UserError(f"the content of an array is {shown(data)}")
    count = _count(shape)
    if len(raw) != count * dtype.plain.itemsize:
        raise UserError(
            f"an array of shape {shape} and type {dtype.plain} has {len(raw)} bytes, "
            f"not {count * dtype.plain.itemsize}"
        )
    native = dtype.plain.newbyteorder("=")
    if not raw:
        return np.zeros(shape, native, order)
    if dtype.plain.kind == "b":
        flags = np.frombuffer(raw, np.uint8) != 0  # other bytes are neither
        return flags.reshape(shape, order=order)
    made = np.frombuffer(raw, dtype.plain).astype(native)  # always a copy
    return made.reshape(shape, order=order)


def _objects(content: Any, shape: tuple, order: str) -> np.ndarray:
    if not isinstance(content, list) or len(content) != _count(shape):
        raise UserError(f"an array of shape {shown(shape)} has {shown(content)}")
    made = np.empty(len(content), object)
    for position, value in enumerate(content):
        made[position] = value
    return made.reshape(shape).copy(order)


def numpy_globals() -> dict[tuple[str, str], Any]:
    """Return stand-ins for the three globals that plain numpy arrays need."""
    ndarray = Marker("numpy.ndarray")

    def reconstruct(subtype, shape, typecode):
        del shape, typecode  # of an empty array, which the state replaces
        if subtype is not ndarray:
            raise RefusedPickleError("a pickle makes an array of a foreign class")
        return _Array()

    array = Function("_reconstruct", reconstruct)
    return {
        ("numpy.core.multiarray", "_reconstruct"): array,
        ("numpy", "ndarray"): ndarray,
        ("numpy", "dtype"): Function("numpy.dtype", _Type),
    }


def scalar(dtype: Any, data: Any) -> Any:
    """Return one number of numpy; see `numbers`."""
    return numbers(dtype, data, ())[()]


def encode(text: Any, encoding: Any = "latin1") -> bytes:
    """Return bytes as protocols before 3 write them: text, and always latin1."""
    if encoding not in ("latin1", "latin-1") or not isinstance(text, str):
        raise RefusedPickleError(f"a pickle encodes text as {shown(encoding)}")
    return text.encode("latin1")


def plain_globals() -> dict[tuple[str, str], Any]:
    """Return stand-ins for all that arrays, their scalars and plain values need.

    Beside `numpy_globals`: single numbers, arrays of protocol 5, and bytes and sets as
    older protocols write them.
    """

    def frombuffer(data, dtype, shape, order, axis_order=None):
        if axis_order is not None or order not in ("C", "F"):
            raise RefusedPickleError("a pickle makes an array of unusual layout")
        return numbers(dtype, data, shape, order)

    def byte_array(data=b"", encoding="latin1"):
        if isinstance(data, str):
            data = encode(data, encoding)
        if not isinstance(data, (bytes, bytearray)):
            raise UserError(f"a bytearray of {shown(data)}; expected bytes")
        return bytearray(data)

    return numpy_globals() | {
        ("numpy.core.multiarray", "scalar"): Function("scalar", scalar),
        ("numpy.core.numeric", "_frombuffer"): Function("_frombuffer", frombuffer),
        ("_codecs", "encode"): Function("encode", encode),
        ("builtins", "set"): Function("set", plain_set),
        ("builtins", "bytearray"): Function("bytearray", byte_array),
    }


def plain_set(items: Any = ()) -> set[Any]:
    """Return a set of plain values."""
    if not isinstance(items, (list, tuple)):
        raise UserError(f"a set of {shown(items)}; expected a list")
    return set(map(key, items))


# --- reading ------------------------------------------------------------------------


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


def load_from(
    file: Any,
    allowed: Allowed,
    path: str,
    persistent_load: Callable[[Any], Any] | None = None,
    stand_in: Callable[[str, str], Any] | None = None,
    is_packed: bool = False,
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
        is_packed: Whether it is inside of a packed file, and may hold `PACKED_STEPS`.

    Raises:
        RefusedPickleError: It names another global; the message says which.
        UserError: It is truncated, not a pickle, or larger than `limits` allow.
    """
    table = {(_current(m), name): value for (m, name), value in allowed.items()}

    def find_global(module: str, name: str) -> Any:
        place = _current(module), name
        found = table.get(place)
        if found is None and stand_in is not None:
            found = stand_in(*place)
        if found is None:
            raise refusal(path, f"{module}.{name}", table)
        return found

    def refused(pid: Any) -> Any:
        raise RefusedPickleError(f"{path}: refused to load persistent id {shown(pid)}")

    most = limits.PICKLE_STEPS.value
    if is_packed:
        most = min(most, PACKED_STEPS)
    try:
        return run(file, find_global, persistent_load or refused, most)
    except RefusedPickleError as error:
        if str(error).startswith(path):
            raise
        raise RefusedPickleError(f"{path}: {error}. Nothing was run.") from None
    except MemoryError as error:
        raise UserError(f"{path}: it needs more memory than there is.") from error
    except Exception as error:
        # A damaged pickle can fail anywhere in the machine.
        raise UserError(
            f"{path}: not a complete pickle ({type(error).__name__}: {error}). "
            f"Download or copy it again."
        ) from error
