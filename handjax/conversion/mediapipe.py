"""MediaPipe's hand landmark networks and palm detector, from its .tflite files.

    pip download --no-deps mediapipe==0.10.21
    python -m zipfile -e mediapipe-0.10.21-*.whl wheel
    python -m handjax.convert \
        wheel/mediapipe/modules/hand_landmark/hand_landmark_full.tflite \
        --from mediapipe --to weights/hand_landmark_full

`scripts/rebuild_mediapipe_assets.py` makes the weights that come with handjax so.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from handjax.conversion import Converted, Options
from handjax.errors import UserError
from handjax.io import tflite_files, weight_matching
from handjax.nn import palm_detection
from handjax.nn.backbones import hand_landmark
from handjax.types import Variables

SOURCE = "https://pypi.org/project/mediapipe/0.10.21/"
LICENCE = "Apache-2.0, Copyright The MediaPipe Authors"

PALM_DETECTION = "palm_detection_full"
NAMES = (*hand_landmark.VARIANTS, PALM_DETECTION)

_CONSTANTS = "constants of padding, reshaping, resizing and averaging"
_PARAMETRIC = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "PRELU")


class Layer(NamedTuple):
    """What a step of the file is in the network."""

    path: str
    kind: str
    stride: int = 1
    activation: str = ""


def read(path: Any) -> dict[str, np.ndarray]:
    """Read the weights of a .tflite file, in handjax's layout.

    Names are "KIND:STRIDE:ACTIVATION:NUMBER/kernel" (and "/bias", "/slope"), numbered
    in the order in which the network runs; constants that are not weights are
    "constant/I", with the index of their tensor.

    Raises:
        UserError: The file is damaged, or not of a float network.
        OSError: It cannot be read.
    """
    graph = tflite_files.read(path)
    values = {i: t.value for i, t in enumerate(graph.tensors) if t.value is not None}
    weights: dict[str, np.ndarray] = {}
    used, number = set[int](), 0
    for operator in graph.operators:
        if operator.kind == "DEQUANTIZE":
            # Weights are stored in float16 and widened before use.
            (source,), (target,) = operator.inputs, operator.outputs
            if source in values:
                values[target] = values[source]
                used.add(source)
        if operator.kind not in _PARAMETRIC:
            continue
        given = [i for i in operator.inputs[1:] if i >= 0]
        absent = [i for i in given if i not in values]
        if absent or not given:
            raise UserError(
                f"{path}: {operator.kind} number {number} computes its weights; only "
                "networks with constant weights are converted."
            )
        prefix = f"{operator.kind}:{operator.stride}:{operator.activation}:{number}"
        parts = ("slope",) if operator.kind == "PRELU" else ("kernel", "bias")
        for part, index in zip(parts, given, strict=False):
            weights[f"{prefix}/{part}"] = _laid_out(operator.kind, values[index])
            used.add(index)
        number += 1
    for index, tensor in enumerate(graph.tensors):
        if tensor.value is not None and index not in used:
            weights[f"constant/{index}"] = tensor.value
    return weights


def _laid_out(kind: str, value: np.ndarray) -> np.ndarray:
    """TFLite's layout of a weight to ours."""
    if kind == "CONV_2D" and value.ndim == 4:
        return value.transpose(1, 2, 3, 0)
    if kind == "DEPTHWISE_CONV_2D" and value.ndim == 4:
        return value.transpose(1, 2, 0, 3)
    if kind == "FULLY_CONNECTED" and value.ndim == 2:
        return value.T
    if kind == "PRELU":
        return value.reshape(-1)
    return value


