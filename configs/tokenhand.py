"""TokenHand: a codebook of hand parts, then hands from images as classification.

    python -m handjax.train --config configs/tokenhand.py --workdir runs/tokenhand
    python -m handjax.train --config configs/tokenhand.py:small --workdir runs/small
    python -m handjax.train --config configs/tokenhand.py:demo --workdir runs/demo
    python -m handjax.train --config configs/tokenhand.py:smoke --workdir runs/smoke
    python -m handjax.train --config configs/tokenhand.py:open --workdir runs/open

| variant | images         | hardware    | time        | PA-MPJPE on its test split |
|---------|----------------|-------------|-------------|----------------------------|
| paper   | 100,000 + 4,000 | one GPU     | not measured yet | not measured yet      |
| small   | 20,000 + 1,000 | 2 CPU cores | under 2 h   | 15.7 mm (mean hand 17.2)   |
| demo    | 2,000 + 200    | 2 CPU cores | 12 min      | 13.8 mm (mean hand 17.2)   |
| smoke   | 64 + 16        | 2 CPU cores | 2 min       | means nothing              |
| open    | 20,000 + 1,000 | 2 CPU cores | 5 h         | not measured               |

"open" stands on frozen features of MediaPipe's landmark network instead of a trained
backbone (`handjax.models.tokenhand` says what differs from the paper), trains on
pictures of the recipe "photos" and is tested on those of "small", in regions as the
detector finds them. "open_smoke" runs the same code in seconds.

The paper reports PA-MPJPE 5.7 mm on FreiHAND, which is another data set:
`--config.data.name=freihand --config.data.dir=DIR` trains on that.

The paper's ablations are values:

    --config.model.token_generator=A                     # A, B, C or D
    --config.model.num_codes=384                         # or 640
    --config.model.decoder_blocks=3                      # blocks per decoder layer
    --config.model.decoder_tokens="(48,)" --config.model.decoder_widths="(256,)"
    --config.model.backbone=fastvit_sa12
"""

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
TOKENIZER_LOSSES = dict(vertices=10.0, commitment=5.0)
MESH_LOSSES = dict(tokens=1.0, joints3d=10.0, joints2d=1.0, vertices=10.0)


def get_config(variant: str = "paper") -> ml_collections.ConfigDict:
    """Return the config of one of `SIZES`."""
    size, _ = parse("configs/tokenhand.py", variant, sizes=SIZES)
    config = base()
    config.family = "tokenhand"
    return globals()[f"_{size}"](config)


