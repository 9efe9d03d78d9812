import numpy as np
import pytest
import tiny
from scipy.linalg import orthogonal_procrustes
from scipy.spatial import cKDTree
from scipy.spatial.distance import directed_hausdorff
from scipy.spatial.transform import Rotation

from handjax.metrics import mesh_errors
from handjax.types import Batch, HandOutput


def official_align(target, prediction):
    """The steps of FreiHAND's published evaluator, one hand at a time."""
    target_mean, prediction_mean = target.mean(0), prediction.mean(0)
    target, prediction = target - target_mean, prediction - prediction_mean
    target_norm = np.linalg.norm(target) + 1e-8
    prediction_norm = np.linalg.norm(prediction) + 1e-8
    R, scale = orthogonal_procrustes(target / target_norm, prediction / prediction_norm)
    moved = (prediction / prediction_norm) @ R.T * scale
    return moved * target_norm + target_mean


def umeyama(target, prediction):
    """Least-squares similarity with det = +1, from its textbook statement."""
    x, y = prediction - prediction.mean(0), target - target.mean(0)
    U, d, Vt = np.linalg.svd(y.T @ x)
    S = np.diag([1, 1, np.sign(np.linalg.det(U) * np.linalg.det(Vt))])
    R = U @ S @ Vt
    scale = np.trace(np.diag(d) @ S) / (x**2).sum()
    return scale * x @ R.T + target.mean(0)


def hands(seed, batch=5, noise=0.02):
    rng = np.random.default_rng(seed)
    vertices = rng.normal(0, [0.04, 0.03, 0.01], (batch, 778, 3))
    joints3d = vertices[:, :21]
    guess = vertices + rng.normal(0, noise, vertices.shape)
    return vertices, joints3d, guess


def as_batch(vertices, joints3d, *, example_valid=None, vertices_valid=None):
    b = len(vertices)
    yes = np.ones(b, bool)
    return Batch(
        image=None,
        vertices=vertices.astype(np.float32),
        joints3d=joints3d.astype(np.float32),
        joints2d=np.zeros((b, 21, 2), np.float32),
        root3d=np.zeros((b, 3), np.float32),
        intrinsics=np.zeros((b, 3, 3), np.float32),
        R_crop_camera=np.zeros((b, 3, 3), np.float32),
        mano_pose=np.zeros((b, 16, 3), np.float32),
        betas=np.zeros((b, 10), np.float32),
        joints2d_valid=np.ones((b, 21), bool),
        joints3d_valid=yes,
        vertices_valid=yes if vertices_valid is None else vertices_valid,
        mano_valid=yes,
        is_right=yes,
        example_valid=yes if example_valid is None else example_valid,
        index=np.arange(b),
    )


@pytest.mark.parametrize(
    ("procrustes", "slow"),
    [("freihand", official_align)]
    + [(k, umeyama) for k in ("proper", "hamer", "metro")],
)
def test_alignment_equals_the_one_hand_reference(procrustes, slow):
    target, _, guess = hands(0)
    guess[2, :, 0] *= -1  # so that the best orthogonal map is a reflection
    R = Rotation.random(5, random_state=0).as_matrix()
    guess = 3.1 * guess @ R + 0.4
    got = mesh_errors.procrustes_align(target, guess, procrustes=procrustes)
    expected = np.stack([slow(*pair) for pair in zip(target, guess, strict=True)])
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-13)


def test_mirrored_hand_needs_a_reflection():
    target, _, _ = hands(1, batch=3)
    target[..., 2] += 0.3 * target[..., 0] ** 2 / 0.04  # no plane of symmetry
    mirrored = target * [-1, 1, 1]
    alignments = [("freihand", 0, 1e-3)]
    alignments += [(name, 4, 60) for name in ("proper", "hamer", "metro")]
    for procrustes, low, high in alignments:
        aligned = mesh_errors.procrustes_align(target, mirrored, procrustes=procrustes)
        error = mesh_errors.point_errors_mm(target, aligned).mean()
        assert low <= error <= high


def test_similar_hands_score_zero_and_scale_is_found():
    target, _, _ = hands(2)
    R = Rotation.random(5, random_state=1).as_matrix()
    for procrustes in ("freihand", "proper"):
        aligned = mesh_errors.procrustes_align(
            target, 0.3 * target @ R - 2, procrustes=procrustes
        )
        assert mesh_errors.point_errors_mm(target, aligned).max() < 1e-3


@pytest.mark.parametrize("procrustes", mesh_errors.PROTOCOLS)
def test_prediction_of_equal_points_moves_to_the_centre(procrustes):
    target, _, _ = hands(3)
    aligned = mesh_errors.procrustes_align(
        target, np.full_like(target, 7.0), procrustes=procrustes
    )
    np.testing.assert_allclose(
        aligned, np.broadcast_to(target.mean(1, keepdims=True), target.shape), atol=1e-9
    )


