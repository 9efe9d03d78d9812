"""HO3D, versions 2 and 3: right hands that hold objects.

Definition: the eval.py of the data set's authors (Hampali et al., CVPR 2020), whose
numbers these equal. Ground truth and predictions are in OpenGL axes (y up, z backwards)
and in MANO's joint order: wrist, index, middle, little, ring, thumb, then the tips of
thumb, index, middle, ring, little.
"""

from typing import ClassVar

import numpy as np

from handjax.evaluation.protocols import Column
from handjax.evaluation.protocols.mesh_benchmark import MeshBenchmark
from handjax.evaluation.protocols.mesh_scores import Names

_WRIST, _MIDDLE_BASE = 0, 4


class Ho3d(MeshBenchmark):
    """The evaluation set of one version."""

    about: ClassVar[str] = "HO3D's eval.py"
    columns: ClassVar[tuple[Column, ...]] = (
        Column("PA-MPJPE", "xyz_procrustes_al_mean3d", 10.0),
        Column("PA-MPVPE", "mesh_al_mean3d", 10.0),
        Column("F@5", "f_al_score_5", digits=3),
        Column("F@15", "f_al_score_15", digits=3),
        Column("AUC_J", "xyz_procrustes_al_auc3d", digits=3),
        Column("AUC_V", "mesh_al_auc3d", digits=3),
    )
    _names: ClassVar[Names] = Names("xyz_procrustes_al", (_MIDDLE_BASE, _WRIST))
    _order: ClassVar[str] = "mano"
    _to_camera: ClassVar[np.ndarray] = np.array([1.0, -1.0, -1.0])


def _truth(version: str) -> str:
    return (
        f"HO3D's page has the ground truth of {version}'s evaluation set (since "
        "November 2024): evaluation_xyz.json, evaluation_verts.json; pass their folder."
    )


BENCHMARKS = {
    "ho3d_v2": Ho3d("ho3d_v2", 11_524, _truth("version 2")),
    "ho3d_v3": Ho3d("ho3d_v3", 20_137, _truth("version 3")),
}
