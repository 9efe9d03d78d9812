import numpy as np
import pytest

from handjax import evaluate, mean_hand
from handjax.stages import Stage
from handjax.types import Batch, HandOutput


def batches(num=3, size=4):
    rng = np.random.default_rng(0)
    for i in range(num):
        vertices = rng.normal(0, 0.03, (size, 778, 3)).astype(np.float32)
        yes = np.ones(size, bool)
        fields = dict.fromkeys(Batch._fields)
        fields.update(
            vertices=vertices - vertices[:, 9:10],
            joints3d=(vertices - vertices[:, 9:10])[:, :21],
            joints3d_valid=yes,
            vertices_valid=yes,
            example_valid=yes if i < num - 1 else np.arange(size) < 1,
        )
        yield Batch(**fields)


def off_by(model, variables, batch):
    """A "model" whose answer is `variables` metres off in the vertices' x."""
    off = variables * np.array([1.0, 0, 0], np.float32)[None, None]
    return HandOutput(batch.vertices + off, batch.joints3d, logits=None)


STAGE = Stage("mesh", None, off_by, ".*", needs_image=True)


def test_evaluate_stage_counts_hands_and_measures_both():
    done = []
    report = evaluate.evaluate_stage(
        None,
        np.float32(0.01),
        STAGE,
        batches(),
        root=9,
        mean_hand=mean_hand.fit(batches()),
        on_batch=done.append,
    )
    assert report["count"] == 9 and done == [4, 8, 9]
    assert report["metrics"]["mpvpe_mm"] == pytest.approx(10, rel=1e-5)
    assert report["metrics"]["pa_mpvpe_mm"] == pytest.approx(0, abs=1e-3)
    assert report["metrics"]["mpjpe_mm"] == pytest.approx(0, abs=1e-4)
    assert report["metrics"]["f5"] == 1
    assert report["baseline"]["mean_hand"]["pa_mpvpe_mm"] > 10
