"""From `config.data` to the batches of a stage.

Training reads the "train" split and evaluation "test". The built-in data set is made on
first use; a named one has to be there, and nothing is ever replaced silently.
"""

import functools
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import jax
import ml_collections
import numpy as np

from data_pipelines import augment, loader, schema, shards
from data_pipelines.pose_files import PoseFile
from data_pipelines.synthetic import letters
from handjax import config as configs
from handjax import mano_files, processes
from handjax.crop import CropConfig
from handjax.mano_files import ManoFile, joint_regressor
from handjax.nn import text_encoder
from handjax.pose_batches import (
    Letters,
    from_meshes,
    letters_in_order,
    pose_batches,
    with_real_poses,
)
from handjax.shares import WHOLE, Share
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
    schema.preload()
    data, directories = config.data, {}
    roots = hand_file.skeleton.roots
    if data.root not in roots:
        raise ValueError(
            f"config.data.root={data.root!r} is no root joint"
            f"{configs.suggest(data.root, roots)}"
        )
    if not hand_file.is_hand and data.augment.get("flip"):
        raise ValueError(
            "config.data.augment.flip mirrors pictures, but not the sides of a body's "
            "joints; set it to 0.0."
        )
    if data.name == BUILT_IN and not data.dir:
        if not hand_file.is_hand:
            raise ValueError(
                "The built-in data are of hands. Make pictures of a body with `python "
                "-m data_pipelines.synthetic.body --out DIR`, and name them: "
                "--config.data.name=synthetic_body --config.data.dir=DIR."
            )
        directory = default_directory(data)
        if create:
            _render(data, directory)
    else:
        directory = _named(data)
    directories[directory] = 1.0
    for extra, weight in data.mix.items():
        directories[Path(extra)] = float(weight)
    for directory in directories:
        _check_counts(directory, hand_file)
    return OpenData(config, directories, hand_file)


def _check_counts(directory: Path, hand_file: ManoFile) -> None:
    """Refuse a data set of another mesh or skeleton than the hand model's."""
    if not (directory / "metadata.json").is_file():
        return  # reading it will say so, or it is yet to be made
    counts = schema.Counts.of(hand_file)
    found = shards.counts_of(shards.read_metadata(directory))
    if found != counts:
        raise ValueError(
            f"The data in {str(directory)!r} have {_counted(found)}, the hand model "
            f"{hand_file.name!r} has {_counted(counts)}. Set config.hand.source to the "
            "model of the data, or config.data.dir to data of the model."
        )


