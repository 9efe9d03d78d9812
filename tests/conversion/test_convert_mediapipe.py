"""MediaPipe's files become the weights that ship, whole, or are refused."""

import json

import chex
import flax.traverse_util
import numpy as np
import pytest
import tiny_tflite

from handjax import convert
from handjax.conversion import Options, directory, mediapipe
from handjax.io import tflite_files
from handjax.io.weight_matching import ConversionError
from handjax.nn import palm_detection
from handjax.nn.backbones import hand_landmark

_ACTIVATIONS = {"": 0, "RELU6": 3}
_PLACES = {"CONV_2D": 3, "DEPTHWISE_CONV_2D": 4, "FULLY_CONNECTED": 0}


def _theirs(kind, part, value):
    """Our layout of a weight to TFLite's."""
    if kind == "CONV_2D" and part == "kernel":
        return value.transpose(3, 0, 1, 2)
    if kind == "DEPTHWISE_CONV_2D" and part == "kernel":
        return value.transpose(2, 0, 1, 3)
    if kind == "FULLY_CONNECTED" and part == "kernel":
        return value.T
    return value.reshape(1, 1, -1) if kind == "PRELU" else value


def save(path, name, variables, *, change=None):
    """Write a network's weights as MediaPipe's file has them: halves, then widened."""
    flat = flax.traverse_util.flatten_dict(variables["params"], sep="/")
    tensors = [("image", (1, 1), None), ("axes", (2,), np.array([1, 2], np.int32))]
    steps, last = [], 0
    for i, layer in enumerate(mediapipe._layers(name)):
        read = [last]
        for part in ("kernel", "bias", "slope"):
            if f"{layer.path}/{part}" not in flat:
                continue
            value = _theirs(layer.kind, part, flat[f"{layer.path}/{part}"])
            tensors.append((f"{i}{part}", value.shape, value.astype(np.float16)))
            tensors.append((f"{i}{part}32", value.shape, None))
            read.append(len(tensors) - 1)
            steps.append(("DEQUANTIZE", (read[-1] - 1,), (read[-1],), ()))
        tensors.append((f"out{i}", (1, 1), None))
        last = len(tensors) - 1
        options = ()
        if layer.kind in _PLACES:
            place, active = _PLACES[layer.kind], _ACTIVATIONS[layer.activation]
            options = ((place, "Int8", active),)
        if "CONV" in layer.kind:
            options = tuple((k, "Int32", layer.stride) for k in (1, 2)) + options
        steps.append((layer.kind, tuple(read), (last,), options))
    if change:
        tensors, steps = change(tensors, steps)
    path.write_bytes(tiny_tflite.model(tensors, steps, (0,), (last,)))
    return path


def _shipped(name):
    if name == mediapipe.PALM_DETECTION:
        return palm_detection.pretrained()
    return hand_landmark.pretrained(name)


@pytest.mark.parametrize("name", ["mediapipe_hand_lite", "palm_detection_full"])
def test_a_file_becomes_the_weights_that_ship(tmp_path, capsys, name):
    path = save(tmp_path / "a.tflite", name, _shipped(name))
    code = convert.main([str(path), "--from=mediapipe", f"--to={tmp_path / 'out'}"])
    out, error = capsys.readouterr()
    assert (code, error) == (0, "")
    for words in (
        f"a.tflite: {name}, ",
        "1 skipped: constants of padding, reshaping, resizing and averaging",
        "licence: Apache-2.0, Copyright The MediaPipe Authors",
    ):
        assert words in out, words
    palm = name == "palm_detection_full"
    assert ("nothing to do" if palm else f"--config.model.backbone={name}") in out
    found = directory.read_backbone(tmp_path / "out")
    chex.assert_trees_all_equal(found, _shipped(name))
    record = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert record["backbone"] == name


@pytest.fixture(scope="module")
def state_dict(tmp_path_factory):
    name = "mediapipe_hand_lite"
    path = tmp_path_factory.mktemp("lite") / "a.tflite"
    return mediapipe.read(save(path, name, _shipped(name)))


def test_what_does_not_fit_is_refused(state_dict):
    names = list(state_dict)
    kernel = next(n for n in names if n.endswith(":0/kernel"))
    with pytest.raises(ConversionError, match="params/stem/kernel"):
        mediapipe.convert({**state_dict, kernel: np.zeros((3, 3, 3, 7))}, Options())
    fewer = {k: v for k, v in state_dict.items() if not k.startswith(kernel[:-7])}
    with pytest.raises(ValueError, match=r"has 50 steps .*lite 51; .* from step 0 on"):
        mediapipe.convert(fewer, Options())
    other = {k.replace("RELU6", "RELU"): v for k, v in state_dict.items()}
    with pytest.raises(ValueError, match="differ from step 0 on"):
        mediapipe.convert(other, Options())
    with pytest.raises(
        ValueError,
        match=r"do not fit mediapipe_hand_full|mediapipe_hand_full 51; they differ",
    ):
        mediapipe.convert(state_dict, Options(name="mediapipe_hand_full"))
    with pytest.raises(ValueError, match=r"--name='x' is not one of mediapipe_hand_f"):
        mediapipe.convert(state_dict, Options(name="x"))


def test_weights_that_are_computed_are_refused(tmp_path):
    name = "mediapipe_hand_lite"

    def change(tensors, steps):
        # The first convolution reads its kernel from the image.
        kind, read, wrote, options = steps[2]
        steps[2] = (kind, (read[0], 0, read[2]), wrote, options)
        return tensors, steps

    path = save(tmp_path / "a.tflite", name, _shipped(name), change=change)
    with pytest.raises(ValueError, match="CONV_2D number 0 computes its weights"):
        mediapipe.read(path)


def test_a_damaged_file_is_one_line(tmp_path, capsys):
    path = tmp_path / "a.tflite"
    path.write_bytes(b"\x10\x00\x00\x00TFL3" + b"\xff" * 40)
    assert convert.main([str(path), "--from=mediapipe", f"--to={tmp_path / 'o'}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "o").exists()
    assert not tflite_files.is_tflite(b"PK\x03\x04")
