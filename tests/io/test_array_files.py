"""npz, zip, pt and gz: sizes are compared before anything is unpacked."""

import gzip
import io
import tracemalloc
import zipfile

import foreign_weights
import numpy as np
import pytest

from handjax.errors import UserError
from handjax.evaluation.protocols import mesh_files
from handjax.io import array_files, limits, torch_files
from handjax.nn.text import byte_pairs


def packed(path, name: str, head: bytes, zeros: int):
    """Write a zip of zeros after a head."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open(name, "w", force_zip64=True) as member:
            member.write(head)
            for _ in range(zeros >> 20):
                member.write(bytes(1 << 20))
    return path


def header(shape, dtype="<f8") -> bytes:
    buffer = io.BytesIO()
    about = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, about)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("a.npy", array_files.load_npz),
        ("pred.json", mesh_files.read),
        ("a/data.pkl", torch_files.read),
    ],
)
def test_a_small_archive_does_not_fill_the_memory(tmp_path, monkeypatch, name, read):
    monkeypatch.setenv(limits.UNPACKED_BYTES.variable, str(1 << 24))
    path = packed(tmp_path / "a.zip", name, header(((1 << 22) + 1,)), 1 << 25)
    assert path.stat().st_size < 1 << 18
    tracemalloc.start()
    with pytest.raises(UserError, match=r"unpack to 33,.*_UNPACKED_BYTES=33"):
        read(path)
    assert tracemalloc.get_traced_memory()[1] < 1e7
    tracemalloc.stop()


def test_honest_archives_of_any_size_are_read(tmp_path, monkeypatch):
    monkeypatch.setenv(limits.UNPACKED_BYTES.variable, "1000")
    values = np.random.default_rng(0).normal(size=(100, 30))
    np.savez_compressed(tmp_path / "a.npz", a=values, b=np.asfortranarray(values))
    found = array_files.load_npz(tmp_path / "a.npz")
    np.testing.assert_array_equal(found["a"], values)
    assert found["b"].flags.f_contiguous
    np.testing.assert_array_equal(found["b"], values)
    foreign_weights.save_zip(tmp_path / "a.pt", {"state_dict": {"a": values}})
    assert torch_files.read(tmp_path / "a.pt")["state_dict"]["a"].shape == (100, 30)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header((2**40,)), "takes 8,796,093,022,208 bytes; there are 0"),
        (header((2**62, 2**62)), "takes"),
        (header((-1, 3)), "an array of shape"),
        (header((3,), "|V0"), "an array of shape"),
        (header((1,), "|O") + b"cos\nsystem\n.", "it holds objects"),
        (b"\x93NUMPY\x03\x00" + bytes(20), "version"),
        (b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535, "not an array"),
        (b"", "not an array"),
    ],
)
def test_headers_are_not_believed(tmp_path, content, message):
    path = tmp_path / "a.npy"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        array_files.load_npy(path)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", content)
    with pytest.raises(UserError, match=message):
        array_files.load_npz(tmp_path / "a.npz")


def test_damaged_archives_are_one_line(tmp_path):
    """zlib.error, BadZipFile, EOFError and what else `zipfile` raises."""
    buffer = io.BytesIO()
    values = np.random.default_rng(0).integers(9, size=3000)
    np.savez_compressed(buffer, a=values)
    good, path = buffer.getvalue(), tmp_path / "a.npz"
    for at in range(0, len(good), 7):
        path.write_bytes(good[:at] + bytes([good[at] ^ 0x55]) + good[at + 1 :])
        try:
            found = array_files.load_npz(path)
        except UserError as error:
            assert "a.npz" in str(error)
        else:
            assert not found or (found["a"] == values).all()


def test_a_missing_array_is_named(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.ones(2))
    with pytest.raises(UserError, match=r"no arrays b among a"):
        array_files.load_npz(tmp_path / "a.npz", names=["b"])


def test_a_packed_vocabulary_stays_small(tmp_path):
    pytest.importorskip("tokenizers")
    path = tmp_path / "bpe_simple_vocab_16e6.txt.gz"
    path.write_bytes(gzip.compress(b"a b\n" * (1 << 25), 1))
    tracemalloc.start()
    with pytest.raises(UserError, match="unpacks to more than 67,108,864 bytes"):
        byte_pairs.read(path)
    assert tracemalloc.get_traced_memory()[1] < 4e8
    tracemalloc.stop()
