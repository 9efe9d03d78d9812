"""The restricted unpickler: builds what is named, refuses everything else unrun."""

import codecs
import io
import os
import pickle
import zipfile

import numpy as np
import pytest

from handjax.io import array_files, safe_pickle


class _Attack:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def _file(tmp_path, content: bytes, name="file.pkl"):
    path = tmp_path / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_a_call_of_os_system_is_refused_by_name_and_not_run(tmp_path, protocol):
    trace = tmp_path / "trace"
    content = pickle.dumps(_Attack(os.system, f"touch {trace}"), protocol)
    with pytest.raises(safe_pickle.RefusedPickleError, match=r"(posix|nt)\.system"):
        safe_pickle.load(_file(tmp_path, content), safe_pickle.numpy_globals())
    assert not trace.exists()


def test_builtins_that_run_code_are_refused(tmp_path):
    for function in (eval, exec, getattr, __import__):
        content = pickle.dumps(_Attack(function, "1"), 2)
        with pytest.raises(safe_pickle.RefusedPickleError, match=function.__name__):
            safe_pickle.load(_file(tmp_path, content), safe_pickle.numpy_globals())


def test_attributes_of_allowed_names_are_refused(tmp_path):
    """Protocol 4 can name `ndarray.tofile`; only whole names are in the table."""
    content = pickle.dumps(np.ndarray.tofile, 4)
    with pytest.raises(safe_pickle.RefusedPickleError):
        safe_pickle.load(_file(tmp_path, content), safe_pickle.numpy_globals())


def test_the_array_class_cannot_be_called(tmp_path):
    content = b"\x80\x02cnumpy\nndarray\n(K\x07tR."
    with pytest.raises(safe_pickle.RefusedPickleError, match=r"call numpy\.ndarray"):
        safe_pickle.load(_file(tmp_path, content), safe_pickle.numpy_globals())


def test_persistent_ids_are_refused(tmp_path):
    with pytest.raises(safe_pickle.RefusedPickleError, match="persistent"):
        safe_pickle.load(_file(tmp_path, b"\x80\x02X\x01\x00\x00\x00aQ."), {})


@pytest.mark.parametrize("protocol", [3, 4])
def test_arrays_load_under_either_name_of_numpy_core(tmp_path, protocol):
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.array([1], ">u4")}
    arrays["f"] = np.asfortranarray(arrays["a"])
    content = pickle.dumps(arrays, protocol)
    # Only protocol 3 stores names without their lengths.
    old = content.replace(b"numpy._core", b"numpy.core") if protocol == 3 else content
    for data in (content, old):
        read = safe_pickle.load(_file(tmp_path, data), safe_pickle.numpy_globals())
        for key, array in arrays.items():
            np.testing.assert_array_equal(read[key], array)
            assert read[key].dtype == array.dtype.newbyteorder("=")  # numpy swaps


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_and_scalars_load_whatever_the_protocol(tmp_path, protocol):
    content = {
        "array": np.arange(6, dtype=np.float32).reshape(2, 3),
        "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "scalar": np.float64(0.5),
        "flag": np.bool_(True),
        "bytes": b"\x00\xff",
        "set": {1, 2},
        "rest": [None, "text", 3, (1.5, True)],
    }
    file = _file(tmp_path, pickle.dumps(content, protocol))
    read = safe_pickle.load(file, safe_pickle.plain_globals())
    for key in ("array", "columns"):
        np.testing.assert_array_equal(read.pop(key), content.pop(key))
    assert read == content


@pytest.mark.parametrize(
    "call",
    [
        (np._core.multiarray.scalar, (np.dtype(object), b"")),
        (codecs.encode, ("x", "rot13")),
    ],
    ids=["object scalar", "codec"],
)
def test_plain_globals_make_nothing_but_numbers_and_bytes(tmp_path, call):
    content = pickle.dumps(_Attack(call[0], *call[1]), 2)
    with pytest.raises(ValueError):
        safe_pickle.load(_file(tmp_path, content), safe_pickle.plain_globals())


def test_holders_keep_their_state_which_is_set_once():
    one, other = (safe_pickle.holder("Ch").new((), {}) for _ in range(2))
    one.with_state({"x": 1})
    assert (one.kind, one.state, other.state) == ("Ch", {"x": 1}, {})
    with pytest.raises(ValueError, match="set twice the state of Ch"):
        one.with_state({"x": 2})
    with pytest.raises(ValueError, match="expected a dict"):
        other.with_state((None, {"state": 3}))


@pytest.mark.parametrize("kept", [0, 1, 50, -1])
def test_truncated_pickles_say_so(tmp_path, kept):
    content = pickle.dumps({"a": np.arange(100.0)}, 4)[:kept]
    path = _file(tmp_path, content)
    with pytest.raises(ValueError, match=r"file\.pkl: not a complete pickle"):
        safe_pickle.load(path, safe_pickle.numpy_globals())


def test_text_is_not_a_pickle(tmp_path):
    path = _file(tmp_path, b"<html>Please log in</html>")
    with pytest.raises(ValueError, match="not a complete pickle"):
        safe_pickle.load(path, safe_pickle.numpy_globals())


def test_npz_with_plain_and_object_arrays(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, plain=np.arange(3), held=np.array({"x": np.ones(2)}, object))
    data = array_files.load_npz(path, safe_pickle.numpy_globals())
    np.testing.assert_array_equal(data["plain"], [0, 1, 2])
    np.testing.assert_array_equal(data["held"]["x"], [1, 1])


def test_npz_with_an_attack_is_refused(tmp_path):
    trace, path = tmp_path / "trace", tmp_path / "a.npz"
    array = np.empty((), object)
    array[()] = _Attack(os.system, f"touch {trace}")
    np.savez(path, v_template=array)
    with pytest.raises(safe_pickle.RefusedPickleError, match=r"v_template.*system"):
        array_files.load_npz(path, safe_pickle.numpy_globals())
    assert not trace.exists()


def test_truncated_npz_says_so(tmp_path):
    buffer = io.BytesIO()
    np.savez(buffer, a=np.arange(1000.0))
    path = _file(tmp_path, buffer.getvalue()[:-200], "a.npz")
    with pytest.raises(ValueError, match="not a complete npz"):
        array_files.load_npz(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY\x01\x00garbage")
    with pytest.raises(ValueError, match=r"a\.npy"):
        array_files.load_npz(path)
