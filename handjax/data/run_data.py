"""Turn `config.data` into the batches of a stage.

Training reads the "train" split, of one data set or of a mixture (`training_sets`), and
evaluation "test" of `config.data.name`. The built-in data set is made on first use; a
named one has to exist; nothing is ever substituted silently.
"""

import functools
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import ml_collections
import numpy as np

from data_pipelines.loading import augment, loader
from data_pipelines.loading.examples import ExampleMaker
from data_pipelines.loading.mixtures import Drawn
from data_pipelines.loading.pose_files import PoseFile
from data_pipelines.loading.posing import Poser
from data_pipelines.storage import schema, shards
from data_pipelines.synthetic import letters
from handjax.config import schema as configs
from handjax.data import directories as data_directories
from handjax.data import frozen_features
from handjax.data.directories import default_directory
from handjax.data.poses import (
    Letters,
    from_meshes,
    letters_in_order,
    pose_batches,
    with_real_poses,
)
from handjax.data.training_sets import TrainingSets, is_annotators_hand
from handjax.distributed import split_shares
from handjax.distributed.split_shares import WHOLE, ProcessShare
from handjax.errors import UserError, suggest
from handjax.family.stage import FEATURES, Stage
from handjax.geometry.crop import CropConfig
from handjax.mano.model_files import ManoFile, joint_regressor
from handjax.nn import hand_features
from handjax.nn.text import text_encoder
from handjax.types import Batch

__all__ = ["OpenData", "default_directory", "example_batch", "for_stage", "open_data"]


def open_data(
    config: ml_collections.ConfigDict, hand_file: ManoFile, *, create: bool = True
) -> "OpenData":
    """Open the data of a run; render the built-in set first if it does not exist.

    Args:
        config: Config of the run.
        hand_file: Hand model of poses without pictures.
        create: Whether to render, and to keep what filters find; otherwise a missing
            built-in set is only described.

    Raises:
        UserError: A named data set has no directory.
        MissingFileError: The directory does not hold that data set.
    """
    schema.preload()
    data = config.data
    roots = hand_file.skeleton.roots
    if data.root not in roots:
        raise UserError(
            f"config.data.root={data.root!r} is not a root joint"
            f"{suggest(data.root, roots)}"
        )
    if not hand_file.is_hand and data.augment.get("flip"):
        raise UserError(
            "config.data.augment.flip mirrors pictures, but not the sides of a body's "
            "joints; set it to 0.0."
        )
    evaluated = data_directories.evaluated(data, hand_file, create=create)
    directories = data_directories.trained_on(data, evaluated)
    for each in {evaluated, *directories}:
        data_directories.check_counts(each, hand_file)
    return OpenData(config, directories, hand_file, evaluated=evaluated, keep=create)


