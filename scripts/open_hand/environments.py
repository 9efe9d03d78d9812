"""Environment maps for the renderer: background picture, soft light, brightest light.

Source: Poly Haven HDRIs (CC0 1.0) as packaged in npm `@pmndrs/assets` 1.7.0, where
each `.exr.js` file holds one OpenEXR image in base64. Camera axes: x right, y down,
z forward.
"""

import base64
import io
import re
import tempfile

import numpy as np
from PIL import Image

from data_pipelines.synthetic.surroundings import harmonic_basis

KEY_PERCENTILE = 99.5
"""Pixels brighter than this make the key light; the rest is the soft light."""
DIFFUSE_LEVEL, BACKGROUND_LEVEL = 0.5, 0.22
KEY_TINT = np.array([1.0, 0.95, 0.88])


def _read(path):
    """Linear RGB (height, width, 3) of one packaged map."""
    import OpenEXR

    packed = re.search(r"base64,([A-Za-z0-9+/=]+)", path.read_text())
    if packed is None:
        raise ValueError(f"{path}: no base64 image; is this @pmndrs/assets 1.7.0?")
    with tempfile.NamedTemporaryFile(suffix=".exr") as file:
        file.write(base64.b64decode(packed.group(1)))
        file.flush()
        with OpenEXR.File(file.name) as image:
            channels = image.channels()
            if "RGB" in channels:
                pixels = channels["RGB"].pixels
            else:
                pixels = np.stack([channels[c].pixels for c in "RGB"], -1)
            # Half precision, as the shipped maps were made.
            return np.asarray(pixels, np.float32)[..., :3].astype(np.float16)


def _sphere(height, width):
    """Directions (height, width, 3) and solid angles (height, width) of the pixels."""
    polar = (np.arange(height) + 0.5) / height * np.pi
    azimuth = (np.arange(width) + 0.5) / width * 2 * np.pi - np.pi
    polar, azimuth = np.meshgrid(polar, azimuth, indexing="ij")
    directions = np.stack(
        [
            np.sin(azimuth) * np.sin(polar),
            -np.cos(polar),
            np.cos(azimuth) * np.sin(polar),
        ],
        -1,
    )
    return directions, 2 * np.pi / width * np.pi / height * np.sin(polar)


def _convert(radiance):
    """JPEG bytes, diffuse coefficients (9, 3) and key light (6,) of one map."""
    radiance = np.nan_to_num(radiance.astype(np.float64)).clip(0)
    height, width = radiance.shape[:2]
    directions, area = _sphere(height, width)
    luminance = radiance.mean(-1)
    bright = np.percentile(luminance, KEY_PERCENTILE)
    excess = np.maximum(radiance - bright, 0) * (luminance > bright)[..., None]
    power = np.einsum("hwc,hw->c", excess, area).max() * KEY_TINT
    towards = np.einsum("hw,hw,hwd->d", excess.mean(-1), area, directions)
    towards /= np.linalg.norm(towards) + 1e-9
    coefficients = np.einsum(
        "hwk,hwc,hw->kc",
        harmonic_basis(directions.reshape(-1, 3)).reshape(*directions.shape[:2], 9),
        radiance - excess,
        area,
    )
    # Convolution with the clamped cosine (Ramamoorthi and Hanrahan 2001), over pi.
    coefficients *= np.array([1.0, *[2 / 3] * 3, *[1 / 4] * 5])[:, None]
    level = DIFFUSE_LEVEL / max(coefficients[0].mean() * 0.282095, 1e-6)
    key = np.minimum(power / np.pi * level, 1.5 * power / max(power.mean(), 1e-9))
    middle = luminance[height // 4 : 3 * height // 4]
    picture = np.clip(radiance * BACKGROUND_LEVEL / np.median(middle), 0, 1)
    stream = io.BytesIO()
    Image.fromarray((picture ** (1 / 2.2) * 255).astype(np.uint8)).save(
        stream, "JPEG", quality=88
    )
    return {
        "ldr": np.frombuffer(stream.getvalue(), np.uint8),
        "sh": (coefficients * level).astype(np.float32),
        "key": np.concatenate([towards, key]).astype(np.float32),
    }


def convert(folder):
    """All maps of a folder as arrays named `<map>_ldr`, `<map>_sh`, `<map>_key`."""
    arrays = {}
    for path in sorted(folder.glob("*.js")):
        name = path.name.split(".")[0]
        for kind, array in _convert(_read(path)).items():
            arrays[f"{name}_{kind}"] = array
    return arrays
