"""Hamba: tokens sampled at a first hand's joints, mixed along bones and by scans.

    python -m handjax.train --config configs/hamba.py --workdir runs/hamba
    python -m handjax.train --config configs/hamba.py:small --workdir runs/small
    python -m handjax.train --config configs/hamba.py:demo --workdir runs/demo
    python -m handjax.train --config configs/hamba.py:smoke --workdir runs/smoke

| variant | images          | hardware    | time       | PA-MPJPE, test      |
|---------|-----------------|-------------|------------|---------------------|
| paper   | 100,000 + 4,000 | one GPU     | unknown    | not measured        |
| small   | 20,000 + 1,000  | 2 CPU cores | 1 h 11 min | 17.6 (mean: 17.2)   |
| demo    | 2,000 + 200     | 2 CPU cores | unknown    | not measured        |
| smoke   | 64 + 16         | 2 CPU cores | 1 min      | means nothing       |

The paper's run begins with HaMeR's backbone:
`--config.init_from=DIR`, where `python -m handjax.convert` has put it.
On one GPU it accumulates the gradients of two halves of the batch and computes the
blocks again in the backward pass (`stages.mesh.accumulate` and `model.remat`).

Rows of the paper's tables are names behind the variant, as in
`configs/hamba.py:table4_no_graph` (at full size, 60,000 updates as there) or
`configs/hamba.py:small,table4_no_graph`. The last column is what the paper reports on
FreiHAND, which is another data set (PA-MPJPE, PA-MPVPE).

| row                     | what changes                                  | PA mm    |
|-------------------------|-----------------------------------------------|----------|
| table4_no_sampled       | fusion without the mean of the sampled tokens | 6.8, 6.5 |
| table4_no_joints2d      | fusion without the first hand's 2-D joints    | 6.8, 6.6 |
| table4_no_gss           | fusion without the mixed tokens               | 6.9, 6.6 |
| table4_no_mean          | fusion without the mean over the map          | 7.3, 7.2 |
| table4_no_sampler       | the map's mean is every joint's token         | 6.8, 6.6 |
| table4_no_bidirectional | all four scans run forwards                   | 6.9, 6.6 |
| table4_no_graph         | no graph convolution                          | 7.3, 7.2 |
| table4_no_guidance      | joints scanned in a shuffled order            | 7.3, 7.1 |
| table4_no_mamba         | no blocks after the graph convolutions        | 7.3, 7.2 |
| table4_full             | nothing                                       | 6.6, 6.3 |
| tables1_attention       | transformer blocks, not scans                 | 7.0, 6.6 |
| tables1_scan            | nothing                                       | 6.6, 6.3 |

Where paper and release differ, or the release is not known, there are further rows:

| row                     | what changes                                              |
|-------------------------|-----------------------------------------------------------|
| graph_shared            | one matrix for all joints (the paper's Eq. 6)             |
| graph_semgcn            | SemGCN's layer (which the paper cites)                    |
| zoh                     | inputs of the state space held (the paper's Eq. 3)        |
| mano_order              | joints scanned in MANO's order (the paper's text)         |
| released_clip           | sampling as released, with its switch on                  |
| released_noclip         | the same, off                                             |
| mix                     | HaMeR's ten data sets, `loading.recipes.HAMER`            |
| body                    | bodies; see below                                         |

`mix` takes prepared data sets, data/freihand, data/interhand26m and so on, with HaMeR's
shares and filters, and evaluates on FreiHAND; `--config.data.mixture.dir=DIR` takes
those of another directory, `--config.data.mixture.shares.halpe=0` does without one.

`body` trains on a body model and pictures of it, for example those that
`python -m data_pipelines.synthetic.body --out DIR --num 2000 --num_test 200` makes:
`--config configs/hamba.py:demo,body --config.hand.source=DIR/body.npz
--config.data.dir=DIR`. Joints, graph and mesh are those of the model. There is no
discriminator, for the built-in poses are of hands.

What the paper leaves open: what "w/o Token_Sampler" puts in its place, and which of
the four directions a unidirectional scan has (here each keeps its parameters).
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

LOSSES = dict(
    joints2d=0.01, joints3d=0.05, global_orient=0.001, hand_pose=0.001, betas=0.0005
)
"""The paper's weights (appendix A.2)."""
ADVERSARY = dict(adversarial=0.0005, discriminator=0.0005)
Config = ml_collections.ConfigDict