class OpenData:
    """Batches of the data sets of one run."""

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        directories: dict[Path, float],
        hand_file: ManoFile,
        *,
        evaluated: Path | None = None,
        keep: bool = True,
    ):
        """Store where data are; they are opened when they are needed.

        Args:
            config: Config of the run.
            directories: Directories to train on, and their weights.
            hand_file: Hand model of the run.
            evaluated: Directory of `config.data.name`; None for the first of
                `directories`.
            keep: Whether to keep what filters find for the next run.
        """
        self.config, self.data = config, config.data
        self.directories, self.hand_file = directories, hand_file
        self.evaluated = evaluated or next(iter(directories), Path())
        built_in = data_directories.is_built_in(self.data)
        self.training = TrainingSets(
            self.data,
            directories,
            hand_file,
            unmade=self.evaluated if built_in else None,
            keep=keep,
        )
        self._read_features: dict[str, Batch] = {}
        roots = hand_file.skeleton.roots
        self.root = roots[self.data.root]
        self.maker = ExampleMaker(
            crop=CropConfig(size=self.data.crop_size, box_scale=self.data.box_scale),
            counts=schema.Counts.of(hand_file),
            root=self.root,
            anchors=tuple(roots.values()),
            augmentation=augment.config_from(self.data.augment.to_dict()),
            poser=Poser(hand_file, self.root),
        )

    def describe(self) -> str:
        """Return one line: which data, where, how much."""
        trained = self.training.describe()
        if next(iter(self.directories), self.evaluated) == self.evaluated:
            return f"{self.data.name} in {trained}"
        where = self.training.describe_one(self.evaluated)
        return f"trained on {trained}; evaluated on {self.data.name} in {where}"

    def fingerprint(self) -> str:
        """Return a hash of the data sets' metadata, wherever they are."""
        digest = hashlib.sha256()
        for directory in [*self.directories, self.evaluated]:
            path = directory / "metadata.json"
            digest.update(path.read_bytes() if path.is_file() else b"not there")
        return digest.hexdigest()[:12]

    def describe_filters(self, stages: Sequence[Stage]) -> list[str]:
        """Describe how filters change the stages' records, a line each."""
        reads = any(
            self.config.stages[s.name].data in ("images", FEATURES) for s in stages
        )
        return self.training.describe_filters() if reads else []

    def drawn(self, stage: Stage, examples: int) -> list[Drawn]:
        """Return how many of a stage's first examples come from each data set.

        Args:
            stage: A stage of the run.
            examples: Number of examples of all processes together.

        Returns:
            One entry per data set; [] for examples that are generated, not read.
        """
        kind = self.config.stages[stage.name].data
        if kind in ("images", FEATURES):
            return self.training.drawn(examples)
        if kind == "poses" and self.poses is not None:
            return [Drawn("poses", examples, len(self.poses))]
        return []

    @functools.cached_property
    def poses(self) -> PoseFile | None:
        """Return the file of `config.data.poses`, read when a stage needs it."""
        if not self.data.poses:
            return None
        return PoseFile(self.data.poses, bones=len(self.hand_file.parents))

    def describe_poses(self) -> str:
        """Describe where poses come from that belong to no picture."""
        if self.poses is None:
            return "drawn from the built-in prior"
        return f"{len(self.poses):,} of {self.poses.path}"

    def train(self, stage: Stage, batch_size: int, start_step: int) -> Iterator[Batch]:
        """Return endless batches of this process, from update `start_step` on."""
        batches = self._batches(stage, batch_size, start_step)
        if not stage.real_poses:
            return batches
        if not (self.hand_file.is_hand or self.data.poses):
            raise UserError(
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
            process=split_shares.this_process(),
            threads=self.data.threads,
        )

    def _batches(
        self, stage: Stage, batch_size: int, start_step: int
    ) -> Iterator[Batch]:
        options = self.config.stages[stage.name]
        seed = self.config.seed
        if options.data == FEATURES:
            return frozen_features.train_batches(
                self._features("train"),
                batch_size=batch_size,
                seed=seed,
                start_step=start_step,
                process=split_shares.this_process(),
                threads=self.data.threads,
            )
        if options.data != "images":
            given = f"config.stages.{stage.name}.data={options.data!r}"
            if stage.needs_image:
                raise UserError(
                    f"{given} has no pictures, which this stage needs; use 'images'."
                )
            if not self.hand_file.is_hand:
                raise UserError(
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
                process=split_shares.this_process(),
                threads=self.data.threads,
                letters_as=self.letters if self._is_labelled(stage) else None,
                upright=self.reads_features,
            )
        return loader.train_batches(
            self.training.sources,
            self.maker._replace(
                load_image=stage.needs_image,
                neutral_betas=self.training.filters.neutral_betas,
            ),
            batch_size=batch_size,
            seed=seed,
            start_step=start_step,
            process=split_shares.this_process(),
            threads=self.data.threads,
            max_corrupt=self.data.max_corrupt,
        )

    def evaluation(
        self, stage: Stage, split: str = "test", share: ProcessShare = WHOLE
    ) -> Iterator[Batch]:
        """Return a split once, in order; by default every process gets all of it.

        Stages that train on labelled poses are evaluated on others: as many as the data
        set has test pictures.

        Raises:
            UserError: A share of generated examples was asked for.
        """
        if self._is_labelled(stage):
            if share.count > 1:
                raise UserError(
                    f"--share: the examples of stage {stage.name!r} are "
                    "generated, not read; evaluate it in one process."
                )
            return self._letters_in_order(split, self.config.eval.num)
        return self._in_order(split, self.config.eval.num, stage.needs_image, share)

    def evaluation_count(self, stage: Stage, split: str = "test") -> int:
        """Return how many examples `evaluation` gives all processes together."""
        num = self.config.eval.num
        if self._is_labelled(stage):
            return num or self.data.num_test
        return min(num or len(self.records(split)), len(self.records(split)))

    def records(self, split: str = "test") -> shards.Split:
        """Open the records that `evaluation` makes batches of."""
        return shards.open_split(self.evaluated, split)

    def train_split(self, stage: Stage) -> Iterator[Batch]:
        """Return a stage's training data once, in order, without pictures.

        For a mixture, the data set that is evaluated on.
        """
        if self._is_labelled(stage):
            return self._letters_in_order("train", self.data.num_train)
        return self._in_order("train", 0, False)

    @functools.cached_property
    def letters(self) -> Letters:
        """Return the letters as the model of this run reads them."""
        return Letters(_letter_ids(self.config), self.data.label_turn)

    def describe_letters(self) -> str:
        """Describe labelled poses, and how their texts are read."""
        how = self.config.model.text
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

    @functools.cached_property
    def reads_features(self) -> bool:
        """Return whether hands are seen in regions that are turned upright."""
        return any(stage.data == FEATURES for stage in self.config.stages.values())

    def _features(self, split: str) -> Batch:
        """Return the features of a split, which are computed the first time.

        Raises:
            UserError: Several data sets are to be trained on.
        """
        if split not in self._read_features:
            training = split == "train"
            path, source = self.evaluated, loader.Source(self.records(split))
            if training:
                opened = self.training.opened
                if len(opened) != 1:
                    raise UserError(
                        f"A stage with data={FEATURES!r} trains on one data set, not "
                        f"on {len(opened)}; leave config.data.mix and mixture empty."
                    )
                ((path, one),) = opened.items()
                source = one.source
            views = frozen_features.Views(
                variant=self.config.model.backbone,
                count=self.data.feature_views if training else 1,
                seed=self.config.seed,
                training=training,
                regions="found" if training else self.data.regions,
            )
            maker = self.maker._replace(augmentation=None)
            kept = data_directories.features_directory(
                path, split, views, source.filters, (self.root,)
            )
            self._read_features[split] = frozen_features.ensure(
                source, kept, views, maker
            )
        return self._read_features[split]

    def _in_order(
        self, split: str, num: int, load_image: bool, share: ProcessShare = WHOLE
    ) -> Iterator[Batch]:
        if self.reads_features:
            return frozen_features.in_order(
                self._features(split),
                batch_size=self.config.eval.batch_size,
                num=num,
                process=share,
            )
        records = self.records(split)
        return loader.eval_batches(
            records,
            self.maker._replace(load_image=load_image),
            batch_size=self.config.eval.batch_size,
            num=num,
            process=share,
            posable=is_annotators_hand(records.metadata, self.hand_file),
            threads=self.data.threads,
        )


