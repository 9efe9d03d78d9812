"""MMHMR: a codebook of poses, then hands from images by masked modeling.

    python -m handjax.train --config configs/mmhmr.py --workdir runs/mmhmr
    python -m handjax.train --config configs/mmhmr.py:small --workdir runs/small
    python -m handjax.train --config configs/mmhmr.py:demo --workdir runs/demo
    python -m handjax.train --config configs/mmhmr.py:smoke --workdir runs/smoke

| variant | images          | hardware    | time    | PA-MPJPE, test | tokenizer    |
|---------|-----------------|-------------|---------|----------------|--------------|
| paper   | 100,000 + 4,000 | one GPU     | unknown | not measured   | not measured |
| small   | 20,000 + 1,000  | 2 CPU cores | 2 h     | 17.23          | 1.13, 0.91   |
| demo    | 2,000 + 200     | 2 CPU cores | unknown | not measured   | not measured |
| smoke   | 64 + 16         | 2 CPU cores | 2 min   | means nothing  |              |

The tokenizer's poses are drawn from the built-in prior; `--config.data.poses=FILE`
takes those of an npz (`data_pipelines.loading.pose_files`), turned as a whole to any
side.
With `--config.init_from=DIR` of an earlier run its tokenizer is taken, and training
begins with stage "mesh".

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

Those above are of the tokenizer, these of the hand:

| row                  | what changes                           | PA mm        |
|----------------------|----------------------------------------|--------------|
| table5_no_upsampler  | the map of the patches alone           | not reported |
| table5_no_pose       | no 2-D joints                          | not reported |
| table5_no_attention  | betas and camera from the map's mean   | not reported |
| table5_no_ggpm       | no graph transformer                   | not reported |
| table5_no_iterations | all tokens in one step                 | 5.9, 5.8     |
| table5_full          | nothing                                | 5.7, 5.5     |
| table6_1             | 1 step                                 | 5.9, 5.8     |
| table6_3             | 3 steps                                | 5.8, 5.7     |
| table6_5             | nothing                                | 5.7, 5.5     |
| table6_10            | 10 steps                               | 5.7, 5.5     |
| table7_03            | tau up to 0.3: 90 to 100 % masked      | 6.0, 6.1     |
| table7_05            | tau up to 0.5: 71 to 100 % masked      | 5.8, 5.7     |
| table7_07            | nothing: 46 to 100 % masked            | 5.7, 5.5     |
| table7_10            | tau up to 1: one token to 100 % masked | 6.0, 6.0     |
| table11_mask         | losses of tokens and betas             | 6.3, 6.4     |
| table11_mask_mano    | and of the pose                        | 6.2, 6.4     |
| table11_all          | nothing                                | 5.7, 5.5     |
| table11_3d           | losses of 3-D joints and betas alone   | 6.8, 7.0     |
| table11_no_2d        | all losses but that of 2-D joints      | 6.5, 6.7     |
| table12_1            | nothing                                | 5.7, 5.5     |
| table12_3            | the third most probable codes          | 7.9, 8.0     |
| table12_5            | the fifth                              | 7.9, 8.1     |
| table12_10           | the tenth                              | 9.1, 9.2     |
| table12_20           | the twentieth                          | 10.63, 10.75 |
| table14_1024_256     | 1024 codes of 256 numbers              | 6.4, 6.5     |
| table14_2048_128     | 2048 codes of 128 numbers              | 6.0, 5.9     |
| table14_2048_256     | nothing                                | 5.7, 5.7     |
| table14_4096_256     | 4096 codes of 256 numbers              | not reported |
| table15_1            | the map of the patches alone           | 5.9, 5.8     |
| table15_1_4          | nothing                                | 5.7, 5.5     |
| table15_1_4_8        | maps of 1, 4 and 8 times its size      | 5.8, 5.9     |
| table15_1_8_16       | of 1, 8 and 16 times                   | 6.0, 5.9     |
| table15_1_4_8_16     | of 1, 4, 8 and 16 times                | 6.1, 6.3     |
| table16_2            | 2 layers                               | 6.6, 6.9     |
| table16_4            | nothing                                | 5.7, 5.5     |
| table16_6            | 6 layers                               | 5.7, 5.8     |
| table16_8            | 8 layers                               | 6.0, 6.1     |
| mix                  | HaMeR's ten data sets; see below       | not reported |
| text                 | hands from texts; see below            | -, 12.2      |

Rows of tables 6 and 12 need no other training: `python -m handjax.evaluate` takes their
values. The fifth row of table 11 is printed with the losses of the third; what its text
compares it with leaves 2-D joints as the one that is missing.

`mix` trains on prepared data sets, data/freihand, data/interhand26m and so on, with
HaMeR's shares and filters (`data_pipelines.loading.recipes.HAMER`), as the paper does
for benchmarks other than FreiHAND; `--config.data.mixture.dir=DIR` takes those of
another directory, `--config.data.mixture.shares.halpe=0` does without one. The poses
of the tokenizer stay those of the prior or of `config.data.poses`.

`text` makes hands from texts: the letters of the manual alphabet that the built-in data
have, each with a learned vector, or with CLIP's text tower,
`--config.model.text=clip_text_b32` (see handjax/conversion/clip_text.py). The paper
reports a Hausdorff distance of 0.0221, a Chamfer distance of 9.73e-5 and a PA-MPVPE of
12.2 mm, on letters of its own fitting; `handjax.evaluate` measures the same on the
built-in ones, and `python -m handjax.text_to_mesh a b --workdir W --output D` makes
hands.

What the paper leaves open is listed, with reasons, in docs/mmhmr.md.
"""

