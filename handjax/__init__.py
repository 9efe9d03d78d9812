"""handjax: 3-D hand meshes from one RGB image, in JAX.

    predictor = handjax.load("runs/small")  # a workdir, or a converted directory
    hand = predictor("photo.jpg", box_px=(60, 40, 300, 290))
    hand.vertices + hand.translation  # (778, 3), metres, camera axes

`__all__` is the public interface. Names are loaded on first use, so that importing
handjax is quick and brings neither JAX nor a device into the process.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from handjax.config.files import load_config
    from handjax.errors import UserError
    from handjax.evaluate import evaluate
    from handjax.inference.load import load
    from handjax.inference.prediction import HandPrediction
    from handjax.mano.hand_model import HandModel
    from handjax.models import names as families
    from handjax.train import train
    from handjax.types import Batch, HandOutput

__version__ = "0.2.0"

__all__ = [
    "Batch",
    "HandModel",
    "HandOutput",
    "HandPrediction",
    "UserError",
    "evaluate",
    "families",
    "load",
    "load_config",
    "train",
]

_HOMES = {
    "Batch": "handjax.types:Batch",
    "HandModel": "handjax.mano.hand_model:HandModel",
    "HandOutput": "handjax.types:HandOutput",
    "HandPrediction": "handjax.inference.prediction:HandPrediction",
    "UserError": "handjax.errors:UserError",
    "families": "handjax.models:names",
    "load": "handjax.inference.load:load",
    "load_config": "handjax.config.files:load_config",
}
"""Public name -> module:attribute. `train` and `evaluate` are the modules of those
names, which are entries and can be called as well."""


def __getattr__(name: str) -> Any:
    """Load a public name on its first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name not in _HOMES:
        return importlib.import_module(f"{__name__}.{name}")
    module, _, attribute = _HOMES[name].partition(":")
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
