"""Benchmarks whose predictions are joints and vertices of samples, in pred.json."""

from pathlib import Path
from typing import ClassVar

import numpy as np

from handjax.evaluation.protocols import (
    Benchmark,
    Count,
    PhotoHands,
    Score,
    check_order,
    mesh_files,
    plausible,
)
from handjax.evaluation.protocols.mesh_scores import Meshes, Names, scores
from handjax.geometry.skeleton import NUM_VERTICES, ORDERS
from handjax.metrics.mesh_errors import PROTOCOLS


class MeshBenchmark(Benchmark):
    """Shared part of the FreiHAND and HO3D benchmarks."""

    file_name: ClassVar[str] = "pred.zip"
    alignments: ClassVar[tuple[str, ...]] = tuple(PROTOCOLS)
    _names: ClassVar[Names]
    _order: ClassVar[str]
    _to_camera: ClassVar[np.ndarray]
    """Signs from OpenCV axes to the benchmark's."""

    def __init__(self, name: str, samples: int, truth: str):
        self.name, self.samples, self.truth = name, samples, truth

    def read_truth(self, source: Path, **settings: str) -> Meshes:
        """Read `evaluation_xyz.json` and `evaluation_verts.json`."""
        del settings
        return mesh_files.read_truth(source, self.truth)

    def read_predictions(self, path: Path) -> Meshes:
        """Read pred.json or pred.zip."""
        return mesh_files.read(path)

    def check(self, predictions: Meshes) -> list[str]:
        """Check sample and vertex counts; return hints at another unit or order."""
        found = []
        if predictions.count != self.samples:
            found.append(
                f"{predictions.count:,} samples; {self.name} has {self.samples:,}"
            )
        sizes = {len(mesh) for mesh in predictions.vertices} - {NUM_VERTICES}
        if sizes:
            found.append(
                f"meshes of {min(sizes):,} vertices; without {NUM_VERTICES} the script "
                "gives no mesh errors, and aligned F-scores that mean little"
            )
        return found + plausible.findings(
            predictions.joints3d, order=self._order, opengl=bool(self._to_camera[2] < 0)
        )

    def scores(
        self, truth: Meshes, predictions: Meshes, *, procrustes: str
    ) -> dict[str, Score]:
        """Return every key of scores.txt, in its order."""
        return scores(truth, predictions, names=self._names, procrustes=procrustes)

    def count(self, truth: Meshes, predictions: Meshes) -> Count:
        """Return the number of all samples."""
        del predictions
        return Count(truth.count, truth.count)

    def metrics(self, scores: dict[str, Score]) -> dict[str, float | None]:
        """Return the aligned errors; the script has none relative to a root joint."""
        has_mesh = (scores["mesh_al_mean3d"].value or 0.0) >= 0
        joints, vertices = self._names.aligned, "mesh_al"
        found = {
            "pa_mpjpe_mm": scores[f"{joints}_mean3d"],
            "pa_mpvpe_mm": scores[f"{vertices}_mean3d"],
            "f5": scores["f_al_score_5"],
            "f15": scores["f_al_score_15"],
            "auc_joints": scores[f"{joints}_auc3d"],
            "auc_vertices": scores[f"{vertices}_auc3d"],
        }
        return {
            name: _value(score, 10.0 if name.endswith("_mm") else 1.0)
            if has_mesh or name in ("pa_mpjpe_mm", "auc_joints")
            else None
            for name, score in found.items()
        }

    def from_hands(self, hands: PhotoHands, truth: Meshes | None) -> Meshes:
        """Convert to the benchmark's axes and joint order."""
        if truth is not None:
            joints3d = truth.joints3d[:, ORDERS[self._order]] * self._to_camera
            check_order(hands, joints3d, self.name)
        order = np.argsort(ORDERS[self._order])
        return Meshes(
            hands.joints3d[:, order] * self._to_camera,
            hands.vertices * self._to_camera,
        )

    def write(self, path: Path, predictions: Meshes) -> None:
        """Write pred.json, or pred.zip with it, by the suffix."""
        mesh_files.write(path, predictions)


def _value(score: Score, factor: float) -> float | None:
    return None if score.value is None else factor * score.value
