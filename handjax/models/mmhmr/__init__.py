"""MMHMR: generative masked modeling for hand mesh recovery (2024; ICCV 2025: MaskHand).

Stage "tokenizer" (VQ-MANO) learns a codebook of poses from poses alone: rotations of
the 16 joints, convolutions along them, nearest code, convolutions back. Shape is no
part of it: losses and evaluation pose the true shape.

Stage "mesh" learns to name hidden tokens of the hand in an image from the others, from
maps of the image in several sizes, and from 2-D joints: blocks of graph transformer,
then layers of attention among the tokens and to the maps. Betas and camera are read
from the map alone. At inference all tokens are hidden at first; in a few steps the
surest are kept and the others guessed again. With `condition="text"` the tokens of a
text stand in for the maps, and nothing is known of 2-D joints, shape and camera.

No code of the paper is public. What it leaves open is a field here or a value of the
config; docs/mmhmr.md lists them with their reasons.
"""

from typing import Any

from handjax.errors import UserError
from handjax.family.hand_constants import check_root
from handjax.family.stage import LABELLED_POSES, Stage
from handjax.models.mmhmr.losses import (
    check_mesh,
    mesh_loss,
    predict_image,
    predict_pose,
    predict_text,
    text_loss,
    tokenizer_loss,
)
from handjax.models.mmhmr.model import Model, parameter_table
from handjax.nn.text import text_encoder
from handjax.types import Paper

__all__ = ["PAPER", "Model", "parameter_table", "stages"]

PAPER = Paper(
    name="MMHMR",
    title="MMHMR: Generative Masked Modeling for Hand Mesh Recovery",
    url="https://m-usamasaleem.github.io/publication/MMHMR/mmhmr.html",
    equations={
        "nearest code": "z^_i = arg min_k |z_i - c_k|, the token's code",
        "tokenizer loss": "l_re L_recon + l_E |sg z - c| + l_a |z - sg c|",
        "reconstruction loss": "l_theta L_theta + l_V L_V + l_J L_J",
        1: "Q' = MHA(Norm(Q)) + Conv(Norm(Q)) + Q",
        2: "Q_GGPM = SE(Norm(Q'))",
        "deformable attention": "sum_lk A_lk W x^l(p + dp_lk)",
        "masking": "m = ceil(gamma(tau) L), gamma(tau) = cos(pi tau / 2)",
        "mask loss": "-E sum_i log p(y_i | Y_M, X_2D, X_img)",
        "expectation": "z = softmax(L) CB",
        "total loss": "L_mask + L_MANO + L_3D + L_2D",
        "sampling": "ceil(gamma(t / T) L) tokens are masked again",
    },
)


def stages(config: Any) -> tuple[Stage, ...]:
    """Return two stages: the tokenizer, then the mesh, which builds on it.

    Raises:
        UserError: `config.model.root` is not the root of the data.
    """
    check_root(config)
    tokenizer = Stage(
        name="tokenizer",
        loss_fn=tokenizer_loss,
        predict_fn=predict_pose,
        trainable="^tokenizer/",
        needs_image=False,
    )
    if config.model.condition == "text":
        return tokenizer, _text_stage(config)
    return (
        tokenizer,
        Stage(
            name="mesh",
            loss_fn=mesh_loss,
            predict_fn=predict_image,
            trainable="^(?!tokenizer/)",
            needs_image=True,
            check=check_mesh,
        ),
    )


def _text_stage(config: Any) -> Stage:
    """Return stage "mesh" for texts; CLIP's tower stays as it was trained."""
    data = config.stages.mesh.data
    if data != LABELLED_POSES:
        raise UserError(
            f"config.stages.mesh.data={data!r} has no texts, which config.model."
            f"condition='text' reads; use {LABELLED_POSES!r} (configs/mmhmr.py:text)."
        )
    learned = config.model.text == text_encoder.LABELS
    trained = "^(synthesizer|text_encoder)/" if learned else "^synthesizer/"
    return Stage(
        name="mesh",
        loss_fn=text_loss,
        predict_fn=predict_text,
        trainable=trained,
        needs_image=False,
        check=check_mesh,
    )
