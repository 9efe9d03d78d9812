"""Make pictures of a body in random poses, exactly annotated, as a data set.

The body is a shaded mesh in one colour for each piece of clothing, before a background
of noise and boxes: just enough to learn from. It may be the synthetic one or
any model with SMPL's tree.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from scipy.spatial.transform import Rotation

from data_pipelines.storage import contact_sheet, progress, schema, shards
from data_pipelines.storage.directories import check_same, locked
from data_pipelines.synthetic.body import mesh
from data_pipelines.synthetic.records import SPLITS, jpeg, project
from handjax.errors import UserError
from handjax.geometry.skeleton import SMPL_JOINTS, SMPL_PARENTS
from handjax.mano import model_files, numpy_skinning
from handjax.mano.model_files import ManoFile
from handjax.visualization import render

NAME = "synthetic_body"
MODEL = "body.npz"
"""The built-in body in the directory of its pictures, for `config.hand.source`."""
VERSION = 1
"""Version of the pictures, raised whenever a seed gives different ones."""
_SHEET = 32

_LIMITS = {
    "spine1": ((-8, -12, -8), (15, 12, 8)),
    "spine2": ((-8, -12, -8), (15, 12, 8)),
    "spine3": ((-8, -12, -8), (15, 12, 8)),
    "neck": ((-10, -25, -10), (15, 25, 10)),
    "head": ((-10, -25, -10), (15, 25, 10)),
    "hip": ((-80, -15, -5), (15, 15, 35)),
    "knee": ((0, 0, 0), (100, 0, 0)),
    "ankle": ((-20, -10, 0), (20, 10, 0)),
    "collar": ((0, -8, -5), (0, 8, 10)),
    "shoulder": ((-20, -50, -85), (20, 20, 30)),
    "elbow": ((0, -120, 0), (0, 0, 0)),
    "wrist": ((-30, -10, -40), (30, 10, 40)),
    "hand": ((0, 0, -20), (0, 0, 10)),
}
"""Lowest and highest rotation vector, degrees; of limbs the left ones."""

_CLOTHES = (
    ("neck", "head", "elbow", "wrist", "hand"),
    ("spine1", "spine2", "spine3", "collar", "shoulder"),
    ("pelvis", "hip", "knee"),
    ("ankle", "foot"),
)
"""Bones of one colour: skin, shirt, trousers, shoes."""


def ensure(
    directory: str | os.PathLike,
    num: int,
    num_test: int = 0,
    *,
    source: str | os.PathLike = "",
    seed: int = 0,
    image_size: int = 128,
) -> Path:
    """Make a data set of bodies unless it exists; continue an interrupted one.

    Args:
        directory: Directory of the data set.
        num: Examples of the split "train".
        num_test: Examples of the split "test"; none of them is in "train".
        source: Body model in SMPL's format; "" for `MODEL` in the directory, which
            becomes the built-in one if it does not exist.
        seed: Decides every picture, together with its split and number.
        image_size: Side of the pictures, pixels.

    Returns:
        The directory.

    Raises:
        UserError: Numbers are out of range, the model does not have SMPL's tree, or the
            directory has other contents.
        shards.ShardError: The disk is full or cannot be written.
    """
    directory = Path(directory).expanduser()
    if num < 1 or num_test < 0 or seed < 0 or not 32 <= image_size <= 2048:
        raise UserError(
            f"num={num}, num_test={num_test}, seed={seed}, image_size={image_size}: "
            "allowed are 1 or more, 0 or more, 0 or more, and 32 to 2048."
        )
    with locked(directory):
        file = load(source or built_in(directory))
        settings = {
            "version": VERSION,
            "seed": seed,
            "image_size": image_size,
            "num": num,
            "num_test": num_test,
            "body_sha256": file.sha256,
        }
        check_same(directory, settings, beside=(MODEL,))
        if not (directory / "metadata.json").is_file():
            _make(directory, file, settings)
    return directory


def built_in(directory: Path) -> Path:
    """Return the model file in a directory; make it if it does not exist."""
    if not (directory / MODEL).exists():
        mesh.save(directory / MODEL)
    return directory / MODEL


def load(source: str | os.PathLike) -> ManoFile:
    """Read a body model.

    Raises:
        UserError: It is not in SMPL's format, or has another tree.
    """
    file = model_files.load(source)
    if tuple(file.parents) != SMPL_PARENTS:
        raise UserError(
            f"{source}: poses are drawn for SMPL's 24 joints, this model has "
            f"{len(file.parents)} in another tree."
        )
    return file


def _make(directory: Path, file: ManoFile, settings: dict) -> None:
    sizes = {"train": settings["num"], "test": settings["num_test"]}
    sizes = {split: size for split, size in sizes.items() if size}
    generator = Generator(file, settings["seed"], settings["image_size"])
    counts = schema.Counts.of(file)
    with progress.Report("bodies", sum(sizes.values())) as bar:

        def records(split: str):
            def of_shard(first: int, last: int) -> Iterator[bytes]:
                for index in range(first, last):
                    yield schema.encode(generator(split, index), counts)
                    bar.add(1)

            return of_shard

        for split, size in sizes.items():
            shards.write_split(
                directory, name=NAME, split=split, count=size, records=records(split)
            )
    shards.write_metadata(
        directory,
        name=NAME,
        splits=sizes,
        description="Shaded pictures of a skinned body in random poses.",
        hand={"name": file.name, "sha256": file.sha256},
        made_by=settings,
        counts=counts,
    )
    split = shards.open_split(directory, list(sizes)[-1])
    examples = (split[i] for i in range(min(_SHEET, len(split))))
    sheet = directory / "contact_sheet.png"
    contact_sheet.write(sheet, examples, bones=file.skeleton.bones)


class Generator:
    """Makes example `index` of a split; depends on nothing but model and seed."""

    def __init__(self, file: ManoFile, seed: int, image_size: int):
        self._file, self._seed, self._size = file, seed, image_size
        self._regressor = model_files.joint_regressor(file)
        part = np.array([_clothing(name) for name in SMPL_JOINTS])
        self._clothing = part[file.weights.argmax(axis=1)]

    def __call__(self, split: str, index: int) -> dict:
        """Return one record, see `data_pipelines.storage.schema`."""
        rng = np.random.default_rng([self._seed, SPLITS[split], index])
        size, file = self._size, self._file
        pose, betas = sample_pose(rng), rng.normal(0, 1, 10).clip(-2, 2)
        vertices = numpy_skinning.posed(file, pose, betas)
        intrinsics, transl = camera(rng, vertices, size)
        vertices = vertices + transl
        colours = rng.uniform(0.15, 1, (len(_CLOTHES), 3))
        image = render.draw_mesh(
            background(rng, size),
            vertices,
            file.faces,
            intrinsics,
            color=colours[self._clothing],
            alpha=1.0,
        )
        joints3d = self._regressor @ vertices
        joints2d, outline = project(joints3d, intrinsics), project(vertices, intrinsics)
        inside = ((joints2d >= 0) & (joints2d <= size - 1)).all(-1)
        low, high = outline.min(0).clip(0), outline.max(0).clip(max=size - 1)
        return {
            "image": jpeg(image, 90),
            "image_size": np.array([size, size]),
            "key": f"{split}/{self._seed}/{index}",
            "dataset": NAME,
            "bbox_center": (low + high) / 2,
            "bbox_size": high - low,
            "joints2d": np.column_stack([joints2d, inside]),
            "joints3d": np.column_stack([joints3d, np.ones(len(joints3d))]),
            "vertices": vertices,
            "mano_pose": pose.reshape(-1),
            "mano_betas": betas,
            "mano_transl": transl,
            "K": intrinsics,
        }


def _clothing(bone: str) -> int:
    part = bone.removeprefix("left_").removeprefix("right_")
    return next(number for number, worn in enumerate(_CLOTHES) if part in worn)


def sample_pose(rng: np.random.Generator) -> Float[np.ndarray, "24 3"]:
    """Draw axis-angle of each joint in camera axes: upright, turned, tilted."""
    pose = np.zeros((24, 3))
    for joint, name in enumerate(SMPL_JOINTS):
        side, _, part = name.partition("_")
        limits = _LIMITS.get(name) or _LIMITS.get(part)
        if limits:
            mirror = (1, -1, -1) if side == "right" else (1, 1, 1)
            pose[joint] = np.radians(rng.uniform(*limits)) * mirror
    upright = Rotation.from_euler("x", np.pi)  # the body's y is up, the camera's down
    turned = Rotation.from_euler("y", rng.uniform(-np.pi, np.pi))
    tilted = Rotation.from_rotvec(rng.normal(0, 0.15, 3))
    pose[0] = (tilted * upright * turned).as_rotvec()
    return pose


def camera(
    rng: np.random.Generator, vertices: Float[np.ndarray, "vertex 3"], size: int
) -> tuple[Float[np.ndarray, "3 3"], Float[np.ndarray, "3"]]:
    """Return the camera matrix, and the body's place in front of it, metres."""
    focal = size * rng.uniform(1.1, 1.6)
    intrinsics = np.array([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1.0]])
    depth = focal / size * rng.uniform(1.7, 2.5)
    middle = (vertices.max(axis=0) + vertices.min(axis=0)) / 2
    place = np.append(rng.uniform(-0.15, 0.15, 2) * size / focal, 1) * depth
    return intrinsics, place - middle


def background(
    rng: np.random.Generator, size: int
) -> UInt8[np.ndarray, "height width 3"]:
    """Draw clouds of two colours with a few boxes in the way, and noise."""
    first, second = rng.uniform(20, 235, (2, 3))
    clouds = cv2.resize(
        rng.uniform(0, 1, (5, 5)), (size, size), interpolation=cv2.INTER_CUBIC
    )
    image = first + clouds[..., None] * (second - first)
    for _ in range(rng.integers(0, 6)):
        x, y, width, height = (rng.uniform(0, 1, 4) * size * (1, 1, 0.3, 0.3)).astype(
            int
        )
        image[y : y + height, x : x + width] = rng.uniform(20, 235, 3)
    image += rng.normal(0, rng.uniform(0, 12), image.shape)
    return image.clip(0, 255).astype(np.uint8)
