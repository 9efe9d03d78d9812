"""TORE: transformers that recover meshes, with fewer tokens.

    python -m handjax.train --config configs/tore.py --workdir runs/tore
    python -m handjax.train --config configs/tore.py:small --workdir runs/small
    python -m handjax.train --config configs/tore.py:demo --workdir runs/demo
    python -m handjax.train --config configs/tore.py:smoke --workdir runs/smoke

| variant | images          | hardware    | time       | PA-MPJPE, test      |
|---------|-----------------|-------------|------------|---------------------|
| paper   | 100,000 + 4,000 | one GPU     | unknown    | not measured        |
| small   | 20,000 + 1,000  | 1 CPU core  | 1 h 20 min | not measured        |
| demo    | 2,000 + 200     | 1 CPU core  | 25 min     | 17.2 mm             |
| smoke   | 64 + 16         | 2 CPU cores | 1 min      | means nothing       |

The mean hand has 17.2 mm, too; without alignment `demo` has 39 and it has 59. The time
of `small` is by the speed of 1,600 of its 4,000 updates, after which PA is 30.7
(docs/results.md).

Without a row it is the last one of the paper's Table 8: HRNet-W64, FastMETRO, both
reductions, 20 % of the image's tokens pruned.

Rows of the paper's tables are names behind the variant, as in
`configs/tore.py:table2_r50_gtr` (at full size, with the table's backbone) or
`configs/tore.py:small,table2_r50_gtr` (with the backbone of that variant). All have a
hand's counts and FreiHAND's recipe here. The last column is what the paper reports,
PA-MPJPE in mm: tables 1 to 7 of bodies (Human3.6M), Table 8 of FreiHAND. M is METRO,
FM is FastMETRO, S the one with a single layer; H64, R50, Eb0 are HRNet-W64, ResNet-50,
EfficientNet-B0. `python -m handjax.benchmark --config configs/tore.py --what cost`
prints what they multiply and how fast they are.

| row                  | what it is                                         | PA mm |
|----------------------|----------------------------------------------------|-------|
| table1_h64           | M-H64                                              | 36.7  |
| table1_h64_gtr       | M-H64 + GTR                                        | 37.1  |
| table1_r50           | M-R50                                              | 40.6  |
| table1_r50_gtr       | M-R50 + GTR                                        | 42.0  |
| table2_h64           | FM-H64                                             | 33.7  |
| table2_h64_gtr       | FM-H64 + GTR                                       | 34.8  |
| table2_r50           | FM-R50                                             | 37.3  |
| table2_r50_gtr       | FM-R50 + GTR                                       | 38.6  |
| table2_s_r50         | FM(S)-R50                                          | 39.4  |
| table2_s_r50_gtr     | FM(S)-R50 + GTR                                    | 38.6  |
| table2_eb0           | FM-Eb0                                             | 45.8  |
| table2_eb0_gtr       | FM-Eb0 + GTR                                       | 44.2  |
| table4_r50_49        | FM-R50 + GTR, all 49 tokens of the image           | 38.6  |
| table4_r50_39        | the same + ITP@20%                                 | 40.5  |
| table4_r50_24        | the same + ITP@50%                                 | 40.7  |
| table4_eb0_49        | FM-Eb0 + GTR, all 49 tokens of the image           | 44.2  |
| table4_eb0_39        | the same + ITP@20%                                 | 43.9  |
| table4_eb0_24        | the same + ITP@50%                                 | 44.0  |
| table6_token_learner | FM-R50 + GTR, TokenLearner for ITP@20%             | 45.4  |
| table6_itp           | FM-R50 + GTR + ITP@20%                             | 40.5  |
| table7_mlp           | FM-R50 + GTR, the regressor an MLP                 | 38.9  |
| table7_gcn           | FM-R50 + GTR, the regressor a graph convolution    | 38.8  |
| table7_nsr           | FM-R50 + GTR                                       | 38.6  |
| table8_metro         | M-H64, hands                                       | 6.8   |
| table8_fastmetro     | FM-H64, hands                                      | 6.5   |
| table8_tore          | FM-H64 + GTR + ITP@20%, hands                      | 6.7   |
| unsupervised         | FM-R50 + GTR + ITP@20% without supervision of ITP  | 41.6  |
| supervised           | the same with it (section 4.7.2)                   | 40.6  |
| one_token            | FM-R50 + GTR + ITP, one token left (section 4.8)   | 43.3  |

Rows beyond the tables, with HRNet-W64 at full size:

| row                  | what it is                                                 |
|----------------------|------------------------------------------------------------|
| fastmetro            | FastMETRO-L, as table8_fastmetro                           |
| fastmetro_m          | FastMETRO-M                                                |
| fastmetro_s          | FastMETRO-S                                                |
| gtr                  | FastMETRO-L + GTR                                          |
| itp_all              | FastMETRO-L + GTR + ITP, as many clusters as places        |
| metro                | METRO, as table8_metro                                     |
| metro_gtr            | METRO + GTR                                                |
| graphormer           | MeshGraphormer                                             |
| paper_losses         | weights and terms of the paper's section 3.3               |
| body                 | bodies; see below                                          |

`body` trains on a body model and pictures of it, for example those that
`python -m data_pipelines.synthetic.body --out DIR --num 2000 --num_test 200` makes:
`--config configs/tore.py:demo,body --config.hand.source=DIR/body.npz
--config.data.dir=DIR`. With SMPL's file, `--config.model.coarse_level=2` gives the
paper's 431 vertices and three levels. The recipe stays a hand's; TORE's for bodies
clips each gradient's values, not their norm, and trains for 60 epochs, the second half
at a tenth of the rate.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import ml_collections

from handjax.config.schema import base, stage
from handjax.config.variants import (
    demo,
    parse,
    set_intervals,
    short_run_pictures,
    small,
    smoke,
)

EPOCH = 130_240
"""Pictures of FreiHAND, by which the released recipes count epochs."""
EPOCHS = 200
LOSSES = {
    "fastmetro": dict(
        joints3d=1000.0,
        joints3d_mesh=1000.0,
        vertices=100.0,
        edges=100.0,
        normals=10.0,
        joints2d=100.0,
        joints2d_mesh=100.0,
    ),
    "metro": dict(
        joints3d=1.0,
        joints3d_mesh=1.0,
        vertices=1.0,
        edges=0.0,
        normals=0.0,
        joints2d=1.0,
        joints2d_mesh=1.0,
    ),
}
"""The hosts' released weights for hands; MeshGraphormer's are METRO's."""
METRO_GTR = dict(edges=1.0, normals=0.1)
"""Further ones of TORE's release for METRO."""
PRUNING = 1e-3
"""Weight of the token reduction supervision in TORE's release; the paper's is 1."""

