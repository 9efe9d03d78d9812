"""Hand poses and shapes without pictures: what a mesh tokenizer trains on."""

import collections
import threading

import numpy as np
from scipy.spatial.transform import Rotation

from data_pipelines.synthetic import hand as hands
from data_pipelines.synthetic import pose_blocks
from data_pipelines.synthetic.prior import PosePrior

BETA_LIMIT = 2.2
POSED, REAL = 0x705E, 0x4EA1
"""Streams: poses to train on, and others for a discriminator to compare with. They keep
draws with the same seed apart, those of pictures included."""


BLOCK = 256
"""Poses that are drawn together: item i comes from block i // BLOCK."""
_KEPT = 16


class PosePriorSource:
    """Endless random-access source; item i depends on (seed, stream, i) alone.

    An item is a dict of `mano_pose` (16, 3), absolute axis-angle in radians, wrist
    first, with the global orientation uniform over all rotations; `betas` (10,).
    Reading in order is fast, for a block is kept until others are read.
    """

    def __init__(self, seed: int, length: int = 2**31, *, stream: int = POSED):
        self.seed, self.length, self.stream = seed, length, stream
        self._start()

    def _start(self) -> None:
        self._lock, self._blocks = threading.Lock(), collections.OrderedDict()
        self._prior: PosePrior | None = None  # read when needed, in each process

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if not 0 <= index < self.length:
            raise IndexError(
                f"PosePriorSource has items 0 to {self.length - 1}; asked for {index}."
            )
        number, row = divmod(int(index), BLOCK)
        return {name: values[row] for name, values in self._block(number).items()}

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
        angles = pose_blocks.sample(self._prior, rng, BLOCK)
        fingers = pose_blocks.rotations(self._prior, angles).reshape(-1, 3, 3)
        pose = np.empty((BLOCK, 16, 3), np.float32)
        pose[:, 0] = Rotation.from_quat(rng.normal(size=(BLOCK, 4))).as_rotvec()
        pose[:, 1:] = Rotation.from_matrix(fingers).as_rotvec().reshape(BLOCK, 15, 3)
        betas = np.clip(rng.normal(0, 1, (BLOCK, 10)), -BETA_LIMIT, BETA_LIMIT)
        return {"mano_pose": pose, "betas": betas.astype(np.float32)}

    def __getstate__(self):
        return {"seed": self.seed, "length": self.length, "stream": self.stream}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._start()


def random_rotation(rng: np.random.Generator) -> Rotation:
    """Draw a rotation, uniform over all of them."""
    return Rotation.from_quat(rng.normal(size=4))


def sample_betas(rng: np.random.Generator) -> np.ndarray:
    """Draw shape coefficients: standard normal, clipped."""
    return np.clip(rng.normal(0, 1, 10), -BETA_LIMIT, BETA_LIMIT)
