"""Draw sleeves: a tube of cloth with a hem and folds around the forearm."""

import numpy as np
from jaxtyping import Float, Int

from data_pipelines.synthetic import hand as hands

_AROUND, _ALONG = 56, 44
_LENGTH = 0.30


def sample(
    rng: np.random.Generator,
    hand: hands.RenderHand,
    rest: Float[np.ndarray, "vertex 3"],
) -> tuple[
    Float[np.ndarray, "point 3"],
    Int[np.ndarray, "face 3"],
    Float[np.ndarray, "point 3"],
]:
    """Draw a sleeve in the frame of `hand.PosedHand.rest`.

    Returns:
        Vertices, faces and cloth coordinates (around, along, through; metres).
    """
    cuff = rest[hand.hand_subset, 0].max() + rng.uniform(0.004, 0.11)
    along = cuff + _LENGTH * np.linspace(0, 1, _ALONG) ** 1.25
    angle = np.linspace(0, 2 * np.pi, _AROUND, endpoint=False)
    centre, half = _sections(rest[hand.num_hand :], along)
    ease = rng.uniform(0.003, 0.012)  # air between skin and cloth
    flare = rng.uniform(0, 0.006) * np.exp(-(along - cuff) / 0.03)
    loose = (ease + flare)[:, None] + _folds(rng, angle, along - cuff, ease)
    thickness = rng.uniform(0.0012, 0.003)
    hem = rng.uniform(0.008, 0.03)
    if rng.random() < 0.6:  # a stitched cuff stands out a little
        edge = np.clip((cuff + hem - along) / 0.0015, 0, 1)[:, None]
        loose = loose * (1 - 0.5 * edge) + edge * rng.uniform(0.0005, 0.002)
    outer = _tube(centre, half, angle, loose)
    inside = np.arange(9)[::-1]  # the cloth turns inwards at the opening
    inner = _tube(centre[inside], half[inside], angle, loose[inside] - thickness)
    rim = _tube(
        centre[:1] - [[thickness / 2, 0, 0]], half[:1], angle, loose[:1] - thickness / 2
    )
    vertices = np.concatenate([inner, rim, outer])
    rows = len(vertices) // _AROUND
    number = np.arange(len(vertices)).reshape(rows, _AROUND)
    strips = [_strip(number[i], number[i + 1]) for i in range(rows - 1)]
    around = np.tile(angle * half.mean(), rows)
    length = np.concatenate([along[inside], along[:1], along]).repeat(_AROUND)
    cloth = np.stack([around, length, np.zeros_like(around)], -1)
    return vertices, np.concatenate(strips), cloth


def _sections(forearm: np.ndarray, along: np.ndarray):
    """Return centre and half size (y, z) of the arm at each distance."""
    centre, half = np.zeros((len(along), 3)), np.zeros((len(along), 2))
    centre[:, 0] = along
    for i, x in enumerate(along):
        near = forearm[np.abs(forearm[:, 0] - x) < 0.015]
        near = (
            near if len(near) >= 6 else forearm[np.argsort(abs(forearm[:, 0] - x))[:16]]
        )
        low, high = near[:, 1:].min(0), near[:, 1:].max(0)
        centre[i, 1:], half[i] = (low + high) / 2, (high - low) / 2
    smooth = np.array([1, 2, 3, 2, 1]) / 9
    for column in (*centre[:, 1:].T, *half.T):
        column[:] = np.convolve(np.pad(column, 2, mode="edge"), smooth, "valid")
    # No tighter than the arm: sections of a tapered tube are averaged.
    return centre, half * 1.03


def _tube(centre, half, angle, offset) -> np.ndarray:
    rim = np.stack([np.cos(angle), np.sin(angle)], -1)
    points = np.repeat(centre[:, None], len(angle), 1)
    points[..., 1:] += (half[:, None] + offset[..., None]) * rim
    return points.reshape(-1, 3)


def _folds(rng, angle, along, ease) -> np.ndarray:
    """Return wrinkles: slanted ridges around the arm, deeper away from the hem."""
    height = np.zeros((len(along), len(angle)))
    for _ in range(rng.integers(5, 10)):
        turns = rng.integers(0, 3)
        wave = rng.uniform(0.018, 0.05)
        phase = along[:, None] / wave * 2 * np.pi + turns * angle + rng.uniform(0, 6.28)
        phase = phase + 0.8 * np.sin(angle * rng.integers(1, 4) + rng.uniform(0, 6.28))
        place = 0.5 + 0.5 * np.cos(angle - rng.uniform(0, 6.28))
        height += place * (1 - np.abs(np.sin(phase / 2))) ** 1.5
    height *= rng.uniform(0.15, 0.8) * ease / max(height.std(), 1e-9) * 0.5
    deepen = np.clip(along / 0.04, 0.15, 1)[:, None]
    return np.clip(height, 0, 2.5 * ease) * deepen


def _strip(lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    lower_next, upper_next = np.roll(lower, -1), np.roll(upper, -1)
    return np.concatenate(
        [
            np.stack([lower, upper, lower_next], -1),
            np.stack([lower_next, upper, upper_next], -1),
        ]
    )
