"""Whether a codebook is well while it is trained: one panel of curves for each stage.

The numbers are those of `metrics.jsonl`: `usage`, `perplexity`, `dead_codes` and
`resets` of every interval, `nearest_pair` of every evaluation.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8
from scipy.spatial import cKDTree

from handjax.io import json_files
from handjax.training import step

CURVES = {
    "usage": "codes of a batch, share",
    "perplexity": "perplexity of a batch",
    "dead_codes": "dead codes",
    "resets": "codes moved, an update",
    "nearest_pair": "nearest pair",
}
"""Metric -> what its curve is called, in the order of the panel."""


def nearest_pair(variables: Any) -> float | None:
    """Return the distance of the two nearest codes; 0 if two are equal.

    In units of the codes' root mean square distance from their mean, so that numbers of
    different codebooks compare. None without a codebook.
    """
    codes = leaf(variables, "embedding")
    if codes is None or len(codes) < 2:
        return None
    spread = np.sqrt(np.mean(np.sum((codes - codes.mean(axis=0)) ** 2, axis=1)))
    nearest = cKDTree(codes).query(codes, k=2)[0][:, 1]
    return float(nearest.min() / max(spread, 1e-12))


def leaf(variables: Any, name: str) -> Float[np.ndarray, "code *dim"] | None:
    """Return an array of collection "codebook" by the end of its path, or None."""
    for path, value in step.flat(dict(variables.get("codebook", {}))).items():
        if path.split("/")[-1] == name:
            return np.asarray(jax.device_get(value), np.float64)
    return None


def panel(metrics: Path, stage: str) -> UInt8[np.ndarray, "h w 3"] | None:
    """Draw the curves of a stage; None where it trains no codebook.

    Args:
        metrics: `metrics.jsonl` of a workdir.
        stage: whose lines count.
    """
    curves = _curves(metrics, stage)
    if not curves["perplexity"]:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 2.2), dpi=100, layout="constrained")
    for number, (name, title) in enumerate(CURVES.items()):
        axes = figure.add_subplot(1, len(CURVES), number + 1)
        points = np.array(curves[name]).reshape(-1, 2)
        axes.plot(*points.T, marker="." if len(points) < 20 else "")
        axes.set_title(title, fontsize=9)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("update", fontsize=8)
        axes.tick_params(labelsize=7)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _curves(metrics: Path, stage: str) -> dict[str, list[tuple[int, float]]]:
    curves: dict[str, list[tuple[int, float]]] = {name: [] for name in CURVES}
    for line in json_files.lines(metrics, {"step": int}):
        if line.get("stage") == stage:
            for name in CURVES:
                if line.get(name) is not None:
                    curves[name].append((line["step"], line[name]))
    return curves
