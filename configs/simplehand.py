"""SimpleHand: tokens sampled at 2-D joints, then a cascade of narrow layers.

    python -m handjax.train --config configs/simplehand.py --workdir runs/simplehand
    python -m handjax.train --config configs/simplehand.py:small --workdir runs/small
    python -m handjax.train --config configs/simplehand.py:demo --workdir runs/demo
    python -m handjax.train --config configs/simplehand.py:smoke --workdir runs/smoke
    python -m handjax.train --config configs/simplehand.py:open --workdir runs/open

| variant | images          | hardware    | time       | PA-MPJPE, test      |
|---------|-----------------|-------------|------------|---------------------|
| paper   | 100,000 + 4,000 | one GPU     | unknown    | not measured        |
| small   | 20,000 + 1,000  | 2 CPU cores | under 2 h  | 15.9 mm             |
| demo    | 2,000 + 200     | 2 CPU cores | minutes    | not measured        |
| smoke   | 64 + 16         | 2 CPU cores | 2 min      | means nothing       |
| open    | 20,000 + 1,000  | 2 CPU cores | 4 h        | not measured        |

"open" stands on frozen features of MediaPipe's landmark network instead of a trained
backbone (`handjax.models.simplehand` says what differs from the paper), trains on
pictures of the recipe "photos" and is tested on those of "small", in regions as the
detector finds them. Rendering takes 0.17 CPU seconds a picture and its features 0.3,
both once; the training itself takes minutes. "open_smoke" runs the same code.
On 8,750 pictures, 3,000 updates of 32 reached 11.4 mm (docs/results.md).

Every row of the paper's ablations is a name behind the variant, as in
`configs/simplehand.py:table5_grid` (at full size, with the table's Hiera-Tiny) or
`configs/simplehand.py:demo,table5_grid` (with the backbone of that variant). The last
column is what the paper reports on FreiHAND, which is another data set (PA-MPJPE,
PA-MPVPE):
`--config.data.name=freihand --config.data.dir=DIR` trains on that.

| row                   | what changes                                  | PA mm    |
|-----------------------|-----------------------------------------------|----------|
| table1_fastvit        | nothing: FastViT-MA36                         | 5.7, 6.0 |
| table1_hrnet          | HRNet-W64, its map at stride 8, not upsampled | 5.8, 6.1 |
| table4_baseline       | global feature, one layer without attention   | 6.9, 7.2 |
| table4_regressor      | global feature, the whole regressor           | 6.5, 6.8 |
| table4_generator      | sampled tokens, one layer without attention   | 6.6, 7.1 |
| table4_both           | sampled tokens, the whole regressor           | 6.2, 6.5 |
| table5_global         | generator A                                   | 6.5, 6.8 |
| table5_grid           | generator B, 7x7                              | 6.3, 6.6 |
| table5_point7         | generator C, 7x7                              | 6.3, 6.6 |
| table5_point14        | generator D, 14x14                            | 6.3, 6.6 |
| table5_point28        | generator D, 28x28                            | 6.2, 6.5 |
| table5_enhanced       | generator E, 28x28                            | 6.2, 6.5 |
| table5_coarse         | generator F, 28x28                            | 6.2, 6.5 |
| table6_21             | one layer                                     | 6.6, 7.1 |
| table6_21_256         | two                                           | 6.3, 6.6 |
| table6_21_384         | two                                           | 6.3, 6.6 |
| table6_21_256_384     | three                                         | 6.2, 6.5 |
| table6_21_84_336      | three                                         | 6.2, 6.5 |
| table6_21_128_256_384 | four                                          | 6.2, 6.5 |
| table6_21_63_126_252  | four                                          | 6.3, 6.6 |
| table7_dims_64        | widths 64, 32, 16                             | 6.5, 6.9 |
| table7_dims_128       | widths 128, 64, 32                            | 6.3, 6.6 |
| table7_dims_256       | widths 256, 128, 64                           | 6.2, 6.5 |
| table7_dims_512       | widths 512, 256, 128 (printed "12")           | 6.2, 6.5 |
| table7_dims_1024      | widths 1024, 512, 256                         | 6.4, 6.7 |
| table7_blocks_1       | one block a layer                             | 6.2, 6.5 |
| table7_blocks_2       | two                                           | 6.2, 6.6 |
| table7_blocks_3       | three                                         | 6.3, 6.6 |
| table8_sota           | Hiera-Tiny, nothing else                      | 6.2, 6.5 |
| table8_identity       | no attention                                  | 6.3, 6.6 |
| table8_no_codes       | no learned position codes                     | 6.3, 6.6 |

What the paper leaves open: the baseline's "MLP" regressor is taken to be the one its
section 3.2 begins from (one layer, identity mixer), and layers beyond or below three
halve the width each, starting from the first of `regressor_widths`.
"""

