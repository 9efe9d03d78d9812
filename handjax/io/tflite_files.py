"""Graph and constants out of TensorFlow Lite's files, without TensorFlow.

A .tflite file is a flatbuffer: tables that point at each other by offsets. Offsets of a
stranger's file may point anywhere, so every one is checked against the file before it
is followed, every list has a limit, and constants are views of the file, never copies.
Of the schema (tensorflow/lite/schema/schema.fbs) only what float networks need is read;
with these few fields the `flatbuffers` package alone is lighter than the generated
classes of the whole schema, which check nothing.
"""

import math
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from flatbuffers import number_types as types
from flatbuffers.encode import Get
from flatbuffers.packer import uoffset

from handjax.errors import UserError

IDENTIFIER = b"TFL3"

_MAX_BYTES = 1 << 29
_MAX_TABLES = 20_000
_MAX_ITEMS = 1_000
_MAX_DIMS = 8

_DTYPES = {
    0: np.dtype("<f4"),
    1: np.dtype("<f2"),
    2: np.dtype("<i4"),
    3: np.dtype("u1"),
    4: np.dtype("<i8"),
    6: np.dtype("?"),
    7: np.dtype("<i2"),
    9: np.dtype("i1"),
}
_OPERATORS = {
    0: "ADD",
    2: "CONCATENATION",
    3: "CONV_2D",
    4: "DEPTHWISE_CONV_2D",
    6: "DEQUANTIZE",
    9: "FULLY_CONNECTED",
    14: "LOGISTIC",
    17: "MAX_POOL_2D",
    22: "RESHAPE",
    23: "RESIZE_BILINEAR",
    34: "PAD",
    40: "MEAN",
    54: "PRELU",
}
_ACTIVATIONS = {0: "", 1: "RELU", 3: "RELU6"}


class Tensor(NamedTuple):
    """One tensor of the graph."""

    name: str
    shape: tuple[int, ...]
    value: np.ndarray | None
    """Content of a constant, a read-only view of the file; None where not."""


class Operator(NamedTuple):
    """One step of the graph."""

    kind: str
    """Name in the schema, such as "CONV_2D"."""
    inputs: tuple[int, ...]
    """Indices of tensors; -1 for an optional one that is not given."""
    outputs: tuple[int, ...]
    stride: int = 1
    """Of convolutions; the same in both directions."""
    activation: str = ""
    """What a convolution or sum ends in: "", "RELU" or "RELU6"."""


class Graph(NamedTuple):
    """A network."""

    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    """In the order they run; each reads only what earlier ones wrote."""
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def is_tflite(head: bytes) -> bool:
    """Return whether a file that begins with these 8 bytes is one of TFLite's."""
    return head[4:8] == IDENTIFIER


def read(path: str | os.PathLike) -> Graph:
    """Read a .tflite file of one float network.

    Raises:
        UserError: It is damaged, too large, or needs what handjax does not read.
        OSError: It cannot be read.
    """
    name = os.fspath(path)
    size = os.path.getsize(path)
    if size > _MAX_BYTES:
        raise UserError(
            f"{name}: {size:,} bytes; files of up to {_MAX_BYTES:,} bytes are read. "
            "Pass a hand or palm network of MediaPipe."
        )
    with open(path, "rb") as file:
        data = file.read(size)
    if not is_tflite(data[:8]):
        raise UserError(
            f"{name}: not a TensorFlow Lite file: bytes 5 to 8 are {data[4:8]!r}, not "
            f"{IDENTIFIER!r}. Pass a .tflite file (a .task file is a zip of them: "
            "unzip it)."
        )
    try:
        return _graph(data)
    except _DamagedError as error:
        raise UserError(f"{name}: {error} Download or copy it again.") from None


class _DamagedError(Exception):
    """The file breaks a rule; the message is a sentence."""


