"""Read tensors from PyTorch's files, without PyTorch and without running them.

`torch.save` writes a pickle that refers to raw "storages": since torch 1.6 in a zip
archive, before that one after the other in one stream. `torch_pickle` reads the pickle.
"""

import io
import os
import struct
import sys
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from handjax.errors import UserError
from handjax.io import array_files, limits, safe_pickle, torch_pickle

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
"""Where trainers keep the moving average of the weights, which timm evaluates."""
_STATE_DICT_KEYS = (*_AVERAGES, "state_dict", "model", "model_state_dict", "module")
_COMPILED = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""What torch.compile and its kin put into names, wherever a part is wrapped."""


def read(path: str | os.PathLike) -> Any:
    """Read a file of `torch.save` or of safetensors.

    The format is told from the first bytes, since checkpoints have any suffix or none.

    Returns:
        The saved dicts, lists and numbers, with numpy arrays for tensors. Arrays may be
        read-only and share memory as the tensors did.

    Raises:
        RefusedPickleError: It names a global that tensors do not need; nothing was run.
        UserError: It is empty, truncated, damaged or something else.
        OSError: It cannot be read.
    """
    name = os.fspath(path)
    with open(path, "rb") as file:
        head = file.read(9)
    if not head:
        raise UserError(f"{name}: the file is empty. Download or copy it again.")
    if name.endswith(".safetensors") or head[8:9] == b"{":
        return _read_safetensors(name)
    if head.startswith(b"PK\x03\x04"):
        return _read_zip(name)
    if head.startswith(b"\x80"):
        with open(path, "rb") as file:
            return _read_legacy(file, name)
    raise UserError(
        f"{name}: not a checkpoint: it begins with {head!r}. Allowed are files of "
        "torch.save (.pt, .pth, .ckpt or no suffix) and .safetensors."
    )


class StateDict(NamedTuple):
    """Entries of a network, and where in the file they were."""

    entries: dict[str, np.ndarray]
    key: str
    """Key of the saved dict; "" where the entries are the dict itself."""
    others: tuple[str, ...]
    """Further keys that hold entries of a network."""

    @property
    def averaged(self) -> bool:
        """Whether they are a moving average of the weights."""
        return self.key in _AVERAGES


def state_dict(
    saved: Any, path: str | os.PathLike = "file", *, key: str = ""
) -> StateDict:
    """Find the entries of a network in what `read` returned.

    They are the dict itself or its value under a key such as "state_dict" or "model".
    Where a file holds averaged weights as well (`_AVERAGES`), those are taken. What
    wrappers put into names ("module." of parallel training, "_orig_mod." of
    torch.compile) is taken off.

    Args:
        saved: Result of `read`.
        path: File, for messages.
        key: Take the entries under this key.

    Raises:
        UserError: There are none, or not under `key`; lists the keys that exist.
    """
    found = {"": saved} if _is_flat(saved) else _networks(saved)
    if key and key not in found:
        held = ", ".join(filter(None, found)) or "none but the file itself"
        raise UserError(
            f"{os.fspath(path)}: no weights under {key!r}; the keys with weights are: "
            f"{held}."
        )
    if found:
        chosen = key or next(iter(found))
        others = tuple(name for name in found if name != chosen)
        return StateDict(_unwrapped(found[chosen]), chosen, others)
    keys = sorted(map(str, saved)) if isinstance(saved, Mapping) else []
    shown = ", ".join(keys[:8]) + (f" and {len(keys) - 8} more" if keys[8:] else "")
    raise UserError(
        f"{os.fspath(path)}: it has no entries of a network. It holds a "
        f"{type(saved).__name__}{f' of {shown}' if keys else ''}; names with tensors "
        f"are looked for in it and under {', '.join(_STATE_DICT_KEYS)}."
    )


def _networks(saved: Any) -> dict[str, Mapping[str, np.ndarray]]:
    """Return the flat dicts of arrays in a saved dict, averages first."""
    found = {}
    for key in _STATE_DICT_KEYS if isinstance(saved, Mapping) else ():
        value = saved.get(key)
        if isinstance(value, Mapping) and not _is_flat(value):
            # Averages are often saved with their decay beside them.
            value = next((v for k, v in value.items() if k in _STATE_DICT_KEYS), None)
        if _is_flat(value):
            found[key] = value
    return found


def _unwrapped(entries: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Take the marks of wrappers off all names."""
    names = {key: key for key in entries}
    for mark in _COMPILED:
        names = {key: name.replace(mark, "") for key, name in names.items()}
    prefix, count = "module.", "n_averaged"  # the count of torch's AveragedModel
    inside = {key: name for key, name in names.items() if name != count}
    while inside and all(name.startswith(prefix) for name in inside.values()):
        inside = {key: name.removeprefix(prefix) for key, name in inside.items()}
        names = inside
    if len(set(names.values())) < len(names):
        return dict(entries)  # two names would become one
    return {name: entries[key] for key, name in names.items()}


