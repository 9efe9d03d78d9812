"""Make the surfaces of a scene: skin, sleeve, things, and the table or wall behind."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial.transform import Rotation

from data_pipelines.synthetic import hand as hands
from data_pipelines.synthetic import holding, objects, surroundings
from data_pipelines.synthetic import sleeve as sleeves
from data_pipelines.synthetic.appearance import shading
from data_pipelines.synthetic.appearance import skin as skins

_GROUND_PATTERNS = (
    shading.PLAIN,
    shading.WOOD,
    shading.WOOD,
    shading.WEAVE,
    shading.MARBLE,
    shading.TILES,
    shading.CHECKS,
)
_THING_PATTERNS = (
    shading.PLAIN,
    shading.PLAIN,
    shading.BANDS,
    shading.WOOD,
    shading.MARBLE,
    shading.CHECKS,
)


class Mesh(NamedTuple):
    """One surface, camera axes, metres."""

    vertices: Float[np.ndarray, "vertex 3"]
    faces: Int[np.ndarray, "face 3"]
    texture: Float[np.ndarray, "vertex 3"]
    """Coordinates for noise and patterns, metres."""
    albedo: Float[np.ndarray, "vertex 3"]
    """Linear RGB."""
    gloss: Float[np.ndarray, "vertex"]
    material: Float[np.ndarray, "8"]
    """See `shading.MATERIAL_SIZE`."""


def _material(
    kind,
    *,
    bump=0.0,
    blotch=0.0,
    pattern=shading.PLAIN,
    frequency=1.0,
    second=(0.0, 0.0, 0.0),
) -> np.ndarray:
    return np.array([kind, bump, blotch, pattern, frequency, *second], float)


def skin(rng, hand: hands.RenderHand, vertices: np.ndarray) -> Mesh:
    """Dress the drawn mesh in one person's skin."""
    albedo, gloss = skins.sample_albedo(rng)
    material = _material(
        shading.SKIN, bump=rng.uniform(0.3, 1.0), blotch=rng.uniform(0.03, 0.11)
    )
    return Mesh(vertices, hand.faces, hand.v_template, albedo, gloss, material)


def sleeve(rng, hand: hands.RenderHand, posed: hands.PosedHand, place) -> Mesh:
    """Draw a sleeve; `place` is wrist bend, root rotation and translation."""
    wrist, root, shift = place
    points, faces, cloth = sleeves.sample(rng, hand, posed.rest)
    points = hands.bend(hand, posed.rest, points, wrist) @ root.T + shift
    pattern, frequency = shading.WEAVE, rng.uniform(250, 700)
    kind = rng.random()
    colour = surroundings.muted_colour(rng) ** 2.2
    second = colour * rng.uniform(0.55, 0.85)
    if kind < 0.15:
        pattern, frequency = shading.STRIPES, rng.uniform(30, 130)
    elif kind < 0.27:
        pattern, frequency = shading.CHECKS, rng.uniform(25, 80)
    if kind < 0.27:
        second = surroundings.muted_colour(rng) ** 2.2
    material = _material(
        shading.CLOTH,
        bump=rng.uniform(0.2, 1.0),
        blotch=rng.uniform(0.01, 0.06),
        pattern=pattern,
        frequency=frequency,
        second=second,
    )
    albedo = np.repeat(colour[None], len(points), 0)
    gloss = np.full(len(points), 0.03)
    return Mesh(points, faces, cloth, albedo, gloss, material)


def thing(rng: np.random.Generator, placed: holding.Placed) -> Mesh:
    """Draw the material of a thing."""
    local, faces = objects.mesh(placed.shape)
    colour = surroundings.muted_colour(rng, 1.5) ** 2.2
    second = surroundings.muted_colour(rng, 1.5) ** 2.2
    size = placed.shape.half_size.max()
    pattern = int(rng.choice(_THING_PATTERNS))
    frequency = rng.uniform(0.5, 1.5) / size
    if pattern == shading.WOOD:
        colour, second = _wood_colours(rng)
        frequency = rng.uniform(60, 160)
    elif pattern == shading.MARBLE:
        second = colour * rng.uniform(0.6, 1.3)
        frequency = rng.uniform(60, 250)
    material = _material(
        shading.HARD,
        bump=rng.choice([0, 0, rng.uniform(0, 0.4)]),
        blotch=rng.uniform(0, 0.03),
        pattern=pattern,
        frequency=frequency,
        second=second,
    )
    return Mesh(
        local @ placed.turn.T + placed.centre,
        faces,
        local,
        np.repeat(colour[None], len(local), 0),
        np.full(len(local), rng.choice([0.05, rng.uniform(0.1, 1.0)])),
        material,
    )


def _wood_colours(rng: np.random.Generator):
    light = np.array([0.72, 0.52, 0.34]) * rng.uniform(0.35, 1.1)
    light = light * (1 + rng.normal(0, 0.05, 3))
    return light**2.2, (light * rng.uniform(0.6, 0.85)) ** 2.2


def ground(rng, meshes: list[Mesh], intrinsics: np.ndarray, size: int):
    """Return a table or wall behind everything in the picture, or None."""
    focal = intrinsics[0, 0]
    corner = 1.15 * (size / 2) / focal
    normal = np.array([*rng.normal(0, 0.35, 2), -1.0])  # towards the camera
    normal /= np.linalg.norm(normal)
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * corner
    rays = np.concatenate([corners, np.ones((4, 1))], 1)
    if (rays @ normal > -0.35).any():  # the horizon would be in the picture
        return None
    points = np.concatenate([mesh.vertices for mesh in meshes])
    points = points[points[:, 2] > 0.01]
    seen = (np.abs(points[:, :2]) < corner * points[:, 2:]).all(1)
    gap = rng.choice([rng.uniform(0, 0.02), rng.uniform(0.02, 0.3)])
    level = (points[seen] @ normal).min() - gap
    vertices = rays * (level / (rays @ normal))[:, None]
    if vertices[:, 2].min() < 0.05 or vertices[:, 2].max() > 6:
        return None
    right = np.cross([0.1, 1, 0], normal)
    right = right / np.linalg.norm(right)
    plane = np.stack([right, np.cross(normal, right), normal])
    spin = Rotation.from_euler("z", rng.uniform(0, 360), degrees=True).as_matrix()
    texture = vertices @ (spin @ plane).T + [*rng.uniform(0, 3, 2), 0]
    colour, material = _ground_material(rng)
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    albedo = np.repeat(colour[None], 4, 0)
    return Mesh(vertices, faces, texture, albedo, np.full(4, 0.1), material)


def _ground_material(rng: np.random.Generator):
    """Draw first colour and material of paint, wood, cloth, stone or tiles."""
    colour = surroundings.muted_colour(rng, 0.6) ** 2.2
    second = colour * rng.uniform(0.6, 0.9)
    pattern = int(rng.choice(_GROUND_PATTERNS))
    frequency = rng.uniform(5, 30)
    if pattern == shading.WOOD:
        colour, second = _wood_colours(rng)
        frequency = rng.uniform(12, 45)
    elif pattern == shading.WEAVE:
        frequency = rng.uniform(80, 400)
    elif pattern == shading.CHECKS:
        second = surroundings.muted_colour(rng, 0.6) ** 2.2
    return colour, _material(
        shading.GROUND,
        bump=rng.uniform(0, 0.5),
        blotch=rng.uniform(0.01, 0.06),
        pattern=pattern,
        frequency=frequency,
        second=second,
    )