def test_unknown_alignment_is_refused():
    target, _, guess = hands(0)
    with pytest.raises(ValueError, match=r"'freihand'.*'proper', 'hamer', 'metro'"):
        mesh_errors.procrustes_align(target, guess, procrustes="rigid")


def test_auc_equals_the_trapezoid_rule():
    errors_mm = np.random.default_rng(0).gamma(2, 12, (40, 21))
    errors_mm[0, 0] = 0.0
    errors_mm[0, 1] = mesh_errors.AUC_THRESHOLDS_MM[7]
    thresholds = np.linspace(0, 0.05, 100)
    pck = np.array([(errors_mm / 1e3 <= t).mean(0) for t in thresholds])
    expected = np.mean(np.trapezoid(pck, thresholds, axis=0) / 0.05)
    assert mesh_errors.auc(errors_mm).mean() == pytest.approx(expected, abs=2e-5)
    # In metres, where ties at a threshold fall as they do in the loop above.
    errors = errors_mm / 1e3
    errors[1, :] = thresholds[4:88:4]
    pck = np.array([(errors <= t).mean(0) for t in thresholds])
    expected = np.mean(np.trapezoid(pck, thresholds, axis=0) / 0.05)
    found = mesh_errors.auc(errors, thresholds).mean()
    assert found == pytest.approx(expected, rel=0, abs=1e-13)
    assert mesh_errors.auc(np.zeros((1, 4)))[0] == pytest.approx(1)
    assert mesh_errors.auc(np.full((1, 4), 50.1))[0] == 0


def test_f_score_equals_brute_force():
    target, _, guess = hands(4, batch=2, noise=0.006)
    for a, b in zip(target, guess, strict=True):
        distance = np.linalg.norm(a[:, None] - b[None], axis=-1)
        expected = []
        for t in (0.005, 0.015):
            p, r = (distance.min(0) < t).mean(), (distance.min(1) < t).mean()
            expected.append(2 * p * r / (p + r))
        np.testing.assert_allclose(mesh_errors.f_scores(a, b), expected)
    assert cKDTree(target[0]).n == 778
    assert (mesh_errors.f_scores(target[0], target[0] + 10) == 0).all()
    assert (mesh_errors.f_scores(target[0], target[0]) == 1).all()
    assert (mesh_errors.f_scores(target[0], target[0] * np.nan) == 0).all()


def test_sums_over_batches_equal_one_pass_and_skip_padding():
    vertices, joints3d, guess = hands(5, batch=6, noise=0.004)
    guess_joints = guess[:, :21] + 0.01
    sums = mesh_errors.MetricSums(root=9)
    padded = as_batch(
        vertices[3:], joints3d[3:], example_valid=np.array([True, True, False])
    )
    sums.add(
        as_batch(vertices[:3], joints3d[:3]), HandOutput(guess[:3], guess_joints[:3])
    )
    sums.add(padded, HandOutput(guess[3:], guess_joints[3:]))
    assert sums.count == 5
    got = sums.means()
    assert tuple(got) == mesh_errors.METRICS

    vertices, joints3d = (
        x.astype(np.float32).astype(float) for x in (vertices, joints3d)
    )
    moved = [
        official_align(*pair)
        for pair in zip(joints3d[:5], guess_joints[:5], strict=True)
    ]
    expected = np.linalg.norm(np.stack(moved) - joints3d[:5], axis=-1).mean() * 1e3
    assert got["pa_mpjpe_mm"] == pytest.approx(expected, rel=1e-6)
    relative = guess - guess_joints[:, 9:10] - (vertices - joints3d[:, 9:10])
    expected = np.linalg.norm(relative[:5], axis=-1).mean() * 1e3
    assert got["mpvpe_mm"] == pytest.approx(expected, rel=1e-6)
    assert 0 < got["f5"] < got["f15"] <= 1 and 0 < got["auc_vertices"] < 1


def test_metrics_without_annotation_are_none():
    vertices, joints3d, guess = hands(6, batch=2)
    sums = mesh_errors.MetricSums(root=9)
    batch = as_batch(vertices, joints3d, vertices_valid=np.zeros(2, bool))
    sums.add(batch, HandOutput(guess, joints3d))
    assert sums.means()["mpvpe_mm"] is None and sums.means()["f5"] is None
    assert sums.means()["mpjpe_mm"] == pytest.approx(0, abs=1e-4)


# --- clouds without correspondence --------------------------------------------------


def clouds(count=3):
    rng = np.random.default_rng(0)
    return [(rng.normal(size=(40, 3)), rng.normal(size=(55, 3))) for _ in range(count)]


