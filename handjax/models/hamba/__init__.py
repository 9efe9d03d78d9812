"""Hamba: hand reconstruction by graph-guided bidirectional scans (NeurIPS 2024).

Two stages. "regressor": a vision transformer's map, narrowed, is scanned by VSS blocks
and gives a first hand. "mesh": features sampled at that hand's joints, and their mean
over the map, are 22 tokens; stages of graph convolution along the bones and scans along
the joints mix them; a linear layer on what they and the first hand say gives the hand.

`configs/hamba.py:paper` is the released network (ViT-H), from its published
description; it differs from the paper in ways that fields and docstrings name.
Parameters (`parameter_table`): backbone 630,912,000; downsampling 919,552; joints
regressor 27,613,805; token sampler 526,336; decoder 71,776,579; discriminator
1,545,211.
"""

from typing import Any

from handjax.family.hand_constants import check_root
from handjax.family.stage import Stage
from handjax.models.hamba.losses import (
    mesh_loss,
    predict_first,
    predict_image,
    regressor_loss,
)
from handjax.models.hamba.measures import MEASURES
from handjax.models.hamba.model import PARTS, Model, parameter_table
from handjax.types import Paper

__all__ = ["MEASURES", "PAPER", "PARTS", "Model", "parameter_table", "stages"]

PAPER = Paper(
    name="Hamba",
    title="Hamba: Single-view 3D Hand Reconstruction with Graph-guided Bi-Scanning "
    "Mamba",
    url="https://humansensinglab.github.io/Hamba/",
    equations={
        2: "h_t = A h_{t-1} + B x_t, y_t = C h_t, the discrete state space",
        3: "A = exp(dt A), B = (dt A)^-1 (exp(dt A) - I) dt B, zero-order hold",
        4: "theta, beta, pi = JR(T), J_3D = MANO(theta, beta), J_2D = Pi(J_3D)",
        5: "T_TS = TS(Conv2D(T), J_2D), token sampler",
        6: "T_GCN = sigma(W T softmax(M * G)), graph convolution",
        7: "T^c_GCN = T_GCN + the mean token, concatenated",
        8: "T_GSS = FFN(LN(SS2D(T) + T)) + SS2D(T) + T",
        9: "L_total = sum over losses of lambda L",
        10: "L_3D, L_2D, L1 of the joints",
        11: "L_theta, L_beta, L2 of pose and shape",
    },
    not_code={1: "the differential equation that Eq. 2 stands for; nothing solves it"},
)


def stages(config: Any) -> tuple[Stage, ...]:
    """Return two stages: the joints regressor, then everything.

    The backbone learns in both, unless `config.model.frozen_backbone`.
    """
    model = config.model
    check_root(config)
    first, second = "^(image_encoder/|downsample/|regressor)", ""
    if model.frozen_backbone:
        first, second = "^(downsample/|regressor)", "^(?!image_encoder/)"
    # Two real hands for each prediction, as released.
    real = 2 if model.adversarial else 0
    return (
        Stage(
            name="regressor",
            loss_fn=regressor_loss,
            predict_fn=predict_first,
            trainable=first,
            needs_image=True,
        ),
        Stage(
            name="mesh",
            loss_fn=mesh_loss,
            predict_fn=predict_image,
            trainable=second,
            needs_image=True,
            real_poses=real,
        ),
    )