import functools
from collections.abc import Callable

import ml_collections

from handjax.config.schema import base, stage
from handjax.config.variants import (
    OPEN,
    VARIANTS,
    demo,
    frozen_features,
    frozen_features_smoke,
    parse,
    short_run_pictures,
    small,
    smoke,
)

SIZES = (*VARIANTS, *OPEN)
LOSSES = dict(joints2d=1.0, joints3d=10.0, vertices=10.0)
EPOCH = 256 * 256
"""Examples in what the released code calls an epoch: 256 updates of 8 x 32. Its 200 are
the paper's 100 passes over FreiHAND."""

Config = ml_collections.ConfigDict


def get_config(variant: str = "paper") -> Config:
    """Return the config of a variant, of one of `ROWS`, or of both: "demo,ROW"."""
    size, row = parse("configs/simplehand.py", variant, ROWS, sizes=SIZES)
    config = base()
    config.family = "simplehand"
    config = globals()[f"_{size}"](config)
    if row:
        if size == "paper" and not row.startswith("table1"):
            config.model.backbone = "hiera_tiny_224"
        ROWS[row](config)
    return config


def _paper(config: Config) -> Config:
    """The released network and recipe, counted in examples."""
    config.data.num_train, config.data.num_test = 100_000, 4_000
    # Mirrored crops keep the right hand's topology, as released.
    config.data.augment.flip = 0.5
    config.model = dict(
        backbone="fastvit_ma36",
        backbone_drop_path=0.2,
        token_generator="D",
        token_map="final",
        upsample=(4,),
        token_dim=256,
        sine_code=True,
        sampler_gradient=True,
        coarse_points=195,
        regressor_tokens=(21, 84, 336),
        regressor_widths=(256, 128, 64),
        regressor_blocks=(1, 1, 1),
        mixer="attention",
        position_codes=True,
        dropout=0.1,
        drop_path=0.1,
        root_depth=False,
        joints2d_init="torch",
        features="",
        feature_dropout=0.0,
        image_mean=(0.5, 0.5, 0.5),
        image_std=(1.0, 1.0, 1.0),
        channel_order="bgr",
    )
    config.stages.mesh = _mesh(200 * EPOCH, 256)
    return config


def _small(config: Config) -> Config:
    """The same code at a size that two CPU cores train in under two hours."""
    config = small(_narrow(_paper(config)))
    config.stages.mesh = _from_scratch(4_000, 32)
    return config


def _demo(config: Config) -> Config:
    """A few minutes, well enough to beat the mean hand."""
    config = demo(_narrow(_paper(config)))
    config.data.crop_size = 64
    config.stages.mesh = _from_scratch(1_400, 32)
    return config


def _smoke(config: Config) -> Config:
    """Every line of code in a minute or two; the numbers mean nothing."""
    config = smoke(_two_layers(_narrow(_paper(config))), log=2)
    config.data.crop_size = 64
    config.stages.mesh = _from_scratch(10, 8)
    return config


def _open(config: Config) -> Config:
    """Frozen hand features, tokens at their landmarks."""
    config = _paper(config)
    frozen_features(config)
    config.model.update(
        token_dim=128,
        # Attention among 336 tokens costs a CPU two thirds of an update.
        regressor_tokens=(21, 84, 168),
        regressor_widths=(128, 64, 32),
        dropout=0.0,
        drop_path=0.0,
    )
    config.stages.mesh = _on_features(6_000, 64)
    return config


def _open_smoke(config: Config) -> Config:
    """Every line of "open"; the numbers mean nothing."""
    config = _two_layers(_open(config))
    frozen_features_smoke(config)
    config.stages.mesh = _on_features(4, 8)
    return config


def _two_layers(config: Config) -> Config:
    """A regressor that is compiled within seconds."""
    config.model.update(
        regressor_tokens=(21, 84), regressor_widths=(32, 16), regressor_blocks=(1, 1)
    )
    return config


def _narrow(config: Config) -> Config:
    """Smaller crop, backbone and tokens; the data path of TokenHand's small variants.

    What differs from the recipe beside sizes is what short runs from random weights
    need: milder augmentation, 2-D joints that begin inside the crop and that the mesh
    losses leave alone.
    """
    short_run_pictures(config, crop_size=96, box_scale=1.25)
    config.model.update(
        backbone="fastvit_t8",
        backbone_drop_path=0.0,
        token_dim=128,
        regressor_widths=(128, 64, 32),
        sampler_gradient=False,
        joints2d_init="centre",
        dropout=0.0,
        drop_path=0.0,
    )
    return config