import functools
from collections.abc import Callable

import ml_collections

from data_pipelines.loading.recipes import HAMER
from handjax.config.schema import base, stage
from handjax.config.variants import (
    demo,
    parse,
    set_intervals,
    short_run_pictures,
    small,
    smoke,
    train_on,
)

TOKENIZER_LOSSES = dict(rotations=1.0, vertices=0.5, joints3d=0.3, commitment=0.02)
MESH_LOSSES = dict(
    tokens=1.0,
    global_orient=1e-3,
    hand_pose=1e-3,
    betas=5e-4,
    joints3d=5e-2,
    joints2d=1e-2,
    detector=1.0,
)
"""The paper's weights (supplement B); the detector's is ours, and moves nothing but the
maps that it shares."""

LETTERS = tuple("abcdefhiklouwxy")
"""Those of the manual alphabet that the built-in data have, for models of texts."""

Config = ml_collections.ConfigDict


def get_config(variant: str = "paper") -> Config:
    """Return the config of a variant, of one of `ROWS`, or of both: "demo,ROW"."""
    size, row = parse("configs/mmhmr.py", variant, ROWS)
    config = base()
    config.family = "mmhmr"
    config = globals()[f"_{size}"](config)
    if row:
        ROWS[row](config)
    return config


def _paper(config: Config) -> Config:
    """The paper's sizes and recipe; how long the second stage took is not printed."""
    config.data.num_train, config.data.num_test = 100_000, 4_000
    config.data.image_size = config.data.crop_size = 256
    config.data.box_scale = 2.0
    config.data.augment.recipe = "hamer"
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
        condition="image",
        text="labels",
        labels=LETTERS,
        backbone="vit_h",
        backbone_drop_path=0.55,
        remat=True,
        levels=("1x", "4x"),
        width=256,
        keep_ratio=1.0,
        shape_head="attention",
        shape_layers=2,
        head_init="torch",
        joints2d_train="truth",
        joints2d_test="predicted",
        joints2d_noise=0.02,
        joints2d_drop=0.1,
        layers=4,
        heads=8,
        points=4,
        mlp_ratio=4,
        dropout=0.0,
        ggpm_blocks=2,
        adjacency="bias",
        ggpm_residual=False,
        gate_reduction=4,
        pose="linear",
        reference="joints2d",
        tau_range=(0.0, 0.7),
        schedule="cosine",
        mask_loss="all",
        mask_reduction="mean",
        steps=5,
        temperature=0.0,
        gumbel=0.0,
        top_k=0.0,
        top_p=1.0,
        nth=1,
        remask="all",
        decoded="codes",
        hypothesis_temperature=1.0,
        root="middle_mcp",
        joints="skeleton",
        reduction="sum",
        per_device=48,
        image_mean=(0.485, 0.456, 0.406),
        image_std=(0.229, 0.224, 0.225),
        channel_order="rgb",
    )
    config.stages.tokenizer = stage(
        steps=400_000,
        batch_size=512,
        losses=TOKENIZER_LOSSES,
        data="poses",
        optimizer=dict(name="adam", lr=1e-4, weight_decay=0.0),
        schedule=dict(name="constant"),
    )
    config.stages.mesh = stage(
        steps=200_000,
        batch_size=48,
        losses=MESH_LOSSES,
        data="images",
        optimizer=dict(name="adam", lr=1e-5, weight_decay=0.0),
        schedule=dict(name="constant"),
        patience=20,
    )
    return set_intervals(config, log=100, evaluate=5_000)


