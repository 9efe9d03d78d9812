"""Encode and decode a record, one hand in one picture: its fields and units.

Records say what the source says: left hands are stored unmirrored, poses are absolute
(flat mean), 3-D is in the OpenCV camera of the stored picture (x right, y down, z
forward; metres), 2-D in its pixels (the centre of the first pixel is (0, 0)). Fields
that a source does not annotate are absent from the example and come back as zeros with
their `has_` flag False; absence is never guessed from zeros.

A data set of bodies has the same fields with its own counts, which are in its
`metadata.json`; without them the counts are a hand's.
"""

import functools
from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.storage.dataset_names import DATASETS
from handjax.errors import UserError
from handjax.mano.model_files import ManoFile

SCHEMA_VERSION = 1


class Counts(NamedTuple):
    """Numbers of annotated vertices, joints and bones; by default a hand's."""

    vertices: int = 778
    joints: int = 21
    bones: int = 16
    """Rotations of `mano_pose`."""

    @classmethod
    def of(cls, file: ManoFile) -> "Counts":
        """Return the counts of a hand or body model."""
        return cls(len(file.v_template), len(file.skeleton.joints), len(file.parents))


HAND = Counts()

UNKNOWN = 255
"""Value of `occluded` where it is not annotated."""

_ARRAYS: dict[str, tuple[tuple[int | str, ...], Any]] = {
    "image_size": ((2,), np.int32),
    "crop_origin": ((2,), np.float32),
    "bbox_center": ((2,), np.float32),
    "bbox_size": ((2,), np.float32),
    "joints2d": (("joint", 3), np.float32),
    "joints3d": (("joint", 4), np.float32),
    "vertices": ((-1, 3), np.float32),
    "mano_pose": (("angle",), np.float32),
    "mano_betas": ((10,), np.float32),
    "mano_transl": ((3,), np.float32),
    "K": ((3, 3), np.float32),
    "occluded": (("joint",), np.uint8),
}
_SCALARS: dict[str, tuple[Any, Any]] = {
    "crop_scale": (np.float32, 1.0),
    "is_right": (np.bool_, True),
    "left_model": (np.uint8, 0),
    "visible": (np.float32, -1.0),
    "weight": (np.float32, 1.0),
    "fit_loss": (np.float32, 0.0),
    "repose_mm": (np.float32, -1.0),
    "schema_version": (np.int32, SCHEMA_VERSION),
}
_LATER = frozenset({"repose_mm"})
"""Scalars that records of earlier preparations lack; they come back as the default."""
_FLAGS = {
    "has_joints3d": "joints3d",
    "has_vertices": "vertices",
    "has_pose": "mano_pose",
    "has_betas": "mano_betas",
    "has_transl": "mano_transl",
    "has_K": "K",
}
_NAMES = ("image", "key", "text", "dataset", *_ARRAYS, *_SCALARS, *_FLAGS)
_FLOATS = frozenset(name for name, (_, kind) in _ARRAYS.items() if kind is np.float32)
_FLOAT32 = np.dtype("<f4")
_REQUIRED = ("image", "key", "dataset", "image_size", "joints2d", "bbox_center")


