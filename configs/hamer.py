"""HaMeR: a large vision transformer, one query token, MANO parameters.

    python -m handjax.train --config configs/hamer.py --workdir runs/hamer
    python -m handjax.train --config configs/hamer.py:small --workdir runs/small
    python -m handjax.train --config configs/hamer.py:demo --workdir runs/demo
    python -m handjax.train --config configs/hamer.py:smoke --workdir runs/smoke

| variant | images          | hardware     | time       | PA-MPJPE, test      |
|---------|-----------------|--------------|------------|---------------------|
| paper   | 100,000 + 4,000 | eight GPUs   | unknown    | not measured        |
| small   | 20,000 + 1,000  | 2 CPU cores  | unknown    | not measured        |
| demo    | 2,000 + 200     | 2 CPU cores  | unknown    | not measured        |
| smoke   | 64 + 16         | 2 CPU cores  | 2 min      | means nothing       |

The recipe begins from ViTPose's or HaMeR's backbone, never from nothing:
`--config.init_from=DIR` of `handjax.convert ... --from hamer`. On one GPU, train with
`--config.model.remat=True --config.stages.mesh.accumulate=8`.

| row | what changes                                            | PA-MPJPE, mm       |
|-----|---------------------------------------------------------|--------------------|
| mix | the ten data sets of `loading.recipes.HAMER`            | FreiHAND 6.0, HO3D |
|     | with their shares and filters, evaluated on FreiHAND    | v2 7.7 (the paper) |

`mix` takes prepared data sets, `data/freihand`, `data/interhand26m` and so on;
`--config.data.mixture.dir=DIR` those of another directory, `--config.data.dir=DIR`
another FreiHAND to evaluate on, and `--config.data.mixture.shares.halpe=0` does without
one. Its 64 million examples go 123 times through FreiHAND, 11 times through
InterHand2.6M, and 211 times through MPII+NZSL.
"""

import ml_collections

from data_pipelines.loading.recipes import HAMER
from handjax.config.schema import base, stage
from handjax.config.variants import (
    demo,
    parse,
    short_run_pictures,
    small,
    smoke,
    train_on,
)

ROWS = ("mix",)
LOSSES = dict(
    joints2d=0.01,
    joints3d=0.05,
    global_orient=0.001,
    hand_pose=0.001,
    betas=0.0005,
    adversarial=0.0005,
    discriminator=0.0005,
)
"""Released weights, of sums (`hmr_losses`)."""
Config = ml_collections.ConfigDict


def get_config(variant: str = "paper") -> Config:
    """Return the config of a variant, of "mix", or of both: "small,mix"."""
    size, row = parse("configs/hamer.py", variant, ROWS)
    config = base()
    config.family = "hamer"
    config = globals()[f"_{size}"](config)
    if row:
        train_on(config, HAMER)
    return config


def _paper(config: Config) -> Config:
    """The released network and recipe."""
    config.data.num_train, config.data.num_test = 100_000, 4_000
    config.data.image_size = config.data.crop_size = 256
    # HaMeR's demo: a hand fills half of the crop. The network sees three quarters of
    # the columns, so that anything below 4/3 would cut fingers off.
    config.data.box_scale = 2.0
    config.data.augment.recipe = "hamer"
    config.model = dict(
        backbone="vit_h",
        backbone_drop_path=0.55,
        remat=False,
        decoder_dim=1024,
        decoder_depth=6,
        decoder_heads=8,
        decoder_head_dim=64,
        decoder_mlp=1024,
        query="zero",
        head_init="torch",
        joints="skeleton",
        root="middle_mcp",
        reduction="sum",
    )
    config.stages.mesh = stage(
        steps=1_000_000,
        batch_size=64,
        losses=LOSSES,
        optimizer=dict(lr=1e-5, weight_decay=1e-4, decay_mask="all"),
        schedule=dict(name="constant"),
        groups=dict(discriminator=dict(pattern="^discriminator/")),
    )
    return config


def _small(config: Config) -> Config:
    """The same code at a size that two CPU cores train in under two hours."""
    config = small(_narrow(_paper(config)))
    config.stages.mesh = _from_scratch(4_000, 32)
    return config


def _demo(config: Config) -> Config:
    """A few minutes, well enough to beat the mean hand."""
    config = demo(_narrow(_paper(config)))
    config.stages.mesh = _from_scratch(1_000, 32)
    return config


def _smoke(config: Config) -> Config:
    """Every line of code in a minute or two; the numbers mean nothing."""
    config = smoke(_narrow(_paper(config)), log=2)
    config.model.update(
        backbone="vit_test",
        decoder_dim=32,
        decoder_depth=1,
        decoder_heads=2,
        decoder_head_dim=16,
        decoder_mlp=32,
    )
    config.stages.mesh = _from_scratch(10, 8)
    return config


def _narrow(config: Config) -> Config:
    """Smaller crop, backbone and decoder; the data path of the other families' small.

    What differs from the recipe beside sizes is what short runs from random weights
    need: milder augmentation, a tighter box, heads that begin at the mean hand, losses
    of comparable size. Joints are the built-in data's, which come from the mesh.
    """
    short_run_pictures(config, crop_size=128, box_scale=1.5)
    config.model.update(
        backbone="fastvit_t8",
        backbone_drop_path=0.0,
        decoder_dim=192,
        decoder_depth=3,
        decoder_heads=3,
        decoder_mlp=384,
        head_init="xavier",
        joints="mesh",
        reduction="mean",
    )
    return config


def _from_scratch(steps: int, batch_size: int) -> dict:
    """A short run of a backbone that starts from nothing, as the other families'."""
    return stage(
        steps=steps,
        batch_size=batch_size,
        losses=dict(
            joints2d=5.0,
            joints3d=20.0,
            global_orient=3.0,
            hand_pose=1.0,
            betas=0.1,
            adversarial=0.001,
            discriminator=0.001,
        ),
        optimizer=dict(lr=1e-3, weight_decay=0.01),
        schedule=dict(name="cosine", warmup_steps=steps // 20, end_factor=0.01),
        grad_clip=1.0,
        groups=dict(discriminator=dict(pattern="^discriminator/", lr=1e-4)),
    )