class _Table:
    """A table of the file; every access is checked against the file's size."""

    def __init__(self, data: bytes, position: int):
        self._data, self._position = data, position
        self._vtable = position - self._number(types.SOffsetTFlags, position)
        self._vtable_size = self._number(types.VOffsetTFlags, self._vtable)

    def _number(self, kind: Any, position: int) -> int:
        if not 0 <= position <= len(self._data) - kind.bytewidth:
            raise _DamagedError(f"offset {position} lies outside the file.")
        return Get(kind.packer_type, self._data, position)

    def _field(self, index: int) -> int:
        """Position of a field, 0 if it is not given."""
        slot = 4 + 2 * index
        if slot + 2 > self._vtable_size:
            return 0
        offset = self._number(types.VOffsetTFlags, self._vtable + slot)
        return self._position + offset if offset else 0

    def number(self, index: int, kind: Any, default: int = 0) -> int:
        """Value of a number field."""
        position = self._field(index)
        return self._number(kind, position) if position else default

    def table(self, index: int) -> "_Table | None":
        """Table that a field points at."""
        position = self._field(index)
        return _Table(self._data, self._follow(position)) if position else None

    def array(self, index: int, dtype: Any, limit: int) -> np.ndarray:
        """List of numbers, as a view of the file; empty if it is not given."""
        dtype = np.dtype(dtype)
        start, count = self._list(index, dtype.itemsize, limit)
        return np.frombuffer(self._data, dtype, count, start)

    def text(self, index: int) -> str:
        """Text, with other bytes than UTF-8 replaced."""
        return self.array(index, "u1", _MAX_ITEMS).tobytes().decode("utf8", "replace")

    def tables(self, index: int) -> list["_Table"]:
        """List of tables."""
        start, count = self._list(index, 4, _MAX_TABLES)
        return [_Table(self._data, self._follow(start + 4 * i)) for i in range(count)]

    def _follow(self, position: int) -> int:
        return position + self._number(types.UOffsetTFlags, position)

    def _list(self, index: int, item_size: int, limit: int) -> tuple[int, int]:
        position = self._field(index)
        if not position:
            return 0, 0
        start = self._follow(position)
        count = self._number(types.UOffsetTFlags, start)
        if count > limit:
            raise _DamagedError(f"a list has {count:,} entries; at most {limit:,} fit.")
        if start + 4 + count * item_size > len(self._data):
            raise _DamagedError(f"a list of {count:,} entries ends outside the file.")
        return start + 4, count


def _graph(data: bytes) -> Graph:
    model = _Table(data, Get(uoffset, data, 0))
    subgraphs = model.tables(2)
    if len(subgraphs) != 1:
        raise _DamagedError(f"it has {len(subgraphs)} graphs; files of 1 are read.")
    kinds = [_operator_kind(code) for code in model.tables(1)]
    buffers = [table.array(0, "u1", len(data)) for table in model.tables(4)]
    tensors = tuple(_tensor(table, buffers) for table in subgraphs[0].tables(0))
    constant_bytes = sum(t.value.nbytes for t in tensors if t.value is not None)
    if constant_bytes > 2 * len(data):
        raise _DamagedError(
            f"its constants have {constant_bytes:,} bytes, more than twice the file."
        )
    operators = [_operator(table, kinds) for table in subgraphs[0].tables(3)]
    inputs, outputs = (
        tuple(map(int, subgraphs[0].array(i, "<i4", _MAX_ITEMS))) for i in (1, 2)
    )
    _check_order(tensors, operators, inputs, outputs)
    return Graph(tensors, tuple(operators), inputs, outputs)


def _operator_kind(table: _Table) -> str:
    # Codes above 127 came later and have a field of their own; the other then says 127.
    code = max(table.number(0, types.Int8Flags), table.number(3, types.Int32Flags))
    if code not in _OPERATORS:
        raise _DamagedError(
            f"it uses operator {code}, which hand networks do not; those are "
            f"{', '.join(_OPERATORS.values())}."
        )
    return _OPERATORS[code]


