"""HaMeR's PCK on HInt's folders and on HaMeR's evaluation files."""

import json

import numpy as np
import pytest

from handjax import evaluate
from handjax.evaluation import protocols
from handjax.evaluation.protocols import PhotoHands, hint
from handjax.geometry import skeleton

BENCHMARK = protocols.load("hint")
FOLDERS = ("TEST_newdays_img", "TEST_epick_img", "TEST_ego4d_img")


def flat_hand(rng):
    """A hand of bones in the picture: fingers fan out from the wrist."""
    angles = np.linspace(-1, 1, 5) + rng.uniform(-3, 3)
    lengths = rng.uniform(30, 60) * np.array([1, 1.6, 2.0, 2.3])
    rays = np.stack([np.cos(angles), np.sin(angles)], -1)
    fingers = rays[:, None] * lengths[None, :, None]
    joints = np.concatenate([np.zeros((1, 2)), fingers.reshape(20, 2)])
    return joints + rng.uniform(200, 400, 2)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three pictures of each source; one frame of Ego4D was never cut out."""
    rng, root, labels = np.random.default_rng(0), tmp_path_factory.mktemp("hint"), {}
    for folder in FOLDERS:
        (root / folder).mkdir()
        for i in range(3):
            joints = flat_hand(rng)
            low, high = joints.min(0) - 5, joints.max(0) + 5
            label = {
                "keypoints": joints.tolist(),
                "occlusion": rng.integers(0, 2, 21).tolist(),
                "bbox": [[*low, *high]],
            }
            name = f"{folder}/ND_{i}_{'lr'[i % 2]}"
            (root / f"{name}.json").write_text(json.dumps([label]))
            if (folder, i) != (FOLDERS[2], 2):
                (root / f"{name}.jpg").write_bytes(b"picture")
            labels[name] = label
    return root, labels


@pytest.fixture
def guesses(data):
    rng = np.random.default_rng(1)
    return {
        name: np.array(label["keypoints"]) + rng.normal(0, 12, (21, 2))
        for name, label in data[1].items()
    }


def slow_pck(labels, guesses, folder, kind, threshold):
    """Joint by joint, picture by picture."""
    shares = []
    for k in range(21):
        correct = counted = 0
        for name, label in labels.items():
            if not name.startswith(folder):
                continue
            occluded = bool(label["occlusion"][k])
            if kind != "all" and occluded != (kind == "occluded"):
                continue
            x0, y0, x1, y1 = label["bbox"][0]
            off = np.hypot(*(guesses[name][k] - label["keypoints"][k]))
            counted += 1
            correct += off <= threshold * max(x1 - x0, y1 - y0)
        if counted:
            shares.append(correct / counted)
    return np.mean(shares)


def test_shares_equal_the_slow_reading(data, guesses):
    truth = BENCHMARK.read_truth(data[0])
    found = BENCHMARK.scores(truth, guesses, procrustes="")
    assert len(found) == 3 * 3 * 3
    for folder, source in zip(FOLDERS, ("newdays", "visor", "ego4d"), strict=True):
        for kind in ("all", "visible", "occluded"):
            for threshold in (0.05, 0.1, 0.15):
                expected = slow_pck(data[1], guesses, folder, kind, threshold)
                score = found[f"{source}_{kind}_pck_{threshold:g}"]
                assert score.value == pytest.approx(expected, rel=0, abs=1e-12)
                assert kind in score.protocol
    assert 0 < found["newdays_all_pck_0.05"].value < found["newdays_all_pck_0.15"].value
    assert BENCHMARK.count(truth, guesses) == (9, 9)
    assert {c.key for c in BENCHMARK.columns} == set(found)


def test_a_joint_at_the_threshold_is_correct():
    target = np.zeros((1, 21, 2))
    guess = np.full((1, 21, 2), [6.0, 8.0])  # ten pixels off
    sides, counted = np.array([100.0]), np.ones((1, 21), bool)
    assert hint.pck(target, guess, sides, counted, 0.1) == 1
    assert hint.pck(target, guess, sides * 0.999, counted, 0.1) == 0
    assert hint.pck(target, guess, sides, ~counted, 0.1) is None
    counted[0, 5:] = False  # joints that are nowhere annotated do not count
    assert hint.pck(target, guess, sides, counted, 0.1) == 1


def test_evaluation_files_of_hamer_give_the_same(data, guesses, tmp_path):
    """The confidences of their three files say what the data set's occlusion says."""
    root, labels = data
    for folder in FOLDERS:
        rows = {n: x for n, x in labels.items() if n.startswith(folder)}
        joints = np.array([x["keypoints"] for x in rows.values()])
        occluded = np.array([x["occlusion"] for x in rows.values()])
        corners = np.array([x["bbox"][0] for x in rows.values()])
        for short, confidence in (
            ("all", np.ones_like(occluded)),
            ("vis", 1 - occluded),
            ("occ", occluded),
        ):
            names = [f"{n.split('/')[1]}.jpg" for n in rows]
            np.savez(
                tmp_path / f"{folder}_{short}.npz",
                # HaMeR's own files have objects here, which are pickles.
                imgname=np.array(names, object if short == "vis" else str),
                center=(corners[:, :2] + corners[:, 2:]) / 2,
                scale=corners[:, 2:] - corners[:, :2],
                hand_keypoints_2d=np.concatenate([joints, confidence[..., None]], -1),
            )
    expected = BENCHMARK.scores(BENCHMARK.read_truth(root), guesses, procrustes="")
    truth = BENCHMARK.read_truth(tmp_path)
    assert BENCHMARK.scores(truth, guesses, procrustes="") == expected


