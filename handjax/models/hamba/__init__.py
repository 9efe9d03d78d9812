"""Hamba: graph-guided bidirectional scans over the tokens at a hand's joints."""

from handjax.models.hamba.model import PAPER, Model, stages

__all__ = ["PAPER", "Model", "stages"]
