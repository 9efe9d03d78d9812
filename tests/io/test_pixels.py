"""Pictures of every depth and mode become RGB of 8 bits, or one sentence."""

import io

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from handjax.errors import UserError
from handjax.io import pixels

RAMP = np.linspace(0, 1, 256).reshape(1, -1).repeat(4, 0)
GREY = np.arange(256, dtype=np.uint8).reshape(1, -1, 1).repeat(4, 0).repeat(3, 2)


def _reopened(picture, suffix, **options):
    buffer = io.BytesIO()
    picture.save(buffer, suffix, **options)
    picture = Image.open(io.BytesIO(buffer.getvalue()))
    picture.load()
    return picture


@pytest.mark.parametrize("suffix", ["PNG", "TIFF", "PPM"])
def test_a_ramp_of_16_bits_keeps_all_its_256_levels(suffix):
    picture = Image.fromarray(np.rint(RAMP * 65535).astype(np.uint16))
    np.testing.assert_array_equal(pixels.from_picture(_reopened(picture, suffix)), GREY)


def test_twelve_bits_and_tiffs_whose_zero_is_white():
    grey = Image.fromarray(np.rint(RAMP * 65535).astype(np.uint16))
    inverted = _reopened(grey, "TIFF")
    inverted.tag_v2[262] = 0
    np.testing.assert_array_equal(pixels.from_picture(inverted), 255 - GREY)
    twelve = Image.fromarray(np.rint(RAMP * 4095).astype(np.uint16))
    twelve.tag_v2 = {258: (12,)}
    np.testing.assert_array_equal(pixels.from_picture(twelve), GREY)


def test_a_float_tiff_is_scaled_from_0_1_or_refused():
    unit = _reopened(Image.fromarray(RAMP.astype(np.float32)), "TIFF")
    np.testing.assert_array_equal(pixels.from_picture(unit), GREY)
    for wrong in (RAMP * 255, RAMP - 0.5, RAMP + np.nan):
        picture = _reopened(Image.fromarray(wrong.astype(np.float32)), "TIFF")
        with pytest.raises(UserError, match=r"floats have to be 0\.\.1"):
            pixels.from_picture(picture)


@pytest.mark.parametrize("mode", sorted(Image.MODES))
def test_every_mode_of_pillow_keeps_its_levels(mode):
    if mode.startswith("I;16"):
        picture = Image.fromarray(np.rint(RAMP * 65535).astype(np.uint16))
        picture = Image.frombytes(mode, picture.size, picture.tobytes())
        if mode == "I;16B":
            swapped = np.rint(RAMP * 65535).astype(">u2").tobytes()
            picture = Image.frombytes(mode, picture.size, swapped)
    elif mode == "F":
        picture = Image.fromarray(RAMP.astype(np.float32))
    elif mode in ("RGBa", "La"):
        picture = Image.fromarray(GREY).convert(mode.upper()).convert(mode)
    else:
        picture = Image.fromarray(GREY).convert(mode)
    found = pixels.from_picture(picture).astype(int)
    assert found.shape == GREY.shape
    # Palettes and single bits are coarse; black stays black, and white white.
    coarse = 60 if mode in ("P", "PA") else 255 if mode == "1" else 2
    assert abs(found - GREY).max() <= coarse
    assert found[0, 0].max() <= 2 and found[0, -1].min() >= 253


@pytest.mark.parametrize(
    "convert",
    [
        lambda x: x,
        lambda x: x.astype(np.int64),
        lambda x: x.astype(np.uint16),
        lambda x: x / 255,
        lambda x: (x / 255).astype(np.float32),
        lambda x: x[..., 0],
        lambda x: x[..., :1],
        lambda x: np.concatenate([x, x[..., :1] // 2], -1),
        lambda x: jnp.asarray(x),
        lambda x: jnp.asarray(x, jnp.float32) / 255,
        lambda x: x.tolist(),
        Image.fromarray,
    ],
)
def test_arrays_that_can_only_mean_one_picture_are_converted(convert):
    np.testing.assert_array_equal(pixels.from_array(convert(GREY)), GREY)


def test_booleans_are_black_and_white_and_bfloat16_is_a_float():
    found = pixels.from_array(GREY > 127)
    np.testing.assert_array_equal(found, np.where(GREY > 127, 255, 0))
    coarse = pixels.from_array(np.asarray(jnp.asarray(GREY / 255, jnp.bfloat16)))
    assert abs(coarse.astype(int) - GREY).max() <= 1


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (GREY.astype(np.uint16) * 257, r"uint16 pixels of 0\.\.65535.*divide by 257"),
        (GREY.astype(np.int16) - 1, r"int16 pixels of -1\.\.254"),
        (GREY.astype(np.float32), r"float32 pixels of 0\.\.255"),
        (GREY / 128 - 1, r"floats have to be 0\.\.1"),
        (GREY / 255 + np.nan, r"floats have to be 0\.\.1"),
        (GREY[None], r"shape \(1, 4, 256, 3\)"),
        (np.moveaxis(GREY, -1, 0), r"shape \(3, 4, 256\).*channels last"),
        (GREY[:0], r"shape \(0, 256, 3\)"),
        (GREY[..., :2], r"shape \(4, 256, 2\)"),
        (GREY.astype(complex), "complex128 are not numbers"),
        (GREY.astype(str), "are not numbers"),
        (None, "NoneType was given"),
        (b"abc", "bytes was given"),
        ([[1, 2], [3]], "cannot be read as an array"),
    ],
)
def test_other_arrays_are_one_sentence(wrong, match):
    with pytest.raises(UserError, match=match) as caught:
        pixels.from_array(wrong)
    assert "\n" not in str(caught.value)
