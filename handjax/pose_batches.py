"""Batches of meshes without pictures, posed on the fly: what a tokenizer trains on.

Poses come from the pose prior of the synthetic data (endless, drawn from a seed) or
from a file, the mesh from whatever hand model the run uses. Poses alone go with the
batches of stages that have a discriminator (`with_real_poses`).
"""

from collections.abc import Iterator

import grain
import jax
import numpy as np

from data_pipelines.pose_files import PoseFile
from data_pipelines.synthetic import poses
from data_pipelines.synthetic.poses import PosePriorSource
from handjax import mano
from handjax.mano_files import ManoFile
from handjax.skeleton import MANO_JOINTS
from handjax.types import Batch

DEPTH = 0.5
"""Metres from the camera to the root: a nominal place, for nothing is photographed."""


def pose_batches(
    hand_file: ManoFile,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    root: int,
    crop_size: int,
    file: PoseFile | None = None,
    process: tuple[int, int] = (0, 1),
    threads: int = 2,
) -> Iterator[Batch]:
    """Endless batches; update n is the same wherever the run was resumed.

    Args:
        hand_file: whose mesh is posed.
        batch_size: of this process.
        seed: of the poses.
        start_step: number of batches to skip.
        root: joint that is subtracted.
        crop_size: side of the nominal crop, pixels.
        file: where poses come from, all of them once before any comes again; None for
            the prior.
        process: (index, count); each process draws other poses.
        threads: that draw poses ahead of time.
    """
    index, count = process
    # On the host and in the loader's threads, so that no accelerator (and no step in
    # its queue) is waited for.
    cpu = jax.local_devices(backend="cpu")[0]
    hand = jax.device_put(mano.HandModel.from_file(hand_file), cpu)

    def batch(drawn: dict[str, np.ndarray]) -> Batch:
        posed = jax.device_get(_posed(hand, drawn["mano_pose"], drawn["betas"]))
        return from_meshes(
            posed.vertices, posed.joints3d, root=root, crop_size=crop_size, **drawn
        )

    yield from (
        _drawn(file, seed, poses.POSED)[index::count]
        .batch(batch_size, drop_remainder=True)[start_step:]
        .map(batch)
        .to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4))
    )


@jax.jit
def _posed(hand, mano_pose, betas):
    return hand.with_shape(betas).with_pose(mano_pose[:, 0], mano_pose[:, 1:])


def _drawn(file: PoseFile | None, seed: int, stream: int) -> grain.MapDataset:
    if file is None:
        return grain.MapDataset.source(PosePriorSource(seed, stream=stream))
    return grain.MapDataset.source(file).seed(seed).shuffle().repeat()


def with_real_poses(
    batches: Iterator[Batch],
    file: PoseFile | None,
    *,
    per_example: int,
    batch_size: int,
    seed: int,
    start_step: int,
    process: tuple[int, int] = (0, 1),
    threads: int = 2,
) -> Iterator[Batch]:
    """The batches with `real_pose` and `real_betas`, the same however a run got there.

    Args:
        batches: of this process, from update `start_step` on.
        file: where poses come from, all of them once before any comes again; None for
            the prior.
        per_example: poses for each example of a batch.
        batch_size: of this process.
        seed: of the poses or their order.
        start_step: number of batches that were skipped.
        process: (index, count); together they draw what one process would.
        threads: that draw poses ahead of time.
    """
    index, count = process
    drawn = _drawn(file, seed, poses.REAL)
    of_examples = drawn.batch(per_example, drop_remainder=True)[index::count]
    of_batches = of_examples.batch(batch_size, drop_remainder=True)[start_step:]
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4)
    for batch, real in zip(batches, of_batches.to_iter_dataset(options), strict=False):
        yield batch._replace(
            real_pose=np.concatenate(real["mano_pose"]),
            real_betas=np.concatenate(real["betas"]),
        )


def from_meshes(
    vertices: np.ndarray,
    joints3d: np.ndarray,
    *,
    root: int,
    crop_size: int,
    bones: int = len(MANO_JOINTS),
    mano_pose: np.ndarray | None = None,
    betas: np.ndarray | None = None,
) -> Batch:
    """A batch of meshes in front of a nominal camera, with no picture."""
    size, root3d = len(vertices), joints3d[:, root]
    yes = np.ones(size, bool)
    intrinsics = np.diag([2.0 * crop_size, 2.0 * crop_size, 1.0])
    intrinsics[:2, 2] = crop_size / 2
    place = root3d * 0 + np.array([0, 0, DEPTH], np.float32)
    relative = joints3d - root3d[:, None]
    seen = (relative + place[:, None]) @ intrinsics.T
    return Batch(
        image=None,
        vertices=(vertices - root3d[:, None]).astype(np.float32),
        joints3d=relative.astype(np.float32),
        joints2d=(seen[..., :2] / seen[..., 2:]).astype(np.float32),
        root3d=place.astype(np.float32),
        intrinsics=np.broadcast_to(intrinsics, (size, 3, 3)).astype(np.float32),
        R_crop_camera=np.broadcast_to(np.eye(3), (size, 3, 3)).astype(np.float32),
        mano_pose=np.zeros((size, bones, 3), np.float32)
        if mano_pose is None
        else mano_pose,
        betas=np.zeros((size, 10), np.float32) if betas is None else betas,
        joints2d_valid=np.zeros(joints3d.shape[:2], bool),
        joints3d_valid=yes,
        vertices_valid=yes,
        mano_valid=np.full(size, mano_pose is not None),
        is_right=yes,
        example_valid=yes,
        index=np.arange(size),
    )
