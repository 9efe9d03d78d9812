"""A miniature of h2o3d; see `honnotate`."""

from pathlib import Path

from . import honnotate


def make(root: Path, **options):
    """Write the files; returns the hands of each frame."""
    return honnotate.make(root, suffix=".jpg", two_hands=True, **options)
