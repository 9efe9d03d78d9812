"""The panel of a codebook in training."""

import json

import numpy as np
import pytest

from handjax.training import codebook_curves


def _codebook(codes):
    return {"codebook": {"tokenizer": {"vq": {"embedding": np.asarray(codes)}}}}


def test_the_nearest_pair_is_in_units_of_the_spread():
    codes = np.array([[0.0, 0], [0, 4], [4, 0], [4, 3]])
    spread = np.sqrt(np.mean(np.sum((codes - codes.mean(0)) ** 2, 1)))
    for scale in (1.0, 100.0):
        found = codebook_curves.nearest_pair(_codebook(scale * codes))
        assert found == pytest.approx(3 / spread)
    assert codebook_curves.nearest_pair(_codebook(codes[[0, 1, 1]])) == 0
    assert codebook_curves.nearest_pair({"params": {}}) is None


def test_the_panel_shows_the_stage_that_trains_a_codebook(tmp_path):
    lines = [
        {"stage": "tokenizer", "step": n, "usage": n / 9, "perplexity": 2.0 * n}
        for n in range(1, 9)
    ]
    lines += [{"stage": "tokenizer", "step": 4, "nearest_pair": 0.25}]
    lines += [{"stage": "mesh", "step": 4, "loss": 1.0}]
    path = tmp_path / "metrics.jsonl"
    text = "\n".join(json.dumps(line) for line in lines)
    path.write_text(text + '\n{"stage": "tok')
    picture = codebook_curves.panel(path, "tokenizer")
    assert picture is not None and picture.shape == (220, 1100, 3)
    blue = (picture[..., 2] > picture[..., 0].astype(int) + 60).any(axis=0)
    # Curves of the first two, a point in the last, nothing in the two between.
    drawn = [blue[n * 220 + 30 : (n + 1) * 220].any() for n in range(5)]
    assert drawn == [True, True, False, False, True]
    assert codebook_curves.panel(path, "mesh") is None
    assert codebook_curves.panel(tmp_path / "none.jsonl", "tokenizer") is None
