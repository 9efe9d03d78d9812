"""How much mixing costs: attention or scans, on all 192 patches or on 22 tokens.

Rows are after the token-efficiency table of Hamba's paper (Table S2), whose point is
that a decoder which samples a token at each joint has 22 to mix, not 192. All rows are
`Trunk`s of one width and as many blocks. The paper's MFLOPs are multiplications with
their additions: 649 of its decoder, of which the row "graph, scan" has 646. Its other
row cannot be remade number by number: what layers "GCN + Transformer" had is not said,
and 149 M parameters on 192 tokens would be 20,000 of its MFLOPs, not 830.
"""

from typing import Any

from handjax.family.capabilities import MixingRow, MixingTable
from handjax.geometry import skeleton
from handjax.models.hamba.model import Trunk

MAP = (16, 12)
"""Rows and columns of the backbone's map of a 256 x 192 image."""
TOKENS = (skeleton.NUM_JOINTS + 1, 1)
"""A column of the joints and the mean over the map."""


def mixing_rows(fields: Any) -> list[MixingRow]:
    """The rows of the table.

    Args:
        fields: `config.model` of a Hamba: its width, blocks and kind of scan.
    """

    def trunk(**changes):
        same = ("state", "ratio", "discretisation")
        options = {name: fields[name] for name in same}
        return Trunk(fields.decoder_depths, **options, **changes)

    graph = dict(graph="per_joint", edges=skeleton.BONES)
    shared = dict(graph="shared", edges=skeleton.BONES)
    column = (MAP[0] * MAP[1], 1)
    return [
        MixingRow("attention", column, trunk(mixer="attention")),
        MixingRow("scan", MAP, trunk()),
        MixingRow("attention", TOKENS, trunk(mixer="attention")),
        MixingRow("scan", TOKENS, trunk()),
        MixingRow("graph", TOKENS, trunk(mixer="none", **graph)),
        MixingRow("graph, attention", TOKENS, trunk(mixer="attention", **graph)),
        MixingRow("graph, scan", TOKENS, trunk(**graph)),
        MixingRow("shared graph, scan", TOKENS, trunk(**shared)),
    ]


MEASURES = {"tokens": MixingTable(mixing_rows)}
"""Tables that `handjax.benchmark --what` measures."""