def _mesh(examples: int, batch_size: int) -> dict:
    """The released recipe for so many examples: warm-up, 5e-4, a tenth from half way.

    The warm-up reaches its end at the last of 5 epochs' updates, hence the - 1. Weight
    decay spares what has "bn" or "bias" in its name, as released;
    `optimizer.decay_mask=no_1d` spares all norms, scales and biases, as is usual.
    """
    return stage(
        steps=examples // batch_size,
        batch_size=batch_size,
        losses=LOSSES,
        data="images",
        optimizer=dict(lr=5e-4, weight_decay=0.01, decay_mask="paper"),
        schedule=dict(
            name="step",
            warmup_steps=max(5 * EPOCH // batch_size - 1, 0),
            boundaries=(0.5,),
        ),
        grad_clip=1.0,
    )


def _from_scratch(steps: int, batch_size: int) -> dict:
    """A short run of a backbone that starts from nothing, as TokenHand's."""
    return stage(
        steps=steps,
        batch_size=batch_size,
        losses=dict(LOSSES, joints2d=5.0),
        data="images",
        optimizer=dict(lr=1e-3, weight_decay=0.01, decay_mask="paper"),
        schedule=dict(name="cosine", warmup_steps=steps // 20, end_factor=0.01),
        grad_clip=1.0,
    )


def _on_features(steps: int, batch_size: int) -> dict:
    """Heads alone, from random weights on features that are right from the start."""
    return stage(
        steps=steps,
        batch_size=batch_size,
        losses=LOSSES,
        data="features",
        optimizer=dict(lr=1e-3, weight_decay=0.02, decay_mask="no_1d"),
        schedule=dict(name="cosine", warmup_steps=steps // 10, end_factor=0.001),
        grad_clip=10.0,
    )


# --- Rows of the paper's tables ----------------------------------------------


def _layers(config: Config, tokens: tuple[int, ...]) -> None:
    """A regressor of these layers; each has half the width of the one before it."""
    first = config.model.regressor_widths[0]
    config.model.update(
        regressor_tokens=tokens,
        regressor_widths=tuple(first // 2**i for i in range(len(tokens))),
        regressor_blocks=(1,) * len(tokens),
    )


def _generator(config: Config, kind: str, **changes) -> None:
    config.model.update(token_generator=kind, **changes)
    rest = config.model.regressor_tokens[1:]
    grid, points = (config.data.crop_size // 32) ** 2, 21 + config.model.coarse_points
    tokens = {"B": grid, "F": points}.get(kind, 21)
    config.model.regressor_tokens = (tokens, *rest)


def _baseline_regressor(config: Config) -> None:
    _layers(config, (21,))
    config.model.mixer = "identity"


def _table4_baseline(config: Config) -> None:
    _generator(config, "A")
    _baseline_regressor(config)


def _table1_hrnet(config: Config) -> None:
    config.model.update(backbone="hrnet_w64", token_map="stride8", token_dim=256)
    _generator(config, "C")


def _dims(config: Config, first: int) -> None:
    config.model.regressor_widths = (first, first // 2, first // 4)


def _nothing(config: Config) -> None:
    """The row is the model as it is."""


_LAYERS = (
    (21,),
    (21, 256),
    (21, 384),
    (21, 256, 384),
    (21, 84, 336),
    (21, 128, 256, 384),
    (21, 63, 126, 252),
)

ROWS: dict[str, Callable[[Config], None]] = {
    "table1_fastvit": _nothing,
    "table1_hrnet": _table1_hrnet,
    "table4_baseline": _table4_baseline,
    "table4_regressor": functools.partial(_generator, kind="A"),
    "table4_generator": _baseline_regressor,
    "table4_both": _nothing,
    "table5_global": functools.partial(_generator, kind="A"),
    "table5_grid": functools.partial(_generator, kind="B"),
    "table5_point7": functools.partial(_generator, kind="C"),
    "table5_point14": functools.partial(_generator, kind="D", upsample=(2,)),
    "table5_point28": functools.partial(_generator, kind="D"),
    "table5_enhanced": functools.partial(_generator, kind="E"),
    "table5_coarse": functools.partial(_generator, kind="F"),
    **{
        "table6_" + "_".join(map(str, tokens)): functools.partial(
            _layers, tokens=tokens
        )
        for tokens in _LAYERS
    },
    **{
        f"table7_dims_{first}": functools.partial(_dims, first=first)
        for first in (64, 128, 256, 512, 1024)
    },
    **{
        f"table7_blocks_{n}": functools.partial(
            lambda config, n: config.model.update(regressor_blocks=(n,) * 3), n=n
        )
        for n in (1, 2, 3)
    },
    "table8_sota": _nothing,
    "table8_identity": lambda config: config.model.update(mixer="identity"),
    "table8_no_codes": lambda config: config.model.update(position_codes=False),
}
"""Rows of the paper's tables 1, 4, 5, 6, 7 and 8, by name: changes to a config."""
