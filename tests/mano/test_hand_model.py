"""The hand model: closed forms, a slow reference, invariances and smplx's layer."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from data_pipelines.synthetic.body import mesh as synthetic_body
from handjax.geometry import rotations, skeleton
from handjax.mano import hand_model, model_files

_skin = jax.jit(hand_model.skin)


@pytest.fixture(scope="module")
def file():
    """The open hand, moved off its symmetries: random mean, components, correctives."""
    rng = np.random.default_rng(0)
    file = model_files.load()
    return file._replace(
        posedirs=file.posedirs + rng.normal(scale=1e-4, size=file.posedirs.shape),
        shapedirs=file.shapedirs + rng.normal(scale=1e-4, size=file.shapedirs.shape),
        hands_mean=rng.normal(scale=0.2, size=45),
        hands_components=np.linalg.qr(rng.normal(size=(45, 45)))[0],
    )


@pytest.fixture(scope="module")
def hand(file):
    return hand_model.HandModel.from_file(file)


def _parameters(seed, batch=(), bones=16):
    rng = np.random.default_rng(seed)
    pose = rng.normal(scale=0.6, size=(*batch, bones, 3))
    betas = rng.normal(size=(*batch, 10))
    transl = rng.normal(scale=0.3, size=(*batch, 3))
    return tuple(x.astype(np.float32) for x in (pose, betas, transl))


def _slow_skin(file, pose, betas, transl):
    """One hand, vertex by vertex in float64, from the published formula."""
    count, bones = file.weights.shape
    flat = file.v_template + np.array(
        [[sum(file.shapedirs[v, x] * betas) for x in range(3)] for v in range(count)]
    )
    rest = file.J_regressor @ flat
    R = [Rotation.from_rotvec(p.astype(np.float64)).as_matrix() for p in pose]
    feature = np.concatenate([(R[j] - np.eye(3)).ravel() for j in range(1, bones)])
    transforms = []
    for j, parent in enumerate(file.parents):
        local = np.eye(4)
        local[:3, :3] = R[j]
        local[:3, 3] = rest[j] - (rest[parent] if j else 0)
        transforms.append(transforms[parent] @ local if j else local)
    vertices = np.zeros((count, 3))
    for v in range(count):
        bent = flat[v] + file.posedirs[v] @ feature
        for j in range(bones):
            moved = transforms[j] @ np.append(bent - rest[j], 1)
            vertices[v] += file.weights[v, j] * moved[:3]
    return vertices + transl, np.array([T[:3, 3] for T in transforms]) + transl


def test_skin_equals_the_slow_reference(file, hand):
    pose, betas, transl = _parameters(1)
    vertices, joints = _skin(hand, pose, betas, transl)
    slow_vertices, slow_joints = _slow_skin(file, pose, betas, transl)
    np.testing.assert_allclose(vertices, slow_vertices, atol=1e-6)
    np.testing.assert_allclose(joints, slow_joints, atol=1e-6)


def test_any_tree_equals_the_slow_reference(tmp_path):
    """SMPL's tree, which is nine joints deep, with correctives."""
    synthetic_body.save(tmp_path / "body.npz", sides=3, rings=2)
    body = model_files.load(tmp_path / "body.npz")
    noise = np.random.default_rng(0).normal(scale=1e-3, size=body.posedirs.shape)
    body = body._replace(posedirs=noise)
    pose, betas, transl = _parameters(7, bones=24)
    # The tree is traced here, as it is when it comes out of a model's variables.
    posed = jax.jit(
        lambda body: body.with_shape(betas).with_pose(pose[0], pose[1:], transl)
    )(hand_model.HandModel.from_file(body))
    slow_vertices, slow_joints = _slow_skin(body, pose, betas, transl)
    np.testing.assert_allclose(posed.vertices, slow_vertices, atol=1e-5)
    np.testing.assert_allclose(posed.model_joints, slow_joints, atol=1e-5)
    ends = posed.vertices[body.tip_ids]
    np.testing.assert_array_equal(posed.joints3d[24:], ends)