def _small(config: Config) -> Config:
    """The same code at a size that two CPU cores train in under two hours."""
    config = small(_narrow(_paper(config)))
    _from_scratch(config, (4_500, 64), (4_000, 32))
    return config


def _demo(config: Config) -> Config:
    """A few minutes, well enough to see hands."""
    config = demo(_narrow(_paper(config)))
    _few_codes(config)
    _from_scratch(config, (600, 32), (600, 32))
    return config


def _smoke(config: Config) -> Config:
    """Every line of code in a minute or two; the numbers mean nothing."""
    config = smoke(_narrow(_paper(config)), log=2)
    # The prior's poses are turned already; unturned, one batch can be learned by heart.
    config.model.update(num_tokens=16, codec_width=32, codec_depth=1, turned=False)
    config.model.update(
        backbone="vit_test", width=32, heads=4, layers=1, shape_layers=1, ggpm_blocks=1
    )
    config.model.steps = 5
    _few_codes(config)
    _from_scratch(config, (20, 16), (5, 8))
    return config


def _narrow(config: Config) -> Config:
    """Narrower codec, backbone and decoder; the data path of the other families' small.

    What differs from the recipe beside sizes is what short runs from random weights
    need: milder augmentation, a tighter box, a head that begins at the mean hand,
    losses of comparable size. A detector that has just begun is far from annotated
    joints, so the synthesizer learns from the detector's own; probabilities of a short
    run are spread over many codes, whose mean is a better hand than the first; and
    tokens that are named wrongly in an early step mislead the later ones, so that one
    step gives better hands than five (docs/results.md). A
    batch of poses has two tokens for each code, where the paper's has sixteen: codes
    are reset when they are rarer than that. Joints are the built-in data's, which come
    from the mesh.
    """
    short_run_pictures(config, crop_size=128, box_scale=1.5)
    config.model.update(
        codec_width=128,
        reset_below=0.1,
        backbone="fastvit_t8",
        backbone_drop_path=0.0,
        remat=False,
        width=128,
        shape_layers=1,
        head_init="xavier",
        joints2d_train="predicted",
        steps=1,
        decoded="expectation",
        joints="mesh",
        reduction="mean",
    )
    return config


def _few_codes(config: Config) -> None:
    """As many as short runs of small batches can keep in use."""
    config.model.update(num_codes=256, code_dim=64)