@functools.cache
def _shapes(counts: Counts) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the arrays; -1 is any length."""
    sizes = {"joint": counts.joints, "angle": 3 * counts.bones}
    return {
        name: tuple(sizes[n] if isinstance(n, str) else n for n in shape)
        for name, (shape, _) in _ARRAYS.items()
    }


@functools.cache
def features(counts: Counts = HAND):
    """Return the `tfds.features.FeaturesDict` of a record (without TensorFlow)."""
    import tensorflow_datasets as tfds

    kinds: dict[str, Any] = {
        "image": tfds.features.Image(
            shape=(None, None, 3), encoding_format="jpeg", doc="JPEG bytes, RGB"
        ),
        "key": tfds.features.Text(doc="path in the source, and hand index"),
        "text": tfds.features.Text(doc="ASL letter, or empty"),
        "dataset": tfds.features.ClassLabel(names=list(DATASETS)),
    }
    for name, shape in _shapes(counts).items():
        shape = tuple(None if n == -1 else n for n in shape)
        kinds[name] = tfds.features.Tensor(shape=shape, dtype=_ARRAYS[name][1])
    for name, (dtype, _) in _SCALARS.items():
        kinds[name] = tfds.features.Scalar(dtype)
    for name in _FLAGS:
        kinds[name] = tfds.features.Scalar(np.bool_)
    return tfds.features.FeaturesDict(kinds)


def encode(example: dict[str, Any], counts: Counts = HAND) -> bytes:
    """Encode one record.

    Args:
        example: Fields of the schema; `image` as JPEG bytes. `has_*` flags follow from
            which fields are present.
        counts: Counts of the data set.

    Raises:
        UserError: For an unknown or missing field, a wrong shape, or an image that is
            not JPEG.
    """
    full = complete(example, counts)
    proto = _serializer(counts).get_tf_example(features(counts).encode_example(full))
    # By default the order of a proto's map differs from process to process.
    return proto.SerializeToString(deterministic=True)


def complete(example: dict[str, Any], counts: Counts = HAND) -> dict[str, Any]:
    """Return all fields of a record, absent ones filled and flagged.

    Arguments and errors are those of `encode`.
    """
    kinds = features(counts)
    unknown = sorted(set(example) - set(kinds))
    missing = [name for name in _REQUIRED if name not in example]
    if unknown or missing:
        raise UserError(
            f"Record {example.get('key', '?')!r}: unknown fields {unknown}, missing "
            f"fields {missing}; the schema has {sorted(kinds)}."
        )
    image = example["image"]
    if not (isinstance(image, bytes) and image[:2] == b"\xff\xd8"):
        raise UserError(f"Record {example['key']!r}: image must be JPEG bytes.")
    full: dict[str, Any] = {
        "image": image,
        "key": str(example["key"]),
        "text": str(example.get("text", "")),
        "dataset": example["dataset"],
    }
    for name, shape in _shapes(counts).items():
        full[name] = _array(example, name, shape, _ARRAYS[name][1])
    for name, (dtype, default) in _SCALARS.items():
        full[name] = dtype(example.get(name, default))
    for flag, name in _FLAGS.items():
        full[flag] = name in example
    return full


@functools.cache
def _serializer(counts: Counts):
    from tensorflow_datasets.core import example_serializer

    info = features(counts).get_serialized_info()
    return example_serializer.ExampleSerializer(info)


def _array(example: dict[str, Any], name: str, shape: tuple, dtype: Any) -> np.ndarray:
    if name not in example:
        fill = UNKNOWN if name == "occluded" else 0
        return np.full(np.maximum(shape, 0), fill, dtype)
    value = np.asarray(example[name], dtype)
    fits = value.ndim == len(shape) and all(
        n in (-1, m) for n, m in zip(shape, value.shape, strict=True)
    )
    if not fits:
        raise UserError(
            f"Record {example['key']!r}: {name} has shape {value.shape}, the schema "
            f"says {shape}."
        )
    return value


def decode(
    record: bytes, fields: Collection[str] | None = None, counts: Counts = HAND
) -> dict[str, Any]:
    """Decode one record; `image` stays JPEG bytes, `dataset` becomes its name.

    Arrays are read-only views where that saves a copy. This is `features()`'s own
    decoding at a tenth of its cost; the full cost would exceed that of the picture.

    Args:
        record: Bytes from `encode`.
        fields: Names of the fields to decode; None for all.
        counts: Counts of the data set.

    Raises:
        UserError: If the bytes are not a record of this schema version.
    """
    try:
        stored = _example_type().FromString(record).features.feature
        version = stored["schema_version"].int64_list.value
        if not version or version[0] != SCHEMA_VERSION:
            raise UserError(
                f"its schema version is {version[0] if version else 'missing'}, this "
                f"program reads version {SCHEMA_VERSION}; prepare the dataset again"
            )
        shapes = _shapes(counts)
        return {name: _field(stored, name, shapes) for name in fields or _NAMES}
    except Exception as error:
        raise UserError(f"not a record of the schema: {error}") from error


def preload() -> None:
    """Import what reading and writing records needs, before any thread is started.

    While TFDS is imported, `import` itself is replaced for all threads, and one that
    imports a function meanwhile, as Orbax does when it saves, gets something else.
    """
    _example_type()


@functools.cache
def _example_type():
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example


def _field(stored: Any, name: str, shapes: dict[str, tuple[int, ...]]) -> Any:
    if name not in stored:  # reading would make an empty one
        if name in _LATER:
            dtype, default = _SCALARS[name]
            return dtype(default)
        raise UserError(f"it has no field {name!r}")
    value = stored[name]
    if name in _FLOATS:
        return _packed_floats(value.float_list).reshape(shapes[name])
    if name in _FLAGS:
        return value.int64_list.value[0] != 0
    if name in _ARRAYS:
        numbers = np.fromiter(value.int64_list.value, _ARRAYS[name][1])
        return numbers.reshape(shapes[name])
    if name in _SCALARS:
        dtype = _SCALARS[name][0]
        kind = value.float_list if dtype is np.float32 else value.int64_list
        return dtype(kind.value[0])
    if name == "dataset":
        return DATASETS[value.int64_list.value[0]]
    data = value.bytes_list.value[0]
    return data if name == "image" else data.decode()


def _packed_floats(values: Any) -> np.ndarray:
    """Read a `tf.train.FloatList` without a Python object for each number.

    On the wire the list is one tag, the number of bytes as a varint (seven bits a byte,
    the last without the high bit), then the floats, little-endian.
    """
    wire = values.SerializeToString()
    if not wire:
        return np.zeros(0, np.float32)
    start = 1
    while wire[start] & 0x80:
        start += 1
    return np.frombuffer(wire, _FLOAT32, offset=start + 1)
