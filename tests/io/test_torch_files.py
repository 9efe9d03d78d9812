"""PyTorch's files, read without PyTorch."""

import collections
import os
import pickle
import subprocess
import sys
import typing
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from foreign_weights import (
    Global,
    Storage,
    Tensor,
    called,
    save_legacy,
    save_zip,
)
from places import GOLDEN, ROOT

from handjax.io import torch_files
from handjax.io.safe_pickle import RefusedPickleError

BASE = np.arange(24, dtype=np.float32)
EXPECTED = {
    "plain": BASE.reshape(4, 6),
    "transposed": BASE.reshape(4, 6).T,
    "part": BASE.reshape(4, 6)[1:3, 2:5],
    "double": BASE[:3].astype(np.float64),
    "half": BASE[:3].astype(np.float16),
    "bfloat16": BASE[:3].astype(ml_dtypes.bfloat16),
    "long": np.array([1, -2, 3]),
    "byte": np.array([1, 255], np.uint8),
    "flag": np.array([True, False]),
    "scalar": np.array(7),
    "nothing": np.zeros((0, 3), np.float32),
    "parameter": BASE[:2],
}
LAYOUTS = pytest.mark.parametrize("save", [save_zip, save_legacy])


def _same(found, expected):
    assert list(found) == list(expected)
    for key, value in expected.items():
        assert (found[key].dtype, found[key].shape) == (value.dtype, value.shape), key
        np.testing.assert_array_equal(found[key], value, err_msg=key)


@pytest.mark.parametrize("name", ["torch_zip.pth", "torch_legacy.pth"])
def test_what_torch_wrote_comes_back(name):
    """tests/golden/make_torch_files.py wrote them."""
    saved = torch_files.read(GOLDEN / name)
    assert saved["epoch"] == 3 and saved["size"] == (4, 6)
    assert saved["optimizer"]["param_groups"][0] == {"lr": 0.25, "betas": (0.9, 0.999)}
    _same(torch_files.state_dict(saved).entries, EXPECTED)
    weights = saved["state_dict"]
    assert np.shares_memory(weights["plain"], weights["part"])


@LAYOUTS
def test_every_type_view_and_shared_storage(tmp_path, save):
    dtypes = {k: v for k, v in EXPECTED.items() if v.flags.c_contiguous and v.size > 1}
    views = {
        "transposed": Tensor(BASE, 0, (6, 4), (1, 6)),
        "part": Tensor(BASE, 8, (2, 3), (6, 1)),
        "repeated": Tensor(BASE, 2, (2, 3), (0, 1)),
    }
    saved = save(tmp_path / "epoch_1", {"model": {**dtypes, **views}})
    found = torch_files.state_dict(torch_files.read(saved)).entries
    expected = {key: EXPECTED[key] for key in ("transposed", "part")}
    expected["repeated"] = np.tile(BASE[2:5], (2, 1))
    _same(found, {**dtypes, **expected})
    assert np.shares_memory(found["transposed"], found["part"])


def test_bytes_of_the_other_order_are_swapped(tmp_path):
    path = save_zip(tmp_path / "a.pt", {"a": BASE}, byteorder="big")
    np.testing.assert_array_equal(torch_files.read(path)["a"], BASE)


@pytest.mark.parity
@pytest.mark.parametrize("new", [True, False])
def test_live_torch_agrees(tmp_path, new):
    torch = pytest.importorskip("torch")
    from make_torch_files import saved

    torch.save(saved(), tmp_path / "a.pt", _use_new_zipfile_serialization=new)
    read = torch_files.read(tmp_path / "a.pt")
    _same(torch_files.state_dict(read).entries, EXPECTED)


@pytest.mark.parity
@LAYOUTS
def test_the_files_of_these_tests_are_torchs(tmp_path, save):
    torch = pytest.importorskip("torch")
    path = save(tmp_path / "a.pt", {"a": BASE.reshape(4, 6)})
    read = torch.load(path, weights_only=True)
    np.testing.assert_array_equal(read["a"].numpy(), BASE.reshape(4, 6))


# --- Lightning's settings -----------------------------------------------------------


def _foreign(module, name, base=object):
    """A class that is pickled as one of another module."""
    return type(name, (base,), {"__module__": module})


def _yacs():
    cfg = _foreign("yacs.config", "CfgNode", dict)
    tree = cfg(MODEL=cfg(SIZE=[256]))
    tree.__dict__["__renamed__"] = {"a", "b"}
    return tree


def _omegaconf():
    tree = _foreign("omegaconf.dictconfig", "DictConfig")()
    tree._metadata = _foreign("omegaconf.base", "ContainerMetadata")()
    tree._metadata.ref_type = typing.Any
    tree._content = collections.defaultdict(int, SIZE=256)
    return tree


def _lightning(settings):
    """What Lightning saves, with its callbacks under their classes."""
    checkpoint = _foreign("pytorch_lightning.callbacks", "ModelCheckpoint")
    return {
        "epoch": 3,
        "state_dict": collections.OrderedDict(a=BASE),
        "hyper_parameters": {"cfg": settings},
        "callbacks": {checkpoint: {"best": 0.5}},
        "loops": {},
    }


