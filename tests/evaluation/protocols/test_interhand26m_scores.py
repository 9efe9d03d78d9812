"""InterHand2.6M's errors on annotations of its layout."""

import json

import numpy as np
import protocol_hands
import pytest
from scipy.spatial.transform import Rotation

from handjax import evaluate
from handjax.evaluation import protocols
from handjax.evaluation.protocols import PhotoHands, interhand26m
from handjax.evaluation.protocols.interhand26m import Predictions
from handjax.geometry import skeleton

BENCHMARK = protocols.load("interhand26m")
KINDS = ("right", "interacting", "left", "interacting", "interacting")
OURS = np.argsort(skeleton.ORDERS["interhand"])


def camera_joints():
    """(sample, 42, 3) millimetres in the camera, in the data set's order."""
    joints, _ = protocol_hands.hands(2 * len(KINDS))
    hands = 1e3 * joints[:, OURS].reshape(len(KINDS), 2, 21, 3)
    hands[:, 1] += [120, 0, 0]
    return hands.reshape(len(KINDS), 42, 3)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("interhand"), np.random.default_rng(0)
    R = Rotation.random(2, random_state=0).as_matrix()
    position = rng.normal(0, 1000, (2, 3))
    images, annotations, world = [], [], {"0": {}}
    for i, (kind, joints) in enumerate(zip(KINDS, camera_joints(), strict=True)):
        camera = i % 2
        valid = np.ones((42, 1), int)
        if kind == "right":
            valid[21:] = 0
        if kind == "left":
            valid[:21] = 0
        valid[3] = i != 1  # a joint of an interacting hand
        if i == 4:
            valid[41] = 0  # without its wrist the left hand does not count
        points = joints @ R[camera] + position[camera]
        points[valid[:, 0] == 0] = 1.0
        world["0"][str(100 + i)] = {"world_coord": points.tolist()}
        images.append(
            {
                "id": 7 + i,
                "file_name": f"Capture0/seq/cam40000{camera}/image{100 + i}.jpg",
                "capture": 0,
                "camera": f"40000{camera}",
                "frame_idx": 100 + i,
            }
        )
        annotations.append(
            {
                "id": 50 + i,
                "image_id": 7 + i,
                "joint_valid": valid.tolist(),
                "hand_type": kind,
                "hand_type_valid": int(i != 2),
            }
        )
    cameras = {
        "0": {
            "campos": {f"40000{c}": position[c].tolist() for c in range(2)},
            "camrot": {f"40000{c}": R[c].tolist() for c in range(2)},
            "focal": {},
            "princpt": {},
        }
    }
    folder = root / "annotations" / "test"
    folder.mkdir(parents=True)
    for name, value in (
        ("data", {"images": images, "annotations": annotations}),
        ("camera", cameras),
        ("joint_3d", world),
    ):
        (folder / f"InterHand2.6M_test_{name}.json").write_text(json.dumps(value))
    return root


@pytest.fixture(scope="module")
def truth(root):
    return BENCHMARK.read_truth(root)


@pytest.fixture
def guess(truth):
    rng = np.random.default_rng(1)
    joints = camera_joints() + rng.normal(0, 8, (len(KINDS), 42, 3))
    sides = [[0.9, 0.2], [0.8, 0.7], [0.9, 0.9], [0.4, 0.6], [0.6, 0.9]]
    return Predictions(truth.ids, joints, np.array(sides))


def test_joints_come_to_the_camera(truth):
    valid = truth.valid
    np.testing.assert_allclose(
        truth.joints3d[valid], camera_joints()[valid], rtol=0, atol=1e-9
    )
    assert truth.ids.tolist() == [50, 51, 52, 53, 54]
    assert valid.sum(axis=1).tolist() == [21, 41, 21, 42, 21]  # the last without left