def test_frames_that_nobody_has_are_counted_and_left_out(data, guesses):
    truth = BENCHMARK.read_truth(data[0])
    whole = BENCHMARK.scores(truth, guesses, procrustes="")
    gone = "TEST_ego4d_img/ND_2_l"
    fewer = {k: v for k, v in guesses.items() if k != gone}
    found = BENCHMARK.scores(truth, fewer, procrustes="")
    assert BENCHMARK.count(truth, fewer) == (8, 9)
    assert found["newdays_all_pck_0.1"] == whole["newdays_all_pck_0.1"]
    rest = {k: v for k, v in data[1].items() if k != gone}
    expected = slow_pck(rest, guesses, FOLDERS[2], "all", 0.1)
    assert found["ego4d_all_pck_0.1"].value == pytest.approx(expected)
    del fewer["TEST_newdays_img/ND_1_r"]
    with pytest.raises(
        ValueError, match="1 pictures have no prediction, first 'TEST_n"
    ):
        BENCHMARK.scores(truth, fewer, procrustes="")


def test_a_source_can_be_scored_alone(data, guesses):
    truth = BENCHMARK.read_truth(data[0])
    whole = BENCHMARK.scores(truth, guesses, procrustes="")
    part = {k: v for k, v in guesses.items() if "newdays" in k}
    found = BENCHMARK.scores(truth, part, procrustes="")
    assert found == {k: v for k, v in whole.items() if k.startswith("newdays")}
    with pytest.raises(ValueError, match="8 pictures have no prediction"):
        BENCHMARK.scores(
            truth, {"TEST_newdays_img/other": np.ones((21, 2))}, procrustes=""
        )


def test_degenerate_predictions_score_nothing(data):
    truth = BENCHMARK.read_truth(data[0])
    zeros = {name: np.zeros((21, 2)) for name in data[1]}
    found = BENCHMARK.scores(truth, zeros, procrustes="")
    assert {score.value for score in found.values()} == {0.0}
    assert "all joints in one place" in BENCHMARK.check(zeros)[0]