@LAYOUTS
@pytest.mark.parametrize("settings", [_yacs, _omegaconf])
def test_lightnings_settings_are_read_past(tmp_path, save, settings):
    saved = torch_files.read(save(tmp_path / "a.ckpt", _lightning(settings())))
    np.testing.assert_array_equal(torch_files.state_dict(saved).entries["a"], BASE)
    assert saved["epoch"] == 3
    assert saved["hyper_parameters"] is None and saved["callbacks"] is None
    assert saved["loops"] == {}


def test_settings_are_refused_where_weights_belong(tmp_path):
    saved = {"state_dict": {"a": BASE, "b": [_yacs()]}}
    with pytest.raises(RefusedPickleError, match=r"load yacs\.config\.CfgNode"):
        torch_files.read(save_zip(tmp_path / "a.ckpt", saved))
    with pytest.raises(RefusedPickleError, match=r"load yacs\.config\.CfgNode"):
        torch_files.read(save_zip(tmp_path / "b.ckpt", _yacs()))


class _Call:
    """Pickled as the call of a global."""

    def __init__(self, module, name, *arguments):
        self.call = called(module, name), arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "yacs.system"])
def test_calls_hidden_in_settings_are_not_run(tmp_path, name):
    victim = tmp_path / "victim"
    attack = _Call(*name.split("."), f"touch {victim}")
    path = save_zip(tmp_path / "a.ckpt", _lightning(attack))
    if name.startswith("yacs"):  # a stand-in, which does nothing
        assert torch_files.read(path)["hyper_parameters"] is None
    else:
        with pytest.raises(RefusedPickleError, match=f"load {name}"):
            torch_files.read(path)
    assert not victim.exists()


def test_torch_is_not_imported():
    code = (
        "import sys; from handjax.io import torch_files; "
        f"torch_files.read({str(GOLDEN / 'torch_zip.pth')!r}); "
        "assert 'torch' not in sys.modules and 'jax' not in sys.modules"
    )
    root = ROOT
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)


def test_safetensors_by_suffix_or_content(tmp_path):
    for name in ("model.safetensors", "no_suffix"):
        safetensors.numpy.save_file({"a": BASE}, tmp_path / name)
        _same(torch_files.read(tmp_path / name), {"a": BASE})


# --- files that are refused ---------------------------------------------------------


class _Attack:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


@LAYOUTS
def test_a_call_in_the_pickle_is_refused_by_name_and_not_run(tmp_path, save):
    class Call(Global):
        def __call__(self):
            raise AssertionError

    class Attack:
        def __reduce__(self):
            return Call("posix", "system"), (f"touch {tmp_path / 'trace'}",)

    path = save(tmp_path / "a.pt", {"state_dict": {"a": BASE}, "x": Attack()})
    with pytest.raises(RefusedPickleError, match=r"a\.pt: .*posix\.system.*Nothing"):
        torch_files.read(path)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_plain_pickle_is_refused_whatever_it_holds(tmp_path, protocol):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(_Attack(tmp_path / "trace"), protocol))
    with pytest.raises(RefusedPickleError, match=r"system"):
        torch_files.read(path)
    path.write_bytes(pickle.dumps({"a": 1}, protocol))
    with pytest.raises(ValueError, match=r"a pickle, but not one of torch\.save"):
        torch_files.read(path)
    assert not (tmp_path / "trace").exists()


@LAYOUTS
def test_classes_of_whole_models_are_refused_by_name(tmp_path, save):
    path = save(tmp_path / "a.pt", {"model": Global("timm.models", "FastVit")})
    with pytest.raises(RefusedPickleError, match=r"timm\.models\.FastVit"):
        torch_files.read(path)


@LAYOUTS
@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (Tensor(BASE, 1, (4, 6), (6, 1)), "reaches outside its storage of 24"),
        (Tensor(BASE, 0, (2, 2), (24, 1)), "reaches outside"),
        (Tensor(BASE, 24, (1,), (1,)), "reaches outside"),
        (Tensor(BASE, -1, (1,), (1,)), "offset -1"),
        (Tensor(BASE, 0, (2, 2), (-1, 1)), r"stride \(-1, 1\)"),
        (Tensor(BASE, 0, (2, 2), (1,)), r"stride \(1,\)"),
    ],
)
def test_a_view_must_lie_inside_its_storage(tmp_path, save, tensor, message):
    with pytest.raises(ValueError, match=message):
        torch_files.read(save(tmp_path / "a.pt", {"a": tensor}))


def test_a_storage_has_the_size_that_is_said(tmp_path):
    path = save_zip(tmp_path / "a.pt", {"a": BASE})
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    for change, message in (
        ({"archive/data/0": b"abc"}, "has 3 bytes, not 96"),
        ({"archive/data/0": None}, "storage 0 is not in the file"),
        ({"archive/data.pkl": None}, r"without data\.pkl"),
    ):
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in {**parts, **change}.items():
                if data is not None:
                    archive.writestr(name, data)
        with pytest.raises(ValueError, match=message):
            torch_files.read(path)


