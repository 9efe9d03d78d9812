"""The networks of TORE's tables, whose heads are compared on one backbone."""

from typing import Any

from handjax.family.capabilities import ReductionRow, ReductionTable
from handjax.family.hand_constants import HandConstants
from handjax.geometry import skeleton
from handjax.models.tore.model import Model, constants

_FASTMETRO = dict(host="fastmetro", gtr=False, pruner="none", upsampling="fixed")
_GTR = dict(_FASTMETRO, gtr=True, regressor="nsr")
_ITP = dict(_GTR, pruner="itp")
_METRO = dict(
    host="metro", gtr=False, pruner="none", regressor="nsr", upsampling="learned"
)

ROWS = (
    ReductionRow("METRO", _METRO, "METRO"),
    ReductionRow("METRO + GTR", dict(_METRO, gtr=True), "METRO"),
    ReductionRow("MeshGraphormer", dict(_METRO, host="graphormer"), "METRO"),
    ReductionRow("FastMETRO-S", dict(_FASTMETRO, layers=1), "FastMETRO-S"),
    ReductionRow("FastMETRO-S + GTR", dict(_GTR, layers=1), "FastMETRO-S"),
    ReductionRow("FastMETRO-M", dict(_FASTMETRO, layers=2), "FastMETRO-M"),
    ReductionRow("FastMETRO", _FASTMETRO, "FastMETRO"),
    ReductionRow("FastMETRO + GTR", _GTR, "FastMETRO"),
    ReductionRow("FastMETRO + GTR (MLP)", dict(_GTR, regressor="mlp"), "FastMETRO"),
    ReductionRow("FastMETRO + GTR (GCN)", dict(_GTR, regressor="gcn"), "FastMETRO"),
    ReductionRow("FastMETRO + GTR + ITP@0%", dict(_ITP, keep_ratio=1.0), "FastMETRO"),
    ReductionRow("FastMETRO + GTR + ITP@20%", dict(_ITP, keep_ratio=0.8), "FastMETRO"),
    ReductionRow("FastMETRO + GTR + ITP@50%", dict(_ITP, keep_ratio=0.5), "FastMETRO"),
    ReductionRow(
        "FastMETRO + GTR + TokenLearner@20%",
        dict(_ITP, pruner="token_learner", keep_ratio=0.8),
        "FastMETRO",
    ),
)
"""Of tables 1, 2, 4, 6, 7 and 8. "FastMETRO" has as many layers as the config says."""


def _constants(model: Model, hand: HandConstants) -> dict[str, Any]:
    return constants(hand, model.coarse_level, skeleton.root_joint(model.root))


MEASURES = {
    "cost": ReductionTable(
        rows=ROWS, backbone="encode", head="find", answer="read", constants=_constants
    )
}
"""Tables that `handjax.benchmark --what` measures."""
