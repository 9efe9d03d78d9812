"""FID and KID of features, in float64 NumPy."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from handjax.errors import UserError

KID_SUBSETS = 100


KID_SIZE = 1000
"""Rows of each subset, and how many subsets: as the KID paper's released code does
(Binkowski et al., ICLR 2018)."""


Matrix = Float[np.ndarray, "_ _"]
"""Features, one row a picture; the functions compare sizes and say what is wrong."""


class Statistics(NamedTuple):
    """Mean and covariance of features."""

    mean: Float[np.ndarray, "dim"]
    covariance: Float[np.ndarray, "dim dim"]


class Kid(NamedTuple):
    """Kernel distance over random subsets."""

    mean: float
    std: float
    """Over the subsets (population), as papers report it."""
    size: int
    """Rows of each subset."""


def statistics(features: Matrix) -> Statistics:
    """Compute mean and unbiased covariance, in float64.

    Raises:
        ValueError: There are fewer than two rows.
    """
    features = np.asarray(features, np.float64)
    if len(features) < 2:
        raise UserError(
            f"{len(features)} row of features has no covariance; FID needs two or "
            "more, and some thousands to mean much."
        )
    mean = features.mean(axis=0)
    centred = features - mean
    return Statistics(mean, centred.T @ centred / (len(features) - 1))


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """Compute two Gaussians' squared Frechet distance, FID (Heusel et al. 2017).

        |m_a - m_b|^2 + tr(C_a) + tr(C_b) - 2 tr((C_a^1/2 C_b C_a^1/2)^1/2)

    The matrix under the last root is symmetric without negative eigenvalues, unlike
    C_a C_b, so that no root is ever complex and singular covariances need no help.

    Raises:
        ValueError: The dimensions differ.
    """
    if a.mean.shape != b.mean.shape:
        raise UserError(
            f"features have {a.mean.size} and {b.mean.size} dimensions; both must come "
            "from the same network."
        )
    root = _square_root(np.asarray(a.covariance, np.float64))
    inner = root @ np.asarray(b.covariance, np.float64) @ root
    eigenvalues = np.linalg.eigvalsh((inner + inner.T) / 2)
    # Negative ones are rounding.
    cross = np.sqrt(np.clip(eigenvalues, 0, None)).sum()
    shift = np.asarray(a.mean, np.float64) - np.asarray(b.mean, np.float64)
    traces = np.trace(a.covariance) + np.trace(b.covariance)
    return max(float(shift @ shift + traces - 2 * cross), 0.0)


def _square_root(matrix: np.ndarray) -> np.ndarray:
    """Return the symmetric root of a covariance."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T


def fid(real: Matrix, made: Matrix) -> float:
    """Compute the FID of two sets of features (see `frechet_distance`)."""
    return frechet_distance(statistics(real), statistics(made))


def squared_mmd(x: Matrix, y: Matrix) -> float:
    """Estimate the squared maximum mean discrepancy (Gretton et al. 2012, Eq. 3).

        k(a, b) = (a.b / dim + 1)^3
        sum_{i != j} k(x_i, x_j) / (n (n - 1)) + the same of y - 2 mean k(x_i, y_j)

    Being unbiased, it may come out a little below zero.

    Raises:
        ValueError: The dimensions differ, or a set has fewer than two rows.
    """
    _check_pairs(x, y)
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    return float(_within(x) + _within(y) - 2 * _kernel(x, y).mean())


def _check_pairs(x: np.ndarray, y: np.ndarray) -> None:
    if x.shape[1] != y.shape[1]:
        raise UserError(
            f"features have {x.shape[1]} and {y.shape[1]} dimensions; both must come "
            "from the same network."
        )
    if min(len(x), len(y)) < 2:
        raise UserError(
            f"sets of {len(x)} and {len(y)} rows; KID compares pairs, so each needs "
            "two or more."
        )


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _within(x: np.ndarray) -> float:
    """Return the mean kernel of two different rows."""
    values = _kernel(x, x)
    return (values.sum() - np.trace(values)) / (len(x) * (len(x) - 1))


def kid(
    real: Matrix,
    made: Matrix,
    *,
    subsets: int = KID_SUBSETS,
    size: int = KID_SIZE,
    seed: int = 0,
) -> Kid:
    """Compute KID: the mean of `squared_mmd` over random subsets of both sets.

    Args:
        real: Features of real pictures.
        made: Features of made ones.
        subsets: How many are drawn, each without repetition.
        size: Rows of each; fewer where a set has fewer.
        seed: Of the draws.

    Raises:
        ValueError: As `squared_mmd`, or a number that is not positive.
    """
    if subsets < 1 or size < 2:
        raise UserError(
            f"{subsets} subsets of {size} rows; KID needs one or more of two or more."
        )
    _check_pairs(real, made)
    size = min(size, len(real), len(made))
    rng = np.random.default_rng(seed)
    values = [
        squared_mmd(
            real[rng.choice(len(real), size, replace=False)],
            made[rng.choice(len(made), size, replace=False)],
        )
        for _ in range(subsets)
    ]
    return Kid(float(np.mean(values)), float(np.std(values)), size)
