"""scores.txt of FreiHAND and HO3D, against a slow reading of what the scripts do."""

import numpy as np
import protocol_hands
import pytest
from scipy.linalg import orthogonal_procrustes

from handjax.evaluation.protocols import mesh_scores
from handjax.evaluation.protocols.mesh_scores import Meshes, Names

FREIHAND, HO3D = Names("xyz_al"), Names("xyz_procrustes_al", (4, 0))


class Points:
    """Errors of each point over the samples: one row a sample."""

    def __init__(self):
        self.errors = []

    def feed(self, target, prediction):
        self.errors.append([np.sqrt(np.sum(np.square(d))) for d in target - prediction])

    def measures(self):
        thresholds = np.linspace(0, 0.05, 100)
        means, areas = [], []
        for errors in np.array(self.errors).T:
            means.append(np.mean(errors))
            curve = np.mean(errors[:, None] <= thresholds, axis=0)
            areas.append(np.trapezoid(curve, thresholds) / 0.05)
        return 100 * np.mean(means), np.mean(areas)


def transform(target, prediction):
    size = np.linalg.norm(target - target.mean(0)) + 1e-8
    normed = [x - x.mean(0) for x in (target, prediction)]
    normed = [x / (np.linalg.norm(x) + 1e-8) for x in normed]
    R, s = orthogonal_procrustes(*normed)
    return R, s, size, normed[1]


def align(target, prediction):
    R, s, size, normed = transform(target, prediction)
    return normed @ R.T * s * size + target.mean(0)


def f_score(target, prediction, threshold):
    apart = np.linalg.norm(target[:, None] - prediction[None], axis=-1)
    one = np.mean(apart.min(axis=1) < threshold)
    other = np.mean(apart.min(axis=0) < threshold)
    return 2 * one * other / (one + other) if one + other > 0 else 0


def slow_scores(truth, predictions, names):
    xyz, xyz_al, xyz_st, mesh, mesh_al = (Points() for _ in range(5))
    f = {k: [] for k in ("f_score_5", "f_al_score_5", "f_score_15", "f_al_score_15")}
    corresponding = len(predictions.vertices[0]) == len(truth.vertices[0])
    for i in range(truth.count):
        joints, guess = truth.joints3d[i], predictions.joints3d[i]
        verts, verts_guess = truth.vertices[i], np.asarray(predictions.vertices[i])
        xyz.feed(joints, guess)
        xyz_al.feed(joints, align(joints, guess))
        if names.scale_trans:
            moved = guess.copy()
            size = np.sqrt(np.sum((moved[4] - moved[0]) ** 2))
            if size > 0:
                moved = moved / size
            moved = moved * np.sqrt(np.sum((joints[4] - joints[0]) ** 2))
            xyz_st.feed(joints, moved - moved[0] + joints[0])
        if corresponding:
            aligned = align(verts, verts_guess)
            mesh.feed(verts, verts_guess)
            mesh_al.feed(verts, aligned)
        else:
            R, s, size, _ = transform(joints, guess)
            middle = verts_guess.mean(0)
            shift = joints.mean(0) - guess.mean(0)
            aligned = (verts_guess - middle) @ R.T * s * size + shift + middle
        for mm in (5, 15):
            f[f"f_score_{mm}"].append(f_score(verts, verts_guess, mm / 1000))
            f[f"f_al_score_{mm}"].append(f_score(verts, aligned, mm / 1000))
    found = {}
    for name, points in (
        ("xyz", xyz),
        (names.aligned, xyz_al),
        ("xyz_scale_trans_al", xyz_st),
        ("mesh", mesh),
        ("mesh_al", mesh_al),
    ):
        if points.errors:
            found[f"{name}_mean3d"], found[f"{name}_auc3d"] = points.measures()
        elif name.startswith("mesh"):
            found[f"{name}_mean3d"], found[f"{name}_auc3d"] = -100, -1
    return found | {name: np.mean(values) for name, values in f.items()}


def both(truth, predictions, names, procrustes="freihand"):
    fast = mesh_scores.scores(truth, predictions, names=names, procrustes=procrustes)
    slow = slow_scores(truth, predictions, names)
    return {k: s.value for k, s in fast.items()}, slow


@pytest.fixture(scope="module")
def truth():
    return Meshes(*protocol_hands.hands(3))


@pytest.mark.parametrize("names", [FREIHAND, HO3D])
def test_every_key_equals_the_slow_reading(truth, names):
    guess = Meshes(*(protocol_hands.guesses(x) for x in truth))
    guess.joints3d[1] *= [-1, 1, 1]  # its best alignment is a reflection
    guess.vertices[1] *= [-1, 1, 1]
    fast, slow = both(truth, guess, names)
    assert list(fast) == list(slow) and len(fast) == (12 if names is FREIHAND else 14)
    assert fast == pytest.approx(slow, rel=0, abs=1e-10)
    assert 0.2 < fast["mesh_al_mean3d"] < fast["mesh_mean3d"]
    assert 0 < fast["f_score_5"] < fast["f_al_score_5"] < fast["f_al_score_15"] <= 1


