"""Make `handjax/assets/landmark_pairs.npz` from rendered hands.

    python -m data_pipelines.synthetic --out DIR --num 3000 --seed 7
    python scripts/make_landmark_pairs.py DIR handjax/assets/landmark_pairs.npz

Each picture is read twice: in its true region, jittered and recoloured, and in the
region that the first reading gives. Readings with a presence below 0.3 are left out.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from data_pipelines.storage import shards
from handjax.detection.hand_detector import LandmarkReader
from handjax.detection.regions import (
    Region,
    crop_region,
    landmark_region,
    region_homography,
)
from handjax.geometry import crop
from handjax.mano.hand_model import HandModel
from handjax.nn import landmark_noise

PRESENT = 0.3


def main() -> None:
    """Read all pictures and write the pairs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", type=Path, help="data set of rendered hands")
    parser.add_argument("out", type=Path, help="npz to write")
    parser.add_argument("--seed", type=int, default=0, help="of the jitter")
    args = parser.parse_args()
    reader = LandmarkReader()
    records = shards.open_split(args.pictures, "train")
    rng = np.random.default_rng(args.seed)
    rows = []
    for start in range(0, len(records), 8):
        group = [records[i] for i in range(start, min(start + 8, len(records)))]
        rows += readings(reader, group, rng)
        if start % 400 == 0:
            print(f"{start + len(group)} of {len(records)} pictures", flush=True)
    columns = [np.stack(column) for column in zip(*rows, strict=True)]
    landmark_noise.save_pairs(args.out, pairs_of(*columns))


def readings(reader, records, rng) -> list[tuple]:
    """Read each picture in two regions: rows (pose, betas, screen, world, presence)."""
    images = [_image(record) for record in records]
    regions = [jittered(record["joints2d"][:, :2], rng) for record in records]
    rows = []
    for recolour in (True, False):
        seen = [recoloured(image, rng) if recolour else image for image in images]
        crops = [crop_region(*x) for x in zip(seen, regions, strict=True)]
        found = reader(np.stack(crops))
        for i, record in enumerate(records):
            if found.presence[i] < PRESENT:
                continue
            rows.append(
                (
                    turned_pose(record, regions[i]),
                    record["mano_betas"],
                    found.screen_px[i],
                    found.world[i],
                    found.presence[i],
                )
            )
            back = np.linalg.inv(region_homography(regions[i]))
            points = crop.warp_points(back, found.screen_px[i, :, :2])
            regions[i] = landmark_region(points)
    return rows


def jittered(points_px: np.ndarray, rng) -> Region:
    """Return the region of true joints: 11 degrees, 10 % and 4 % off."""
    region = landmark_region(points_px.astype(np.float64))
    size = region.size_px * np.exp(rng.normal(0, 0.1))
    return Region(
        region.centre_px + rng.normal(0, 0.04, 2) * size,
        float(size),
        region.angle + float(rng.normal(0, 0.2)),
    )


def recoloured(image: np.ndarray, rng) -> np.ndarray:
    """Return a picture in another light, with a little noise."""
    gain = np.exp(rng.normal(0, 0.15, 3) + rng.normal(0, 0.2))
    noisy = image * gain + rng.normal(0, 4, image.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def turned_pose(record, region: Region) -> np.ndarray:
    """Return the pose in the axes of a camera turned to the region, upright."""
    ray = np.linalg.solve(record["K"].astype(np.float64), [*region.centre_px, 1.0])
    turn = Rotation.from_euler("z", -region.angle) * shortest(ray)
    pose = record["mano_pose"].reshape(16, 3).astype(np.float64)
    pose[0] = (turn * Rotation.from_rotvec(pose[0])).as_rotvec()
    return pose.astype(np.float32)


def shortest(ray: np.ndarray) -> Rotation:
    """Return the shortest turn that brings a ray to the optical axis."""
    ray = ray / np.linalg.norm(ray)
    axis = np.cross(ray, [0, 0, 1.0])
    length = np.linalg.norm(axis)
    angle = np.arctan2(length, ray[2])
    return Rotation.from_rotvec(axis / max(length, 1e-12) * angle)


def pairs_of(mano_pose, betas, screen, world, presence) -> landmark_noise.Pairs:
    """Return the pairs, with the joints of the built-in hand in these poses."""
    hand = HandModel.load("open")
    posed = hand.with_shape(betas).with_pose(mano_pose[:, 0], mano_pose[:, 1:])
    joints = np.asarray(posed.joints3d)
    landmarks = landmark_noise.Landmarks(screen, world, presence)
    return landmark_noise.Pairs(
        mano_pose, betas, joints - joints[:, 9, None], landmarks
    )


def _image(record) -> np.ndarray:
    encoded = np.frombuffer(record["image"], np.uint8)
    return cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB)


if __name__ == "__main__":
    main()