def test_what_is_written_can_be_read(data, guesses, tmp_path):
    path = tmp_path / "pred.json"
    BENCHMARK.write(path, guesses)
    found = BENCHMARK.read_predictions(path)
    assert sorted(found) == sorted(guesses) and BENCHMARK.check(found) == []
    for name, joints2d in guesses.items():
        np.testing.assert_allclose(found[name], joints2d, rtol=0, atol=0.51e-3)
    small = {name: joints2d / 500 for name, joints2d in guesses.items()}
    assert "smaller than 2" in BENCHMARK.check(small)[0]
    order = np.argsort(skeleton.ORDERS["mano"])
    turned = {name: joints2d[order] for name, joints2d in guesses.items()}
    assert "'mano'" in BENCHMARK.check(turned)[0]


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ([], "holds no pictures"),
        ({"TEST_newdays_img/a": [[0, 1]] * 20}, r"no 21 rows of x, y.*\(20, 2\)"),
        ({"a": [["x", 1]] * 21}, "no 21 rows"),
        ({"a": [[float("nan"), 1]] * 21}, "'a' holds NaN"),
        ({"a": [[0, 1]] * 21, "a.jpg": [[0, 1]] * 21}, "'a' occurs more than"),
    ],
)
def test_other_formats_are_refused(tmp_path, value, match):
    path = tmp_path / "pred.json"
    path.write_text(json.dumps(value))
    with pytest.raises(ValueError, match=match):
        BENCHMARK.read_predictions(path)


def test_damaged_labels_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder TEST_\*_img"):
        BENCHMARK.read_truth(tmp_path)
    folder = tmp_path / "VAL_newdays_img"
    folder.mkdir()
    (folder / "ND_1_l.json").write_text(json.dumps([{"keypoints": [[0, 1]] * 20}]))
    with pytest.raises(ValueError, match=r"ND_1_l\.json: no list of one hand"):
        BENCHMARK.read_truth(tmp_path, split="val")
    for bbox in ([9, 9, 2, 2], [1, 2, 1, 9], [1, 2, 3, float("nan")]):
        label = {"keypoints": [[0, 1]] * 21, "occlusion": [0] * 21, "bbox": [bbox]}
        (folder / "ND_1_l.json").write_text(json.dumps([label]))
        with pytest.raises(ValueError, match=r"ND_1_l\.json: bbox .* is not x1"):
            BENCHMARK.read_truth(tmp_path, split="val")


def test_records_are_named_by_their_pictures():
    joints2d = np.arange(84.0).reshape(2, 21, 2)
    keys = ("HInt/TEST_newdays_img/ND_1_l.jpg", "TEST_epick_img/EK_0.jpg#0")
    zeros = np.zeros((2, 21, 3))
    hands = PhotoHands(keys, zeros, zeros, joints2d, np.ones(2, bool), zeros)
    found = BENCHMARK.from_hands(hands, None)
    assert list(found) == ["TEST_newdays_img/ND_1_l", "TEST_epick_img/EK_0"]
    np.testing.assert_array_equal(found["TEST_epick_img/EK_0"], joints2d[1])
    with pytest.raises(ValueError, match="predicts none"):
        BENCHMARK.from_hands(hands._replace(joints2d=None), None)
    with pytest.raises(ValueError, match="'a/b' names no picture of HInt"):
        BENCHMARK.from_hands(hands._replace(keys=("a/b", "c")), None)


def test_command_scores_and_has_no_alignment(data, guesses, tmp_path, capsys):
    path = tmp_path / "mine.json"
    del guesses["TEST_ego4d_img/ND_2_l"]
    BENCHMARK.write(path, guesses)
    call = ["--benchmark=hint", f"--predictions={path}", f"--truth={data[0]}"]
    assert evaluate.main(call) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("hint by HaMeR's PCK, split=test: 8 of 9 samples")
    report = json.loads((tmp_path / "mine_hint.json").read_text())
    assert report["metrics"] == {} and report["annotated"] == 9
    assert evaluate.main([*call, "--procrustes=proper"]) == 2
    assert "hint aligns nothing" in capsys.readouterr().err
