"""A prepared split, scored by its own labels, is the benchmark's ground truth.

Converters and benchmarks read the same published files by themselves; here they have to
agree on samples, order, axes, units and joint order.
"""

import numpy as np
import prepared
import pytest
from miniatures import dexycb, freihand, hint, ho3d_v2, ho3d_v3, interhand26m

from handjax.evaluation import protocols
from handjax.evaluation.protocols import PhotoHands
from handjax.evaluation.protocols import dexycb as dexycb_protocol


def labels_as_predictions(records):
    """What a model that never errs says about the hands of a split."""
    joints3d = np.stack([r["joints3d"] for r in records]).astype(float)
    known = joints3d[..., 3:] > 0
    scale = np.stack([r["crop_scale"] for r in records])[:, None, None]
    joints2d = np.stack([r["joints2d"][:, :2] for r in records]) / scale
    return PhotoHands(
        keys=tuple(r["key"] for r in records),
        joints3d=joints3d[..., :3],
        vertices=np.stack([r["vertices"] for r in records]).astype(float),
        joints2d=joints2d + np.stack([r["crop_origin"] for r in records])[:, None],
        is_right=np.array([r["is_right"] for r in records]),
        truth3d=np.where(known, joints3d[..., :3], np.nan),
    )


def scored(name, make, tmp_path, *, split="test", **settings):
    """Scores of the labels of a prepared miniature, and those hands."""
    source = tmp_path / "source"
    make(source)
    out = prepared.prepare(name, source, tmp_path / "out", splits=[split])
    records = prepared.records(out, split)
    benchmark = protocols.load(name)
    truth = benchmark.read_truth(source, **settings)
    hands = labels_as_predictions(records)
    predictions = benchmark.from_hands(hands, truth)
    procrustes = next(iter(benchmark.alignments), "")
    return benchmark.scores(truth, predictions, procrustes=procrustes), hands, truth


@pytest.mark.parametrize(
    ("name", "maker"),
    [("freihand", freihand), ("ho3d_v2", ho3d_v2), ("ho3d_v3", ho3d_v3)],
)
def test_labels_of_mesh_benchmarks_have_no_error(name, maker, tmp_path):
    found, hands, _ = scored(
        name, lambda root: maker.make(root, ground_truth=True), tmp_path
    )
    errors = {key: s.value for key, s in found.items() if "mean3d" in key}
    assert len(hands.keys) == 2 and len(errors) >= 4
    assert max(errors.values()) < 1e-4  # centimetres, from float32 metres
    shares = [s.value for key, s in found.items() if key.startswith("f_")]
    np.testing.assert_allclose(shares, 1.0)


def test_labels_of_dexycb_have_no_error(tmp_path, monkeypatch):
    # Two subjects of five sequences and the last camera, which setup s2 tests on.
    rows = {("s2", "test"): (range(2), (7,), tuple(range(5)))}
    monkeypatch.setattr(dexycb_protocol, "SEQUENCES", 5)
    monkeypatch.setattr(dexycb_protocol, "SPLITS", rows)
    found, hands, truth = scored(
        "dexycb", dexycb.make, tmp_path, split="s2_test", setup="s2"
    )
    assert found["absolute_mpjpe"].value < 1e-3
    # Two of twenty frames show no hand, and numbers count them nevertheless.
    assert len(truth.ids) == 18
    assert [int(key.split("#")[1]) for key in hands.keys] == truth.ids.tolist()


def test_labels_of_hint_are_all_correct(tmp_path):
    found, hands, truth = scored("hint", hint.make, tmp_path, split="test_newdays")
    assert set(hands.keys) == {f"{n}.jpg" for n in truth["newdays", "all"].names}
    shares = {key: s.value for key, s in found.items() if key.startswith("newdays")}
    assert len(shares) == 9
    assert set(shares.values()) == {1.0}


def test_labels_of_interhand_have_no_error(tmp_path):
    found, hands, _ = scored(
        "interhand26m", lambda root: interhand26m.make(root, "test"), tmp_path
    )
    assert found["mpjpe_all"].value < 1e-3
    assert found["mrrpe"].value < 1e-3
    assert not hands.is_right.all() and hands.is_right.any()