def get_config(variant: str = "paper") -> Config:
    """Return the config of a variant, of one of `ROWS`, or of both: "demo,ROW"."""
    size, row = parse("configs/hamba.py", variant, ROWS)
    config = base()
    config.family = "hamba"
    config = globals()[f"_{size}"](config)
    if row:
        if size == "paper" and row.startswith("table"):
            config.stages.mesh.steps = 60_000
        ROWS[row](config)
    return config


def _paper(config: Config) -> Config:
    """The released network, and the paper's recipe as it is known.

    The batch of the second stage was 28 on each of two GPUs; here the gradients of two
    halves are accumulated. Training was stopped after 170,000 updates, before it would
    overfit; `patience` ends it earlier where evaluations stop to get better. Crops are
    HaMeR's, boxes grown by 2: below 4/3, the columns that the network does not see
    would have fingers on them.
    """
    config.data.num_train, config.data.num_test = 100_000, 4_000
    config.data.image_size = config.data.crop_size = 256
    config.data.box_scale = 2.0
    config.data.augment.recipe = "hamer"
    config.model = dict(
        backbone="vit_h",
        tap="final",
        backbone_drop_path=0.55,
        frozen_backbone=False,
        remat=True,
        width=512,
        keep_ratio=1.0,
        regressor_depths=(2, 2, 2, 2),
        decoder_depths=(2, 2, 2, 2),
        state=1,
        ratio=2.0,
        discretisation="euler",
        drop_path=0.2,
        sampling="exact",
        scan_order="openpose",
        graph="per_joint",
        mixer="scan",
        heads=8,
        fusion=("gss", "joints2d", "mean", "sampled"),
        root="middle_mcp",
        joints="skeleton",
        head_init="torch",
        adversarial=True,
        reduction="sum",
        per_device=28,
        image_mean=(0.485, 0.456, 0.406),
        image_std=(0.229, 0.224, 0.225),
        channel_order="rgb",
    )
    recipe: dict = dict(
        data="images",
        optimizer=dict(lr=1e-5, weight_decay=1e-4, decay_mask="all"),
        schedule=dict(name="constant"),
    )
    config.stages.regressor = stage(
        steps=1_000_000, batch_size=8, losses=LOSSES, **recipe
    )
    config.stages.mesh = stage(
        steps=170_000,
        batch_size=56,
        losses=_both(LOSSES, **ADVERSARY),
        accumulate=2,
        patience=20,
        groups=JUDGE,
        **recipe,
    )
    return set_intervals(config, log=100, evaluate=5_000)


def _both(losses: dict[str, float], **adversary: float) -> dict[str, float]:
    """Weights of the hand's and of the first hand's losses, and of the adversary's."""
    first = {f"regressor_{name}": weight for name, weight in losses.items()}
    return {**losses, **first, **adversary}


JUDGE = {"discriminator": dict(pattern="^discriminator/")}
"""The discriminator's optimiser: one of its own, with the stage's settings."""


def _small(config: Config) -> Config:
    """The same code at a size that two CPU cores train in under two hours."""
    config = small(_narrow(_paper(config)))
    _from_scratch(config, 1_500, 2_500, 32)
    return config


def _demo(config: Config) -> Config:
    """A few minutes, well enough to beat the mean hand."""
    config = demo(_narrow(_paper(config)))
    _from_scratch(config, 400, 600, 32)
    return config


def _smoke(config: Config) -> Config:
    """Every line of code in a minute or two; the numbers mean nothing."""
    config = smoke(_narrow(_paper(config)), log=1)
    config.model.update(
        backbone="vit_test", width=32, regressor_depths=(1,), decoder_depths=(1,)
    )
    _from_scratch(config, 5, 5, 8)
    return config


