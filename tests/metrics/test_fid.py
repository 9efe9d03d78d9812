import json

import numpy as np
import pytest
import safetensors.numpy
import scipy.linalg

from handjax import fid as command
from handjax.metrics import fid
from handjax.metrics.fid import Statistics


def covariance(seed, dim, rank=None):
    root = np.random.default_rng(seed).normal(size=(dim, rank or dim))
    return root @ root.T / dim


def gaussian(seed, rows, dim, *, mean=0.0, scale=1.0):
    return mean + scale * np.random.default_rng(seed).normal(size=(rows, dim))


# --- FID ----------------------------------------------------------------------------


def test_of_gaussians_with_diagonal_covariances():
    # Independent axes: the sum of (difference of means)^2 + (difference of sigmas)^2.
    a = Statistics(np.array([1.0, 2, 3]), np.diag([4.0, 9, 0]))
    b = Statistics(np.array([1.0, 0, 0]), np.diag([1.0, 25, 4]))
    expected = (0 + 4 + 9) + (1 + 4 + 4)
    assert fid.frechet_distance(a, b) == pytest.approx(expected, abs=1e-12)


def test_of_gaussians_whose_covariances_commute():
    rotation = np.linalg.qr(covariance(0, 5))[0]
    x, y = np.arange(1.0, 6), np.array([9.0, 4, 1, 16, 0])
    a = Statistics(np.zeros(5), (rotation * x) @ rotation.T)
    b = Statistics(np.ones(5), (rotation * y) @ rotation.T)
    expected = 5 + np.sum((np.sqrt(x) - np.sqrt(y)) ** 2)
    assert fid.frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_equals_the_general_root_and_is_symmetric():
    a = Statistics(np.zeros(8), covariance(1, 8))
    b = Statistics(np.full(8, 0.3), covariance(2, 8))
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance).real
    slow = 8 * 0.09 + np.trace(a.covariance + b.covariance - 2 * root)
    assert fid.frechet_distance(a, b) == pytest.approx(slow, rel=1e-9)
    assert fid.frechet_distance(b, a) == pytest.approx(slow, rel=1e-9)


def test_of_a_set_with_itself_is_zero():
    features = gaussian(0, 50, 16)
    assert fid.fid(features, features) < 1e-9
    assert fid.fid(features, features[::-1] + 2.0) == pytest.approx(16 * 4)


def test_singular_covariances_need_no_help():
    # Fewer rows than dimensions, and supports that do not meet.
    a = Statistics(np.zeros(40), covariance(1, 40, rank=3))
    b = Statistics(np.zeros(40), covariance(2, 40, rank=5))
    value = fid.frechet_distance(a, b)
    assert isinstance(value, float) and np.isfinite(value)
    # Rank 3 and 5 have 3 common values: the nuclear norm of the roots' product.
    roots = [np.linalg.svd(s.covariance) for s in (a, b)]
    halves = [
        u[:, :k] * np.sqrt(s[:k]) for (u, s, _), k in zip(roots, (3, 5), strict=True)
    ]
    cross = np.linalg.svd(halves[0].T @ halves[1], compute_uv=False).sum()
    slow = np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross
    assert value == pytest.approx(slow, rel=1e-6)


def test_statistics_are_numpys():
    features = gaussian(3, 30, 4).astype(np.float32)
    found = fid.statistics(features)
    assert found.mean.dtype == found.covariance.dtype == np.float64
    np.testing.assert_allclose(found.covariance, np.cov(features.astype(float).T))


def test_large_offsets_keep_the_small_differences():
    # Float32 would lose all of this.
    a, b = gaussian(0, 500, 3), gaussian(1, 500, 3)
    assert fid.fid(a + 1e6, b + 1e6) == pytest.approx(fid.fid(a, b), rel=1e-4)


# --- KID ----------------------------------------------------------------------------


def slow_squared_mmd(x, y):
    def kernel(a, b):
        return (float(np.dot(a, b)) / len(a) + 1) ** 3

    total = 0.0
    for rows in (x, y):
        n = len(rows)
        for i in range(n):
            for j in range(n):
                if i != j:
                    total += kernel(rows[i], rows[j]) / (n * (n - 1))
    for a in x:
        for b in y:
            total -= 2 * kernel(a, b) / (len(x) * len(y))
    return total


def test_equals_two_loops():
    x, y = gaussian(0, 7, 5), gaussian(1, 9, 5, mean=0.4)
    assert fid.squared_mmd(x, y) == pytest.approx(slow_squared_mmd(x, y), rel=1e-12)


def test_is_unbiased():
    # Of sets with one distribution it is zero on average, on both sides of zero.
    values = [
        fid.squared_mmd(gaussian(2 * i, 20, 4), gaussian(2 * i + 1, 20, 4))
        for i in range(400)
    ]
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 3 * error and min(values) < 0 < max(values)


def test_subsets_follow_the_seed():
    x, y = gaussian(0, 60, 4), gaussian(1, 80, 4, mean=0.5)
    one = fid.kid(x, y, subsets=20, size=30)
    assert one == fid.kid(x, y, subsets=20, size=30)
    other = fid.kid(x, y, subsets=20, size=30, seed=1)
    assert one.mean != other.mean and one.std > 0
    assert one.mean == pytest.approx(fid.squared_mmd(x, y), rel=0.3)
    # Subsets that are whole sets do not vary: only the order does.
    whole = fid.kid(x, y[:60], subsets=3, size=1000)
    assert whole.size == 60 and whole.std < 1e-12
    assert whole.mean == pytest.approx(fid.squared_mmd(x, y[:60]))