def _tensor(table: _Table, buffers: list[np.ndarray]) -> Tensor:
    shape = tuple(map(int, table.array(0, "<i4", _MAX_DIMS)))
    name = table.text(3)
    if min(shape, default=1) < 0:
        raise _DamagedError(f"tensor {name!r} has the shape {shape}.")
    number = table.number(2, types.Uint32Flags)
    if number >= len(buffers):
        raise _DamagedError(f"tensor {name!r} refers to buffer {number}.")
    buffer = buffers[number]
    if not buffer.size:
        return Tensor(name, shape, None)
    code = table.number(1, types.Int8Flags)
    if code not in _DTYPES:
        raise _DamagedError(f"constant {name!r} is of type {code}, not a number.")
    if table.table(6) is not None:
        raise _DamagedError(f"constant {name!r} is sparse; dense ones are read.")
    quantization = table.table(4)
    if quantization is not None and quantization.array(2, "<f4", _MAX_TABLES).size:
        raise _DamagedError(f"constant {name!r} is quantised; float ones are read.")
    dtype = _DTYPES[code]
    if math.prod(shape) * dtype.itemsize != buffer.size:
        raise _DamagedError(
            f"constant {name!r} of shape {shape} and type {dtype} has {buffer.size} "
            "bytes."
        )
    return Tensor(name, shape, buffer.view(dtype).reshape(shape))


def _operator(table: _Table, kinds: list[str]) -> Operator:
    index = table.number(0, types.Uint32Flags)
    if index >= len(kinds):
        raise _DamagedError(f"an operator has the code {index} of {len(kinds)}.")
    kind = kinds[index]
    inputs, outputs = (
        tuple(map(int, table.array(i, "<i4", _MAX_ITEMS))) for i in (1, 2)
    )
    options = table.table(4)
    settings = _SETTINGS[kind](options) if options and kind in _SETTINGS else {}
    return Operator(kind, inputs, outputs, **settings)


def _convolution(activation: int, dilation: int) -> Callable[[_Table], dict[str, Any]]:
    """Return a reader of a convolution's options, by the places of two fields."""

    def settings(table: _Table) -> dict[str, Any]:
        strides = {table.number(i, types.Int32Flags) for i in (1, 2)}
        dilations = {table.number(dilation + i, types.Int32Flags, 1) for i in (0, 1)}
        if len(strides) > 1 or dilations != {1}:
            raise _DamagedError("a convolution has two strides, or a dilation.")
        return {"stride": strides.pop(), "activation": _activation(table, activation)}

    return settings


def _sum(table: _Table) -> dict[str, Any]:
    return {"activation": _activation(table, 0)}


def _activation(table: _Table, index: int) -> str:
    code = table.number(index, types.Int8Flags)
    if code not in _ACTIVATIONS:
        raise _DamagedError(f"an operator ends in activation {code}.")
    return _ACTIVATIONS[code]


_SETTINGS: Mapping[str, Callable[[_Table], dict[str, Any]]] = {
    "CONV_2D": _convolution(activation=3, dilation=4),
    "DEPTHWISE_CONV_2D": _convolution(activation=4, dilation=5),
    "FULLY_CONNECTED": _sum,
    "ADD": _sum,
}


def _check_order(
    tensors: tuple[Tensor, ...],
    operators: list[Operator],
    inputs: tuple[int, ...],
    outputs: tuple[int, ...],
) -> None:
    known = {i for i, tensor in enumerate(tensors) if tensor.value is not None}
    known |= set(inputs)
    for operator in operators:
        missing = set(operator.inputs) - known - {-1}
        if missing:
            raise _DamagedError(
                f"{operator.kind} reads tensor {min(missing)} too early."
            )
        known |= set(operator.outputs)
    if not known <= set(range(len(tensors))) or not set(outputs) <= known:
        raise _DamagedError("an operator or output names a tensor that is not there.")
