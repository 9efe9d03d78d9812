"""What the tests of all data sets do with a miniature."""

import shutil
from pathlib import Path

import numpy as np

from data_pipelines import check
from data_pipelines.preparation import job
from data_pipelines.sources import conventions
from data_pipelines.storage import shards


def prepare(name, source, out, **options):
    """Prepare with the built-in hand in MANO's place; returns the directory."""
    return job.prepare(name, source, out, hand="open", **options)


def records(directory, split="train"):
    """All records of a split."""
    opened = shards.open_split(directory, split)
    return [opened[index] for index in range(len(opened))]


def reposed_mm(directory, split="train"):
    """Largest distance of re-posed joints and vertices, by side and quantity."""
    name = shards.read_metadata(directory)["name"]
    models = conventions.load_models(name, "open")
    found = check.findings(split, records(directory, split), models)
    return {(f.side, f.quantity): f.largest for f in found}


def contents(directory):
    """Bytes of every file that a data set consists of."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(Path(directory).rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def same_hand(record, hand, *, atol=1e-5):
    """The record has the hand's 3-D (it stands in the same camera)."""
    np.testing.assert_allclose(record["joints3d"][:, :3], hand.joints3d, atol=atol)
    assert (record["joints3d"][:, 3] == 1).all()
    assert record["is_right"] == hand.is_right


def same_parameters(record, hand, *, atol=1e-5):
    """The record has the hand's MANO parameters."""
    np.testing.assert_allclose(record["mano_pose"], hand.pose, atol=atol)
    np.testing.assert_allclose(record["mano_betas"], hand.betas, atol=atol)
    np.testing.assert_allclose(record["mano_transl"], hand.transl, atol=atol)


def copy(source, target):
    """A miniature that a test may damage."""
    return Path(shutil.copytree(source, target))
