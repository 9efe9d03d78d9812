"""One stored record: one hand in one picture. Fields, units, and bytes to and fro.

Records say what the source says: left hands are stored unmirrored, poses are absolute
(flat mean), 3-D is in the OpenCV camera of the stored picture (x right, y down, z
forward; metres), 2-D in its pixels (the centre of the first pixel is (0, 0)). What a
source does not annotate is absent from the example and comes back as zeros with its
`has_` flag False; absence is never guessed from zeros.
"""

import functools
from typing import Any

import numpy as np

SCHEMA_VERSION = 1

DATASETS = (
    "synthetic",
    "freihand",
    "dexycb",
    "ho3d_v2",
    "ho3d_v3",
    "h2o3d",
    "interhand26m",
    "rhd",
    "mtc",
    "coco_wholebody",
    "halpe",
    "mpii_nzsl",
    "hint",
    "asl",
    "own",
)
"""Where a record comes from; stored by position, so names are only ever appended."""

UNKNOWN = 255
"""Value of `occluded` where nobody has looked."""

_ARRAYS: dict[str, tuple[tuple[int | None, ...], Any]] = {
    "image_size": ((2,), np.int32),
    "crop_origin": ((2,), np.float32),
    "bbox_center": ((2,), np.float32),
    "bbox_size": ((2,), np.float32),
    "joints2d": ((21, 3), np.float32),
    "joints3d": ((21, 4), np.float32),
    "vertices": ((None, 3), np.float32),
    "mano_pose": ((48,), np.float32),
    "mano_betas": ((10,), np.float32),
    "mano_transl": ((3,), np.float32),
    "K": ((3, 3), np.float32),
    "occluded": ((21,), np.uint8),
}
_SCALARS: dict[str, tuple[Any, Any]] = {
    "crop_scale": (np.float32, 1.0),
    "is_right": (np.bool_, True),
    "left_model": (np.uint8, 0),
    "visible": (np.float32, -1.0),
    "weight": (np.float32, 1.0),
    "fit_loss": (np.float32, 0.0),
    "schema_version": (np.int32, SCHEMA_VERSION),
}
_FLAGS = {
    "has_joints3d": "joints3d",
    "has_vertices": "vertices",
    "has_pose": "mano_pose",
    "has_betas": "mano_betas",
    "has_transl": "mano_transl",
    "has_K": "K",
}
_REQUIRED = ("image", "key", "dataset", "image_size", "joints2d", "bbox_center")


@functools.cache
def features():
    """The `tfds.features.FeaturesDict` of a record (TensorFlow is not needed)."""
    import tensorflow_datasets as tfds

    kinds: dict[str, Any] = {
        "image": tfds.features.Image(
            shape=(None, None, 3), encoding_format="jpeg", doc="JPEG bytes, RGB"
        ),
        "key": tfds.features.Text(doc="path in the source, and hand index"),
        "text": tfds.features.Text(doc="ASL letter, or empty"),
        "dataset": tfds.features.ClassLabel(names=list(DATASETS)),
    }
    for name, (shape, dtype) in _ARRAYS.items():
        kinds[name] = tfds.features.Tensor(shape=shape, dtype=dtype)
    for name, (dtype, _) in _SCALARS.items():
        kinds[name] = tfds.features.Scalar(dtype)
    for name in _FLAGS:
        kinds[name] = tfds.features.Scalar(np.bool_)
    return tfds.features.FeaturesDict(kinds)


def encode(example: dict[str, Any]) -> bytes:
    """Bytes of one record.

    Args:
        example: fields of the schema; `image` as JPEG bytes. `has_*` flags follow from
            which fields are present.

    Raises:
        ValueError: for an unknown or missing field, a wrong shape, or an image that is
            not JPEG.
    """
    kinds = features()
    unknown = sorted(set(example) - set(kinds))
    missing = [name for name in _REQUIRED if name not in example]
    if unknown or missing:
        raise ValueError(
            f"Record {example.get('key', '?')!r}: unknown fields {unknown}, missing "
            f"fields {missing}; the schema has {sorted(kinds)}."
        )
    image = example["image"]
    if not (isinstance(image, bytes) and image[:2] == b"\xff\xd8"):
        raise ValueError(f"Record {example['key']!r}: image must be JPEG bytes.")
    full: dict[str, Any] = {
        "image": image,
        "key": str(example["key"]),
        "text": str(example.get("text", "")),
        "dataset": example["dataset"],
    }
    for name, (shape, dtype) in _ARRAYS.items():
        full[name] = _array(example, name, shape, dtype)
    for name, (dtype, default) in _SCALARS.items():
        full[name] = dtype(example.get(name, default))
    for flag, name in _FLAGS.items():
        full[flag] = name in example
    return kinds.serialize_example(kinds.encode_example(full))


def _array(example: dict[str, Any], name: str, shape: tuple, dtype: Any) -> np.ndarray:
    if name not in example:
        fill = UNKNOWN if name == "occluded" else 0
        return np.full([n or 0 for n in shape], fill, dtype)
    value = np.asarray(example[name], dtype)
    fits = value.ndim == len(shape) and all(
        n is None or n == m for n, m in zip(shape, value.shape, strict=True)
    )
    if not fits:
        raise ValueError(
            f"Record {example['key']!r}: {name} has shape {value.shape}, the schema "
            f"says {shape}."
        )
    return value


@functools.cache
def _decoders():
    import tensorflow_datasets as tfds

    return {"image": tfds.decode.SkipDecoding()}


def decode(record: bytes) -> dict[str, Any]:
    """Fields of one record; `image` stays JPEG bytes, `dataset` becomes its name.

    Raises:
        ValueError: if the bytes are no record of this schema version.
    """
    try:
        example = features().deserialize_example_np(record, decoders=_decoders())
    except Exception as error:
        raise ValueError(f"not a record of the schema: {error}") from error
    if example["schema_version"] != SCHEMA_VERSION:
        raise ValueError(
            f"record of schema version {example['schema_version']}, this program reads "
            f"version {SCHEMA_VERSION}; prepare the dataset again."
        )
    example["key"] = example["key"].decode()
    example["text"] = example["text"].decode()
    example["dataset"] = DATASETS[example["dataset"]]
    return example