Config = ml_collections.ConfigDict


def get_config(variant: str = "paper") -> Config:
    """Return the config of a variant, of one of `ROWS`, or of both: "demo,ROW"."""
    size, name = parse("configs/tore.py", variant, ROWS)
    config = base()
    config.family = "tore"
    globals()[f"_{size}"](config)
    row = ROWS[name] if name else Row()
    _change(config, row.fields, full_size=size == "paper")
    config.stages.mesh = globals()[f"_{size}_stage"](config)
    row.then(config)
    return config


def _paper(config: Config) -> None:
    """The network for hands; METRO's augmentation, which FastMETRO and TORE have.

    Coordinates are relative to the wrist. Batch statistics are those of the whole
    batch; the releases' were of each GPU's.
    """
    config.data.num_train, config.data.num_test = 100_000, 4_000
    config.data.root = "wrist"
    config.data.augment.recipe = "hamer"
    config.data.augment.hamer = dict(
        shift=0.0,
        scale=0.25,
        rotation=1.5707963267948966,
        rotation_rate=0.4,
        channel_noise=0.4,
    )
    config.model = dict(
        backbone="hrnet_w64",
        backbone_drop_path=0.0,
        host="fastmetro",
        gtr=True,
        regressor="nsr",
        pruner="itp",
        keep_ratio=0.8,
        width=512,
        narrow=128,
        layers=3,
        heads=8,
        ratio=4,
        dropout=0.1,
        metro_hidden=(1024, 256, 64),
        metro_outputs=(512, 128),
        metro_layers=4,
        metro_heads=4,
        grid="stride32",
        coarse_level=1,
        upsampling="fixed",
        root="wrist",
        token_init="normal",
        output_unit="metres",
        keypoint_loss="l1",
        pruning_reduction="sum",
        per_device=16,
        image_mean=(0.485, 0.456, 0.406),
        image_std=(0.229, 0.224, 0.225),
        channel_order="rgb",
    )
    set_intervals(config, log=100, evaluate=5_000)


