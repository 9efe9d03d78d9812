"""Weights that come with handjax: `handjax/assets/*.safetensors`, see its NOTICE.md."""

import importlib.resources

import flax.traverse_util
import numpy as np
import safetensors.numpy

from handjax.types import Variables


def load(asset: str) -> Variables:
    """Load the variables of an asset; they are stored in float16, returned in float32.

    Raises:
        FileNotFoundError: The installation lacks the file.
    """
    path = importlib.resources.files("handjax") / "assets" / f"{asset}.safetensors"
    flat = safetensors.numpy.load(path.read_bytes())
    return flax.traverse_util.unflatten_dict(
        {name: np.asarray(value, np.float32) for name, value in flat.items()}, sep="/"
    )
