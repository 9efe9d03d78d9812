"""From `config.data` to the batches of a stage.

Training reads the "train" split and evaluation "test". The built-in data set is made on
first use; a named one has to be there, and nothing is ever replaced silently.
"""

import functools
import os
from collections.abc import Iterator
from pathlib import Path

import jax
import ml_collections
import numpy as np

from data_pipelines import augment, loader, schema, shards
from data_pipelines.pose_files import PoseFile
from handjax import config as configs
from handjax import mano_files, skeleton
from handjax.crop import CropConfig
from handjax.mano_files import ManoFile, joint_regressor
from handjax.pose_batches import from_meshes, pose_batches, with_real_poses
from handjax.stages import Stage
from handjax.types import Batch

BUILT_IN = "synthetic"


def default_directory(config: ml_collections.ConfigDict) -> Path:
    """Where the built-in data of `config.data` is kept when `dir` is empty.

    The name has all that decides the pictures, down to the hand they are rendered of,
    so that a newer handjax makes its own beside the old ones.
    """
    from data_pipelines.synthetic import generate

    root = os.environ.get("HANDJAX_DATA") or Path.home() / ".cache" / "handjax"
    size = "" if config.image_size == 224 else f"-{config.image_size}px"
    view = "" if config.max_turn == 180 else f"-turn{config.max_turn:g}"
    hand = mano_files.load("open").sha256[:6]
    return Path(root) / (
        f"synthetic-{config.num_train}-{config.num_test}-seed{config.seed}{size}{view}"
        f"-v{schema.SCHEMA_VERSION}.{generate.VERSION}-{hand}"
    )


def open_data(
    config: ml_collections.ConfigDict, hand_file: ManoFile, *, create: bool = True
) -> "OpenData":
    """Open the data of a run, rendering the built-in set first if it is not there.

    Args:
        config: of the run.
        hand_file: poses without pictures are of this hand.
        create: whether to render; otherwise a missing built-in set is only described.

    Raises:
        ValueError: for a named data set without a directory.
        FileNotFoundError: for a directory without that data set.
    """
    data, directories = config.data, {}
    if data.root not in skeleton.ROOTS:
        raise ValueError(
            f"config.data.root={data.root!r} is no root joint"
            f"{configs.suggest(data.root, skeleton.ROOTS)}"
        )
    if data.name == BUILT_IN and not data.dir:
        directory = default_directory(data)
        if create:
            _render(data, directory)
    else:
        directory = _named(data)
    directories[directory] = 1.0
    for extra, weight in data.mix.items():
        directories[Path(extra)] = float(weight)
    return OpenData(config, directories, hand_file)


def _render(data: ml_collections.ConfigDict, directory: Path) -> None:
    """Make the built-in data set unless it is there; one process does the work."""
    from data_pipelines import synthetic

    if jax.process_index() == 0:
        synthetic.ensure(
            directory,
            num=data.num_train,
            num_test=data.num_test,
            seed=data.seed,
            image_size=data.image_size,
            max_turn=data.max_turn,
        )
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices("built-in data")


def _named(data: ml_collections.ConfigDict) -> Path:
    """Directory of a data set that has to exist."""
    how = (
        "Write its records with data_pipelines.shards (data_pipelines/README.md has "
        f"the schema), or use the built-in data: --config.data.name={BUILT_IN} "
        "--config.data.dir=''."
    )
    if data.name == BUILT_IN:
        how = "Make it with `python -m data_pipelines.synthetic --out DIR`."
    if not data.dir:
        raise ValueError(f"config.data.name={data.name!r} needs config.data.dir. {how}")
    directory = Path(data.dir).expanduser()
    if not (directory / "metadata.json").is_file():
        raise FileNotFoundError(
            f"config.data.dir={data.dir!r} holds no data set {data.name!r}. {how}"
        )
    return directory