def _is_flat(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(key, str) for key in value)
        and all(isinstance(entry, np.ndarray) for entry in value.values())
    )


def _read_safetensors(name: str) -> dict[str, np.ndarray]:
    import safetensors.numpy

    try:
        return safetensors.numpy.load_file(name)
    except (safetensors.SafetensorError, KeyError) as error:
        raise UserError(
            f"{name}: not a complete safetensors file ({error}). Download or copy it "
            "again."
        ) from error


# --- the two layouts of torch.save --------------------------------------------------


def _read_zip(name: str) -> Any:
    """Read an archive of `<root>/data.pkl`, `<root>/data/<key>` and `byteorder`."""
    advice = "Download or copy it again."
    with array_files.archive_errors(f"{name}: not a complete checkpoint", advice):
        with zipfile.ZipFile(name) as archive:
            pickles = [n for n in archive.namelist() if n.endswith("data.pkl")]
            if len(pickles) != 1:
                raise UserError(
                    f"{name}: a zip archive without data.pkl is not a checkpoint of "
                    "torch.save. Was it unpacked and packed, or another file?"
                )
            members = archive.infolist()
            unpacked = sum(member.file_size for member in members)
            limits.check_unpacked(os.stat(name).st_size, unpacked, name)
            root = pickles[0].removesuffix("data.pkl")
            order = "little"
            if f"{root}byteorder" in archive.namelist():
                with archive.open(f"{root}byteorder") as file:
                    order = file.read(16).decode("ascii", "replace")

            def storage(key: str, dtype: np.dtype, count: int) -> np.ndarray:
                member = archive.getinfo(f"{root}data/{key}")
                _check_size(member.file_size, dtype, count)
                return _stored(archive.read(member), dtype, count, order)

            with archive.open(pickles[0]) as file:
                reader = io.BufferedReader(file)
                return torch_pickle.load(reader, name, storage, is_packed=True)


def _check_size(size: int, dtype: np.dtype, count: int) -> None:
    if size != count * dtype.itemsize:
        raise UserError(
            f"a storage of {count} x {dtype} has {size} bytes, not "
            f"{count * dtype.itemsize}"
        )


def _stored(data: bytes, dtype: np.dtype, count: int, order: str) -> np.ndarray:
    _check_size(len(data), dtype, count)
    array = np.frombuffer(data, dtype)
    return array if order == sys.byteorder else array.byteswap()


def _read_legacy(file: Any, name: str) -> Any:
    """Read pickles of magic number, protocol, system, object, keys; then storages."""
    if safe_pickle.load_from(file, {}, name) != _LEGACY_MAGIC:
        raise UserError(
            f"{name}: a pickle, but not one of torch.save. Allowed are files of "
            "torch.save and .safetensors."
        )
    protocol = safe_pickle.load_from(file, {}, name)
    system = safe_pickle.load_from(file, {}, name)
    if protocol != _LEGACY_PROTOCOL or not isinstance(system, dict):
        raise UserError(f"{name}: version {protocol} of torch.save is not known.")
    order = "little" if system.get("little_endian", True) else "big"
    size = os.fstat(file.fileno()).st_size
    storages: dict[str, np.ndarray] = {}

    def storage(key: str, dtype: np.dtype, count: int) -> np.ndarray:
        size_left = size - sum(array.nbytes for array in storages.values())
        if count * dtype.itemsize > size_left:
            raise UserError(f"storage {key} is larger than the file")
        # The content follows the pickle; views of it are made before it is there.
        return storages.setdefault(key, np.zeros(count, dtype))

    saved = torch_pickle.load(file, name, storage)
    keys = safe_pickle.load_from(file, {}, name)
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(storages):
        raise UserError(f"{name}: its list of storages is damaged. Copy it again.")
    for key in keys:
        _fill(file, storages[key], name, order)
    return saved


def _fill(file: Any, array: np.ndarray, name: str, order: str) -> None:
    count = file.read(8)
    data = file.read(array.nbytes)
    if len(count) < 8 or len(data) < array.nbytes:
        raise UserError(
            f"{name}: not a complete checkpoint (it ends inside a tensor). Download or "
            "copy it again."
        )
    if struct.unpack("<q", count)[0] != array.size:
        raise UserError(f"{name}: a storage has another size than its tensors say.")
    array[:] = _stored(data, array.dtype, array.size, order)
