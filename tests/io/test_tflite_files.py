"""TensorFlow Lite's files are read whole, or refused with one line."""

import time
import tracemalloc

import numpy as np
import pytest
import tiny_tflite

from handjax.io import tflite_files

KERNEL = np.arange(2 * 3 * 3 * 4, dtype=np.float16).reshape(2, 3, 3, 4)
BIAS = np.array([1.5, -2], np.float32)
TENSORS = [
    ("image", (1, 8, 8, 4), None),
    ("kernel16", KERNEL.shape, KERNEL),
    ("kernel", KERNEL.shape, None),
    ("bias", BIAS.shape, BIAS),
    ("out", (1, 4, 4, 2), None),
]
CONV = ((0, "Int8", 0), (1, "Int32", 2), (2, "Int32", 2), (3, "Int8", 3))
OPERATORS = [
    ("DEQUANTIZE", (1,), (2,), ()),
    ("CONV_2D", (0, 2, 3), (4,), CONV),
]


def write(tmp_path, tensors=TENSORS, operators=OPERATORS, **options):
    path = tmp_path / "a.tflite"
    path.write_bytes(tiny_tflite.model(tensors, operators, (0,), (4,), **options))
    return path


def test_a_graph_and_its_constants_are_read(tmp_path):
    graph = tflite_files.read(write(tmp_path))
    assert [t.name for t in graph.tensors] == [name for name, _, _ in TENSORS]
    assert [t.shape for t in graph.tensors] == [shape for _, shape, _ in TENSORS]
    np.testing.assert_array_equal(graph.tensors[1].value, KERNEL)
    np.testing.assert_array_equal(graph.tensors[3].value, BIAS)
    assert graph.tensors[0].value is None and graph.tensors[2].value is None
    assert graph.operators == (
        tflite_files.Operator("DEQUANTIZE", (1,), (2,)),
        tflite_files.Operator("CONV_2D", (0, 2, 3), (4,), 2, "RELU6"),
    )
    assert (graph.inputs, graph.outputs) == ((0,), (4,))


def test_constants_cannot_be_written_to(tmp_path):
    graph = tflite_files.read(write(tmp_path))
    with pytest.raises(ValueError, match="read-only"):
        graph.tensors[1].value[0] = 0


@pytest.mark.parametrize(
    "tensors, operators, message",
    [
        (
            [*TENSORS[:3], ("bias", (3,), BIAS), TENSORS[4]],
            OPERATORS,
            r"'bias' of shape \(3,\) and type float32 has 8 bytes",
        ),
        (
            [*TENSORS[:3], ("bias", (-2,), BIAS), TENSORS[4]],
            OPERATORS,
            r"'bias' has the shape \(-2,\)",
        ),
        (TENSORS, OPERATORS[::-1], "CONV_2D reads tensor 2 too early"),
        (TENSORS, [*OPERATORS, ("ADD", (0,), (9,), ())], "a tensor that is not there"),
        (TENSORS, OPERATORS[:1], "a tensor that is not there"),
        (
            TENSORS,
            [OPERATORS[0], ("CONV_2D", (0, 2, 3), (4,), (*CONV[:2], (2, "Int32", 1)))],
            "two strides",
        ),
        (
            TENSORS,
            [OPERATORS[0], ("CONV_2D", (0, 2, 3), (4,), (*CONV[:3], (3, "Int8", 5)))],
            "activation 5",
        ),
    ],
)
def test_graphs_that_do_not_fit_are_refused(tmp_path, tensors, operators, message):
    with pytest.raises(ValueError, match=rf"a\.tflite: .*{message}.* again\."):
        tflite_files.read(write(tmp_path, tensors, operators))


def test_other_operators_are_refused_by_number(tmp_path):
    codes = tiny_tflite.CODES | {"CONV_2D": 127 + 5}
    with pytest.raises(ValueError, match=r"operator 132.* those are ADD, "):
        tflite_files.read(write(tmp_path, codes=codes))


def test_other_files_say_what_is_allowed(tmp_path):
    path = tmp_path / "a.tflite"
    for data in (b"", b"abc", b"<html>Please log in</html>", b"PK\x03\x04" * 9):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"not a TensorFlow Lite file.*TFL3"):
            tflite_files.read(path)
    with open(path, "wb") as file:
        file.truncate(tflite_files._MAX_BYTES + 1)
    with pytest.raises(ValueError, match="files of up to 536,870,912 bytes"):
        tflite_files.read(path)


def _read(path):
    """Read it; one line if it is refused."""
    try:
        tflite_files.read(path)
    except ValueError as error:
        assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
        return False
    return True


def test_every_truncated_file_is_refused_or_whole(tmp_path):
    path = write(tmp_path)
    data = path.read_bytes()
    assert _read(path)
    whole = [n for n in range(len(data)) if path.write_bytes(data[:n]) and _read(path)]
    assert not whole


def test_damaged_files_neither_crash_nor_hang_nor_need_memory(tmp_path):
    path = write(tmp_path)
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    tracemalloc.start()
    begin, read = time.process_time(), 0
    for _ in range(400):
        damaged = bytearray(data)
        for _ in range(rng.integers(1, 4)):
            at = int(rng.integers(0, len(data) - 4))
            value = rng.choice([0, 1, 0x7F, 0x80, 0xFF, int(rng.integers(256))])
            size = int(rng.choice([1, 2, 4]))
            damaged[at : at + size] = bytes([value]) * size
        path.write_bytes(damaged)
        read += _read(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4e6 and time.process_time() - begin < 60
    # Most damage hits numbers of the constants, which cannot be told from good ones.
    assert 0 < read < 400


def test_lists_that_claim_to_be_long_are_refused(tmp_path):
    path = write(tmp_path)
    data = path.read_bytes()
    length = np.int32(len(OPERATORS[1][1])).tobytes() + np.int32([0, 2, 3]).tobytes()
    assert data.count(length) == 1
    for count, message in ((900, "ends outside"), (2**31 - 1, "at most 1,000")):
        path.write_bytes(data.replace(length, np.int32(count).tobytes() + length[4:]))
        with pytest.raises(ValueError, match=message):
            tflite_files.read(path)