def test_the_keys_are_those_of_scores_txt(truth):
    fast = mesh_scores.scores(truth, truth, names=FREIHAND, procrustes="freihand")
    assert " ".join(fast) == (
        "xyz_mean3d xyz_auc3d xyz_al_mean3d xyz_al_auc3d mesh_mean3d mesh_auc3d "
        "mesh_al_mean3d mesh_al_auc3d f_score_5 f_al_score_5 f_score_15 f_al_score_15"
    )
    units = {k: s.unit for k, s in fast.items()}
    assert all(u == ("cm" if k.endswith("mean3d") else "") for k, u in units.items())
    assert fast["xyz_al_mean3d"].protocol == "procrustes=freihand"
    assert fast["xyz_mean3d"].value == 0 and fast["f_score_5"].value == 1
    ho3d = mesh_scores.scores(truth, truth, names=HO3D, procrustes="freihand")
    assert list(ho3d)[2:6] == [
        "xyz_procrustes_al_mean3d",
        "xyz_procrustes_al_auc3d",
        "xyz_scale_trans_al_mean3d",
        "xyz_scale_trans_al_auc3d",
    ]
    assert ho3d["xyz_scale_trans_al_mean3d"].value == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("value", [0.0, 0.1, -3.0])
def test_constant_predictions_get_the_official_answer(truth, value):
    guess = Meshes(*(np.full_like(x, value) for x in truth))
    fast, slow = both(truth, guess, HO3D)
    assert fast == pytest.approx(slow, rel=0, abs=1e-10)
    # Aligned, all points are in the target's middle; scaled, all are at its wrist.
    joints = truth.joints3d
    spread = np.linalg.norm(joints - joints.mean(1, keepdims=True), axis=-1).mean()
    assert fast["xyz_procrustes_al_mean3d"] == pytest.approx(100 * spread)
    from_wrist = np.linalg.norm(joints - joints[:, :1], axis=-1).mean()
    assert fast["xyz_scale_trans_al_mean3d"] == pytest.approx(100 * from_wrist)


def test_errors_at_a_threshold_fall_as_in_the_script(truth):
    joints = np.round(truth.joints3d, 3)
    step = np.linspace(0, 0.05, 100)
    guess = joints + np.array([1.0, 0, 0]) * step[: 21 * 3].reshape(3, 21, 1)
    fast, slow = both(
        Meshes(joints, truth.vertices), Meshes(guess, truth.vertices), FREIHAND
    )
    assert fast["xyz_auc3d"] == pytest.approx(slow["xyz_auc3d"], rel=0, abs=1e-12)


def test_perfect_predictions_have_the_scripts_rounding(truth):
    fast, slow = both(truth, truth, HO3D)
    assert fast == pytest.approx(slow, rel=0, abs=1e-12)
    # Aligning rounds, so that not every error is 0, and those miss the first threshold.
    assert fast["mesh_auc3d"] == pytest.approx(1, abs=1e-12)
    assert fast["mesh_al_auc3d"] == pytest.approx(1 - 1 / 198, abs=1e-3)


def test_mirrored_hands_are_right_officially_and_wrong_elsewhere(truth):
    mirrored = Meshes(*(x * [-1, 1, 1] for x in truth))
    values = {}
    for procrustes in ("freihand", "hamer", "metro"):
        found = mesh_scores.scores(
            truth, mirrored, names=FREIHAND, procrustes=procrustes
        )
        values[procrustes] = found["xyz_al_mean3d"].value
        assert found["xyz_al_mean3d"].protocol == f"procrustes={procrustes}"
    assert values["freihand"] == pytest.approx(0, abs=1e-6)
    assert values["hamer"] == values["metro"] > 0.1


def test_other_meshes_have_no_errors_and_the_scripts_odd_f_scores(truth):
    joints = protocol_hands.guesses(truth.joints3d)
    meshes = [v[: 700 + i] for i, v in enumerate(truth.vertices)]
    fast, slow = both(truth, Meshes(joints, meshes), HO3D)
    assert fast["mesh_mean3d"] == fast["mesh_al_mean3d"] == -100
    assert fast["mesh_auc3d"] == -1
    assert fast == pytest.approx(slow, rel=0, abs=1e-10)
    # The first sample decides: later ones may then have the target's vertices.
    meshes[2] = truth.vertices[2]
    fast, slow = both(truth, Meshes(joints, meshes), HO3D)
    assert fast == pytest.approx(slow, rel=0, abs=1e-10)


def test_joints_alone_are_scored(truth):
    joints = protocol_hands.guesses(truth.joints3d)
    guess = Meshes(joints, [np.zeros((0, 3))] * 3)
    found = mesh_scores.scores(truth, guess, names=FREIHAND, procrustes="freihand")
    expected = slow_scores(truth, Meshes(joints, truth.vertices), FREIHAND)
    assert found["xyz_al_mean3d"].value == pytest.approx(expected["xyz_al_mean3d"])
    assert found["f_al_score_15"].value == 0 and found["mesh_auc3d"].value == -1


def test_what_cannot_be_scored_is_said(truth):
    def scored(guess, procrustes="freihand"):
        return mesh_scores.scores(truth, guess, names=FREIHAND, procrustes=procrustes)

    with pytest.raises(ValueError, match="2 predictions for 3 samples"):
        scored(Meshes(truth.joints3d[:2], truth.vertices[:2]))
    short = [truth.vertices[0], truth.vertices[1], truth.vertices[2][:5]]
    with pytest.raises(ValueError, match="prediction 2 has 5 vertices"):
        scored(Meshes(truth.joints3d, short))
    others = [v[:9] for v in truth.vertices]
    with pytest.raises(ValueError, match=r"'hamer' aligns vertex by vertex.*9 vertic"):
        scored(Meshes(truth.joints3d, others), "hamer")


def test_parts_of_the_samples_add_up(truth, monkeypatch):
    guess = Meshes(*(protocol_hands.guesses(x) for x in truth))
    whole = mesh_scores.scores(truth, guess, names=HO3D, procrustes="freihand")
    monkeypatch.setattr(mesh_scores, "_AT_ONCE", 2)
    parts = mesh_scores.scores(truth, guess, names=HO3D, procrustes="freihand")
    for name, score in whole.items():
        assert parts[name].value == pytest.approx(score.value, rel=1e-12)
