"""Small records with consistent annotations, made without the renderer."""

import cv2
import numpy as np

from data_pipelines.storage import schema, shards

SIZE = 96


def joints(seed):
    """(21, 3) points in front of the camera, metres."""
    rng = np.random.default_rng(seed)
    return rng.normal(0, 0.03, (21, 3)) + (0.01, -0.02, 0.5)


def record(seed=0, **changes):
    """One example as a dataset converter would give it."""
    rng = np.random.default_rng(seed)
    K = np.array([[150.0, 0, 47.5], [0, 150, 47.5], [0, 0, 1]])
    points = joints(seed)
    pixels = points @ K.T
    pixels = pixels[:, :2] / pixels[:, 2:]
    noise = rng.integers(0, 255, (12, 12, 3), dtype=np.uint8)
    picture = cv2.resize(noise, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    example = {
        "image": jpeg(picture),
        "image_size": [SIZE, SIZE],
        "key": f"fake/{seed}",
        "dataset": "synthetic",
        "is_right": True,
        "bbox_center": pixels.mean(0),
        "bbox_size": np.ptp(pixels, axis=0),
        "joints2d": np.concatenate([pixels, np.ones((21, 1))], -1),
        "joints3d": np.concatenate([points, np.ones((21, 1))], -1),
        "vertices": rng.normal(0, 0.03, (778, 3)) + (0, 0, 0.5),
        "mano_pose": rng.normal(0, 0.5, 48),
        "mano_betas": rng.normal(0, 1, 10),
        "mano_transl": rng.normal(0, 1, 3),
        "K": K,
    } | changes
    return {name: value for name, value in example.items() if value is not None}


def jpeg(picture):
    return cv2.imencode(".jpg", picture)[1].tobytes()


def mirrored(example):
    """The same hand as a left one: the whole world seen in a mirror."""
    flip, last = np.array([-1.0, 1, 1]), SIZE - 1
    joints3d, joints2d = example["joints3d"].copy(), example["joints2d"].copy()
    joints3d[:, :3] *= flip
    joints2d[:, 0] = last - joints2d[:, 0]
    pose = example["mano_pose"].reshape(16, 3) * (1, -1, -1)
    picture = cv2.imdecode(np.frombuffer(example["image"], np.uint8), 1)
    return example | {
        "is_right": not example["is_right"],
        "image": jpeg(picture[:, ::-1]),
        "joints2d": joints2d,
        "joints3d": joints3d,
        "vertices": example["vertices"] * flip,
        "mano_pose": pose.reshape(48),
        "bbox_center": np.array([last, 0]) + example["bbox_center"] * (-1, 1),
    }


def decoded(example, index=0):
    """What `data_pipelines.loading.readers.Reader` gives for an example."""
    return schema.decode(schema.encode(example)) | {"index": index}


def write(directory, *, count=20, name="fake", num_shards=3, records=record):
    """A dataset with a train and a test split."""
    sizes = {"train": count, "test": max(1, count // 4)}
    for split, size in sizes.items():
        shards.write_split(
            directory,
            name=name,
            split=split,
            count=size,
            records=lambda a, b: (schema.encode(records(i)) for i in range(a, b)),
            shards=num_shards if split == "train" else None,
        )
    shards.write_metadata(
        directory,
        name=name,
        splits=sizes,
        description="Made up.",
        hand={"name": "open", "sha256": "0" * 64},
    )
    return directory
