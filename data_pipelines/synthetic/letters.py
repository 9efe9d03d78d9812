"""Draw hands that show letters of the American manual alphabet: labelled poses.

    python -m data_pipelines.synthetic.letters letters.png    a page of them to look at

The letters are among the named poses of the prior: those that are held still and that
the fingers alone tell apart. All are shown with the fingers up, H too.
"""

import functools
import sys
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, Int
from scipy.spatial.transform import Rotation

from data_pipelines.synthetic import hand as hands
from data_pipelines.synthetic import pose_blocks
from data_pipelines.synthetic.poses import BLOCK, FACING, BlockSource, hands_of
from data_pipelines.synthetic.prior import PosePrior
from handjax.visualization import render

TRAIN, TEST = 0x1E77, 0x7E57
"""Streams: letters to train on, and others to evaluate with."""
_PREFIX = "asl_"


@functools.cache
def names() -> tuple[str, ...]:
    """Return the letters, in the order of their numbers."""
    with np.load(hands.ASSETS / "pose_prior.npz") as arrays:
        named = [str(name) for name in arrays["named_names"]]
    return tuple(n.removeprefix(_PREFIX) for n in named if n.startswith(_PREFIX))


class LetterSource(BlockSource):
    """Hands that show letters, palm to the camera within a turn.

    An item is a dict of `label`, the letter's place in `names()`; `mano_pose` (16, 3),
    absolute axis-angle in radians, wrist first, varied around the named pose as the
    prior varies it, free of collisions; `betas` (10,).
    """

    def __init__(
        self,
        seed: int,
        length: int = 2**31,
        *,
        max_turn: float = 30.0,
        stream: int = TRAIN,
    ):
        """Make the source.

        Args:
            seed: Seed of everything drawn.
            length: Number of items.
            max_turn: Largest turn away from fingers up, palm to the camera; degrees,
                and uniform among the turns that are smaller.
            stream: `TRAIN` or `TEST`.
        """
        super().__init__(seed, length, stream)
        self.max_turn = max_turn

    def draw(self, prior: PosePrior, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Draw letters, poses and shapes."""
        label = rng.integers(len(names()), size=BLOCK)
        angles = varied(prior, rng, label)
        turn = turns(rng, BLOCK, self.max_turn) * Rotation.from_matrix(FACING)
        return {"label": label, **hands_of(prior, rng, angles, turn)}


def named(prior: PosePrior) -> Float[np.ndarray, "letter 15 3"]:
    """Return the joint angles of the letters themselves, radians."""
    rows = [prior.names.index(_PREFIX + name) for name in names()]
    return prior.named[rows]


def varied(
    prior: PosePrior, rng: np.random.Generator, label: Int[np.ndarray, "count"]
) -> Float[np.ndarray, "count 15 3"]:
    """Draw joint angles around those of letters, radians, free of collisions."""
    angles, missing = named(prior)[label], np.arange(len(label))
    around = angles.copy()
    while len(missing):
        drawn = pose_blocks.varied(prior, rng, around[missing])
        free = ~pose_blocks.collides(prior, drawn)
        angles[missing[free]] = drawn[free]
        missing = missing[~free]
    return angles


def turns(rng: np.random.Generator, count: int, largest: float) -> Rotation:
    """Draw rotations uniformly among those of at most `largest` degrees."""
    axis = rng.normal(size=(count, 3))
    axis /= np.linalg.norm(axis, axis=1, keepdims=True)
    # There are (1 - cos t) dt rotations by an angle of t.
    angle = np.linspace(0, np.radians(largest), 1000)
    below = angle - np.sin(angle)
    drawn = np.interp(rng.random(count) * below[-1], below, angle)
    return Rotation.from_rotvec(axis * drawn[:, None])


def sheet(path: Path, *, each: int = 4, tile: int = 130) -> None:
    """Draw every letter and `each` variations beside it into a PNG."""
    hand, rng = hands.load(), np.random.default_rng(0)
    prior, pictures = PosePrior(hand), []
    for label, name in enumerate(names()):
        poses = varied(prior, rng, np.full(each, label))
        views = turns(rng, each, 30.0).as_matrix() @ FACING
        row = [_drawn(hand, named(prior)[label], FACING, tile)]
        row += [_drawn(hand, *pair, tile) for pair in zip(poses, views, strict=True)]
        cv2.putText(row[0], name, (5, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (0, 0, 0), 2)
        pictures += row
    page = render.side_by_side(pictures, columns=3 * (1 + each))
    if not cv2.imwrite(str(path), page[..., ::-1]):
        raise OSError(f"{str(path)!r} cannot be written.")


def _drawn(hand: hands.RenderHand, angles, root, tile: int) -> np.ndarray:
    posed = hands.pose(hand, angles, np.zeros(10), root, np.eye(3))
    return render.turned_view(posed.vertices, hand.file.faces, size=tile)


if __name__ == "__main__":
    sheet(Path(sys.argv[1]))
