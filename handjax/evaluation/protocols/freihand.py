"""FreiHAND: 3,960 right hands; joints and vertices, aligned and not.

Definition: the eval.py of the data set's authors (Zimmermann et al., ICCV 2019), whose
numbers these equal. OpenCV axes, joints in the order of `skeleton.JOINTS`.
"""

from typing import ClassVar

import numpy as np

from handjax.evaluation.protocols import Column
from handjax.evaluation.protocols.mesh_benchmark import MeshBenchmark
from handjax.evaluation.protocols.mesh_scores import Names


class FreiHand(MeshBenchmark):
    """FreiHAND's evaluation set."""

    about: ClassVar[str] = "FreiHAND's eval.py"
    columns: ClassVar[tuple[Column, ...]] = (
        Column("PA-MPJPE", "xyz_al_mean3d", 10.0),
        Column("PA-MPVPE", "mesh_al_mean3d", 10.0),
        Column("F@5", "f_al_score_5", digits=3),
        Column("F@15", "f_al_score_15", digits=3),
    )
    _names: ClassVar[Names] = Names("xyz_al")
    _order: ClassVar[str] = "openpose"
    _to_camera: ClassVar[np.ndarray] = np.array([1.0, 1.0, 1.0])


BENCHMARKS = {
    "freihand": FreiHand(
        "freihand",
        3_960,
        "FreiHAND_pub_v2_eval.zip of FreiHAND's page has evaluation_xyz.json and "
        "evaluation_verts.json; pass the folder that it was unpacked to.",
    )
}
