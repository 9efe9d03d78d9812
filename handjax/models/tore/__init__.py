"""TORE: token reduction for transformers that recover meshes (ICCV 2023).

One stage, "mesh". A transformer (`HOSTS`) reads the image's map and gives the joints
and the vertices of a coarse mesh; fixed or learned matrices give the full one. TORE
takes tokens away: geometry token reduction (`gtr`) leaves the joints' tokens alone in
the transformer, and a light regressor makes the mesh of them; image token pruning
(`pruner`) clusters the image's tokens before they come in.

`configs/tore.py:paper` is the paper's network for hands (HRNet-W64, FastMETRO, both
reductions, 20 % pruned). TORE's code for hands is not public: this is its network for
bodies, as published, with a hand's counts, which has the cost that the paper prints.
Parameters without backbone (`parameter_table`), up to 1x1 convolution and heads:
26,702,128; FastMETRO S, M, L: 9,179,782, 16,999,046, 24,818,310.
"""

from typing import Any

from handjax.family.hand_constants import check_root
from handjax.family.stage import Stage
from handjax.models.tore.losses import mesh_loss, predict_image
from handjax.models.tore.measures import MEASURES
from handjax.models.tore.model import PARTS, Model, parameter_table
from handjax.types import Paper

__all__ = ["MEASURES", "PAPER", "PARTS", "Model", "parameter_table", "stages"]

PAPER = Paper(
    name="TORE",
    title="TORE: Token Reduction for Efficient Human Mesh Recovery with Transformer",
    url="https://arxiv.org/abs/2211.10705",
    equations={
        "clustering": "Z = M^T F, clustered tokens of the image",
        1: "F_d(x) = 1 if cell x holds a projected point, else 0",
        2: "L_P, weights of clusters where F_d(s Pi(V) + t) is 0",
        "vertex loss": "L_V3D, L1 of the vertices at every level of the mesh",
        "joint loss": "L_J3D, L1 of the predicted joints",
        "regressed joint loss": "L^R_J3D, L1 of the joints of the mesh",
        "projection loss": "L^R_J2D, L1 of the mesh's joints in the image",
        "total loss": "L = a [l_J3D (L_J3D + L^R_J3D) + l_V3D L_V3D + l_P L_P] + "
        "b l_J2D L^R_J2D",
    },
)


def stages(config: Any) -> tuple[Stage, ...]:
    """Return one stage that trains everything."""
    check_root(config)
    return (
        Stage(
            name="mesh",
            loss_fn=mesh_loss,
            predict_fn=predict_image,
            trainable="",
            needs_image=True,
        ),
    )
