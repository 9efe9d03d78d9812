"""DexYCB's HPE evaluator on a folder of its layout."""

import json

import numpy as np
import protocol_hands
import pytest
from scipy.linalg import orthogonal_procrustes

from handjax import evaluate
from handjax.evaluation import protocols
from handjax.evaluation.protocols import PhotoHands, dexycb

BENCHMARK = protocols.load("dexycb")
DATES = ("20200709", "20200813")


def sequences(root, subject, *, frames=2):
    """A subject's hundred folders, meta.yml where a frame count is needed."""
    for i in range(100):
        folder = (
            root / f"{DATES[subject]}-subject-{subject + 1:02d}" / f"{i:08d}_120000"
        )
        folder.mkdir(parents=True)
        if i % 5 == 4:
            (folder / "meta.yml").write_text(
                f"serials:\n- '{dexycb.SERIALS[0]}'\nnum_frames: {frames + (i == 9)}\n"
                "mano_sides:\n- right\n"
            )


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Validation split of s0: every fifth sequence of two subjects."""
    root = tmp_path_factory.mktemp("dexycb")
    for subject in range(2):
        sequences(root, subject, frames=1)
    joints, _ = protocol_hands.hands(400)
    number = 0
    for subject in range(2):
        for i in range(4, 100, 5):
            (folder,) = root.glob(f"*-subject-{subject + 1:02d}/{i:08d}_120000")
            for serial in dexycb.SERIALS:
                for frame in range(1 + (i == 9)):
                    label = folder / serial / f"labels_{frame:06d}.npz"
                    label.parent.mkdir(exist_ok=True)
                    joint_3d = joints[None, number].astype(np.float32)
                    if number in (3, 20):
                        joint_3d = np.full((1, 21, 3), -1, np.float32)
                    np.savez(label, joint_3d=joint_3d, pose_m=np.zeros((1, 51)))
                    number += 1
    return root


@pytest.fixture(scope="module")
def truth(root):
    return BENCHMARK.read_truth(root, setup="s0", split="val")


def results(path, truth, joints3d):
    lines = [
        ",".join([str(i), *(repr(float(x)) for x in hand.ravel())])
        for i, hand in zip(truth.ids, joints3d, strict=True)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_frames_are_numbered_camera_by_camera(root, truth):
    files = dexycb.label_files(root, "s0", "val")
    # Sequence 4 has one frame of eight cameras, sequence 9 has two.
    assert len(files) == 2 * (20 * 8 + 8)
    names = [f"{p.parts[-3]}/{p.parts[-2]}/{p.name}" for p in files[8:11]]
    assert names == [
        "00000009_120000/836212060125/labels_000000.npz",
        "00000009_120000/836212060125/labels_000001.npz",
        "00000009_120000/839512060362/labels_000000.npz",
    ]
    assert BENCHMARK.count(truth, truth) == (len(files) - 2, len(files) - 2)
    assert not {3, 20} & set(truth.ids.tolist()) and truth.ids[3] == 4
    with np.load(files[4]) as label:
        expected = (label["joint_3d"][0] * 1000).astype(np.float64)
    np.testing.assert_array_equal(truth.joints3d[3], expected)
    assert 300 < truth.joints3d[..., 2].mean() < 1000  # millimetres


def test_setups_choose_subjects_cameras_and_sequences():
    """The table of the facts, spelled out."""
    for (setup, split), (subjects, cameras, sequences_) in dexycb.SPLITS.items():
        expected = {
            ("s0", "val"): ([0, 1], range(8), lambda i: i % 5 == 4),
            ("s0", "test"): (range(2, 10), range(8), lambda i: i % 5 == 4),
            ("s1", "val"): ([6], range(8), lambda i: True),
            ("s1", "test"): ([7, 8], range(8), lambda i: True),
            ("s2", "val"): (range(10), [6], lambda i: True),
            ("s2", "test"): (range(10), [7], lambda i: True),
            ("s3", "val"): (range(10), range(8), lambda i: i // 5 in (3, 19)),
            ("s3", "test"): (range(10), range(8), lambda i: i // 5 in (7, 11, 15)),
        }[setup, split]
        assert list(subjects) == list(expected[0])
        assert list(cameras) == list(expected[1])
        assert list(sequences_) == [i for i in range(100) if expected[2](i)]


def slow_rows(target, prediction):
    """MPJPE and AUC of the evaluator's three rows, a keypoint at a time."""

    def align(a, b):
        am, bm = a.mean(0), b.mean(0)
        an, bn = np.linalg.norm(a - am) + 1e-8, np.linalg.norm(b - bm) + 1e-8
        R, s = orthogonal_procrustes((a - am) / an, (b - bm) / bn)
        return (b - bm) / bn @ R.T * s * an + am

    rows = {
        "absolute": list(zip(target, prediction, strict=True)),
        "root_relative": [
            (a - a[0], b - b[0]) for a, b in zip(target, prediction, strict=True)
        ],
        "procrustes": [
            (a, align(a, b)) for a, b in zip(target, prediction, strict=True)
        ],
    }
    thresholds, found = np.linspace(0, 50, 100), {}
    for name, pairs in rows.items():
        means, areas = [], []
        for k in range(21):
            errors = np.array([np.sqrt(np.sum((a[k] - b[k]) ** 2)) for a, b in pairs])
            curve = [np.mean(errors <= t) for t in thresholds]
            means.append(errors.mean())
            areas.append(np.trapezoid(curve, thresholds) / 50)
        found[f"{name}_mpjpe"], found[f"{name}_auc"] = np.mean(means), np.mean(areas)
    return found


