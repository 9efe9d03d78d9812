"""Backbones: image in, named feature maps out.

Every module of this package whose name has no leading underscore is a family of
backbones. It has `VARIANTS` (names of the published sizes), `NUM_FEATURES` (channels of
the map "final", by name) and `build`. Every backbone is called alike:

    maps = backbone(image, train=False)   # image normalised, (batch, height, width, 3)

and returns maps "stride4", "stride8", "stride16", "stride32" and "final" (the vision
transformers' only stride is that of their patches).
"""

import importlib
import pkgutil
from types import ModuleType

import flax.linen as nn

from handjax.errors import UserError
from handjax.types import Variables


def names() -> tuple[str, ...]:
    """Return the names that `build` knows."""
    return tuple(name for family in _families() for name in family.VARIANTS)


def build(name: str, *, fused: bool = False, **options) -> nn.Module:
    """Build a backbone.

    Args:
        name: Published size, such as "fastvit_ma36".
        fused: The inference form, of families that have `fuse`.
        **options: Fields of the family's module, such as `drop_path_rate` or `dtype`.
    """
    form = {"fused": True} if fused else {}
    return family(name).build(name, **form, **options)


def num_features(name: str) -> int:
    """Return the number of channels of a backbone's map "final"."""
    return family(name).NUM_FEATURES[name]


def first_pixel(name: str, stride: int) -> float:
    """Return where a map's first pixel is centred, in pixels of the image.

    Further ones follow by the stride. What cuts patches sees their middles, less the
    padding of the image. Strided convolutions of odd kernels leave the first pixel
    where it is; a family that has them says up to which stride (`CENTRED_STRIDE`), and
    what it does beyond is cut patches of that map.
    """
    module = family(name)
    if hasattr(module, "first_pixel"):
        return module.first_pixel(stride)
    centred = min(stride, getattr(module, "CENTRED_STRIDE", 1))
    return (stride - centred) / 2 - getattr(module.VARIANTS[name], "padding", 0)


def fuse(name: str, variables: Variables) -> Variables | None:
    """Return variables for `fused=True`; None if the backbone has no such form."""
    module = family(name)
    return module.fuse(variables) if hasattr(module, "fuse") else None


def family(name: str) -> ModuleType:
    """Return the module of a backbone (for `fuse`, `import_torch`, ...)."""
    for module in _families():
        if name in module.VARIANTS:
            return module
    raise UserError(f"backbone={name!r} is not one of {sorted(names())}.")


def _families():
    return [
        importlib.import_module(f"{__name__}.{module.name}")
        for module in pkgutil.iter_modules(__path__)
        if not module.name.startswith("_")
    ]