def _paper(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Sizes and schedules of the paper; epochs are counted in examples."""
    config.data.num_train, config.data.num_test = 100_000, 4_000
    config.model = dict(
        encoder_widths=(32, 64, 128, 256, 512),
        encoder_strides=(1, 2, 2, 2, 2),
        encoder_k=(8, 16, 16, 16, 16),
        encoder_blocks=(1, 1, 1, 1, 1),
        encoder_neighbours="posed",
        num_codes=512,
        code_dim=512,
        decay=0.99,
        reset_below=1.0,
        smoothing=0.0,
        commitment="mean",
        decoder_tokens=(48, 97, 194, 389),
        decoder_widths=(256, 128, 64, 32),
        decoder_blocks=1,
        backbone="fastvit_ma36",
        backbone_drop_path=0.2,
        token_generator="D",
        sampler_gradient=True,
        token_dim=256,
        classifier_blocks=1,
        dropout=0.1,
        drop_path=0.1,
        inference="soft",
        features="",
        feature_dropout=0.0,
        image_mean=(0.485, 0.456, 0.406),
        image_std=(0.229, 0.224, 0.225),
        channel_order="rgb",
    )
    batch_size = 256
    epoch = config.data.num_train / batch_size
    config.stages.tokenizer = _tokenizer(round(200 * epoch), batch_size)
    config.stages.mesh = _mesh(round(300 * epoch), batch_size, warmup_steps=1_280)
    return config


def _small(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The same code at a size that two CPU cores train in under two hours."""
    config = small(_narrow(_paper(config)))
    config.stages.tokenizer = _tokenizer(4_500, 32, lr=3e-3, warmup_steps=100)
    config.stages.mesh = _from_scratch(4_000, 32)
    return config


def _demo(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Both stages in a few minutes, well enough to beat the mean hand."""
    config = demo(_two_layers(_narrow(_paper(config))))
    config.data.crop_size = 64
    config.stages.tokenizer = _tokenizer(600, 32, lr=3e-3, warmup_steps=50)
    config.stages.mesh = _from_scratch(1_400, 32)
    return config


def _smoke(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Every line of code in a minute or two; the numbers mean nothing."""
    config = smoke(_two_layers(_narrow(_paper(config))), log=2)
    config.data.crop_size = 64
    config.stages.tokenizer = _tokenizer(20, 16, lr=3e-3, warmup_steps=2)
    config.stages.mesh = _from_scratch(10, 8)
    return config


def _open(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Frozen hand features, tokens at their landmarks."""
    config = _narrow(_paper(config))
    frozen_features(config)
    config.stages.tokenizer = _tokenizer(20_000, 32, lr=3e-3, warmup_steps=100)
    # Weight decay of 0.15 pulls on weights that have to be exact.
    config.stages.tokenizer["optimizer"].update(weight_decay=0.01)
    config.stages.mesh = _on_features(6_000, 64)
    return config


def _open_smoke(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Every line of "open"; the numbers mean nothing."""
    config = _two_layers(_open(config))
    frozen_features_smoke(config)
    config.stages.tokenizer = _tokenizer(4, 16, lr=3e-3, warmup_steps=2)
    config.stages.mesh = _on_features(4, 8)
    return config


def _narrow(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Smaller crop, backbone and tokenizer; neighbours of the template, not the pose.

    On a CPU an update of the tokenizer costs as much as its activations weigh, so that
    the wide early levels and the last decoder layer (389 tokens attending to each
    other) are what goes.
    """
    short_run_pictures(config, crop_size=96, box_scale=1.25)
    config.model.update(
        encoder_widths=(8, 16, 32, 64, 128),
        encoder_k=(8, 8, 8, 8, 8),
        encoder_blocks=(0, 0, 0, 0, 1),
        encoder_neighbours="template",
        code_dim=128,
        # A batch of 32 has 3 tokens for each code, where the paper's has 24.
        reset_below=0.1,
        decoder_tokens=(48, 97, 194),
        decoder_widths=(128, 64, 32),
        backbone="fastvit_t8",
        backbone_drop_path=0.0,
        token_dim=128,
        sampler_gradient=False,
        dropout=0.0,
        drop_path=0.0,
    )
    return config


def _two_layers(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A decoder that is trained within three minutes."""
    config.model.update(code_dim=64, decoder_tokens=(48, 97), decoder_widths=(64, 32))
    return config


def _tokenizer(
    steps: int, batch_size: int, *, lr: float = 6e-3, warmup_steps: int = 500
) -> dict:
    """PCT's recipe at the paper's learning rate."""
    return stage(
        steps=steps,
        batch_size=batch_size,
        losses=TOKENIZER_LOSSES,
        data="poses",
        optimizer=dict(lr=lr, weight_decay=0.15, decay_mask="no_1d"),
        schedule=dict(
            name="cosine",
            warmup_steps=warmup_steps,
            warmup_factor=1e-3,
            end_factor=1e-5,
        ),
    )


def _mesh(steps: int, batch_size: int, *, warmup_steps: int) -> dict:
    """SimpleHand's recipe: warm-up, 5e-4, a tenth of it from half way on."""
    return stage(
        steps=steps,
        batch_size=batch_size,
        losses=MESH_LOSSES,
        data="images",
        optimizer=dict(lr=5e-4, weight_decay=0.01, decay_mask="paper"),
        schedule=dict(name="step", warmup_steps=warmup_steps, boundaries=(0.5,)),
        grad_clip=1.0,
    )


def _from_scratch(steps: int, batch_size: int) -> dict:
    """A short run of a backbone that starts from nothing.

    Higher rate, cosine, and other weights: 6 nats of cross-entropy would drown
    centimetres, and features are worth sampling only where the 2-D joints are right.
    """
    value = _mesh(steps, batch_size, warmup_steps=steps // 20)
    value["optimizer"].update(lr=1e-3)
    value["schedule"].update(name="cosine", end_factor=0.01)
    value["losses"] = dict(MESH_LOSSES, tokens=0.1, joints2d=5.0)
    return value


def _on_features(steps: int, batch_size: int) -> dict:
    """The classifier alone, from random weights on features that are right already."""
    value = _from_scratch(steps, batch_size)
    value["data"] = "features"
    value["losses"].update(joints2d=1.0)
    value["optimizer"].update(weight_decay=0.02, decay_mask="no_1d")
    value["grad_clip"] = 10.0
    return value
