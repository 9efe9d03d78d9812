"""Render a scene: z-buffer, shadow maps, shading, skin scattering, camera."""

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from data_pipelines.synthetic import hand as hands
from data_pipelines.synthetic.appearance import lens, shading, skin
from data_pipelines.synthetic.meshes import Mesh
from data_pipelines.synthetic.scene import Scene
from handjax.visualization.rasterizer import Raster, rasterize

SUPERSAMPLING = 2
_SHADOW_MAP = 256
_SCATTER = (0.0016, 0.0007, 0.0005)
"""Distance that light scatters in skin, metres (red, green, blue)."""


class Picture(NamedTuple):
    """A rendered scene."""

    image: UInt8[np.ndarray, "size size 3"]
    visible: float
    """Visible share of the annotated mesh's silhouette."""
    mask: Bool[np.ndarray, "size size"]
    """Mask of the pixels that show the annotated hand."""
    hidden: Bool[np.ndarray, "21"]
    """Joints behind a thing or behind another part of the hand."""


def render(scene: Scene, *, least_visible: float | None = None) -> Picture | None:
    """Draw a scene.

    Args:
        scene: What to draw.
        least_visible: Least visible share of the hand: scenes below it, and those that
            show the forearm's end, give None before the costly part. None draws
            every scene.
    """
    size = scene.around.background.shape[0]
    focal = scene.intrinsics[0, 0] * SUPERSAMPLING
    surface, vertices = _join(scene.meshes)
    raster = _raster(vertices, surface.faces, focal, size * SUPERSAMPLING)
    annotated = _annotated(scene, raster)
    faces = hands.load().file.faces
    silhouette = _raster(scene.vertices, faces, focal / SUPERSAMPLING, size)
    whole = (silhouette.face_index >= 0).sum() * SUPERSAMPLING**2
    visible = float(min(annotated.sum() / max(whole, 1), 1.0))
    if least_visible is not None and (visible < least_visible or _shows_cut(raster)):
        return None
    light = _light(scene, surface, vertices, raster, focal)
    share = cv2.resize(
        annotated.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA
    )
    return Picture(
        image=lens.expose(light, scene.lens, size),
        visible=visible,
        mask=share > 0.5,
        hidden=_hidden(scene, raster, surface, focal),
    )


def _join(meshes: list[Mesh]) -> tuple[shading.Surface, np.ndarray]:
    """Concatenate meshes for the shader."""
    counts = [len(mesh.vertices) for mesh in meshes]
    first = np.cumsum([0, *counts])
    vertices = np.concatenate([mesh.vertices for mesh in meshes])
    normals = [shading.vertex_normals(mesh.vertices, mesh.faces) for mesh in meshes]

    def join(arrays):
        return np.concatenate(arrays).astype(np.float32)

    where = skin.skin_map()
    surface = shading.Surface(
        faces=np.concatenate(
            [mesh.faces + start for mesh, start in zip(meshes, first, strict=False)]
        ).astype(np.int64),
        normals=join(normals),
        texture=join([mesh.texture for mesh in meshes]),
        albedo=join([mesh.albedo for mesh in meshes]),
        gloss=join([mesh.gloss for mesh in meshes]),
        mesh=np.repeat(np.arange(len(meshes)), counts),
        materials=np.stack([mesh.material for mesh in meshes]).astype(np.float32),
        creases=where.creases,
        near_first=where.near_first,
        near_crease=where.near_crease,
    )
    return surface, vertices


def _raster(vertices: np.ndarray, faces: np.ndarray, focal: float, size: int) -> Raster:
    depth = vertices[:, 2]
    safe = np.where(depth > 1e-3, depth, np.inf)
    points = vertices[:, :2] / safe[:, None] * focal + (size - 1) / 2
    return rasterize(points, depth, faces, size, size, near=0.01)


def _light(scene, surface, vertices, raster, focal) -> Float[np.ndarray, "fine fine 3"]:
    """Return exposed linear RGB of every sample."""
    fine = raster.zbuffer.shape[0]
    parts = tuple(np.zeros((fine, fine, 3), np.float32) for _ in range(3))
    lights = _lights(scene, surface, vertices)
    focal32, centre = np.float32(focal), np.float32((fine - 1) / 2)
    shading.shade(raster, surface, lights, shading.NOISE, focal32, centre, parts)
    is_skin = raster.face_index < len(scene.meshes[0].faces)
    is_skin &= raster.face_index >= 0
    _scatter(parts[1], is_skin, focal / float(scene.joints3d[0, 2]))
    light = cv2.resize(scene.around.background, (fine, fine))
    exposure = np.float32(scene.lens.exposure)
    shoulder = np.float32(lens.SHOULDER)
    shading.compose(raster.face_index, parts, light, exposure, shoulder)
    return light