def test_any_tree_equals_the_five_fingers(file):
    pose, _, _ = _parameters(8, (2, 3))
    joints = jnp.asarray(np.random.default_rng(8).normal(size=(2, 3, 16, 3)), "f4")
    parents = jnp.asarray(file.parents)

    def gradient_and_value(kinematics, *tree):
        def loss(pose):
            found = kinematics(joints, rotations.axis_angle_to_matrix(pose), *tree)
            return sum(jnp.sum(x**2 * x) for x in found), found

        return jax.tree.leaves(jax.jit(jax.grad(loss, has_aux=True))(pose))

    fingers = gradient_and_value(hand_model._hand_kinematics)
    for one, other in zip(
        fingers, gradient_and_value(hand_model._tree_kinematics, parents), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_no_pose_and_no_shape_is_the_template(file, hand):
    zero = jnp.zeros((16, 3)), jnp.zeros(10)
    vertices, joints = _skin(hand, *zero)
    np.testing.assert_allclose(vertices, file.v_template, atol=1e-7)
    np.testing.assert_allclose(joints, file.J_regressor @ file.v_template, atol=1e-7)


def test_stages_equal_the_single_call_and_joints_are_regressed(file, hand):
    pose, betas, transl = _parameters(2, (2, 3))
    posed = hand.with_shape(betas).with_pose(pose[..., 0, :], pose[..., 1:, :], transl)
    vertices, joints = _skin(hand, pose, betas, transl)
    np.testing.assert_allclose(posed.vertices, vertices, atol=1e-6)
    np.testing.assert_allclose(posed.model_joints, joints, atol=1e-6)
    regressor = hand_model.joint_regressor(file)
    expected = np.einsum("jv,...vx->...jx", regressor, np.asarray(vertices))
    np.testing.assert_allclose(posed.joints3d, expected, atol=1e-6)
    tip = skeleton.JOINTS.index("index4")
    np.testing.assert_array_equal(
        posed.joints3d[..., tip, :], posed.vertices[..., file.tip_ids[1], :]
    )


def test_each_hand_of_a_batch_is_independent(hand):
    pose, betas, transl = _parameters(3, (2, 2))
    vertices, _ = _skin(hand, pose, betas, transl)
    for index in np.ndindex(2, 2):
        alone, _ = _skin(hand, pose[index], betas[index], transl[index])
        np.testing.assert_allclose(vertices[index], alone, atol=1e-6)


def test_one_shape_takes_many_poses(hand):
    pose, betas, transl = _parameters(4, (3,))
    shaped = hand.with_shape(betas[0])
    posed = shaped.with_pose(pose[:, 0], pose[:, 1:], transl[0])
    alone, _ = _skin(hand, pose[2], betas[0], transl[0])
    assert posed.vertices.shape == (3, 778, 3)
    np.testing.assert_allclose(posed.vertices[2], alone, atol=1e-6)


def test_all_forms_of_a_rotation_agree(hand):
    pose, betas, transl = _parameters(5, (2,))
    shaped = hand.with_shape(betas)
    expected = shaped.with_pose(pose[:, 0], pose[:, 1:], transl).vertices
    R = rotations.axis_angle_to_matrix(pose)
    matrix = shaped.with_pose(R[:, 0], R[:, 1:], transl, form="matrix")
    six = rotations.matrix_to_rotation_6d(R)
    numbers = shaped.with_pose(six[:, 0], six[:, 1:], transl, form="rotation_6d")
    np.testing.assert_allclose(matrix.vertices, expected, atol=1e-6)
    np.testing.assert_allclose(numbers.vertices, expected, atol=1e-6)


def test_mean_relative_poses_add_the_mean(file, hand):
    pose, betas, _ = _parameters(6, (2,))
    shaped = hand.with_shape(betas)
    relative = pose[:, 1:] - file.hands_mean.reshape(15, 3).astype(np.float32)
    mean = shaped.with_pose(pose[:, 0], relative, pose_mean="mean")
    flat = shaped.with_pose(pose[:, 0], pose[:, 1:])
    np.testing.assert_allclose(mean.vertices, flat.vertices, atol=1e-6)


def test_turning_the_hand_turns_the_mesh_about_the_wrist_joint(hand):
    pose, betas, transl = _parameters(7)
    R = np.asarray(rotations.random_rotation(jax.random.key(0)))
    local = rotations.axis_angle_to_matrix(pose)
    shaped = hand.with_shape(betas)
    one = shaped.with_pose(local[0], local[1:], transl, form="matrix")
    two = shaped.with_pose(R @ local[0], local[1:], transl, form="matrix")
    wrist = np.asarray(one.model_joints)[0]
    expected = (np.asarray(one.vertices) - wrist) @ R.T + wrist
    np.testing.assert_allclose(two.vertices, expected, atol=1e-6)


def test_a_mirrored_hand_poses_to_the_mirror_image(file, hand):
    left = hand_model.HandModel.from_file(hand_model.mirror(file))
    pose, betas, transl = _parameters(8, (4,))
    right_vertices, right_joints = _skin(hand, pose, betas, transl)
    flip, turn = np.float32([[[-1, 1, 1]]]), np.float32([[[1, -1, -1]]])
    vertices, joints = _skin(left, pose * turn, betas, transl * flip[0])
    np.testing.assert_allclose(vertices, right_vertices * flip, atol=1e-6)
    np.testing.assert_allclose(joints, right_joints * flip, atol=1e-6)
    relative = left.with_shape(betas).with_pose(
        pose[:, 0] * turn[0], pose[:, 1:] * turn, pose_mean="mean"
    )
    expected = hand.with_shape(betas).with_pose(
        pose[:, 0], pose[:, 1:], pose_mean="mean"
    )
    np.testing.assert_allclose(relative.vertices, expected.vertices * flip, atol=1e-6)


def _volume(vertices, faces):
    a, b, c = (np.asarray(vertices)[np.asarray(faces)[:, i]] for i in range(3))
    return np.einsum("fx,fx->", a, np.cross(b, c)) / 6


def test_faces_point_outwards_on_both_sides():
    for side in ("right", "left"):
        hand = hand_model.HandModel.load(side=side)
        centred = hand.v_template - hand.v_template.mean(axis=0, keepdims=True)
        assert _volume(centred, hand.faces) > 0


@pytest.mark.parametrize("angle", [0.0, 1e-7, np.pi])
def test_gradients_are_finite_and_right_at_hard_angles(hand, angle):
    pose = np.zeros((16, 3), np.float32)
    pose[:, 1] = angle
    betas = np.zeros(10, np.float32)
    along = np.random.default_rng(9).normal(size=(778, 3)).astype(np.float32)

    def height(pose, betas):
        return (_skin(hand, pose, betas)[0] * along).sum()

    gradients = jax.jit(jax.grad(height, argnums=(0, 1)))(pose, betas)
    assert all(np.isfinite(g).all() for g in gradients)
    step = np.random.default_rng(10).normal(size=(16, 3)).astype(np.float32)
    run = jax.jit(height)
    numeric = (run(pose + 1e-2 * step, betas) - run(pose - 1e-2 * step, betas)) / 2e-2
    assert float((gradients[0] * step).sum()) == pytest.approx(float(numeric), rel=2e-2)


def test_it_jits_vmaps_and_is_a_pytree(hand):
    pose, betas, transl = _parameters(11, (3,))
    vertices, _ = hand_model.skin(hand, pose, betas, transl)
    mapped, _ = jax.vmap(_skin, in_axes=(None, 0, 0, 0))(hand, pose, betas, transl)
    np.testing.assert_allclose(vertices, mapped, atol=1e-6)
    assert len(jax.tree.leaves(hand)) == len(hand) - 1  # without `parents`


def test_wrong_options_are_named(hand):
    shaped = hand.with_shape(jnp.zeros(10))
    with pytest.raises(ValueError, match="form='euler'"):
        shaped.with_pose(jnp.zeros(3), jnp.zeros((15, 3)), form="euler")
    with pytest.raises(ValueError, match=r"hand_pose with \(15, 3\); given"):
        shaped.with_pose(jnp.zeros(3), jnp.zeros(45))
    eye = jnp.broadcast_to(jnp.eye(3), (15, 3, 3))
    with pytest.raises(ValueError, match="needs form='axis_angle'"):
        shaped.with_pose(jnp.eye(3), eye, form="matrix", pose_mean="mean")


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("flat_hand_mean", [True, False])
def test_equal_to_smplx_on_the_same_file(tmp_path, file, side, flat_hand_mean):
    smplx, torch = pytest.importorskip("smplx"), pytest.importorskip("torch")
    used = file if side == "right" else hand_model.mirror(file)
    table = np.array([used.parents, np.arange(16)])
    table[0, 0] = 2**32 - 1
    arrays = {k: v for k, v in used._asdict().items() if isinstance(v, np.ndarray)}
    path = tmp_path / f"MANO_{side.upper()}.pkl"
    content = arrays | {"f": used.faces.astype(np.uint32), "kintree_table": table}
    path.write_bytes(pickle.dumps(content, protocol=4))
    layer = smplx.MANO(
        str(path), use_pca=False, flat_hand_mean=flat_hand_mean, batch_size=4
    )
    pose, betas, transl = _parameters(12, (4,))
    pose[0] = 0
    with torch.no_grad():
        theirs = layer(
            betas=torch.tensor(betas),
            global_orient=torch.tensor(pose[:, 0]),
            hand_pose=torch.tensor(pose[:, 1:].reshape(4, 45)),
            transl=torch.tensor(transl),
        )
    tips = tuple(int(i) for i in used.tip_ids)
    # As is, for smplx cures nothing either.
    ours = hand_model.HandModel.load(path, side=side, tips=tips)
    posed = ours.with_shape(betas).with_pose(
        pose[:, 0],
        pose[:, 1:],
        transl,
        pose_mean="flat" if flat_hand_mean else "mean",
    )
    np.testing.assert_allclose(posed.vertices, theirs.vertices.numpy(), atol=1e-6)
    joints = theirs.joints.numpy()[:, :16]
    np.testing.assert_allclose(posed.model_joints, joints, atol=1e-6)