class OpenData:
    """Batches of the data sets of one run."""

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        directories: dict[Path, float],
        hand_file: ManoFile,
    ):
        self.config, self.data = config, config.data
        self.directories, self.hand_file = directories, hand_file
        self.root = skeleton.ROOTS[self.data.root]
        self.augment = augment.config_from(self.data.augment.to_dict())
        self.crop = CropConfig(size=self.data.crop_size, box_scale=self.data.box_scale)

    def describe(self) -> str:
        """One line: which data, where, how much."""
        parts = []
        for directory, weight in self.directories.items():
            if (directory / "metadata.json").is_file():
                splits = shards.read_metadata(directory)["splits"]
                sizes = ", ".join(f"{n:,} {split}" for split, n in splits.items())
            else:
                sizes = (
                    f"{self.data.num_train:,} train, {self.data.num_test:,} test, "
                    "not rendered yet"
                )
            share = f", weight {weight:g}" if len(self.directories) > 1 else ""
            parts.append(f"{directory} ({sizes}{share})")
        return f"{self.data.name} in " + "; ".join(parts)

    @functools.cached_property
    def poses(self) -> PoseFile | None:
        """The file of `config.data.poses`, read when a stage needs it."""
        return PoseFile(self.data.poses) if self.data.poses else None

    def describe_poses(self) -> str:
        """Where the real poses of discriminators come from."""
        if self.poses is None:
            return "drawn from the built-in prior"
        return f"{len(self.poses):,} of {self.poses.path}"

    def train(self, stage: Stage, batch_size: int, start_step: int) -> Iterator[Batch]:
        """Endless batches of this process, from the one of update `start_step` on."""
        batches = self._batches(stage, batch_size, start_step)
        if not stage.real_poses:
            return batches
        return with_real_poses(
            batches,
            self.poses,
            per_example=stage.real_poses,
            batch_size=batch_size,
            seed=self.config.seed,
            start_step=start_step,
            process=(jax.process_index(), jax.process_count()),
            threads=self.data.threads,
        )

    def _batches(
        self, stage: Stage, batch_size: int, start_step: int
    ) -> Iterator[Batch]:
        process = jax.process_index(), jax.process_count()
        options = self.config.stages[stage.name]
        seed = self.config.seed
        if options.data == "poses":
            if stage.needs_image:
                raise ValueError(
                    f"config.stages.{stage.name}.data='poses' has no pictures, which "
                    "this stage needs; use 'images'."
                )
            return pose_batches(
                self.hand_file,
                batch_size=batch_size,
                seed=seed,
                start_step=start_step,
                root=self.root,
                crop_size=self.data.crop_size,
                process=process,
                threads=self.data.threads,
            )
        return loader.train_batches(
            [
                loader.Source(shards.open_split(directory, "train"), weight)
                for directory, weight in self.directories.items()
            ],
            batch_size=batch_size,
            seed=seed,
            start_step=start_step,
            process_index=process[0],
            process_count=process[1],
            crop=self.crop,
            augment=self.augment,
            root=self.root,
            load_image=stage.needs_image,
            num_threads=self.data.threads,
            max_corrupt=self.data.max_corrupt,
        )

    def evaluation(self, stage: Stage, split: str = "test") -> Iterator[Batch]:
        """A split once, in order; every process gets all of it."""
        return self._in_order(split, self.config.eval.num, stage.needs_image)

    def train_split(self) -> Iterator[Batch]:
        """The training split once, in order, without pictures or augmentation."""
        return self._in_order("train", 0, False)

    def _in_order(self, split: str, num: int, load_image: bool) -> Iterator[Batch]:
        return loader.eval_batches(
            shards.open_split(next(iter(self.directories)), split),
            batch_size=self.config.eval.batch_size,
            crop=self.crop,
            num=num,
            root=self.root,
            load_image=load_image,
            num_threads=self.data.threads,
        )


def example_batch(
    config: ml_collections.ConfigDict, hand_file: ManoFile, size: int = 2
) -> Batch:
    """Flat hands on black pictures, to initialise a model with."""
    vertices = np.broadcast_to(hand_file.v_template, (size, 778, 3))
    joints3d = np.einsum("jv,bvx->bjx", joint_regressor(hand_file), vertices)
    crop_size = config.data.crop_size
    batch = from_meshes(
        vertices, joints3d, root=skeleton.ROOTS[config.data.root], crop_size=crop_size
    )
    return batch._replace(image=np.zeros((size, crop_size, crop_size, 3), np.uint8))


def for_stage(batch: Batch, stage: Stage) -> Batch:
    """An example batch with what a stage is fed: flat poses for real ones."""
    real = stage.real_poses * len(batch.index)
    return batch._replace(
        image=batch.image if stage.needs_image else None,
        real_pose=np.zeros((real, 16, 3), np.float32) if real else None,
        real_betas=np.zeros((real, 10), np.float32) if real else None,
    )
