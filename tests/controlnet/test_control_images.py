import cv2
import numpy as np
import pytest

from handjax import control
from handjax.controlnet import images
from handjax.controlnet.images import HandInView
from handjax.mano import model_files
from handjax.mano.model_files import joint_regressor

FILE = model_files.load("open")
FACES = np.asarray(FILE.faces)
SIZE = 96
K = np.array([[180.0, 0, 48], [0, 180, 48], [0, 0, 1]])


def hand(depth=0.55, **changes):
    """The flat hand before the camera."""
    # The fingers up, the palm to the camera.
    turn = np.array([[0, 0, 1.0], [1, 0, 0], [0, 1, 0]])
    vertices = np.asarray(FILE.v_template, np.float64) @ turn.T
    vertices = vertices - vertices.mean(axis=0) + [0, 0, depth]
    joints = joint_regressor(FILE) @ vertices
    joints2d = (joints @ K.T)[:, :2] / joints[:, 2:]
    view = HandInView(K, joints2d, vertices, FACES)
    return view._replace(**changes)


def silhouette(view):
    """Pixels inside some face, face by face."""
    points = view.vertices @ K.T
    points = np.rint(16 * points[:, :2] / points[:, 2:]).astype(np.int32)
    out = np.zeros((SIZE, SIZE), np.uint8)
    for face in FACES:
        cv2.fillPoly(out, [points[face]], 1, shift=4)
    return out > 0


def image(kind, view, size=SIZE):
    return images.draw(kind, view, size).image


def test_the_entry_names_every_kind():
    assert control._KINDS == tuple(images.KINDS)
    for kind in images.KINDS:
        assert image(kind, hand()).shape == (SIZE, SIZE, 3)


def test_every_kind_lies_where_the_hand_projects():
    view = hand()
    inside = silhouette(view)
    mesh, depth = image("mesh", view).any(axis=-1), image("depth", view).any(axis=-1)
    normals = (image("normals", view) != images.NO_NORMAL).any(axis=-1)
    border = cv2.dilate(inside.astype(np.uint8), np.ones((3, 3))) > 0
    core = cv2.erode(inside.astype(np.uint8), np.ones((3, 3))) > 0
    # OpenCV fills the edges of faces as well, which closes the narrowest gaps.
    for drawn, share in ((mesh, 0.99), (depth, 0.99), (normals, 0.95)):
        assert drawn[core].mean() > share and not drawn[~border].any()
    assert 0.05 < inside.mean() < 0.6


def test_depth_is_metres_between_its_range():
    view = hand()
    drawn = images.draw("depth", view, SIZE)
    near, far = drawn.depth_range_m
    assert view.vertices[:, 2].min() - 1e-3 < near < far < view.vertices[:, 2].max()
    assert (drawn.image[..., 0] == drawn.image[..., 2]).all()
    grey = drawn.image[..., 0].astype(float)
    metres = np.where(grey > 0, far - (grey - 1) / 254 * (far - near), np.inf)
    seen = np.isfinite(metres)
    assert metres[seen].min() == pytest.approx(near, abs=1e-6)
    assert metres[seen].max() == pytest.approx(far, abs=1e-6)
    # The nearest surface at the pixel of a vertex is not behind it.
    points = view.vertices @ K.T
    at = np.rint(points[:, :2] / points[:, 2:]).astype(int)
    there = seen[at[:, 1], at[:, 0]]
    ahead = metres[at[:, 1], at[:, 0]][there] - view.vertices[there, 2]
    # Pixels beside an edge see what is past it.
    assert np.quantile(ahead, 0.9) < 2e-3
    # Farther away the range moves along.
    far_view = hand(depth=0.85)
    assert images.draw("depth", far_view, SIZE).depth_range_m[0] > near + 0.29


@pytest.mark.parametrize(
    ("axis", "rgb"),
    [
        ((-1, 0, -1), (218, 128, 218)),  # half left, half to the camera
        ((1, 0, -1), (37, 128, 218)),
        ((0, -1, -1), (128, 218, 218)),  # half up
        ((0, 1, -1), (128, 37, 218)),
        ((0, 0, -1), (128, 128, 255)),
    ],
)
def test_normals_are_red_left_green_up_blue_near(axis, rgb):
    n = np.array(axis) / np.linalg.norm(axis)
    across = np.cross(n, [0.3, 0.9, 0.1])
    across /= np.linalg.norm(across)
    other = np.cross(n, across)
    corners = np.array([across, -across + other, -across - other]) * 0.1
    for faces in ([[0, 1, 2]], [[0, 2, 1]]):  # both sides look at the viewer
        view = HandInView(K, np.zeros((21, 2)), corners + [0, 0, 0.5], np.array(faces))
        middle = image("normals", view)[46:50, 46:50].reshape(-1, 3).astype(int)
        assert np.abs(middle - rgb).max() <= 1


def test_pose_has_openposes_colours():
    view = hand()
    drawn = image("pose2d", view, 96)
    # Tips, brightest first: thumb red, index yellow, middle green, ring blue, little
    # magenta. They are drawn last.
    tips = ((255, 0, 0), (255, 255, 0), (0, 255, 128), (0, 128, 255), (255, 0, 255))
    for joint, color in zip((4, 8, 12, 16, 20), tips, strict=True):
        x, y = np.rint(view.joints2d[joint]).astype(int)
        assert np.abs(drawn[y, x].astype(int) - color).max() <= 1
    x, y = np.rint(view.joints2d[0]).astype(int)
    assert tuple(drawn[y, x]) == (100, 100, 100)
    both = image("both", view)
    mesh = image("mesh", view)
    # Beside the lines, where anti-aliasing ends, nothing is changed.
    pose = cv2.dilate(drawn.max(axis=-1), np.ones((3, 3))) > 0
    assert (both[~pose] == mesh[~pose]).all() and (both[pose] != mesh[pose]).any()


def test_joints_without_a_place_are_left_out():
    joints2d = np.full((21, 2), np.nan)
    joints2d[5], joints2d[6], joints2d[7] = (20, 20), (60, 60), (1e15, 3)
    view = HandInView(K, joints2d)
    drawn = image("pose2d", view).any(axis=-1)
    assert drawn[20, 20] and drawn[40, 40] and drawn[60, 60] and not drawn[:, 80:].any()
    with pytest.raises(ValueError, match="the hand has none"):
        image("both", view)


def test_a_hand_out_of_sight_gives_empty_pictures():
    view = hand(depth=-0.3)
    assert not image("mesh", view).any() and not image("depth", view).any()
    assert images.draw("depth", view, SIZE).depth_range_m is None
    assert (image("normals", view) == images.NO_NORMAL).all()
