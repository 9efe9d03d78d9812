"""Make batches of posed meshes without pictures, as a tokenizer trains on.

Poses come from the pose prior of the synthetic data (endless, drawn from a seed), from
a file, or show letters; meshes come from the hand model of the run. Stages with a
discriminator get real poses besides (`with_real_poses`).
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
from jaxtyping import Float, Int
from scipy.spatial.transform import Rotation

from data_pipelines.loading.pose_files import PoseFile
from data_pipelines.synthetic import letters, poses
from data_pipelines.synthetic.letters import LetterSource
from data_pipelines.synthetic.poses import PosePriorSource
from handjax.distributed.split_shares import WHOLE, ProcessShare
from handjax.errors import UserError
from handjax.geometry import crop
from handjax.geometry.skeleton import MANO_JOINTS
from handjax.mano import hand_model
from handjax.mano.model_files import ManoFile
from handjax.types import Batch

DEPTH = 0.5
"""Metres from a nominal camera to the root; nothing is photographed."""


class Letters(NamedTuple):
    """How letters become texts and views."""

    text: Int[np.ndarray, "letter length"]
    """Token ids of each of `letters.names()`."""
    max_turn: float
    """Largest turn of the hands, degrees; see `LetterSource`."""


def pose_batches(
    hand_file: ManoFile,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    root: int,
    crop_size: int,
    file: PoseFile | None = None,
    process: ProcessShare = WHOLE,
    threads: int = 2,
    letters_as: Letters | None = None,
    upright: bool = False,
) -> Iterator[Batch]:
    """Yield batches without end; update n is the same however a run resumes.

    Args:
        hand_file: Hand model to pose.
        batch_size: Batch size of this process.
        seed: Seed of the poses.
        start_step: Number of batches to skip.
        root: Joint that is subtracted.
        crop_size: Side of the nominal crop, pixels.
        file: Source of the poses, each once before any is repeated; None for the prior.
        process: Which batches of the run are drawn; all processes together draw what
            one alone would, in order.
        threads: Number of threads that draw poses ahead of time.
        letters_as: Draw hands that show letters instead, with `Batch.text`.
        upright: Turn hands about the optical axis as the detector's regions do:
            fingers upwards, give or take what a region is wrong by.
    """
    if letters_as is None:
        drawn = _drawn(file, seed, poses.POSED)
    else:
        drawn = grain.MapDataset.source(_letters(seed, letters_as, letters.TRAIN))
    make = _maker(
        hand_file, letters_as, root=root, crop_size=crop_size, upright=upright
    )
    yield from (
        drawn.batch(batch_size, drop_remainder=True)[process.index :: process.count][
            start_step:
        ]
        .map(make)
        .to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4))
    )


def letters_in_order(
    hand_file: ManoFile,
    *,
    split: str,
    num: int,
    batch_size: int,
    seed: int,
    root: int,
    crop_size: int,
    letters_as: Letters,
) -> Iterator[Batch]:
    """Yield a number of hands that show letters, once; the last batch is padded.

    Args:
        hand_file: Hand model to pose.
        split: "test": hands that are never trained on; "train": the first that are.
        num: Number of hands.
        batch_size: Size of every batch; padding has `example_valid` False.
        seed: Seed of the poses.
        root: Joint that is subtracted.
        crop_size: Side of the nominal crop, pixels.
        letters_as: How letters become texts and views.

    Raises:
        UserError: The split is neither "train" nor "test".
    """
    streams = {"train": letters.TRAIN, "test": letters.TEST}
    if split not in streams:
        raise UserError(f"Labelled poses have the splits train and test, not {split}.")
    source = _letters(seed, letters_as, streams[split])
    make = _maker(hand_file, letters_as, root=root, crop_size=crop_size)
    for start in range(0, num, batch_size):
        index = np.arange(start, start + batch_size)
        items = [source[i] for i in np.minimum(index, num - 1).tolist()]
        drawn = {key: np.stack([item[key] for item in items]) for key in items[0]}
        yield make(drawn)._replace(index=index, example_valid=index < num)


def _letters(seed: int, letters_as: Letters, stream: int) -> LetterSource:
    return LetterSource(seed, max_turn=letters_as.max_turn, stream=stream)


def _maker(
    hand_file: ManoFile,
    letters_as: Letters | None,
    *,
    root: int,
    crop_size: int,
    upright: bool = False,
) -> Any:
    """Return a function from rows of a source to a batch."""
    # On the CPU, in the loader's threads: on an accelerator it would wait for the
    # training steps in the queue.
    cpu = jax.local_devices(backend="cpu")[0]
    hand = jax.device_put(hand_model.HandModel.from_file(hand_file), cpu)

    def batch(drawn: dict[str, np.ndarray]) -> Batch:
        pose, betas = drawn["mano_pose"], drawn["betas"]
        if upright:
            pose = _turned_upright(hand, pose, betas, drawn.get("roll"))
        posed = jax.device_get(_posed(hand, pose, betas))
        made = from_meshes(
            posed.vertices,
            posed.joints3d,
            root=root,
            crop_size=crop_size,
            mano_pose=pose,
            betas=betas,
        )
        if letters_as is None:
            return made
        return made._replace(text=letters_as.text[drawn["label"]])

    return batch


def _turned_upright(
    hand: hand_model.HandModel,
    pose: Float[np.ndarray, "batch 16 3"],
    betas: Float[np.ndarray, "batch beta"],
    roll: Float[np.ndarray, "batch"] | None,
) -> Float[np.ndarray, "batch 16 3"]:
    """Return the poses turned so that fingers point upwards, then by `roll`."""
    joints3d = np.asarray(_posed(hand, pose, betas).joints3d, np.float64)
    knuckles = (joints3d[:, 5] + joints3d[:, 13]) / 4 + joints3d[:, 9] / 2
    upwards = knuckles - joints3d[:, 0]
    angle = -np.arctan2(upwards[:, 0], -upwards[:, 1])
    turn = Rotation.from_matrix(
        crop.rotation_z(angle if roll is None else angle + roll)
    )
    turned = pose.copy()
    turned[:, 0] = (turn * Rotation.from_rotvec(pose[:, 0])).as_rotvec()
    return turned


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
    process: ProcessShare = WHOLE,
    threads: int = 2,
) -> Iterator[Batch]:
    """Yield the batches with `real_pose` and `real_betas`.

    Args:
        batches: Batches of this process, from update `start_step` on.
        file: Source of the poses, each once before any is repeated; None for the prior.
        per_example: Poses for each example of a batch.
        batch_size: Batch size of this process.
        seed: Seed of the poses or of their order.
        start_step: Number of batches that were skipped.
        process: Which batches of the run are drawn; all processes together draw what
            one alone would, in order.
        threads: Number of threads that draw poses ahead of time.
    """
    drawn = _drawn(file, seed, poses.REAL)
    of_examples = drawn.batch(per_example, drop_remainder=True)
    of_batches = of_examples.batch(batch_size, drop_remainder=True)[
        process.index :: process.count
    ]
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4)
    found = of_batches[start_step:].to_iter_dataset(options)
    for batch, real in zip(batches, found, strict=False):
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
    """Return a batch of meshes in front of a nominal camera, without pictures."""
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
