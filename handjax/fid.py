"""Compare made pictures with real ones by their features: FID and KID.

    python -m handjax.fid --real real.npy --made made.npy
    python -m handjax.fid --real real.npz --made made.safetensors --kid_size 500

The files hold features of some image network, one row a picture; which network is up to
the user, for it decides the numbers (papers use Inception-v3's 2,048 pooled features).
pytorch-fid and clean-fid compute such features: save their array with `numpy.save`.
pytorch-fid's `--save-stats` files, an npz of `mu` and `sigma`, do for FID alone.

Standard output gets one JSON object a line (metric, value, std, ...), standard error
what to be careful about. The functions are NumPy in float64. FID-H and KID-H of MMHMR's
paper (its Table 13) are these numbers on crops of hands.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from handjax.errors import UserError
from handjax.io import array_files, command_line
from handjax.io.command_line import Parser, at_least
from handjax.metrics.fid import (
    KID_SIZE,
    KID_SUBSETS,
    Statistics,
    frechet_distance,
    kid,
    statistics,
)

# --- files --------------------------------------------------------------------------


def read(path: str | Path) -> np.ndarray | Statistics:
    """Read a file's features (row, dim) in float64, or its statistics.

    `.npy` is the array itself. `.npz` and `.safetensors` have it under "features", or
    as their only array; an npz of `mu` and `sigma` holds statistics.

    Raises:
        UserError: It is damaged, or holds no such array, or values not finite.
        OSError: It cannot be read.
    """
    path = Path(path)
    arrays = _arrays(path)
    if {"mu", "sigma"} <= set(arrays):
        found = Statistics(*(_finite(path, arrays[name]) for name in ("mu", "sigma")))
        if found.covariance.shape != (found.mean.size,) * 2:
            raise UserError(
                f"{path}: mu has shape {found.mean.shape} and sigma "
                f"{found.covariance.shape}; they must be (dim,) and (dim, dim)."
            )
        return found
    name = "features" if "features" in arrays else next(iter(arrays), "")
    if not arrays or (len(arrays) > 1 and name != "features"):
        raise UserError(
            f"{path}: holds arrays {sorted(arrays)}; keep one, or call it 'features'."
        )
    features = _finite(path, arrays[name])
    if features.ndim != 2 or not features.size:
        raise UserError(
            f"{path}: features of shape {features.shape}; one row a picture is needed, "
            "(row, dim). Average or flatten maps first."
        )
    return features


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        if path.suffix == ".safetensors":
            from handjax.io import torch_files

            return torch_files.read(path)
        if path.suffix not in (".npy", ".npz"):
            raise UserError("allowed are .npy, .npz and .safetensors")
        if path.suffix == ".npy":
            return {"features": array_files.load_npy(path)}
        return array_files.load_npz(path)
    except UserError as error:
        raise UserError(f"{path}: no file of features: {error}") from error


def _finite(path: Path, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "fiu":
        raise UserError(f"{path}: holds {array.dtype}; features are numbers.")
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise UserError(
            f"{path}: {np.count_nonzero(~np.isfinite(array)):,} values are not finite; "
            "compute the features again."
        )
    return array


# --- entry --------------------------------------------------------------------------


def _parser() -> Parser:
    parser = Parser("fid", __doc__)
    add = parser.add_argument
    add("--real", required=True, help="file of features of real pictures")
    add("--made", required=True, help="file of features of made pictures")
    add("--kid_subsets", type=at_least(1), default=KID_SUBSETS, help="subsets of KID")
    add("--kid_size", type=at_least(2), default=KID_SIZE, help="rows of each subset")
    add("--seed", type=at_least(0), default=0, help="of KID's subsets, 0 or more")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Compare two files of features; return the exit code."""
    return command_line.run(lambda: _compare(_parser().parse_args(argv)))


def _compare(arguments: argparse.Namespace) -> None:
    for result in run(arguments):
        print(json.dumps(result))


def run(arguments: argparse.Namespace) -> list[dict]:
    """Return one dict per printed line; KID only where both files hold features."""
    files = {"real": arguments.real, "made": arguments.made}
    found = {name: read(path) for name, path in files.items()}
    known = [x if isinstance(x, Statistics) else statistics(x) for x in found.values()]
    distance = frechet_distance(known[0], known[1])
    context = {
        "dim": known[0].mean.size,
        **{f"{k}_rows": _rows(x) for k, x in found.items()},
        **files,
        "versions": {"numpy": np.__version__},
    }
    results = [{"metric": "fid", "value": distance, "std": None, **context}]
    real, made = found.values()
    if isinstance(real, Statistics) or isinstance(made, Statistics):
        print("KID needs features, not mu and sigma: left out.", file=sys.stderr)
        return results
    if min(len(real), len(made)) <= real.shape[1]:
        print(
            f"{len(real):,} and {len(made):,} rows of {real.shape[1]:,} dimensions: "
            "with so few FID comes out too high; compare only with the same numbers "
            "of rows, or use KID, which is unbiased.",
            file=sys.stderr,
        )
    options = {"subsets": arguments.kid_subsets, "seed": arguments.seed}
    value = kid(real, made, size=arguments.kid_size, **options)
    options["size"] = value.size
    result = {"metric": "kid", "value": value.mean, "std": value.std}
    return [*results, {**result, **options, **context}]


def _rows(found: np.ndarray | Statistics) -> int | None:
    return None if isinstance(found, Statistics) else len(found)


if __name__ == "__main__":
    sys.exit(main())