def convert(state_dict: Mapping[str, np.ndarray], options: Options) -> Converted:
    """Convert what `read` returned.

    Raises:
        ConversionError: A weight is missing, unknown or of another shape.
        UserError: The network is none of `NAMES`, or not `options.name`.
    """
    name = options.name or _name(state_dict)
    if name not in NAMES:
        raise UserError(f"--name={name!r} is not one of {', '.join(NAMES)}.")
    layers = list(_layers(name))
    found = sorted({_step(key) for key in state_dict if key[0].isupper()})
    expected = [(i, x.kind, x.stride, x.activation) for i, x in enumerate(layers)]
    if found != expected:
        at = next(
            (
                i
                for i, pair in enumerate(zip(found, expected, strict=False))
                if pair[0] != pair[1]
            ),
            min(len(found), len(expected)),
        )
        raise UserError(
            f"The file has {len(found)} steps with weights and {name} "
            f"{len(expected)}; they differ from step {at} on. Pass the .tflite file of "
            f"one of {', '.join(NAMES)} as mediapipe 0.10.21 has it."
        )
    flat, skipped = {}, []
    for key, value in state_dict.items():
        if key.startswith("constant/"):
            skipped.append(key)
            continue
        part = key.rpartition("/")[2]
        layer = layers[_step(key)[0]]
        flat[f"params/{layer.path}/{part}"] = np.asarray(value, np.float32)
    weight_matching.check(
        {path: np.shape(value) for path, value in flat.items()},
        _expected_shapes(name),
        name=name,
        advice="Pass the .tflite file as mediapipe 0.10.21 has it.",
        skipped=skipped,
    )
    variables: Variables = flax.traverse_util.unflatten_dict(flat, sep="/")
    return Converted(
        variables=variables,
        backbone=name,
        licence=LICENCE,
        skipped={_CONSTANTS: skipped} if skipped else {},
        part="palm_detector" if name == PALM_DETECTION else "image_encoder",
    )


def _step(key: str) -> tuple[int, str, int, str]:
    kind, stride, activation, number = key.rpartition("/")[0].split(":")
    return int(number), kind, int(stride), activation


def _name(state_dict: Mapping[str, np.ndarray]) -> str:
    """Which network it is, from the channels of its first convolutions and heads."""
    if any(key.startswith("PRELU") for key in state_dict):
        return PALM_DETECTION
    last = max(
        (
            value.shape[0]
            for key, value in state_dict.items()
            if key.startswith("FULLY_CONNECTED") and value.ndim == 2
        ),
        default=0,
    )
    widths = {width: name for name, width in hand_landmark.NUM_FEATURES.items()}
    return widths.get(last, next(iter(hand_landmark.VARIANTS)))


def _layers(name: str) -> Iterator[Layer]:
    """Layers with weights in the order of the file."""
    if name == PALM_DETECTION:
        yield from _palm_layers()
        return
    size = hand_landmark.VARIANTS[name]
    yield Layer("stem", "CONV_2D", 2, "RELU6")
    entering = size.stem
    for i, block in enumerate(size.blocks):
        if block.hidden != entering:
            yield Layer(f"blocks_{i}/expand", "CONV_2D", 1, "RELU6")
        yield Layer(f"blocks_{i}/depthwise", "DEPTHWISE_CONV_2D", block.stride, "RELU6")
        if block.width:
            yield Layer(f"blocks_{i}/project", "CONV_2D")
            entering = block.width
    for head in ("side", "presence", "screen", "world"):
        yield Layer(f"head/{head}", "FULLY_CONNECTED")


def _palm_layers() -> Iterator[Layer]:
    def block(name: str, stride: int = 1) -> Iterator[Layer]:
        yield Layer(f"{name}/depthwise", "DEPTHWISE_CONV_2D", stride)
        yield Layer(f"{name}/project", "CONV_2D")
        yield Layer(f"{name}/prelu", "PRELU")

    yield Layer("stem", "CONV_2D", 2)
    yield Layer("stem_prelu", "PRELU")
    for i, depth in enumerate(palm_detection.DEPTHS):
        for j in range(depth):
            yield from block(f"down_{i}_{j}", 2 if i and not j else 1)
    for i in range(2):
        yield Layer(f"up_{i}", "CONV_2D")
        yield Layer(f"up_{i}_prelu", "PRELU")
        for j in range(2):
            yield from block(f"up_{i}_{j}")
        yield Layer(f"score_{i}", "CONV_2D")
        yield Layer(f"box_{i}", "CONV_2D")


def _expected_shapes(name: str) -> dict[str, tuple[int, ...]]:
    module: Any = palm_detection.PalmDetectionNetwork()
    side = palm_detection.IMAGE_SIZE
    if name != PALM_DETECTION:
        module, side = hand_landmark.build(name), hand_landmark.IMAGE_SIZE
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    shapes: Any = jax.eval_shape(module.init, jax.random.key(0), image)
    flat = flax.traverse_util.flatten_dict(shapes, sep="/")
    return {path: tuple(leaf.shape) for path, leaf in flat.items()}