# --- errors and files ---------------------------------------------------------------


def test_what_cannot_be_compared_is_said():
    with pytest.raises(ValueError, match="3 and 4 dimensions"):
        fid.fid(gaussian(0, 5, 3), gaussian(0, 5, 4))
    with pytest.raises(ValueError, match="3 and 4 dimensions"):
        fid.squared_mmd(gaussian(0, 5, 3), gaussian(0, 5, 4))
    with pytest.raises(ValueError, match="1 row of features has no covariance"):
        fid.fid(gaussian(0, 1, 3), gaussian(0, 5, 3))
    with pytest.raises(ValueError, match="5 and 1 rows"):
        fid.kid(gaussian(0, 5, 3), gaussian(0, 1, 3))
    with pytest.raises(ValueError, match="0 subsets of 1000"):
        fid.kid(gaussian(0, 5, 3), gaussian(0, 5, 3), subsets=0)


def test_files_of_every_kind_hold_the_same(tmp_path):
    features = gaussian(0, 6, 4).astype(np.float32)
    np.save(tmp_path / "a.npy", features)
    np.savez(tmp_path / "b.npz", features=features, labels=np.arange(6))
    np.savez(tmp_path / "c.npz", features)
    safetensors.numpy.save_file({"pool3": features}, tmp_path / "d.safetensors")
    for path in sorted(tmp_path.iterdir()):
        np.testing.assert_array_equal(command.read(path), features)
    known = fid.statistics(features)
    np.savez(tmp_path / "e.npz", mu=known.mean, sigma=known.covariance)
    assert fid.frechet_distance(command.read(tmp_path / "e.npz"), known) < 1e-9


@pytest.mark.parametrize(
    ("name", "arrays", "match"),
    [
        ("a.npz", {"x": np.ones((3, 2)), "y": np.ones(3)}, r"\['x', 'y'\]; keep one"),
        ("a.npz", {"features": np.ones((3, 2, 2))}, "one row a picture"),
        ("a.npz", {"features": np.ones((0, 2))}, "one row a picture"),
        ("a.npz", {"features": np.array([["a"]])}, "features are numbers"),
        ("a.npz", {"features": np.array([[np.nan, 1]])}, "1 values are not finite"),
        ("a.npz", {"mu": np.ones(2), "sigma": np.ones((3, 3))}, "must be .dim,."),
        ("a.npz", {"features": np.array([[{}]])}, "no file of features"),
    ],
)
def test_other_files_are_refused(tmp_path, name, arrays, match):
    np.savez(tmp_path / name, **arrays)
    with pytest.raises(ValueError, match=match):
        command.read(tmp_path / name)


def test_damaged_files_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((30, 4)))
    for name in ("b.npy", "b.npz", "b.safetensors", "b.txt"):
        data = (tmp_path / "a.npy").read_bytes()[:-99] if name == "b.npy" else b"no"
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match="no file of features"):
            command.read(tmp_path / name)


def test_command_prints_one_object_a_line(tmp_path, capsys):
    a, b = gaussian(0, 300, 8), gaussian(1, 200, 8, mean=0.5)
    np.save(tmp_path / "a.npy", a)
    np.save(tmp_path / "b.npy", b)
    files = [f"--real={tmp_path}/a.npy", f"--made={tmp_path}/b.npy"]
    assert command.main([*files, "--kid_subsets=5", "--kid_size=100"]) == 0
    said = capsys.readouterr()
    first, second = (json.loads(line) for line in said.out.splitlines())
    assert first["metric"] == "fid" and first["value"] == pytest.approx(fid.fid(a, b))
    assert second["metric"] == "kid" and second["size"] == 100 and second["std"] > 0
    assert second["real_rows"] == 300 and second["made_rows"] == 200
    assert not said.err

    np.save(tmp_path / "b.npy", b[:7])
    assert command.main(files) == 0
    assert "FID comes out too high" in capsys.readouterr().err
    known = fid.statistics(b)
    np.savez(tmp_path / "s.npz", mu=known.mean, sigma=known.covariance)
    assert command.main([files[0], f"--made={tmp_path}/s.npz"]) == 0
    said = capsys.readouterr()
    (only,) = said.out.splitlines()
    assert json.loads(only)["value"] == pytest.approx(first["value"])
    assert json.loads(only)["made_rows"] is None and "KID needs" in said.err


def test_command_says_what_is_wrong_in_one_line(tmp_path, capsys):
    np.save(tmp_path / "a.npy", gaussian(0, 9, 3))
    np.save(tmp_path / "b.npy", gaussian(0, 9, 4))
    real = f"--real={tmp_path}/a.npy"
    for made, match in (("b.npy", "3 and 4 dimensions"), ("c.npy", "No such file")):
        assert command.main([real, f"--made={tmp_path}/{made}"]) == 2
        said = capsys.readouterr()
        assert match in said.err and said.err.count("\n") == 1 and not said.out