def _counted(counts: schema.Counts) -> str:
    return ", ".join(f"{n} {name}" for name, n in counts._asdict().items())


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
    processes.wait_for_all("built-in data")


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
        roots = hand_file.skeleton.roots
        self.root, self.anchors = roots[self.data.root], tuple(roots.values())
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

    def fingerprint(self) -> str:
        """Hash of what the data sets say of themselves, wherever they are."""
        digest = hashlib.sha256()
        for directory in self.directories:
            path = directory / "metadata.json"
            digest.update(path.read_bytes() if path.is_file() else b"not there")
        return digest.hexdigest()[:12]

    @functools.cached_property
    def poses(self) -> PoseFile | None:
        """The file of `config.data.poses`, read when a stage needs it."""
        if not self.data.poses:
            return None
        return PoseFile(self.data.poses, bones=len(self.hand_file.parents))

    def describe_poses(self) -> str:
        """Where poses come from that belong to no picture."""
        if self.poses is None:
            return "drawn from the built-in prior"
        return f"{len(self.poses):,} of {self.poses.path}"

    def train(self, stage: Stage, batch_size: int, start_step: int) -> Iterator[Batch]:
        """Endless batches of this process, from the one of update `start_step` on."""
        batches = self._batches(stage, batch_size, start_step)
        if not stage.real_poses:
            return batches
        if not (self.hand_file.is_hand or self.data.poses):
            raise ValueError(
                f"Stage {stage.name!r} compares with real poses, and the built-in ones "
                "are of hands; name a file of the body's with config.data.poses, or "
                "train without a discriminator."
            )
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
        if options.data != "images":
            given = f"config.stages.{stage.name}.data={options.data!r}"
            if stage.needs_image:
                raise ValueError(
                    f"{given} has no pictures, which this stage needs; use 'images'."
                )
            if not self.hand_file.is_hand:
                raise ValueError(
                    f"{given} draws poses of hands; for a body use 'images'."
                )
            return pose_batches(
                self.hand_file,
                batch_size=batch_size,
                seed=seed,
                start_step=start_step,
                root=self.root,
                crop_size=self.data.crop_size,
                file=self.poses,
                process=process,
                threads=self.data.threads,
                letters_as=self.letters if self._is_labelled(stage) else None,
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
            anchors=self.anchors,
            load_image=stage.needs_image,
            num_threads=self.data.threads,
            max_corrupt=self.data.max_corrupt,
        )

    def evaluation(
        self, stage: Stage, split: str = "test", share: Share = WHOLE
    ) -> Iterator[Batch]:
        """A split once, in order; by default every process gets all of it.

        Stages that train on labelled poses are evaluated on others: as many as the data
        set has test pictures.

        Raises:
            ValueError: for a share of examples that are made, not read.
        """
        if self._is_labelled(stage):
            if share.count > 1:
                raise ValueError(
                    f"--share: the examples of stage {stage.name!r} are made, not "
                    "read; evaluate it in one process."
                )
            return self._letters_in_order(split, self.config.eval.num)
        return self._in_order(split, self.config.eval.num, stage.needs_image, share)

    def evaluation_count(self, stage: Stage, split: str = "test") -> int:
        """Examples that `evaluation` gives all processes together."""
        num = self.config.eval.num
        if self._is_labelled(stage):
            return num or self.data.num_test
        return min(num or len(self.records(split)), len(self.records(split)))

    def records(self, split: str = "test") -> shards.Split:
        """The records that `evaluation` makes batches of."""
        return shards.open_split(next(iter(self.directories)), split)

    def train_split(self, stage: Stage) -> Iterator[Batch]:
        """What a stage trains on, once, in order, without pictures or augmentation."""
        if self._is_labelled(stage):
            return self._letters_in_order("train", self.data.num_train)
        return self._in_order("train", 0, False)

    @functools.cached_property
    def letters(self) -> Letters:
        """Letters as the model of this run reads them."""
        return Letters(_letter_ids(self.config), self.data.label_turn)

    def describe_letters(self) -> str:
        """What labelled poses are, and how they are read."""
        how = self.config.model.get("text", text_encoder.LABELS)
        return (
            f"hands that show {' '.join(letters.names())}, within "
            f"{self.data.label_turn:g} degrees of palm to camera, read by {how}"
        )

    def _is_labelled(self, stage: Stage) -> bool:
        return self.config.stages[stage.name].data == configs.LABELLED_POSES

    def _letters_in_order(self, split: str, num: int) -> Iterator[Batch]:
        return letters_in_order(
            self.hand_file,
            split=split,
            num=num or self.data.num_test,
            batch_size=self.config.eval.batch_size,
            seed=self.config.seed,
            root=self.root,
            crop_size=self.data.crop_size,
            letters_as=self.letters,
        )

    def _in_order(
        self, split: str, num: int, load_image: bool, share: Share = WHOLE
    ) -> Iterator[Batch]:
        return loader.eval_batches(
            self.records(split),
            batch_size=self.config.eval.batch_size,
            crop=self.crop,
            num=num,
            process_index=share.index,
            process_count=share.count,
            root=self.root,
            anchors=self.anchors,
            load_image=load_image,
            num_threads=self.data.threads,
        )


def example_batch(
    config: ml_collections.ConfigDict, hand_file: ManoFile, size: int = 2
) -> Batch:
    """Flat hands on black pictures, to initialise a model with."""
    flat = hand_file.v_template
    vertices = np.broadcast_to(flat, (size, *flat.shape))
    joints3d = np.einsum("jv,bvx->bjx", joint_regressor(hand_file), vertices)
    crop_size = config.data.crop_size
    batch = from_meshes(
        vertices,
        joints3d,
        root=hand_file.skeleton.roots[config.data.root],
        crop_size=crop_size,
        bones=len(hand_file.parents),
    )
    batch = batch._replace(image=np.zeros((size, crop_size, crop_size, 3), np.uint8))
    if any(s.data == configs.LABELLED_POSES for s in config.stages.values()):
        batch = batch._replace(text=_letter_ids(config)[np.zeros(size, int)])
    return batch


def _letter_ids(config: ml_collections.ConfigDict) -> np.ndarray:
    """Token ids of the letters, by the encoder of texts of `config.model`."""
    name = config.model.get("text", text_encoder.LABELS)
    labels = config.model.get("labels", text_encoder.ASL_LETTERS)
    encode = text_encoder.tokenizer(
        name, labels=labels, vocabulary=config.data.vocabulary
    )
    return encode(letters.names())


def for_stage(batch: Batch, stage: Stage) -> Batch:
    """An example batch with what a stage is fed: flat poses for real ones."""
    real = stage.real_poses * len(batch.index)
    return batch._replace(
        image=batch.image if stage.needs_image else None,
        real_pose=np.zeros((real, *batch.mano_pose.shape[1:]), np.float32)
        if real
        else None,
        real_betas=np.zeros((real, 10), np.float32) if real else None,
    )
