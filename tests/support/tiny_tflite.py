"""A writer of small .tflite files: what `handjax.io.tflite_files` reads, no more."""

from collections.abc import Sequence

import flatbuffers
import numpy as np

CODES = {
    "ADD": 0,
    "CONV_2D": 3,
    "DEPTHWISE_CONV_2D": 4,
    "DEQUANTIZE": 6,
    "FULLY_CONNECTED": 9,
    "PAD": 34,
    "PRELU": 54,
}
_TYPES = {"float32": 0, "float16": 1, "int32": 2}


def _table(builder, *fields):
    """Write a table; a field is (index, "offset" or a kind of number, value)."""
    builder.StartObject(1 + max((index for index, _, _ in fields), default=0))
    for index, kind, value in fields:
        if kind == "offset":
            builder.PrependUOffsetTRelativeSlot(index, value, 0)
        else:
            getattr(builder, f"Prepend{kind}Slot")(index, value, None)
    return builder.EndObject()


def _tables(builder, offsets):
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return builder.EndVector()


def _numbers(builder, values, dtype):
    return builder.CreateNumpyVector(np.asarray(values, dtype))


def model(
    tensors: Sequence[tuple[str, tuple[int, ...], np.ndarray | None]],
    operators: Sequence[tuple[str, tuple[int, ...], tuple[int, ...], tuple]],
    inputs: tuple[int, ...],
    outputs: tuple[int, ...],
    *,
    codes: dict[str, int] = CODES,
) -> bytes:
    """Return a file.

    Args:
        tensors: Name, shape and value (None where it is computed).
        operators: Kind, inputs, outputs and fields of its options.
        inputs: Indices of tensors.
        outputs: The same.
        codes: Numbers of the kinds of operators.
    """
    builder = flatbuffers.Builder(1024)
    buffers, written = [_table(builder)], []
    for name, shape, value in tensors:
        kind, number = 0, 0
        if value is not None:
            kind, number = _TYPES[value.dtype.name], len(buffers)
            data = builder.CreateByteVector(np.ascontiguousarray(value).tobytes())
            buffers.append(_table(builder, (0, "offset", data)))
        fields = [
            (0, "offset", _numbers(builder, shape, np.int32)),
            (1, "Int8", kind),
            (2, "Uint32", number),
            (3, "offset", builder.CreateString(name)),
        ]
        written.append(_table(builder, *fields))
    kinds = sorted({kind for kind, *_ in operators})
    steps = []
    for kind, read, wrote, options in operators:
        fields = [
            (0, "Uint32", kinds.index(kind)),
            (1, "offset", _numbers(builder, read, np.int32)),
            (2, "offset", _numbers(builder, wrote, np.int32)),
        ]
        if options:
            fields.append((4, "offset", _table(builder, *options)))
        steps.append(_table(builder, *fields))
    graph = _table(
        builder,
        (0, "offset", _tables(builder, written)),
        (1, "offset", _numbers(builder, inputs, np.int32)),
        (2, "offset", _numbers(builder, outputs, np.int32)),
        (3, "offset", _tables(builder, steps)),
    )
    named = [
        _table(builder, (0, "Int8", min(codes[k], 127)), (3, "Int32", codes[k]))
        for k in kinds
    ]
    root = _table(
        builder,
        (1, "offset", _tables(builder, named)),
        (2, "offset", _tables(builder, [graph])),
        (4, "offset", _tables(builder, buffers)),
    )
    builder.Finish(root, file_identifier=b"TFL3")
    return bytes(builder.Output())
