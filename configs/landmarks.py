"""Landmarks to mesh: MediaPipe's 21 points to pose and shape of the hand model.

    python -m handjax.train --config configs/landmarks.py --workdir runs/landmarks
    python -m handjax.train --config configs/landmarks.py:small --workdir runs/small
    python -m handjax.train --config configs/landmarks.py:demo --workdir runs/demo
    python -m handjax.train --config configs/landmarks.py:smoke --workdir runs/smoke

| variant | images         | hardware    | time         | PA-MPJPE on its test split |
|---------|----------------|-------------|--------------|----------------------------|
| paper   | 20,000 + 1,000 | 2 CPU cores | not measured | not measured yet           |
| small   | 20,000 + 1,000 | 2 CPU cores | not measured | not measured yet           |
| demo    | 2,000 + 200    | 2 CPU cores | not measured | not measured yet           |
| smoke   | 64 + 16        | 2 CPU cores | a minute     | means nothing              |

There is no paper: the stage "poses" of `paper` is the recipe of the weights that come
with handjax. It costs six CPU minutes and renders nothing: 11.2 mm on the 1,000 test
pictures of `small` in their true regions, 12.1 mm in regions as the detector finds
them. More updates with more pairs learn the pairs by heart (4,000 with a share of 0.7:
11.6 mm). Stage "mesh" reads every picture with the landmark network while it trains,
0.04 CPU seconds each; what it gains has not been measured.
"""

import ml_collections

from handjax.config.schema import base, stage
from handjax.config.variants import demo, parse, set_intervals, smoke

LOSSES = dict(vertices=10.0, joints3d=10.0)

Config = ml_collections.ConfigDict


def get_config(variant: str = "paper") -> Config:
    """Return the config of one of `variants.VARIANTS`."""
    size, _ = parse("configs/landmarks.py", variant)
    config = base()
    config.family = "landmarks"
    return globals()[f"_{size}"](config)


def _paper(config: Config) -> Config:
    """The recipe of the weights that come with handjax."""
    # The landmark network turns the crop upright itself, so it must not cut it off.
    config.data.crop_size, config.data.box_scale = 320, 1.6
    config.data.augment.update(
        recipe="simplehand",
        center_jitter=0.05,
        scale=(1.5, 1.8),
        flip=0.0,
        channel_noise=0.1,
        brightness=(-0.1, 0.1),
    )
    config.model = dict(
        network="mediapipe_hand_full",
        width=512,
        depth=3,
        pair_share=0.35,
        root="middle_mcp",
    )
    config.stages.poses = _poses(2_000, 128)
    config.stages.mesh = _mesh(300, 32)
    return set_intervals(config, log=100, evaluate=1_000)


def _small(config: Config) -> Config:
    """Half of it, and a third of the pictures."""
    config = _paper(config)
    config.stages.poses = _poses(1_000, 128)
    config.stages.mesh = _mesh(100, 32)
    return set_intervals(config, log=50, evaluate=0)


def _demo(config: Config) -> Config:
    """Two minutes."""
    config = demo(_paper(config))
    config.stages.poses = _poses(400, 128)
    config.stages.mesh = _mesh(20, 16)
    return config


def _smoke(config: Config) -> Config:
    """Every line of code; the numbers mean nothing."""
    config = smoke(_paper(config), log=2)
    config.data.crop_size = 128
    config.model.update(width=32, depth=1)
    config.stages.poses = _poses(10, 16)
    config.stages.mesh = _mesh(2, 8)
    return config


def _poses(steps: int, batch_size: int) -> dict:
    return _stage("poses", steps, batch_size, lr=1e-3, weight_decay=0.05)


def _mesh(steps: int, batch_size: int) -> dict:
    return _stage("images", steps, batch_size, lr=1e-4, weight_decay=0.05)


def _stage(
    data: str, steps: int, batch_size: int, *, lr: float, weight_decay: float
) -> dict:
    return stage(
        steps=steps,
        batch_size=batch_size,
        losses=LOSSES,
        data=data,
        optimizer=dict(lr=lr, weight_decay=weight_decay),
        schedule=dict(name="cosine", warmup_steps=steps // 10, end_factor=0.01),
        grad_clip=1.0,
    )
