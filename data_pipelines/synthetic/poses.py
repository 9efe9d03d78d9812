"""Draw hand poses and shapes without pictures, as a mesh tokenizer trains on."""

import abc
import collections
import threading

import numpy as np
from scipy.spatial.transform import Rotation

from data_pipelines.synthetic import hand as hands
from data_pipelines.synthetic import pose_blocks
from data_pipelines.synthetic.prior import PosePrior

BETA_LIMIT = 2.2
POSED, REAL = 0x705E, 0x4EA1
"""Streams: poses to train on, and others for a discriminator to compare with. One seed
gives different draws in each, and other ones than for pictures."""


FACING = np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])
"""From the hand to the camera: fingers up, palm to the camera."""

BLOCK = 256
"""Poses that are drawn together: item i comes from block i // BLOCK."""
_KEPT = 16


class BlockSource(abc.ABC):
    """Endless random-access source; item i depends on (seed, stream, i) alone.

    Reading in order is fast, since a block is kept until others are read.
    """

    def __init__(self, seed: int, length: int, stream: int):
        self.seed, self.length, self.stream = seed, length, stream
        self._start()

    def _start(self) -> None:
        self._lock, self._blocks = threading.Lock(), collections.OrderedDict()
        self._prior: PosePrior | None = None  # read when needed, in each process

    @abc.abstractmethod
    def draw(self, prior: PosePrior, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Draw arrays with a row for each of the `BLOCK` items of a block."""

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if not 0 <= index < self.length:
            raise IndexError(
                f"{type(self).__name__} has items 0 to {self.length - 1}; asked for "
                f"{index}."
            )
        number, row = divmod(int(index), BLOCK)
        block = self._block(number)
        return {name: np.asarray(values[row]) for name, values in block.items()}

    def _block(self, number: int) -> dict[str, np.ndarray]:
        with self._lock:  # two threads would draw the same block twice
            if number not in self._blocks:
                self._blocks[number] = self._draw(number)
                if len(self._blocks) > _KEPT:
                    self._blocks.popitem(last=False)
            return self._blocks[number]

    def _draw(self, number: int) -> dict[str, np.ndarray]:
        if self._prior is None:
            self._prior = PosePrior(hands.load())
        rng = np.random.default_rng([self.seed, self.stream, number])
        return self.draw(self._prior, rng)

    def __getstate__(self):
        return {k: v for k, v in self.__dict__.items() if not k.startswith("_")}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._start()


class PosePriorSource(BlockSource):
    """Hands of the prior, seen from anywhere.

    An item is a dict of `mano_pose` (16, 3), absolute axis-angle in radians, wrist
    first, with the global orientation uniform over all rotations; `betas` (10,); and
    `roll`, the radians by which a region around the hand would be turned wrong.
    """

    def __init__(self, seed: int, length: int = 2**31, *, stream: int = POSED):
        super().__init__(seed, length, stream)

    def draw(self, prior: PosePrior, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Draw arrays with a row for each of the `BLOCK` items of a block."""
        angles = pose_blocks.sample(prior, rng, BLOCK)
        turn = Rotation.from_quat(rng.normal(size=(BLOCK, 4)))
        drawn = hands_of(prior, rng, angles, turn)
        # Most regions are turned right to 10 degrees, one in seven to 35.
        spread = np.where(rng.random(BLOCK) < 0.85, 0.18, 0.6)
        roll = np.float32(spread * rng.normal(0, 1, BLOCK))
        return drawn | {"roll": roll}


def hands_of(
    prior: PosePrior, rng: np.random.Generator, angles: np.ndarray, turn: Rotation
) -> dict[str, np.ndarray]:
    """Return `mano_pose` of joint angles and orientations, with drawn `betas`."""
    count = len(angles)
    fingers = pose_blocks.rotations(prior, angles).reshape(-1, 3, 3)
    pose = np.empty((count, 16, 3), np.float32)
    pose[:, 0] = turn.as_rotvec()
    pose[:, 1:] = Rotation.from_matrix(fingers).as_rotvec().reshape(count, 15, 3)
    betas = np.clip(rng.normal(0, 1, (count, 10)), -BETA_LIMIT, BETA_LIMIT)
    return {"mano_pose": pose, "betas": betas.astype(np.float32)}


def random_rotation(rng: np.random.Generator) -> Rotation:
    """Draw a rotation, uniform over all of them."""
    return Rotation.from_quat(rng.normal(size=4))


def sample_betas(rng: np.random.Generator) -> np.ndarray:
    """Draw shape coefficients: standard normal, clipped."""
    return np.clip(rng.normal(0, 1, 10), -BETA_LIMIT, BETA_LIMIT)