def _lights(scene: Scene, surface: shading.Surface, vertices: np.ndarray):
    """Draw shadow maps: an orthographic picture of the scene from each light."""
    hand = scene.vertices
    count, size = len(scene.around.lights), _SHADOW_MAP
    maps = np.full((count, size, size), np.inf, np.float32)
    to_map = np.zeros((count, 3, 4))
    solid = surface.materials[surface.mesh[surface.faces[:, 0]], 0] != shading.GROUND
    for i, light in enumerate(scene.around.lights):
        look = _look_along(-light.direction)
        middle = look @ hand.mean(0)
        reach = 1.5 * np.abs(hand @ look.T - middle)[:, :2].max()
        scale = np.array([size / 2 / reach, size / 2 / reach, 1.0])
        to_map[i, :, :3] = look * scale[:, None]
        to_map[i, :, 3] = -middle * scale + [size / 2, size / 2, 0]
        points = vertices @ to_map[i, :, :3].T + to_map[i, :, 3]
        maps[i] = rasterize(
            points[:, :2],
            points[:, 2],
            surface.faces[solid],
            size,
            size,
            perspective=False,
        ).zbuffer
    return shading.Lights(
        direction=np.array(
            [light.direction for light in scene.around.lights], np.float32
        ),
        colour=np.array([light.colour for light in scene.around.lights], np.float32),
        shadow_maps=maps,
        to_map=to_map.astype(np.float32),
        harmonics=scene.around.harmonics.astype(np.float32),
    )


def _look_along(forward: np.ndarray) -> np.ndarray:
    right = np.cross([0.13, 1.0, 0.07], forward)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(forward, right), forward])


def _scatter(irradiance: np.ndarray, is_skin: np.ndarray, px_per_metre: float) -> None:
    """Blur the light on skin in place: light enters here and leaves there."""
    rows, columns = np.flatnonzero(is_skin.any(1)), np.flatnonzero(is_skin.any(0))
    if not len(rows):
        return
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    inside = is_skin[window].astype(np.float32)
    for channel, distance in enumerate(_SCATTER):
        part = irradiance[window][..., channel]
        sigma = max(distance * px_per_metre, 0.3)
        blurred = cv2.GaussianBlur(part * inside, (0, 0), sigma)
        total = np.maximum(cv2.GaussianBlur(inside, (0, 0), sigma), np.float32(1e-3))
        mixed = np.float32(0.35) * part + np.float32(0.65) * blurred / total
        part[...] = np.where(inside > 0, mixed, part)


def _annotated(scene: Scene, raster: Raster) -> Bool[np.ndarray, "fine fine"]:
    """Return the samples on the drawn hand that the annotated mesh covers."""
    hand = hands.load()
    end = hand.v_template[hand.hand_subset, 0].max() + 1e-6
    face_on_hand = (hand.v_template[:, 0] <= end)[hand.faces].all(1)
    shown = np.zeros(sum(len(mesh.faces) for mesh in scene.meshes) + 1, bool)
    shown[: len(face_on_hand)] = face_on_hand
    return shown[raster.face_index]  # -1 reads the last entry, False


def _shows_cut(raster: Raster) -> bool:
    """Return whether the last ring of the forearm is visible."""
    hand = hands.load()
    last = len(hand.faces)
    seen = raster.face_index
    return bool(((seen >= last - hand.ring_faces) & (seen < last)).any())


def _hidden(scene, raster, surface, focal) -> Bool[np.ndarray, "21"]:
    """Return joints with something in front of them other than their own flesh."""
    fine = raster.zbuffer.shape[0]
    joints = scene.joints3d
    place = joints[:, :2] / joints[:, 2:] * focal + (fine - 1) / 2
    column, row = np.clip(np.rint(place), 0, fine - 1).astype(int).T
    depth, face = raster.zbuffer[row, column], raster.face_index[row, column]
    thing = (face >= len(scene.meshes[0].faces)) & (depth < joints[:, 2])
    flesh = 0.022  # metres: no joint lies deeper under its own skin
    outside = (place < 0).any(1) | (place > fine - 1).any(1)
    return thing | (depth < joints[:, 2] - flesh) | outside
