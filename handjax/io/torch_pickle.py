"""Read the pickles of `torch.save` without PyTorch.

`safe_pickle` allows tensors, plain containers and numbers, nothing else. Lightning
saves its program's settings beside the weights, as objects of configuration libraries:
these are skipped, and their entries of the checkpoint come back as None.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from handjax.errors import UserError, shown
from handjax.io import safe_pickle
from handjax.io.pickle_machine import Function, StandIn, key

_STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


_MOST_REPEATED = 1 << 16
"""Elements that a tensor may have on a smaller storage."""

_SETTINGS = (
    "hyper_parameters",
    "datamodule_hyper_parameters",
    "callbacks",
    "loops",
)
"""Entries of a Lightning checkpoint that may hold objects of the libraries below."""

_LIBRARIES = re.compile(
    r"(yacs|omegaconf|lightning|lightning_fabric|pytorch_lightning)\..+"
    r"|(typing|argparse|pathlib)\.\w+|collections\.defaultdict"
    r"|builtins\.(bool|dict|float|int|list|long|object|set|str|tuple)"
)
"""Globals that settings consist of."""


class _Setting(StandIn):
    """Stands for an object of some program's settings; keeps nothing, does nothing."""

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name

    def called(self, args, kwargs):
        """Return another one of this name."""
        del args, kwargs
        return _Setting(self.name)

    new = called

    def with_state(self, state):
        """Ignore the state."""
        del state
        return self

    def add(self, items):
        """Ignore the items."""

    def set_items(self, pairs):
        """Ignore the items."""


class _StorageType(StandIn):
    """Stands for a class such as torch.FloatStorage; a pickle can only pass it on."""

    __slots__ = ("dtype", "name")

    def __init__(self, name: str, dtype: np.dtype):
        self.name, self.dtype = name, dtype

    def __str__(self):
        return f"torch.{self.name}"


class _Storage(NamedTuple):
    """A storage, as a persistent id names it."""

    array: np.ndarray


def load(
    file: Any,
    name: str,
    storage: Callable[[str, np.dtype, int], np.ndarray],
    is_packed: bool = False,
) -> Any:
    """Read one pickle of `torch.save`.

    Args:
        file: Open, in binary; stands behind the pickle afterwards.
        name: Name of the file in messages.
        storage: Returns the storage of a key, given its type and length.
        is_packed: Whether it is inside of a zip archive.

    Raises:
        RefusedPickleError: It names a global that tensors do not need, outside of
            Lightning's settings; nothing was run.
        UserError: It is damaged, or a tensor reaches outside its storage.
    """
    found: dict[str, _Storage] = {}

    def persistent_load(pid: Any) -> _Storage:
        match pid:
            case ("storage", _StorageType() as kind, str(key), _, int(count), *view):
                if len(view) > 1 or view != [None] * len(view) or count < 0:
                    raise UserError("views of storages (torch before 0.4)")
            case _:
                raise UserError(f"a persistent id of an unknown form, {shown(pid)}")
        if key not in found:
            try:
                found[key] = _Storage(storage(key, np.dtype(kind.dtype), count))
            except KeyError:
                raise UserError(f"storage {key} is not in the file") from None
        if found[key].array.dtype != kind.dtype or found[key].array.size != count:
            raise UserError(f"storage {key} is of two types or sizes")
        return found[key]

    allowed = _allowed()
    saved = safe_pickle.load_from(
        file, allowed, name, persistent_load, _setting, is_packed
    )
    if isinstance(saved, dict):
        for key in _SETTINGS:
            if key in saved and _first_setting(saved[key]):
                saved[key] = None
    if foreign := _first_setting(saved):
        raise safe_pickle.refusal(name, foreign, allowed)
    return saved


def _setting(module: str, name: str) -> _Setting | None:
    called = f"{module}.{name}"
    return _Setting(called) if _LIBRARIES.fullmatch(called) else None


def _first_setting(value: Any) -> str:
    """Return the name of a stand-in somewhere in a value, "" if there is none."""
    stack, seen = [value], set()
    while stack:
        value = stack.pop()
        if isinstance(value, _Setting):
            return value.name
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Mapping):
            stack += [*value.keys(), *value.values()]
        elif isinstance(value, (list, tuple, set, frozenset)):
            stack += value
    return ""


class _Dict(StandIn, dict):
    """An OrderedDict without the attributes that torch sets on it (`_metadata`)."""

    def with_state(self, state):
        """Ignore the state."""
        del state
        return self

    def set_items(self, pairs):
        """Set the items."""
        self.update((key(name), value) for name, value in pairs)


def _allowed() -> dict[tuple[str, str], Any]:
    """Return stand-ins, new for every file, for the globals of `torch.save`."""

    def ordered_dict(items=()):
        made = _Dict()
        made.set_items([(name, value) for name, value in items])
        return made

    def rebuild_tensor(storage, offset, size, stride, requires_grad=False, *hooks):
        del requires_grad, hooks
        return _view(storage, offset, size, stride)

    def rebuild_parameter(data, requires_grad=False, *hooks):
        del requires_grad, hooks
        return data

    def size(dims):
        return tuple(dims)

    functions = {
        ("collections", "OrderedDict"): Function("OrderedDict", ordered_dict),
        ("torch", "Size"): Function("torch.Size", size),
    } | {
        ("torch._utils", name): Function(name, function, is_view=True)
        for name, function in {
            "_rebuild_tensor_v2": rebuild_tensor,
            "_rebuild_parameter": rebuild_parameter,
        }.items()
    }
    return {
        **functions,
        **{
            ("torch", name): _StorageType(name, np.dtype(dtype))
            for name, dtype in _STORAGES.items()
        },
        **_numpy_scalars(),
    }


def _numpy_scalars() -> dict[tuple[str, str], Any]:
    """Read np.float64: a learning rate of a numpy schedule in an optimiser."""

    def scalar(dtype, data):
        return safe_pickle.scalar(dtype, data).item()

    return safe_pickle.numpy_globals() | {
        ("numpy.core.multiarray", "scalar"): Function("scalar", scalar),
        ("_codecs", "encode"): Function("encode", safe_pickle.encode),
    }


def _view(storage: Any, offset: Any, size: Any, stride: Any) -> np.ndarray:
    """Return a tensor on its storage.

    Raises:
        UserError: It would reach outside of it.
    """
    if not isinstance(storage, _Storage):
        raise UserError("a tensor without a storage")
    if not isinstance(size, tuple) or not isinstance(stride, tuple):
        raise UserError(f"a tensor of size {shown(size)}, stride {shown(stride)}")
    array, numbers = storage.array, (offset, *size, *stride)
    known = all(type(n) is int and 0 <= n < 2**48 for n in numbers)
    if len(size) != len(stride) or len(size) > 32 or not known:
        raise UserError(
            f"a tensor of size {shown(size)}, stride {shown(stride)}, offset "
            f"{shown(offset)}"
        )
    # Strides of 0 repeat elements: torch's `expand`, which no weights are made with.
    if math.prod(size) > max(array.size, _MOST_REPEATED):
        raise UserError(f"a tensor of size {size} on {array.size} elements")
    if 0 in size:
        return np.zeros(size, array.dtype)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if last >= array.size:
        raise UserError(
            f"a tensor of size {size}, stride {stride}, offset {offset} reaches "
            f"outside its storage of {array.size} elements"
        )
    return np.lib.stride_tricks.as_strided(
        array[offset:], size, [step * array.itemsize for step in stride]
    )