def example_batch(
    config: ml_collections.ConfigDict, hand_file: ManoFile, size: int = 2
) -> Batch:
    """Return flat hands on black pictures, to initialise a model with."""
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
    if any(s.data == FEATURES for s in config.stages.values()):
        batch = batch._replace(
            features=hand_features.empty(config.model.backbone, size)
        )
    if any(s.data == configs.LABELLED_POSES for s in config.stages.values()):
        batch = batch._replace(text=_letter_ids(config)[np.zeros(size, int)])
    return batch


def _letter_ids(config: ml_collections.ConfigDict) -> np.ndarray:
    """Return token ids of the letters, by the text encoder of `config.model`."""
    encode = text_encoder.tokenizer(
        config.model.text,
        labels=config.model.labels,
        vocabulary=config.data.vocabulary,
    )
    return encode(letters.names())


def for_stage(batch: Batch, stage: Stage) -> Batch:
    """Return an example batch with exactly the fields that a stage receives."""
    real = stage.real_poses * len(batch.index)
    return batch._replace(
        image=batch.image if stage.needs_image and batch.features is None else None,
        features=batch.features if stage.needs_image else None,
        real_pose=np.zeros((real, *batch.mano_pose.shape[1:]), np.float32)
        if real
        else None,
        real_betas=np.zeros((real, 10), np.float32) if real else None,
    )
