import numpy as np
import pytest

from data_pipelines.synthetic import hand as hands
from data_pipelines.synthetic import meshes, render, scene, sleeve, surroundings
from data_pipelines.synthetic.appearance import lens, shading, skin
from handjax.mano import numpy_skinning

SIZE = 64


@pytest.fixture(scope="module")
def sampler():
    return scene.Sampler(SIZE)


def bare(drawn):
    """The scene with nothing but the hand."""
    return drawn._replace(meshes=drawn.meshes[:1])


def screen(drawn, depth, *, cover=1.0):
    """A board before the camera that hides the left `cover` of the picture."""
    half = depth * SIZE / drawn.intrinsics[0, 0]
    right = (2 * cover - 1) * half if cover < 1 else half
    corners = [[-half, -half], [right, -half], [right, half], [-half, half]]
    vertices = np.array([[x, y, depth] for x, y in corners])
    return meshes.Mesh(
        vertices, np.array([[0, 1, 2], [0, 2, 3]]), vertices, np.full((4, 3), 0.2),
        np.zeros(4), np.array([shading.HARD, 0, 0, 0, 1.0, 0, 0, 0]),
    )  # fmt: skip


def test_visibility_is_one_alone_and_zero_behind_a_board(sampler):
    drawn = bare(sampler(np.random.default_rng(0)))
    alone = render.render(drawn)
    assert alone.visible > 0.97
    near = 0.5 * drawn.vertices[:, 2].min()
    board = screen(drawn, near)
    behind = render.render(drawn._replace(meshes=[*drawn.meshes, board]))
    assert behind.visible == 0
    assert behind.hidden.all() and not behind.mask.any()
    drawn_twice = drawn._replace(meshes=[*drawn.meshes, board])
    assert render.render(drawn_twice, least_visible=0.35) is None
    far = screen(drawn, 2 * drawn.vertices[:, 2].max())
    before = render.render(drawn._replace(meshes=[*drawn.meshes, far]))
    np.testing.assert_allclose(before.visible, alone.visible)


def test_half_hidden_joints_are_named(sampler):
    drawn = bare(sampler(np.random.default_rng(1)))
    board = screen(drawn, 0.5 * drawn.vertices[:, 2].min(), cover=0.5)
    picture = render.render(drawn._replace(meshes=[*drawn.meshes, board]))
    joints = drawn.joints3d
    left = joints[:, 0] < -1e-3
    assert picture.hidden[left].all()
    alone = render.render(drawn)
    np.testing.assert_array_equal(
        picture.hidden[joints[:, 0] > 1e-3], alone.hidden[joints[:, 0] > 1e-3]
    )


def test_a_light_from_behind_a_board_casts_a_shadow(sampler):
    drawn = bare(sampler(np.random.default_rng(2)))
    lamp = surroundings.Light(np.array([0.0, 0.0, -1.0]), np.ones(3))
    around = drawn.around._replace(lights=[lamp], harmonics=np.zeros((9, 3)))
    settings = drawn.lens._replace(noise=0.0, blur=0.3, motion=(0.0, 0.0))
    drawn = drawn._replace(around=around, lens=settings)
    lit = render.render(drawn)
    # A board behind the camera: seen by the light alone.
    board = screen(drawn, 1.0)
    board = board._replace(vertices=board.vertices * [3, 3, -1])
    dark = render.render(drawn._replace(meshes=[*drawn.meshes, board]))
    assert dark.image[lit.mask].mean() < 0.7 * lit.image[lit.mask].mean()


def test_every_pattern_gives_sane_colours(sampler):
    drawn = bare(sampler(np.random.default_rng(3)))
    pictures = []
    for pattern in range(8):
        board = screen(drawn, 2 * drawn.vertices[:, 2].max())
        material = board.material.copy()
        material[[3, 4]] = pattern, 30
        board = board._replace(material=material)
        image = render.render(drawn._replace(meshes=[*drawn.meshes, board])).image
        assert image.max() > 20
        pictures.append(image.astype(int))
    plain = pictures[shading.PLAIN]
    for pattern in range(1, 8):
        assert np.abs(pictures[pattern] - plain).mean() > 0.3, pattern


