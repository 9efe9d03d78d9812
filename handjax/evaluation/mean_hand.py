"""Score the mean hand: the baseline of a model that never looks at the picture.

Metres, axes of the crop camera. Two means are needed, because one mesh cannot be the
best constant answer to both kinds of metric:

* for errors without alignment: the average of the root-relative training meshes (hands
  turn every way, so this is a small blob, and is the best constant);
* for aligned errors: the generalised Procrustes mean, i.e. the hand that is the average
  of the training hands after each is aligned with it (rotations only, det = +1).
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from handjax.distributed import split_shares
from handjax.metrics.mesh_errors import MetricSums, procrustes_align
from handjax.types import Batch, HandOutput

NUM_HANDS = 2_000
"""Number of training hands in the baseline, the first ones of the split."""

_ALIGNED = ("pa_mpjpe_mm", "pa_mpvpe_mm", "f5", "f15", "auc_joints", "auc_vertices")


class MeanHand(NamedTuple):
    """The constant predictions and how many hands they average."""

    relative_vertices: Float[np.ndarray, "vertex 3"]
    relative_joints3d: Float[np.ndarray, "joint 3"]
    aligned_vertices: Float[np.ndarray, "vertex 3"]
    aligned_joints3d: Float[np.ndarray, "joint 3"]
    count: int


def fit(
    batches: Iterable[Batch], *, num_hands: int = NUM_HANDS, rounds: int = 5
) -> MeanHand | None:
    """Average the first `num_hands` hands with mesh and joints; None if there are none.

    Args:
        batches: Batches of the training split, un-augmented.
        num_hands: The most hands that are used.
        rounds: Rounds of the Procrustes mean; the change per round falls fast.
    """
    hands, count, num_joints = [], 0, 0
    for batch in batches:
        valid = batch.example_valid & batch.joints3d_valid & batch.vertices_valid
        num_joints = batch.joints3d.shape[1]
        points = np.concatenate([batch.joints3d, batch.vertices], axis=1)
        valid = np.asarray(valid) & np.isfinite(points).all(axis=(1, 2))
        hands.append(np.asarray(points, np.float64)[valid])
        count += len(hands[-1])
        if count >= num_hands:
            break
    if not count:
        return None
    points = np.concatenate(hands)[:num_hands]
    relative = points.mean(axis=0)
    # Metrics align joints and vertices separately, so their means are separate too.
    joints3d = _procrustes_mean(points[:, :num_joints], rounds)
    vertices = _procrustes_mean(points[:, num_joints:], rounds)
    return MeanHand(
        relative[num_joints:], relative[:num_joints], vertices, joints3d, len(points)
    )


def _procrustes_mean(
    points: Float[np.ndarray, "hand point 3"], rounds: int
) -> Float[np.ndarray, "point 3"]:
    mean = points[0]
    size = np.linalg.norm(
        points - points.mean(axis=1, keepdims=True), axis=(1, 2)
    ).mean()
    for _ in range(rounds):
        target = np.broadcast_to(mean, points.shape)
        mean = procrustes_align(target, points, procrustes="proper").mean(axis=0)
        # Averaging shrinks; without this the mean would fade over the rounds.
        mean = (mean - mean.mean(axis=0)) * (
            size / np.linalg.norm(mean - mean.mean(axis=0))
        )
    return mean


class MeanHandSums:
    """Errors of the mean hand, added up beside those of a model."""

    def __init__(self, mean_hand: MeanHand, *, root: int, procrustes: str = "freihand"):
        self._mean_hand = mean_hand
        self._aligned = MetricSums(root=root, procrustes=procrustes)
        self._relative = MetricSums(root=root, procrustes=procrustes)

    def add(self, batch: Batch) -> None:
        """Score the mean hand on a batch."""
        mean, size = self._mean_hand, len(batch.example_valid)
        for sums, vertices, joints3d in (
            (self._aligned, mean.aligned_vertices, mean.aligned_joints3d),
            (self._relative, mean.relative_vertices, mean.relative_joints3d),
        ):
            output = HandOutput(
                np.broadcast_to(vertices, (size, *vertices.shape)),
                np.broadcast_to(joints3d, (size, *joints3d.shape)),
            )
            sums.add(batch, output)

    def state(self) -> dict[str, np.ndarray]:
        """Return the sums, for `merge`."""
        parts = {"aligned": self._aligned.state(), "relative": self._relative.state()}
        return split_shares.packed(parts)

    def merge(self, state: dict[str, np.ndarray]) -> None:
        """Add the sums of another process."""
        self._aligned.merge(split_shares.unpacked(state, "aligned"))
        self._relative.merge(split_shares.unpacked(state, "relative"))

    def means(self) -> dict[str, float | None]:
        """Return the baseline's errors under the keys of a model's metrics."""
        aligned = self._aligned.means()
        return self._relative.means() | {name: aligned[name] for name in _ALIGNED}
