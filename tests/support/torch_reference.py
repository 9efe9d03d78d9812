"""timm without torchvision, and random weights drawn by key name.

timm imports torchvision only for data sets and training-time layers that the models
here do not use, so empty modules stand in for it.
"""

import importlib.machinery
import importlib.util
import sys
import types
import zlib

import numpy as np


def import_timm():
    """Import timm, with a stub for torchvision where that is not installed."""
    if importlib.util.find_spec("torchvision") is None:
        for name in _STUBS:
            module = _Stub(name)
            module.__spec__ = importlib.machinery.ModuleSpec(name, None)
            module.__path__ = []
            sys.modules[name] = module
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(sys.modules[parent], child, module)
    import timm

    return timm


_STUBS = (
    "torchvision",
    "torchvision.datasets",
    "torchvision.datasets.folder",
    "torchvision.models",
    "torchvision.models.feature_extraction",
    "torchvision.ops",
    "torchvision.ops.misc",
    "torchvision.transforms",
    "torchvision.transforms.functional",
)


class _AnyAttribute(type):
    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _Stub(types.ModuleType):
    """A module with every attribute, each a class that does nothing."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        value = _AnyAttribute(name, (), {})
        setattr(self, name, value)
        return value


def random_state_dict(shapes):
    """Draw weights, statistics and layer scales of ordinary size for each key.

    Each array depends only on its own key and shape, so torch and JAX tests, and
    versions of either, agree on it without storing a weight.
    """
    return {key: _draw(key, tuple(shape)) for key, shape in sorted(shapes.items())}


def _draw(key, shape):
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    normal = rng.standard_normal(shape)
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if key.endswith("running_var"):
        value = 0.5 + rng.random(shape)
    elif key.endswith("running_mean") or key.endswith("bias"):
        value = 0.1 * normal
    elif key.endswith("gamma"):
        value = 0.1 + 0.05 * normal
    elif len(shape) < 2:
        value = 1 + 0.2 * normal
    else:
        value = normal / np.sqrt(np.prod(shape[1:]))
    return value.astype(np.float32)


def random_image(size, batch=2):
    """Draw images, (batch, size, size, 3)."""
    rng = np.random.default_rng(size)
    return rng.standard_normal((batch, size, size, 3)).astype(np.float32)


def sample(values, count=256):
    """Pick values spread over an array, after its largest, which sets the scale."""
    values = np.asarray(values)
    flat = values.reshape(-1)
    places = np.random.default_rng(len(flat)).choice(len(flat), min(count, len(flat)))
    return np.concatenate([[np.abs(flat).max()], flat[places]]).astype(np.float32)


def read_golden(path):
    """Stored arrays, and the shape of every weight by torch's key."""
    stored = np.load(path)
    shapes = {
        str(key): tuple(int(n) for n in str(shape).strip("()").split(",") if n.strip())
        for key, shape in zip(stored["keys"], stored["shapes"], strict=True)
    }
    return stored, shapes