def slow(truth, guess):
    """The evaluation's lists, filled joint by joint."""
    single, both = ([[] for _ in range(42)] for _ in range(2))
    roots = []
    for i, kind in enumerate(KINDS):
        a, b = truth.joints3d[i], guess.joints3d[i]
        if kind == "interacting" and truth.valid[i, 20] and truth.valid[i, 41]:
            roots.append(np.linalg.norm((b[41] - b[20]) - (a[41] - a[20])))
        for j in range(42):
            if truth.valid[i, j]:
                wrist = 20 if j < 21 else 41
                off = np.linalg.norm((b[j] - b[wrist]) - (a[j] - a[wrist]))
                (both if kind == "interacting" else single)[j].append(off)

    def mean(lists):
        return np.mean([np.mean(x) for x in lists if x])

    return {
        "mpjpe_all": mean([x + y for x, y in zip(single, both, strict=True)]),
        "mpjpe_single": mean(single),
        "mpjpe_interacting": mean(both),
        "mrrpe": np.mean(roots),
    }


def test_scores_equal_the_slow_reading(truth, guess):
    found = BENCHMARK.scores(truth, guess, procrustes="")
    values = {k: s.value for k, s in found.items()}
    # Side is valid in four samples; the second and the last are told right.
    assert values.pop("handedness_accuracy") == pytest.approx(3 / 4)
    assert values == pytest.approx(slow(truth, guess), rel=0, abs=1e-9)
    assert values["mrrpe"] > 0 and found["mrrpe"].unit == "mm"
    # Roots alone may be anywhere for MPJPE.
    moved = guess._replace(joints3d=guess.joints3d + [0, 0, 500], sides=None)
    again = BENCHMARK.scores(truth, moved, procrustes="")
    assert again["mpjpe_all"].value == pytest.approx(values["mpjpe_all"])
    assert "handedness_accuracy" not in again


def test_zeros_and_perfect_predictions(truth):
    exact = Predictions(truth.ids, truth.joints3d, None)
    found = BENCHMARK.scores(truth, exact, procrustes="")
    assert {s.value for s in found.values()} == {0.0}
    zeros = exact._replace(joints3d=np.zeros_like(truth.joints3d))
    found = BENCHMARK.scores(truth, zeros, procrustes="")
    assert found["mrrpe"].value == pytest.approx(slow(truth, zeros)["mrrpe"])
    assert "all joints in one place" in BENCHMARK.check(zeros)[0]


@pytest.mark.parametrize("suffix", ["npz", "json"])
def test_files_are_read_and_written(truth, guess, tmp_path, suffix):
    path = tmp_path / f"pred.{suffix}"
    joints = guess.joints3d.copy()
    joints[0, 21:] = np.nan  # of a hand that is not there
    if suffix == "npz":
        BENCHMARK.write(path, guess._replace(joints3d=joints))
    else:
        rows = [[None if np.isnan(r).any() else r.tolist() for r in s] for s in joints]
        value = {"annotation_id": guess.ids.tolist(), "joints": rows}
        path.write_text(json.dumps(value | {"hand_type": guess.sides.tolist()}))
    found = BENCHMARK.read_predictions(path)
    np.testing.assert_allclose(found.joints3d, joints, rtol=0, atol=1e-4)
    order = np.array([3, 1, 0, 4, 2])
    shuffled = Predictions(found.ids[order], found.joints3d[order], found.sides[order])
    scores = BENCHMARK.scores(truth, shuffled, procrustes="")
    expected = slow(truth, guess)
    for name, value in expected.items():
        assert scores[name].value == pytest.approx(value, abs=1e-3)
    assert BENCHMARK.check(found) == []
    meters = found._replace(joints3d=found.joints3d / 1e3)
    assert "if the numbers are millimetres" in BENCHMARK.check(meters)[0]


