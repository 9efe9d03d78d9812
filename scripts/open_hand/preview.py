"""Pictures of the rebuilt hand: flat views, every beta, every named pose.

Usage: python scripts/open_hand/preview.py --work DIR, after rebuild.py; needs handjax
installed (for its rasterizer) and writes PNG files into DIR.
"""

import argparse
import pathlib

import numpy as np
from PIL import Image, ImageDraw
from skinning import angles_to_rotations, pose_features, skin, unit
from topology import vertex_normals

from handjax.visualization.rasterizer import interpolate, rasterize

VIEWS = {
    "back": ((0, -1, 0.05), (-1, 0, 0)),
    "palm": ((0, 1, 0.05), (-1, 0, 0)),
    "thumb": ((0.2, 0.3, -1), (-1, 0, 0)),
    "front": ((1, 0.15, 0), (0, 1, 0)),
}
"""Looking direction and up."""
SKIN = np.array([0.86, 0.66, 0.56])
NAIL = np.array([0.97, 0.80, 0.76])
LIGHTS = ((-0.4, -0.6, -0.7), (0.8, 0.2, -0.5))


def picture(vertices, faces, colour, view, size=160, radius=0.115, centre=None):
    """One shaded view, (size, size, 3) uint8; inside surfaces are blue."""
    forward, up = (np.array(x, float) for x in VIEWS[view])
    forward = unit(forward)
    up = unit(up - forward * (up @ forward))
    camera = np.stack([np.cross(forward, up), -up, forward])
    centre = (vertices.max(0) + vertices.min(0)) / 2 if centre is None else centre
    points = (vertices - centre) @ camera.T
    side = 2 * size
    pixels = points[:, :2] * (side / 2 / radius) + side / 2
    raster = rasterize(pixels, points[:, 2] + 1, faces, side, side, perspective=False)
    normals = interpolate(raster, faces, vertex_normals(points, faces))
    lit = sum(
        strength * np.clip(normals @ unit(np.array(light)), 0, 1)
        for strength, light in zip((0.65, 0.25), LIGHTS, strict=True)
    )
    image = (0.3 + lit)[..., None] * interpolate(raster, faces, colour)
    corners = points[faces]
    facing = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    inside = (raster.face_index >= 0) & (facing[:, 2] > 0)[raster.face_index]
    image[inside] *= [0.4, 0.4, 1.0]
    image[raster.face_index < 0] = 0.95
    image = image.reshape(size, 2, size, 2, 3).mean((1, 3))
    return (np.clip(image, 0, 1) * 255).astype(np.uint8)


def posed(model, angles, betas):
    """Vertices (778, 3) with the wrist at the origin."""
    rest = model["v_template"] + model["shapedirs"] @ betas
    joints = model["J_regressor"] @ rest
    rotations = angles_to_rotations(angles, model["axes"])
    rest = rest + model["posedirs"].astype(float) @ pose_features(rotations)
    return skin(rest, joints, model["weights"], rotations) - joints[0]


def sheet(cells, columns, size=160):
    """Paste (label, image) cells into a grid."""
    rows = -(-len(cells) // columns)
    out = Image.new("RGB", (columns * size, rows * size), "white")
    draw = ImageDraw.Draw(out)
    for i, (label, image) in enumerate(cells):
        x, y = i % columns * size, i // columns * size
        out.paste(Image.fromarray(image), (x, y))
        draw.text((x + 3, y + 2), label, fill=(0, 0, 0))
    return out


def main():
    """Draw the sheets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    work = parser.parse_args().work
    with np.load(work / "open_hand.npz") as data:
        model = {k: data[k] for k in data.files}
    nail = model["nail"][:, None]
    colour, faces = SKIN * (1 - nail) + NAIL * nail, model["f"]
    flat, none = np.zeros((15, 3)), np.zeros(10)
    hand = posed(model, flat, none)
    views = [(v, picture(hand, faces, colour, v, 320)) for v in VIEWS]
    sheet(views, 4, 320).save(work / "flat.png")
    cells, centre = [], (hand.max(0) + hand.min(0)) / 2
    for i, name in enumerate(model["beta_names"]):
        for view in ("back", "thumb"):
            for value in (-2, 2):
                shape = posed(model, flat, value * np.eye(10)[i])
                image = picture(shape, faces, colour, view, 160, 0.125, centre)
                cells.append((f"{name} {value:+d}", image))
    sheet(cells, 8).save(work / "betas.png")
    if not (work / "pose_prior.npz").exists():
        return
    with np.load(work / "pose_prior.npz") as data:
        names, angles = data["named_names"], data["named_angles"]
        samples = data["prior_angles"]
    cells = []
    for name, pose in zip(names, angles, strict=True):
        vertices = posed(model, pose, none)
        cells += [
            (f"{name} {v}", picture(vertices, faces, colour, v, 200))
            for v in ("palm", "thumb", "front")
        ]
    sheet(cells, 9, 200).save(work / "poses.png")
    rng = np.random.default_rng(0)
    cells = []
    for pose in samples[:40].astype(float):
        vertices = posed(model, pose, rng.standard_normal(10))
        cells.append(("", picture(vertices, faces, colour, rng.choice(list(VIEWS)))))
    sheet(cells, 10).save(work / "prior.png")


if __name__ == "__main__":
    main()
