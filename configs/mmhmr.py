"""MMHMR: a codebook of poses, then hands from images by masked modeling.

    python -m handjax.train --config configs/mmhmr.py --workdir runs/mmhmr
    python -m handjax.train --config configs/mmhmr.py:small --workdir runs/small
    python -m handjax.train --config configs/mmhmr.py:demo --workdir runs/demo
    python -m handjax.train --config configs/mmhmr.py:smoke --workdir runs/smoke

| variant | poses           | hardware    | time    | PA-MPJPE of the tokenizer |
|---------|-----------------|-------------|---------|---------------------------|
| paper   | 400,000 x 512   | one GPU     | unknown | not measured              |
| small   | 4,500 x 64      | 2 CPU cores | unknown | not measured              |
| demo    | 600 x 32        | 2 CPU cores | unknown | not measured              |
| smoke   | 20 x 16         | 2 CPU cores | 1 min   | means nothing             |

Poses are drawn from the built-in prior; `--config.data.poses=FILE` takes those of an
npz (`data_pipelines.pose_files`), turned as a whole to any side.

Rows of the paper's tables are names behind the variant, as in
`configs/mmhmr.py:table8_16` or `configs/mmhmr.py:small,table8_16`. The last column is
what the paper reports on FreiHAND, which is another data set (PA-MPJPE, PA-MPVPE).

| row                 | what changes                | PA mm      |
|---------------------|-----------------------------|------------|
| table8_16           | 16 tokens                   | 1.01, 0.97 |
| table8_32           | 32 tokens                   | 0.59, 0.57 |
| table8_64           | nothing                     | 0.47, 0.44 |
| table8_128          | 128 tokens                  | 0.41, 0.41 |
| table9_1024_256     | 1024 codes of 256 numbers   | 0.66, 0.65 |
| table9_2048_128     | 2048 codes of 128 numbers   | 0.56, 0.58 |
| table9_2048_256     | nothing                     | 0.47, 0.44 |
| table9_4096_256     | 4096 codes of 256 numbers   | 0.43, 0.44 |

What the paper leaves open is listed, with reasons, in docs/mmhmr.md.
"""

import functools
from collections.abc import Callable

import ml_collections

from handjax.config import base, stage

VARIANTS = ("paper", "small", "demo", "smoke")
TOKENIZER_LOSSES = dict(rotations=1.0, vertices=0.5, joints3d=0.3, commitment=0.02)
"""The paper's weights (supplement B)."""

Config = ml_collections.ConfigDict


def get_config(variant: str = "paper") -> Config:
    """The config of one of `VARIANTS`, of one of `ROWS`, or of both: "demo,ROW"."""
    size, _, row = (variant or "paper").partition(",")
    if size in ROWS:
        size, row = "paper", size
    if size not in VARIANTS:
        raise ValueError(
            f"configs/mmhmr.py has no variant {variant!r}; it has "
            f"{', '.join(VARIANTS)}, each with or without one of {', '.join(ROWS)} "
            "behind a comma."
        )
    if row and row not in ROWS:
        raise ValueError(
            f"configs/mmhmr.py has no row {row!r}; it has {', '.join(ROWS)}."
        )
    config = base()
    config.family = "mmhmr"
    config = globals()[f"_{size}"](config)
    if row:
        ROWS[row](config)
    return config


def _paper(config: Config) -> Config:
    """The paper's sizes and recipe."""
    config.data.num_train, config.data.num_test = 100_000, 4_000
    config.model = dict(
        num_tokens=64,
        num_codes=2048,
        code_dim=256,
        rotation="rotation_6d",
        codec_width=512,
        codec_depth=2,
        dilation_growth=3,
        dilation_order="falling",
        decay=0.99,
        reset_below=1.0,
        smoothing=0.0,
        commitment="mean",
        codec_reduction="mean",
        turned=True,
        root="middle_mcp",
        joints="skeleton",
    )
    config.stages.tokenizer = stage(
        steps=400_000,
        batch_size=512,
        losses=TOKENIZER_LOSSES,
        data="poses",
        optimizer=dict(name="adam", lr=1e-4, weight_decay=0.0),
        schedule=dict(name="constant"),
    )
    return _every(config, log=100, evaluate=5_000)


def _small(config: Config) -> Config:
    """The same code at a size that two CPU cores train in about 25 minutes."""
    config = _narrow(_paper(config))
    config.data.num_train, config.data.num_test = 20_000, 1_000
    _from_scratch(config, 4_500, 64)
    return _every(config, log=50, evaluate=1_000)


def _demo(config: Config) -> Config:
    """A few minutes, well enough to see hands."""
    config = _narrow(_paper(config))
    config.data.num_train, config.data.num_test = 2_000, 200
    config.data.max_turn = 60.0
    _few_codes(config)
    _from_scratch(config, 600, 32)
    return _every(config, log=20, evaluate=0)


def _smoke(config: Config) -> Config:
    """Every line of code in a minute or two; the numbers mean nothing."""
    config = _narrow(_paper(config))
    config.data.num_train, config.data.num_test = 64, 16
    # The prior's poses are turned already; unturned, one batch can be learned by heart.
    config.model.update(num_tokens=16, codec_width=32, codec_depth=1, turned=False)
    _few_codes(config)
    _from_scratch(config, 20, 16)
    config.eval.batch_size = 8
    return _every(config, log=2, evaluate=10)


def _narrow(config: Config) -> Config:
    """A codec of a quarter of the width: a twelfth of the work.

    Joints are the built-in data's, which come from the mesh. A batch has two tokens for
    each code, where the paper's has sixteen: codes are reset when they are rarer than
    that.
    """
    config.data.image_size, config.data.crop_size = 160, 128
    config.model.update(codec_width=128, reset_below=0.1, joints="mesh")
    return config


def _few_codes(config: Config) -> None:
    """As many as short runs of small batches can keep in use."""
    config.model.update(num_codes=256, code_dim=64)


def _every(config: Config, *, log: int, evaluate: int) -> Config:
    """Log, evaluate and save after so many steps; 0 evaluates at the end only."""
    config.train.log_every = log
    config.train.eval_every = config.train.image_every = evaluate
    config.train.checkpoint_every = evaluate or 500
    return config


def _from_scratch(config: Config, steps: int, batch_size: int) -> None:
    """A short stage: higher rate, cosine, and millimetres weighed against angles.

    With the paper's weights a degree of a joint, 0.01 in its matrix, weighs as much as
    3 cm of all vertices.
    """
    config.stages.tokenizer = stage(
        steps=steps,
        batch_size=batch_size,
        losses=dict(TOKENIZER_LOSSES, vertices=20.0, joints3d=10.0),
        data="poses",
        optimizer=dict(name="adam", lr=1e-3, weight_decay=0.0),
        schedule=dict(name="cosine", warmup_steps=steps // 20, end_factor=0.01),
    )


# --- Rows of the paper's tables ----------------------------------------------


def _change(config: Config, **fields) -> None:
    config.model.update(fields)


ROWS: dict[str, Callable[[Config], None]] = {
    **{
        f"table8_{tokens}": functools.partial(_change, num_tokens=tokens)
        for tokens in (16, 32, 64, 128)
    },
    **{
        f"table9_{codes}_{dim}": functools.partial(
            _change, num_codes=codes, code_dim=dim
        )
        for codes, dim in ((1024, 256), (2048, 128), (2048, 256), (4096, 256))
    },
}
"""Rows of the paper's tables 8 and 9, by name."""
