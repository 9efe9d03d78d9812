"""Pickles as Python 2 and its numpy, scipy and chumpy wrote them, with protocol 2."""

import io
import pickle
import types
from typing import Any


class Pickler(pickle._Pickler):
    """Byte strings for texts, and the module names of those days."""

    dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012

    def _save_bytes(self, value):
        raw = value.encode("latin1") if isinstance(value, str) else value
        if len(raw) < 256:
            self.write(pickle.SHORT_BINSTRING + bytes([len(raw)]) + raw)
        else:
            self.write(pickle.BINSTRING + len(raw).to_bytes(4, "little") + raw)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = _save_bytes

    def _save_global(self, value, name=None):
        module = value.__module__.replace("numpy._core", "numpy.core")
        module = "__builtin__" if module == "builtins" else module
        self.write(pickle.GLOBAL + f"{module}\n{value.__name__}\n".encode())
        self.memoize(value)

    dispatch[type] = dispatch[types.FunctionType] = _save_global
    save_global = _save_global


def dumps(value: Any) -> bytes:
    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump(value)
    return buffer.getvalue()
