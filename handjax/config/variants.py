"""What the families' configs have in common: variants, rows of tables, short runs.

A config file has variants (sizes of one recipe) and may have rows of its paper's
tables; `configs/hamba.py:small,table4_no_graph` is both.
"""

from collections.abc import Collection, Sequence

import ml_collections

from data_pipelines.loading.recipes import Mixture
from handjax.errors import UserError

Config = ml_collections.ConfigDict


VARIANTS = ("paper", "small", "demo", "smoke")
"""Sizes that every family has."""
OPEN = ("open", "open_smoke")
"""Those of families that stand on frozen features (`frozen_features`), too."""


def parse(
    file: str,
    variant: str,
    rows: Collection[str] = (),
    *,
    sizes: Sequence[str] = VARIANTS,
) -> tuple[str, str]:
    """Return variant and row of "VARIANT", "ROW" or "VARIANT,ROW".

    Args:
        file: Path of the config, for messages.
        variant: The text behind the colon; empty for the paper's.
        rows: Rows that the file has beside its sizes.
        sizes: Variants of the file.

    Returns:
        The variant, "paper" where none is named, and the row or "".

    Raises:
        UserError: There is no such variant or row.
    """
    size, _, row = (variant or "paper").partition(",")
    if size in rows:
        size, row = "paper", size
    if size not in sizes:
        more = f", each with or without one of {', '.join(rows)} behind a comma"
        raise UserError(
            f"{file} has no variant {variant!r}; it has {', '.join(sizes)}"
            f"{more if rows else ''}."
        )
    if row and row not in rows:
        raise UserError(
            f"{file} has no row {row!r}; it has {', '.join(rows) or 'none'}."
        )
    return size, row


def small(config: Config) -> Config:
    """Set the data and intervals of what two CPU cores train in under two hours."""
    config.data.num_train, config.data.num_test = 20_000, 1_000
    return set_intervals(config, log=50, evaluate=1_000)


def demo(config: Config) -> Config:
    """Set the data and intervals of runs of minutes, which are evaluated at the end."""
    config.data.num_train, config.data.num_test = 2_000, 200
    # 2,000 pictures are too few to learn hands seen from everywhere.
    config.data.max_turn = 60.0
    return set_intervals(config, log=20, evaluate=0)


def smoke(config: Config, *, log: int) -> Config:
    """Set the data and intervals of runs of every line of code in a minute or two.

    Args:
        config: Changed in place.
        log: Updates between two lines of the log; every fifth line is an evaluation.
    """
    config.data.num_train, config.data.num_test = 64, 16
    config.eval.batch_size = 8
    return set_intervals(config, log=log, evaluate=5 * log)


def set_intervals(config: Config, *, log: int, evaluate: int) -> Config:
    """Log, evaluate and save after so many steps; 0 evaluates at the end only."""
    config.train.log_every = log
    config.train.eval_every = config.train.image_every = evaluate
    config.train.checkpoint_every = evaluate or 500
    return config


def train_on(config: Config, mixture: Mixture) -> None:
    """Train on a mixture of prepared data sets, and evaluate on FreiHAND.

    Args:
        config: Changed in place.
        mixture: Its data sets lie in `config.data.mixture.dir`.
    """
    config.data.name, config.data.dir = "freihand", ""
    config.data.mixture.dir = "data"
    config.data.mixture.shares.update(mixture.shares)
    config.data.filters.update(mixture.filters._asdict())


def short_run_pictures(config: Config, *, crop_size: int, box_scale: float) -> None:
    """Set small, mildly augmented pictures for short runs from random weights.

    Rendered hands are turned every way already, and a few passes over few pictures
    learn nothing from a paper's strong changes of colour and angle.

    Args:
        config: Changed in place.
        crop_size: Side of what the network sees, pixels.
        box_scale: Growth of the tight box; in training it varies by 0.15.
    """
    config.data.image_size, config.data.crop_size = 160, crop_size
    config.data.box_scale = box_scale
    config.data.augment.update(
        recipe="simplehand",
        center_jitter=0.05,
        scale=(round(box_scale - 0.15, 2), round(box_scale + 0.15, 2)),
        max_rotation=0.3,
        flip=0.0,
        channel_noise=0.1,
        brightness=(-0.1, 0.1),
    )


def frozen_features(config: Config) -> None:
    """Train on features of MediaPipe's landmark network, which is not trained.

    Regions are turned upright, and training pictures are of the recipe that is made for
    photographs (`data_pipelines.synthetic.recipes`); test pictures are those of
    "small". Left hands are mirrored, as everywhere.

    Args:
        config: Changed in place.
    """
    small(config)
    config.data.update(recipe="photos", image_size=224, crop_size=224)
    config.model.update(
        features="frozen", backbone="mediapipe_hand_full", feature_dropout=0.1
    )
    set_intervals(config, log=100, evaluate=1_000)


def frozen_features_smoke(config: Config) -> None:
    """Set the data and intervals of runs of every line of code.

    Args:
        config: Changed in place.
    """
    config.data.update(num_train=16, num_test=8, feature_views=2)
    config.model.backbone = "mediapipe_hand_lite"
    config.eval.batch_size = 8
    set_intervals(config, log=2, evaluate=4)