def test_noise_gradient_equals_differences():
    points = np.random.default_rng(4).uniform(0, 40, (50, 3)).astype(np.float32)
    step = np.float32(0.01)
    for x, y, z in points:
        analytic = shading.noise_gradient(shading.NOISE, x, y, z)
        for axis in range(3):
            low, high = np.array([x, y, z]), np.array([x, y, z])
            low[axis] -= step
            high[axis] += step
            rise = shading.noise3(shading.NOISE, *high) - shading.noise3(
                shading.NOISE, *low
            )
            assert abs(rise / (2 * step) - analytic[axis]) < 0.1


def test_harmonics_turn_with_the_room():
    rng = np.random.default_rng(5)
    coefficients = rng.normal(size=(9, 3))
    turn = numpy_skinning.axis_angle_to_matrix(rng.normal(size=3))
    directions = rng.normal(size=(20, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    turned = surroundings.rotate_harmonics(coefficients, turn)
    # Light that came from d comes from turn @ d now.
    np.testing.assert_allclose(
        surroundings.harmonic_basis(directions @ turn.T) @ turned,
        surroundings.harmonic_basis(directions) @ coefficients,
        atol=1e-9,
    )


def test_vertex_normals_of_a_ball_point_outwards():
    from data_pipelines.synthetic import objects

    rng = np.random.default_rng(6)
    shape = objects.sample(rng, "can")
    vertices, faces = objects.mesh(shape)
    normals = shading.vertex_normals(vertices, faces)
    assert ((normals * vertices).sum(1) > 0).mean() > 0.95


def test_sleeve_surrounds_the_arm():
    hand = hands.load()
    posed = hands.pose(hand, np.zeros((15, 3)), np.zeros(10), np.eye(3), np.eye(3))
    for seed in range(5):
        points, faces, cloth = sleeve.sample(
            np.random.default_rng(seed), hand, posed.rest
        )
        assert faces.max() == len(points) - 1 and len(cloth) == len(points)
        cuff = points[:, 0].min()
        arm = posed.rest[posed.rest[:, 0] > cuff + 0.02]
        arm = arm[arm[:, 0] < points[:, 0].max() - 0.02]
        for x in (cuff + 0.05, cuff + 0.15):
            skin_ring = arm[np.abs(arm[:, 0] - x) < 0.01]
            cloth_ring = points[np.abs(points[:, 0] - x) < 0.01]
            for axis in (1, 2):
                assert cloth_ring[:, axis].max() > skin_ring[:, axis].max()
                assert cloth_ring[:, axis].min() < skin_ring[:, axis].min()


def test_creases_are_looked_up_near_their_faces():
    where, hand = skin.skin_map(), hands.load()
    assert len(where.near_first) == len(hand.faces) + 1
    centres = hand.v_template[hand.faces].mean(1)
    for face in range(0, len(hand.faces), 97):
        listed = where.near_crease[where.near_first[face] : where.near_first[face + 1]]
        distance = np.linalg.norm(where.creases[:, :3] - centres[face], axis=1)
        reaching = np.flatnonzero(distance < where.creases[:, 7])
        assert set(reaching) <= set(listed)


def test_clean_lens_keeps_a_grey_card():
    clean = lens.Lens(1.0, 0.4, (0.0, 0.0), 0.0, 0.0, 0.5, 95, 0)
    grey = np.full((32, 32, 3), 0.2, np.float32)  # the exposure's own aim
    image = lens.expose(grey, clean, 16)
    assert image.shape == (16, 16, 3)
    np.testing.assert_allclose(image, 255 * 0.2 ** (1 / 2.2), atol=1)


def test_motion_blurs_along_its_direction():
    light = np.zeros((64, 64, 3), np.float32)
    light[32, 32] = 1
    moving = lens.Lens(1.0, 0.4, (8.0, 0.0), 0.0, 0.0, 0.5, 95, 0)
    image = lens.expose(light, moving, 32)[..., 0].astype(float)
    rows, columns = image.sum(1), image.sum(0)
    assert (columns > 5).sum() > (rows > 5).sum() + 3
