"""Draw skin: tone, redness, nails and folds."""

import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from data_pipelines.synthetic import hand as hands

TONES = np.array(
    [
        [0.93, 0.78, 0.70],
        [0.88, 0.70, 0.60],
        [0.82, 0.63, 0.50],
        [0.75, 0.55, 0.42],
        [0.64, 0.45, 0.33],
        [0.52, 0.35, 0.25],
        [0.40, 0.26, 0.18],
        [0.28, 0.18, 0.125],
    ]
)
"""Display sRGB, light to dark; tones in between are mixed."""
_PALM = np.array([0.90, 0.66, 0.56])
_BLOOD = np.array([1.05, 0.82, 0.80])
_NAIL = np.array([0.92, 0.70, 0.66])
_PAINTED_NAILS = 0.06


class SkinMap(NamedTuple):
    """Variation of the skin over the drawn mesh, 0..1 per vertex."""

    palm: Float[np.ndarray, "vertex"]
    knuckle: Float[np.ndarray, "vertex"]
    fingertip: Float[np.ndarray, "vertex"]
    creases: Float[np.ndarray, "crease 10"]
    """This and the next two: see `shading.Surface`."""
    near_first: Int[np.ndarray, "corner"]
    near_crease: Int[np.ndarray, "near"]


@functools.cache
def skin_map() -> SkinMap:
    """Derive the map from the rest mesh (once per process)."""
    from data_pipelines.synthetic.appearance import shading

    hand = hands.load()
    points, joints = hand.v_template, hand.rest_joints
    tips = hand.file.v_template[hand.file.tip_ids]
    normals = shading.vertex_normals(points, hand.faces)
    palm = np.clip(0.5 - 1.2 * normals[:, 1], 0, 1)
    creases = np.array(_finger_creases(joints, tips) + _palm_lines(joints))
    corner = points[hand.faces]
    middle = corner.mean(1)
    reach = np.linalg.norm(corner - middle[:, None], axis=-1).max(1)
    distance = np.linalg.norm(middle[:, None] - creases[:, :3], axis=-1)
    near = distance < creases[:, 7] + reach[:, None]
    finger_joints = [2, 3, 5, 6, 8, 9, 11, 12, 15]
    bumps = np.maximum(
        _near(points, joints[finger_joints], 0.010),
        0.7 * _near(points, joints[[1, 4, 7, 10, 14]], 0.016),
    )
    return SkinMap(
        palm=palm,
        knuckle=(1 - palm) * bumps,
        fingertip=_near(points, tips, 0.012),
        creases=creases.astype(np.float32),
        near_first=np.concatenate([[0], np.cumsum(near.sum(1))]),
        near_crease=np.nonzero(near)[1],
    )


def _near(points: np.ndarray, centres: np.ndarray, radius: float) -> np.ndarray:
    distance = np.linalg.norm(points[:, None] - centres, axis=-1).min(1)
    return np.exp(-((distance / radius) ** 2))


def _row(point, normal, *, half_width, radius, depth, side) -> np.ndarray:
    normal = normal / np.linalg.norm(normal)
    return np.array([*point, *normal, half_width, radius, depth, side])


def _finger_creases(joints: np.ndarray, tips: np.ndarray) -> list[np.ndarray]:
    """Return joint folds: few and deep on the palm side, many and faint behind."""
    rows = []
    order = [1, 2, 4, 3, 0]  # tips are thumb first, MANO's fingers index first
    for finger in range(5):
        a, b, c = joints[3 * finger + 1 : 3 * finger + 4]
        chain = [a, b, c, tips[order[finger]]]
        thumb = finger == 4
        places = [] if thumb else [(a + 0.5 * (b - a), b - a, (0.0,))]
        places += [(b, c - a, (-0.0011, 0.0013)), (c, chain[3] - b, (0.0,))]
        for point, along, offsets in places:
            along = along / np.linalg.norm(along)
            for offset in offsets:
                at = point + offset * along
                rows.append(
                    _row(at, along, half_width=7e-4, radius=0.014, depth=0.9, side=-1)
                )
        for point, along in ((b, c - a), (c, chain[3] - b)):
            along = along / np.linalg.norm(along)
            for offset in (-0.0034, -0.0012, 0.0010, 0.0032):
                at = point + offset * along
                rows.append(
                    _row(at, along, half_width=5e-4, radius=0.0115, depth=0.5, side=1)
                )
    return rows


def _palm_lines(joints: np.ndarray) -> list[np.ndarray]:
    """Return heart, head and life line, each of one or two straight folds."""
    index, middle, little, thumb = joints[[1, 4, 7, 13]]
    wrist, down = joints[0], np.array([1.0, 0, 0])  # towards the wrist
    strokes = [
        (little + 0.016 * down, middle + 0.006 * down),
        (index + 0.020 * down, little + 0.036 * down),
        (index + 0.022 * down, 0.55 * middle + 0.45 * wrist),
        (0.55 * middle + 0.45 * wrist, 0.5 * thumb + 0.5 * wrist - 0.006 * down),
    ]
    rows = []
    for start, end in strokes:
        normal = np.cross(end - start, [0, 1, 0])
        radius = 0.55 * float(np.linalg.norm(end - start)) + 0.006
        rows.append(
            _row(
                (start + end) / 2,
                normal,
                half_width=9e-4,
                radius=radius,
                depth=0.75,
                side=-1,
            )
        )
    return rows


def sample_albedo(
    rng: np.random.Generator,
) -> tuple[Float[np.ndarray, "vertex 3"], Float[np.ndarray, "vertex"]]:
    """Draw one person's linear albedo and gloss for each vertex of the drawn mesh."""
    where, nail = skin_map(), hands.load().nail
    tone = rng.uniform(0, len(TONES) - 1)
    low = int(tone)
    skin = TONES[low] + (tone - low) * (TONES[min(low + 1, 7)] - TONES[low])
    skin = skin * (1 + rng.normal(0, 0.03, 3)) * rng.uniform(0.9, 1.05)
    grey = rng.uniform(0, 0.15)
    skin = np.clip(skin + grey * (skin.mean() - skin), 0.02, 0.93)
    dark = tone / (len(TONES) - 1)

    def blend(colour, target, share):
        return colour + share[:, None] * (target - colour)

    palm = 0.45 * _PALM * rng.uniform(0.85, 1.05) + 0.55 * np.minimum(1.5 * skin, 0.95)
    colour = np.repeat(skin[None], len(nail), 0)
    colour = blend(colour, palm, (0.12 + 0.5 * dark) * where.palm)
    red = _BLOOD * (1 - 0.25 * dark)
    colour = blend(colour, colour * red, 0.5 * where.knuckle)
    colour = blend(colour, colour * _BLOOD, 0.55 * where.fingertip)
    nails = 0.5 * skin + 0.5 * _NAIL * (1 - 0.25 * dark)
    painted = rng.random() < _PAINTED_NAILS
    nails = rng.uniform(0, 1, 3) if painted else np.minimum(1.06 * nails, 0.95)
    colour = blend(colour, nails, nail)
    shine = rng.uniform(0.2, 0.5)
    return np.clip(colour, 0, 1) ** 2.2, shine + (0.9 - shine) * nail