def test_what_is_missing_is_said(truth, guess, tmp_path):
    fewer = Predictions(guess.ids[1:], guess.joints3d[1:], None)
    with pytest.raises(ValueError, match=r"1 of 5 annotations have no prediction.* 50"):
        BENCHMARK.scores(truth, fewer, procrustes="")
    joints = guess.joints3d.copy()
    joints[3, 7, 0] = np.nan
    with pytest.raises(ValueError, match=r"without a prediction.*first annotation 53"):
        BENCHMARK.scores(truth, guess._replace(joints3d=joints), procrustes="")
    path = tmp_path / "pred.npz"
    np.savez(path, annotation_id=[1, 1], joints=np.zeros((2, 42, 3)))
    with pytest.raises(ValueError, match="occurs more than once"):
        BENCHMARK.read_predictions(path)
    np.savez(path, annotation_id=[1, 2], joints=np.zeros((2, 21, 3)))
    with pytest.raises(ValueError, match=r"joints \(2, 21, 3\).*\(sample, 42, 3\)"):
        BENCHMARK.read_predictions(path)
    np.savez(path, joints=np.zeros((2, 42, 3)))
    with pytest.raises(ValueError, match="annotation_id"):
        BENCHMARK.read_predictions(path)
    path.write_bytes(b"PK")
    with pytest.raises(ValueError, match="not a complete npz"):
        BENCHMARK.read_predictions(path)


def test_missing_annotations_are_named(root, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no InterHand2\.6M_val_data\.json"):
        BENCHMARK.read_truth(root, split="val")
    for path in (root / "annotations" / "test").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "InterHand2.6M_test_camera.json").write_text("{}")
    with pytest.raises(ValueError, match=r"do not belong together.*KeyError\('0'\)"):
        BENCHMARK.read_truth(tmp_path)
    (tmp_path / "InterHand2.6M_test_camera.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no InterHand2\.6M_test_camera"):
        BENCHMARK.read_truth(tmp_path)


def test_hands_of_a_picture_come_together(truth):
    """One record a hand, left ones as they are, in another order of joints."""
    joints = truth.joints3d.reshape(-1, 2, 21, 3)[:, :, skeleton.ORDERS["interhand"]]
    chosen = [(0, 0), (1, 1), (1, 0), (2, 1), (3, 0), (3, 1), (4, 0)]
    points = np.array([joints[i, side] for i, side in chosen]) / 1e3
    known = np.array([truth.valid[i].reshape(2, 21)[side] for i, side in chosen])
    known = known[:, skeleton.ORDERS["interhand"]]
    hands = PhotoHands(
        tuple(f"images/test/{truth.file_names[i]}#{side}" for i, side in chosen),
        points + 0.01,
        np.zeros((7, 778, 3)),
        None,
        np.array([side == 0 for _, side in chosen]),
        np.where(known[..., None], points, np.nan),
    )
    made = BENCHMARK.from_hands(hands, truth)
    found = BENCHMARK.scores(truth, made, procrustes="")
    assert found["mpjpe_all"].value == pytest.approx(0, abs=1e-9)
    assert found["mrrpe"].value == pytest.approx(0, abs=1e-9)
    np.testing.assert_allclose(made.joints3d[3], truth.joints3d[3] + 10)
    with pytest.raises(ValueError, match="pass --truth"):
        BENCHMARK.from_hands(hands, None)
    with pytest.raises(ValueError, match="more than once"):
        BENCHMARK.from_hands(hands._replace(is_right=np.ones(7, bool)), truth)
    keys = ("images/test/other.jpg", *hands.keys[1:])
    with pytest.raises(ValueError, match="not a picture of the ground truth"):
        BENCHMARK.from_hands(hands._replace(keys=keys), truth)
    with pytest.raises(ValueError, match="are not where the ground truth"):
        BENCHMARK.from_hands(hands._replace(truth3d=points + 0.02), truth)


def test_command_scores(root, guess, tmp_path, capsys):
    path = tmp_path / "mine.npz"
    BENCHMARK.write(path, guess)
    call = ["--benchmark=interhand26m", f"--predictions={path}", f"--truth={root}"]
    assert evaluate.main(call) == 0
    report = json.loads((tmp_path / "mine_interhand26m.json").read_text())
    assert report["protocol"] == (
        "interhand26m by InterHand2.6M's evaluation, split=test"
    )
    assert {c.key for c in BENCHMARK.columns} < set(report["scores"])
    assert "relative to each wrist" in capsys.readouterr().out
    assert interhand26m.WRISTS == {"right": 20, "left": 41}