def test_a_storage_cannot_be_larger_than_its_file(tmp_path):
    path = save_legacy(tmp_path / "a.pt", {"a": np.zeros(5, np.float64)})
    data = path.read_bytes()
    # The pickle's number of elements: BININT1 5, then the view that is None.
    assert data.count(b"K\x05N") == 1
    path.write_bytes(data.replace(b"K\x05N", b"J\xff\xff\xff\x7fN"))
    with pytest.raises(ValueError, match="storage 0 is larger than the file"):
        torch_files.read(path)


@pytest.mark.parametrize("kept", [3, 60, -300, -1])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_truncated_files_say_so(tmp_path, kind, kept):
    path = tmp_path / f"a.{kind}"
    if kind == "safetensors":
        safetensors.numpy.save_file({"a": np.arange(1000.0)}, path)
    else:
        {"zip": save_zip, "legacy": save_legacy}[kind](path, {"a": np.arange(1000.0)})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=rf"a\.{kind}: not a (complete|check)"):
        torch_files.read(path)


def test_other_files_say_what_is_allowed(tmp_path):
    path = tmp_path / "a.pt"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"a\.pt: the file is empty"):
        torch_files.read(path)
    path.write_bytes(b"<html>Please log in</html>")
    with pytest.raises(ValueError, match=r"not a checkpoint: it begins with b'<html>"):
        torch_files.read(path)


# --- the entries of a network -------------------------------------------------------


@pytest.mark.parametrize(
    "key", ["state_dict", "model", "model_state_dict", "state_dict_ema", None]
)
def test_the_entries_are_found_and_lose_the_common_prefix(key):
    entries = {"module.a": BASE, "module.module.b": BASE}
    saved = entries if key is None else {"epoch": 1, key: entries}
    assert list(torch_files.state_dict(saved).entries) == ["a", "module.b"]
    entries["c"] = BASE
    assert list(torch_files.state_dict(saved).entries) == list(entries)


@pytest.mark.parametrize("average", ["state_dict_ema", "model_ema", "ema"])
@pytest.mark.parametrize("plain", ["state_dict", "model"])
def test_averaged_weights_are_taken_and_the_others_are_there_to_choose(average, plain):
    saved = {plain: {"a": BASE}, average: {"module.a": BASE + 1}, "epoch": 3}
    found = torch_files.state_dict(saved)
    np.testing.assert_array_equal(found.entries["a"], BASE + 1)
    assert (found.key, found.averaged, found.others) == (average, True, (plain,))
    other = torch_files.state_dict(saved, key=plain)
    np.testing.assert_array_equal(other.entries["a"], BASE)
    assert not other.averaged and other.others == (average,)
    with pytest.raises(ValueError, match=rf"x\.pt: no weights under 'net'.*{plain}"):
        torch_files.state_dict(saved, "x.pt", key="net")
    # Some trainers keep the decay beside the average.
    nested = {plain: {"a": BASE}, average: {"decay": 0.9, "module": {"a": BASE + 1}}}
    np.testing.assert_array_equal(torch_files.state_dict(nested).entries["a"], BASE + 1)


@pytest.mark.parametrize(
    "names",
    [
        ["module.a.w", "module.b"],
        ["_orig_mod.a.w", "_orig_mod.b"],
        ["module._orig_mod.a.w", "module._orig_mod.b"],
        ["a._orig_mod.w", "b"],  # a compiled part
        ["_fsdp_wrapped_module.a._fsdp_wrapped_module.w", "_fsdp_wrapped_module.b"],
        ["module.a.w", "module.b", "n_averaged"],
    ],
)
def test_the_marks_of_wrappers_are_taken_off(names):
    found = torch_files.state_dict({"state_dict": dict.fromkeys(names, BASE)})
    assert list(found.entries) == ["a.w", "b"]


def test_no_entry_is_lost_where_two_names_would_become_one():
    entries = {"a._orig_mod.w": BASE, "a.w": BASE + 1}
    assert torch_files.state_dict(entries).entries == entries


def test_where_there_are_none_the_keys_are_listed():
    saved = collections.OrderedDict(epoch=1, net={"a": BASE}, state_dict={"a": "text"})
    with pytest.raises(ValueError, match=r"x\.pt.* OrderedDict of epoch, net, state_"):
        torch_files.state_dict(saved, "x.pt")
    with pytest.raises(ValueError, match="It holds a list; names with"):
        torch_files.state_dict([BASE])


def test_storages_alone_are_no_tensors(tmp_path):
    path = save_zip(tmp_path / "a.pt", {"state_dict": {"a": Storage(BASE)}})
    with pytest.raises(ValueError, match="it has no entries of a network"):
        torch_files.state_dict(torch_files.read(path))
