"""MMHMR: a codebook of poses, then masked tokens and confidence-guided sampling."""

from handjax.models.mmhmr.model import PAPER, Model, stages

__all__ = ["PAPER", "Model", "stages"]