def _from_scratch(
    config: Config, tokenizer: tuple[int, int], mesh: tuple[int, int]
) -> None:
    """Short stages, each of so many steps of so many examples.

    Higher rates, cosine, and other weights. With the paper's, a degree of a joint, 0.01
    in its matrix, weighs as much as 3 cm of all vertices; and the means that are taken
    here are of other sizes than sums.
    """
    poses = dict(TOKENIZER_LOSSES, vertices=20.0, joints3d=10.0)
    hands = dict(
        tokens=0.1,
        global_orient=1.0,
        hand_pose=1.0,
        betas=0.01,
        joints3d=20.0,
        joints2d=5.0,
        detector=5.0,
    )
    for name, (steps, batch_size), losses, data in (
        ("tokenizer", tokenizer, poses, "poses"),
        ("mesh", mesh, hands, "images"),
    ):
        config.stages[name] = stage(
            steps=steps,
            batch_size=batch_size,
            losses=losses,
            data=data,
            optimizer=dict(name="adam", lr=1e-3, weight_decay=0.0),
            schedule=dict(name="cosine", warmup_steps=steps // 20, end_factor=0.01),
            grad_clip=1.0 if name == "mesh" else 0.0,
        )


# --- Rows of the paper's tables ----------------------------------------------


def _change(config: Config, **fields) -> None:
    config.model.update(fields)


def _without(config: Config, *terms: str) -> None:
    """Switch losses of stage "mesh" off."""
    config.stages.mesh.losses.update(dict.fromkeys(terms, 0.0))


def _no_pose(config: Config) -> None:
    config.model.update(
        pose="none", reference="learned", joints2d_train="none", joints2d_test="none"
    )
    del config.stages.mesh.losses["detector"]


def _text(config: Config) -> None:
    """Hands from texts instead of images: the paper's section D of its supplement."""
    _no_pose(config)
    config.model.update(
        condition="text",
        top_k=0.05,
        # In short runs, too, where a model of images is better with one.
        steps=5,
    )
    config.stages.mesh.data = "labelled_poses"
    for name in ("betas", "joints2d"):
        del config.stages.mesh.losses[name]


def _nothing(config: Config) -> None:
    """The row is the model as it is."""


POSE = ("global_orient", "hand_pose")
CODEBOOKS = ((1024, 256), (2048, 128), (2048, 256), (4096, 256))


def _rows(table: str, **changes: dict) -> dict[str, Callable[[Config], None]]:
    """Rows that are values of the model."""
    return {
        f"{table}_{name}": functools.partial(_change, **fields)
        for name, fields in changes.items()
    }


def _rows_of(table: str, key: str, values: tuple) -> dict:
    """Rows that are numbers of one field."""
    return _rows(table, **{str(value): {key: value} for value in values})


ROWS: dict[str, Callable[[Config], None]] = {
    **_rows(
        "table5",
        no_upsampler=dict(levels=("1x",)),
        no_attention=dict(shape_head="mean"),
        no_ggpm=dict(ggpm_blocks=0),
        no_iterations=dict(steps=1),
        full=dict(),
    ),
    "table5_no_pose": _no_pose,
    **_rows_of("table6", "steps", (1, 3, 5, 10)),
    **{
        f"table7_{round(10 * top):02d}": functools.partial(
            _change, tau_range=(0.0, top)
        )
        for top in (0.3, 0.5, 0.7, 1.0)
    },
    **_rows_of("table8", "num_tokens", (16, 32, 64, 128)),
    **{
        f"{table}_{codes}_{dim}": functools.partial(
            _change, num_codes=codes, code_dim=dim
        )
        for table in ("table9", "table14")
        for codes, dim in CODEBOOKS
    },
    "table11_mask": lambda c: _without(c, *POSE, "joints3d", "joints2d"),
    "table11_mask_mano": lambda c: _without(c, "joints3d", "joints2d"),
    "table11_all": _nothing,
    "table11_3d": lambda c: _without(c, "tokens", *POSE, "joints2d"),
    "table11_no_2d": lambda c: _without(c, "joints2d"),
    **_rows_of("table12", "nth", (1, 3, 5, 10, 20)),
    **{
        "table15_" + "_".join(scales): functools.partial(
            _change, levels=tuple(f"{scale}x" for scale in scales)
        )
        for scales in ("1", "14", "148", ("1", "8", "16"), ("1", "4", "8", "16"))
    },
    **_rows_of("table16", "layers", (2, 4, 6, 8)),
    "mix": functools.partial(train_on, mixture=HAMER),
    "text": _text,
}
"""Rows of the paper's tables 5 to 9, 11, 12 and 14 to 16, by name, and other runs."""