def _narrow(config: Config) -> Config:
    """Smaller crop and trunks; backbone and data of the other families' small.

    A small vision transformer ("vit_t16") had learned nothing of hands from random
    weights after 400 updates (docs/results.md), so the backbone is a convolutional one.

    What differs from the recipe beside sizes is what short runs from random weights
    need: milder augmentation, a tighter box, heads that begin at the mean hand, losses
    of comparable size. Joints are the built-in data's, which come from the mesh.
    """
    short_run_pictures(config, crop_size=128, box_scale=1.5)
    config.model.update(
        backbone="fastvit_t8",
        backbone_drop_path=0.0,
        remat=False,
        width=128,
        regressor_depths=(1, 1, 1, 1),
        decoder_depths=(1, 1, 1, 1),
        drop_path=0.0,
        joints="mesh",
        head_init="xavier",
        reduction="mean",
    )
    return config


def _from_scratch(config: Config, first: int, second: int, batch_size: int) -> None:
    """Short stages of a network that starts from nothing: so many updates of each.

    Losses are means over their coordinates, weighed to be of comparable size.
    """
    losses = dict(
        joints2d=5.0, joints3d=20.0, global_orient=3.0, hand_pose=1.0, betas=0.1
    )
    judge = dict(JUDGE["discriminator"], lr=1e-4)
    both = _both(losses, adversarial=0.001, discriminator=0.001)
    for name, steps, weights, groups in (
        ("regressor", first, losses, {}),
        ("mesh", second, both, {"discriminator": judge}),
    ):
        config.stages[name] = stage(
            steps=steps,
            batch_size=batch_size,
            losses=weights,
            optimizer=dict(lr=1e-3, weight_decay=0.01),
            schedule=dict(name="cosine", warmup_steps=steps // 20, end_factor=0.01),
            grad_clip=1.0,
            groups=groups,
        )


# --- Rows of the paper's tables ----------------------------------------------


def _change(config: Config, **fields) -> None:
    config.model.update(fields)


def _without(config: Config, name: str) -> None:
    """Take one feature out of the fusion."""
    config.model.fusion = tuple(x for x in config.model.fusion if x != name)


def _no_sampler(config: Config) -> None:
    config.model.sampling = "none"
    _without(config, "sampled")


def _body(config: Config) -> None:
    config.data.name, config.data.root = "synthetic_body", "pelvis"
    _change(config, root="pelvis", adversarial=False)
    for name in ADVERSARY:
        del config.stages.mesh.losses[name]
    config.stages.mesh.groups = {}


def _nothing(config: Config) -> None:
    """The row is the model as it is."""


ROWS: dict[str, Callable[[Config], None]] = {
    **{
        f"table4_no_{name}": functools.partial(_without, name=name)
        for name in ("sampled", "joints2d", "gss", "mean")
    },
    "table4_no_sampler": _no_sampler,
    "table4_no_bidirectional": functools.partial(_change, mixer="scan_forward"),
    "table4_no_graph": functools.partial(_change, graph="none"),
    "table4_no_guidance": functools.partial(_change, scan_order="shuffled"),
    "table4_no_mamba": functools.partial(_change, mixer="none"),
    "table4_full": _nothing,
    "tables1_attention": functools.partial(_change, mixer="attention"),
    "tables1_scan": _nothing,
    "graph_shared": functools.partial(_change, graph="shared"),
    "graph_semgcn": functools.partial(_change, graph="semgcn"),
    "zoh": functools.partial(_change, discretisation="zoh"),
    "mano_order": functools.partial(_change, scan_order="mano"),
    "released_clip": functools.partial(_change, sampling="released_clip"),
    "released_noclip": functools.partial(_change, sampling="released_noclip"),
    "mix": functools.partial(train_on, mixture=HAMER),
    "body": _body,
}
"""Rows of the paper's tables 4 and S1, and of what differs elsewhere, by name."""
