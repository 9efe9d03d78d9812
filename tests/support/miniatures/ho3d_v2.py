"""A miniature of ho3d_v2; see `honnotate`."""

from pathlib import Path

from . import honnotate


def make(root: Path, **options):
    """Write the files; returns the hands of each frame."""
    return honnotate.make(root, suffix=".png", two_hands=False, **options)
