"""Rebuild the open hand, its pose prior and, with --hdri, the environment maps.

Usage: python scripts/open_hand/rebuild.py --work DIR [--hdri DIR]
Writes open_hand.npz, open_hand_render.npz, pose_prior.npz (and envs.npz) into DIR.
"""

import argparse
import os
import pathlib
import sys

import numpy as np


def _save(path, arrays):
    """Write atomically: a stopped rebuild leaves no half file."""
    partial = path.with_suffix(".partial.npz")
    np.savez_compressed(partial, **arrays)
    os.replace(partial, path)
    print(f"wrote {path} ({path.stat().st_size / 1e6:.2f} MB)", flush=True)


def main():
    """Run every step in order."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument(
        "--hdri",
        type=pathlib.Path,
        help="folder package/hdri of npm @pmndrs/assets 1.7.0, unpacked",
    )
    arguments = parser.parse_args()
    if arguments.hdri and not any(arguments.hdri.glob("*.js")):
        sys.exit(
            f"--hdri {arguments.hdri}: holds no .js files; unpack the npm archive "
            "pmndrs-assets-1.7.0.tgz and name its folder package/hdri"
        )
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.hdri:
        import environments

        maps = environments.convert(arguments.hdri)
        _save(arguments.work / "envs.npz", maps)
    _rebuild_hand(arguments.work)


def _rebuild_hand(work):
    import collisions
    import model
    import prior
    import refine
    import shapes
    import source

    hand, sample = source.load()
    vertices, joints = shapes.population(hand, *sample(seed=0))
    mean, fields, names, shares = shapes.shape_space(hand, vertices, joints)
    print(f"sampled adults: variance shares {np.round(shares[:6], 3)}", flush=True)
    arrays, render = model.assemble(hand, mean, fields, names)
    posed = collisions.PosedModel(arrays)
    named, named_angles = refine.named_angles(
        posed, lambda line: print(line, flush=True)
    )
    angles, accepted = prior.samples(posed, named_angles)
    print(f"prior: {accepted:.0%} of the proposals accepted", flush=True)
    arrays |= prior.pose_components(posed, angles)
    _save(work / "open_hand.npz", arrays)
    _save(work / "open_hand_render.npz", render)
    poses = {
        "named_names": named,
        "named_angles": named_angles.astype(np.float32),
        "prior_angles": angles.astype(np.float16),
    }
    _save(work / "pose_prior.npz", poses)


if __name__ == "__main__":
    main()