def test_hausdorff_is_scipys_both_ways():
    for a, b in clouds():
        one, other = directed_hausdorff(a, b)[0], directed_hausdorff(b, a)[0]
        assert mesh_errors.hausdorff(a, b) == pytest.approx(max(one, other))
        assert mesh_errors.hausdorff(b, a) == mesh_errors.hausdorff(a, b)


def test_chamfer_is_the_sum_of_both_mean_squares():
    for a, b in clouds():
        squares = np.sum((a[:, None] - b[None]) ** 2, axis=-1)
        expected = squares.min(axis=1).mean() + squares.min(axis=0).mean()
        assert mesh_errors.chamfer(a, b) == pytest.approx(expected)
        assert mesh_errors.chamfer(b, a) == pytest.approx(expected)


def test_distances_of_a_shifted_point_are_known():
    a = np.array([[0.0, 0, 0], [1, 0, 0]])
    b = a + [[0, 0.01, 0], [0, 0, 0]]
    assert mesh_errors.hausdorff(a, b) == pytest.approx(0.01)
    assert mesh_errors.chamfer(a, b) == pytest.approx(2 * 0.01**2 / 2)


def test_generated_hands_have_mean_and_spread():
    batch = tiny.batch(4)
    batch = batch._replace(example_valid=np.array([True, True, True, False]))
    shift = np.array([0.0, 0.002, 0.004, 9.0])[:, None, None] * [[[1.0, 0, 0]]]
    moved = HandOutput(batch.vertices + shift, batch.joints3d)
    sums = mesh_errors.GenerationSums(root=9)
    assert set(sums.means().values()) == {None}
    sums.add(batch, moved)
    found = sums.means()
    assert tuple(found) == mesh_errors.GENERATION_METRICS
    expected = [
        mesh_errors.hausdorff(*pair)
        for pair in zip(np.float64(batch.vertices[:3]), moved.vertices[:3], strict=True)
    ]
    assert found["hausdorff_m"]["mean"] == pytest.approx(np.mean(expected), abs=1e-6)
    assert found["hausdorff_m"]["std"] == pytest.approx(np.std(expected), abs=1e-6)
    assert found["pa_mpvpe_mm"]["mean"] == pytest.approx(0, abs=1e-3)
    assert 0 < found["chamfer_m2"]["mean"] < 2 * 0.004**2


def test_errors_are_told_apart_by_confidence():
    confidence = np.random.default_rng(0).permutation(40) / 40
    errors_mm = 50 - 40 * confidence
    most, least = mesh_errors.errors_by_confidence(confidence, errors_mm)
    best = np.sort(confidence)[-4:]
    assert most == pytest.approx((50 - 40 * best).mean())
    assert least == pytest.approx((50 - 40 * np.sort(confidence)[:4]).mean())
    # Fewer than ten hands: the one on each side. A share is not lost to rounding.
    few = mesh_errors.errors_by_confidence(confidence[:7], errors_mm[:7])
    assert few == (errors_mm[:7].min(), errors_mm[:7].max())
    tens = mesh_errors.errors_by_confidence(
        np.arange(10.0), np.append(np.zeros(7), [3.0, 6, 9]), share=0.3
    )
    assert tens == (6, 0)
    with pytest.raises(ValueError, match="one hand at least"):
        mesh_errors.errors_by_confidence(np.zeros(0), np.zeros(0))


def test_a_split_with_confidences_reports_both_tenths():
    vertices, joints3d, _ = hands(8, batch=12)
    off_mm = np.arange(12.0)[::-1] + 1
    guess = vertices.copy()
    guess[:, 100:, 0] += off_mm[:, None] * 1e-3
    confidence = np.linspace(0.1, 0.9, 12)
    sums = mesh_errors.MetricSums(root=9)
    for part, valid in ((slice(0, 7), 7), (slice(7, 12), 3)):
        size = part.stop - part.start
        batch = as_batch(
            vertices[part], joints3d[part], example_valid=np.arange(size) < valid
        )
        sums.add(
            batch,
            HandOutput(guess[part], joints3d[part], confidence=confidence[part]),
        )
    found = sums.by_confidence()
    # The ten valid hands: the surest is the last of them, 3 mm off, of 12 to 3.
    share = 678 / 778
    assert found["most_confident"]["mpvpe_mm"] == pytest.approx(3 * share, rel=1e-4)
    assert found["least_confident"]["mpvpe_mm"] == pytest.approx(12 * share, rel=1e-4)
    assert found["most_confident"]["mpjpe_mm"] == pytest.approx(0, abs=1e-4)
    assert set(found["least_confident"]) == {m for m in sums.means() if "mm" in m}
    without = mesh_errors.MetricSums(root=9)
    without.add(as_batch(vertices, joints3d), HandOutput(guess, joints3d))
    assert without.by_confidence() is None
