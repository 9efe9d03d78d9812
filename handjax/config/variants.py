"""What the families' configs have in common: variants, rows of tables, short runs.

A config file has variants (sizes of one recipe) and may have rows of its paper's
tables; `configs/hamba.py:small,table4_no_graph` is both.
"""

from collections.abc import Collection

import ml_collections

from data_pipelines.loading.recipes import Mixture
from handjax.errors import UserError

Config = ml_collections.ConfigDict


def parse(
    file: str, variant: str, variants: Collection[str], rows: Collection[str]
) -> tuple[str, str]:
    """Variant and row of "VARIANT", "ROW" or "VARIANT,ROW".

    Args:
        file: Of the config, for messages.
        variant: What stands behind the colon; empty for the paper's.
        variants: Those there are.
        rows: Those there are.

    Returns:
        The variant, "paper" where none is named, and the row or "".

    Raises:
        UserError: There is no such variant or row.
    """
    size, _, row = (variant or "paper").partition(",")
    if size in rows:
        size, row = "paper", size
    if size not in variants:
        raise UserError(
            f"{file} has no variant {variant!r}; it has {', '.join(variants)}, each "
            f"with or without one of {', '.join(rows)} behind a comma."
        )
    if row and row not in rows:
        raise UserError(f"{file} has no row {row!r}; it has {', '.join(rows)}.")
    return size, row


def every(config: Config, *, log: int, evaluate: int) -> Config:
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
    """Small pictures, augmented mildly, for short runs from random weights.

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