def test_scores_equal_the_slow_reading(truth, tmp_path):
    guess = 1e3 * protocol_hands.guesses(truth.joints3d / 1e3)
    found = BENCHMARK.scores(
        truth,
        BENCHMARK.read_predictions(results(tmp_path / "p.txt", truth, guess)),
        procrustes="freihand",
    )
    expected = slow_rows(truth.joints3d, guess)
    values = {k: s.value for k, s in found.items()}
    assert values == pytest.approx(expected, rel=0, abs=1e-9)
    assert found["root_relative_mpjpe"].protocol == "relative to the wrist"
    assert {s.unit for k, s in found.items() if "mpjpe" in k} == {"mm"}
    metrics = BENCHMARK.metrics(found)
    assert metrics["pa_mpjpe_mm"] == values["procrustes_mpjpe"]
    # Zeros: every joint as far away as it is, and aligned, in the middle.
    zeros = dexycb.Frames(truth.ids, np.zeros_like(truth.joints3d))
    found = BENCHMARK.scores(truth, zeros, procrustes="freihand")
    away = np.linalg.norm(truth.joints3d, axis=-1).mean()
    assert found["absolute_mpjpe"].value == pytest.approx(away)
    middle = truth.joints3d.mean(axis=1, keepdims=True)
    spread = np.linalg.norm(truth.joints3d - middle, axis=-1).mean()
    assert found["procrustes_mpjpe"].value == pytest.approx(spread)
    assert found["absolute_auc"].value == 0


def test_the_order_of_lines_and_other_frames_do_not_matter(truth, tmp_path):
    guess = 1e3 * protocol_hands.guesses(truth.joints3d / 1e3)
    path = results(tmp_path / "p.txt", truth, guess)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[::-1], lines[0].replace("0,", "99999,", 1)]))
    found = BENCHMARK.scores(
        truth, BENCHMARK.read_predictions(path), procrustes="hamer"
    )
    expected = slow_rows(truth.joints3d, guess)
    for name in ("absolute_mpjpe", "procrustes_mpjpe"):  # no hand is mirrored
        assert found[name].value == pytest.approx(expected[name], abs=1e-4)


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda x: x[1:], r"1 of 334 frames .* no prediction, first frame 0"),
        (lambda x: [*x, x[5]], "frame 6 occurs more than once"),
        (lambda x: [x[0] + ",1", *x[1:]], "line 1: 65 comma-separated values.*64"),
        (lambda x: [*x[:3], "a" + x[3]], "line 4: invalid literal"),
        (lambda x: [*x[:3], x[3][: x[3].rindex(",")] + ",nan"], "line 4: holds NaN"),
        (lambda x: [], "holds no line"),
    ],
)
def test_files_that_cannot_be_scored_are_named(truth, tmp_path, spoil, match):
    path = results(tmp_path / "p.txt", truth, truth.joints3d)
    path.write_text("\n".join(spoil(path.read_text().splitlines())))
    with pytest.raises(ValueError, match=match):
        BENCHMARK.scores(truth, BENCHMARK.read_predictions(path), procrustes="metro")