def _paper_stage(config: Config) -> dict[str, Any]:
    """FastMETRO's recipe for FreiHAND, or METRO's.

    FastMETRO drops its rate after the last epoch, which is never; METRO in the middle.
    METRO's batch was 32 on each of eight GPUs; here gradients are accumulated.
    """
    if config.model.host == "fastmetro":
        size, recipe = (
            64,
            dict(
                optimizer=dict(lr=1e-4, weight_decay=1e-4, decay_mask="all"),
                schedule=dict(name="constant"),
                grad_clip=0.3,
            ),
        )
    else:
        size, recipe = (
            256,
            dict(
                optimizer=dict(name="adam", lr=1e-4, weight_decay=0.0),
                schedule=dict(name="step", boundaries=(0.5,), decay_factor=0.1),
                accumulate=4,
            ),
        )
    return _stage(config, EPOCHS * EPOCH // size, size, EPOCH / size, **recipe)


def _stage(
    config: Config, steps: int, batch_size: int, epoch: float, **recipe: Any
) -> dict[str, Any]:
    """The stage, with the losses of the host; `epoch` in updates."""
    model = config.model
    losses = dict(LOSSES["fastmetro" if model.host == "fastmetro" else "metro"])
    if model.host == "metro" and model.gtr:
        losses |= METRO_GTR
    ramps = {}
    if model.pruner != "none":
        losses["pruning"] = PRUNING
        ramps["pruning"] = dict(middle=3 * epoch, width=epoch)
    return stage(
        steps=steps, batch_size=batch_size, losses=losses, ramps=ramps, **recipe
    )


def _small(config: Config) -> None:
    """The same code at a size that two CPU cores train in under two hours."""
    _narrow(config)
    small(config)


def _small_stage(config: Config) -> dict[str, Any]:
    return _from_scratch(config, 4_000, 32)


def _demo(config: Config) -> None:
    """Half an hour, well enough for meshes with the shape of a hand."""
    _narrow(config)
    demo(config)


def _demo_stage(config: Config) -> dict[str, Any]:
    return _from_scratch(config, 1_000, 32)


def _smoke(config: Config) -> None:
    """Every line of code in a minute or two; the numbers mean nothing."""
    _narrow(config)
    smoke(config, log=1)
    config.data.crop_size = 64
    config.model.update(
        width=32,
        narrow=16,
        layers=1,
        heads=2,
        metro_hidden=(32, 16, 8),
        metro_outputs=(16, 8),
        metro_layers=1,
        metro_heads=2,
    )


def _smoke_stage(config: Config) -> dict[str, Any]:
    return _from_scratch(config, 5, 8)


def _narrow(config: Config) -> None:
    """Smaller crop and transformers; backbone and data of the other families' small.

    What differs from the recipe beside sizes is what short runs from random weights
    need: milder augmentation, no dropout, outputs in units of the hand, tokens that
    know where in the hand they are.
    """
    _paper(config)
    short_run_pictures(config, crop_size=128, box_scale=1.25)
    config.model.update(
        backbone="fastvit_t8",
        width=128,
        narrow=64,
        layers=2,
        heads=4,
        dropout=0.0,
        metro_hidden=(128, 64, 32),
        metro_outputs=(64, 32),
        metro_layers=2,
        token_init="places",
        output_unit="hands",
    )


def _from_scratch(config: Config, steps: int, batch_size: int) -> dict[str, Any]:
    """A short stage of a network that starts from nothing.

    The ramp of the token reduction supervision is at its middle after an eighth.
    """
    return _stage(
        config,
        steps,
        batch_size,
        steps / 24,
        optimizer=dict(lr=5e-4, weight_decay=0.01),
        schedule=dict(name="cosine", warmup_steps=steps // 20, end_factor=0.01),
        grad_clip=0.3 if config.model.host == "fastmetro" else 1.0,
    )


# --- Rows of the paper's tables ----------------------------------------------


class Row(NamedTuple):
    """What a row changes."""

    fields: dict[str, Any] = {}  # noqa: RUF012 - NamedTuple defaults are shared by design
    """Of `config.model`; the backbone at full size alone."""
    then: Callable[[Config], None] = lambda config: None
    """What it does to the config when its stage is there."""


def _change(config: Config, fields: dict[str, Any], *, full_size: bool) -> None:
    config.model.update(
        {k: v for k, v in fields.items() if full_size or k != "backbone"}
    )


def _unsupervised(config: Config) -> None:
    config.stages.mesh.losses.pruning = 0.0


def _paper_losses(config: Config) -> None:
    """Section 3.3: no surface terms, no 2-D of tokens, all clusters' mean, no ramp."""
    config.model.pruning_reduction = "mean"
    config.stages.mesh.losses.update(edges=0.0, normals=0.0, joints2d=0.0, pruning=1.0)
    config.stages.mesh.ramps = {}


def _body(config: Config) -> None:
    config.data.name = "synthetic_body"
    config.data.root = config.model.root = "pelvis"


R50, H64, EB0 = "resnet50", "hrnet_w64", "efficientnet_b0"
_FM = dict(gtr=False, pruner="none")
_GTR = dict(gtr=True, pruner="none")
_M: dict[str, Any] = dict(
    host="metro",
    gtr=False,
    pruner="none",
    upsampling="learned",
    keypoint_loss="mse",
)
_M_GTR = _M | dict(gtr=True)


def _kept(share: float) -> dict[str, Any]:
    return dict(gtr=True, pruner="itp", keep_ratio=share)


def _rows(backbone: str, **named: dict[str, Any]) -> dict[str, Row]:
    return {
        name: Row(dict(fields, backbone=backbone)) for name, fields in named.items()
    }


ROWS: dict[str, Row] = {
    **_rows(H64, table1_h64=_M, table1_h64_gtr=_M_GTR),
    **_rows(R50, table1_r50=_M, table1_r50_gtr=_M_GTR),
    **_rows(H64, table2_h64=_FM, table2_h64_gtr=_GTR),
    **_rows(
        R50,
        table2_r50=_FM,
        table2_r50_gtr=_GTR,
        table2_s_r50=_FM | dict(layers=1),
        table2_s_r50_gtr=_GTR | dict(layers=1),
    ),
    **_rows(EB0, table2_eb0=_FM, table2_eb0_gtr=_GTR),
    **_rows(
        R50, table4_r50_49=_GTR, table4_r50_39=_kept(0.8), table4_r50_24=_kept(0.5)
    ),
    **_rows(
        EB0, table4_eb0_49=_GTR, table4_eb0_39=_kept(0.8), table4_eb0_24=_kept(0.5)
    ),
    **_rows(
        R50,
        table6_token_learner=_kept(0.8) | dict(pruner="token_learner"),
        table6_itp=_kept(0.8),
        table7_mlp=_GTR | dict(regressor="mlp"),
        table7_gcn=_GTR | dict(regressor="gcn"),
        table7_nsr=_GTR,
    ),
    **_rows(H64, table8_metro=_M, table8_fastmetro=_FM, table8_tore=_kept(0.8)),
    "unsupervised": Row(_kept(0.8) | dict(backbone=R50), _unsupervised),
    **_rows(R50, supervised=_kept(0.8), one_token=_kept(0.02)),
    **_rows(
        H64,
        fastmetro=_FM,
        fastmetro_m=_FM | dict(layers=2),
        fastmetro_s=_FM | dict(layers=1),
        gtr=_GTR,
        itp_all=_kept(1.0),
        metro=_M,
        metro_gtr=_M_GTR,
        graphormer=_M | dict(host="graphormer"),
    ),
    "paper_losses": Row({}, _paper_losses),
    "body": Row({}, _body),
}
"""Rows of the paper's tables 1, 2, 4, 6, 7 and 8, and others, by name."""
