"""TORE: token reduction for FastMETRO, METRO and MeshGraphormer."""

from handjax.models.tore.model import PAPER, Model, stages

__all__ = ["PAPER", "Model", "stages"]
