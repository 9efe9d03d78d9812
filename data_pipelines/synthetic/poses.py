"""Hand poses and shapes without pictures: what a mesh tokenizer trains on."""

import numpy as np
from scipy.spatial.transform import Rotation

from data_pipelines.synthetic import hand as hands
from data_pipelines.synthetic.prior import PosePrior

BETA_LIMIT = 2.2
_STREAM = 0x705E
"""Keeps these draws apart from those of pictures with the same seed."""


class PosePriorSource:
    """Endless random-access source; item i depends on (seed, i) alone.

    An item is a dict of `mano_pose` (16, 3), absolute axis-angle in radians, wrist
    first, with the global orientation uniform over all rotations; `betas` (10,).
    """

    def __init__(self, seed: int, length: int = 2**31):
        self.seed, self.length = seed, length
        self._prior: PosePrior | None = None

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if not 0 <= index < self.length:
            raise IndexError(
                f"PosePriorSource has items 0 to {self.length - 1}; asked for {index}."
            )
        if self._prior is None:  # not in __init__: data workers pickle the source
            self._prior = PosePrior(hands.load())
        rng = np.random.default_rng([self.seed, _STREAM, int(index)])
        rotations = hands.joint_rotations(self._prior.hand, self._prior.sample(rng))
        root = random_rotation(rng).as_rotvec()
        fingers = Rotation.from_matrix(rotations).as_rotvec()
        return {
            "mano_pose": np.concatenate([root[None], fingers]).astype(np.float32),
            "betas": sample_betas(rng).astype(np.float32),
        }

    def __getstate__(self):
        return {"seed": self.seed, "length": self.length, "_prior": None}


def random_rotation(rng: np.random.Generator) -> Rotation:
    """Draw a rotation, uniform over all of them."""
    return Rotation.from_quat(rng.normal(size=4))


def sample_betas(rng: np.random.Generator) -> np.ndarray:
    """Draw shape coefficients: standard normal, clipped."""
    return np.clip(rng.normal(0, 1, 10), -BETA_LIMIT, BETA_LIMIT)