def test_incomplete_data_would_number_frames_differently(tmp_path, root):
    sequences(tmp_path, 0)
    with pytest.raises(FileNotFoundError, match=r"0 folders \*-subject-02"):
        dexycb.label_files(tmp_path, "s0", "val")
    sequences(tmp_path, 1)
    (tmp_path / f"{DATES[1]}-subject-02" / "00000000_120000").rmdir()
    with pytest.raises(ValueError, match="99 sequences; a subject of DexYCB has 100"):
        dexycb.label_files(tmp_path, "s0", "val")
    (tmp_path / f"{DATES[0]}-subject-01" / "00000004_120000" / "meta.yml").unlink()
    with pytest.raises(FileNotFoundError, match=r"meta\.yml is missing"):
        dexycb.label_files(tmp_path, "s0", "val")
    label = dexycb.label_files(root, "s0", "val")[7]
    content = label.read_bytes()
    label.write_bytes(content[:100])
    try:
        with pytest.raises(ValueError, match=r"labels_000000\.npz: no joint_3d"):
            BENCHMARK.read_truth(root, split="val")
        label.unlink()
        with pytest.raises(FileNotFoundError, match="unpack its subject again"):
            BENCHMARK.read_truth(root, split="val")
    finally:
        label.write_bytes(content)


def test_hands_become_numbered_millimetres(truth, tmp_path):
    joints = truth.joints3d / 1e3
    n = len(joints)
    hands = PhotoHands(
        tuple(map(str, truth.ids)),
        joints + 0.001,
        np.zeros((n, 778, 3)),
        None,
        np.ones(n, bool),
        joints,
    )
    with pytest.raises(ValueError, match=r"pass --truth\. DexYCB's own folder"):
        BENCHMARK.from_hands(hands, None)
    made = BENCHMARK.from_hands(hands, truth)
    path = tmp_path / "pred.txt"
    BENCHMARK.write(path, made)
    found = BENCHMARK.read_predictions(path)
    np.testing.assert_array_equal(found.ids, truth.ids)
    np.testing.assert_allclose(found.joints3d, truth.joints3d + 1, atol=1e-4)
    assert BENCHMARK.check(found) == []
    swapped = hands._replace(truth3d=joints[::-1])
    with pytest.raises(ValueError, match="hands of the split are not where the ground"):
        BENCHMARK.from_hands(swapped, truth)
    fewer = hands._replace(keys=hands.keys[:-1])
    with pytest.raises(ValueError, match=r"333 hands.* dexycb 334 samples"):
        BENCHMARK.from_hands(fewer, truth)


def test_command_names_setup_and_split(root, truth, tmp_path, capsys):
    path = results(tmp_path / "mine.txt", truth, truth.joints3d)
    call = ["--benchmark=dexycb", f"--predictions={path}", f"--truth={root}"]
    assert evaluate.main([*call, "--split=val"]) == 0
    report = json.loads((tmp_path / "mine_dexycb_val.json").read_text())
    assert report["protocol"].endswith("setup=s0, split=val")
    assert report["count"] == 334
    row = next(x for x in capsys.readouterr().out.splitlines() if "absolute_mpj" in x)
    assert row.endswith(
        "0.0000 mm  dexycb, procrustes=freihand, setup=s0, split=val, as predicted"
    )
    assert evaluate.main([*call, "--setup=s4"]) == 2
    assert "dexycb has s0, s1, s2, s3" in capsys.readouterr().err
