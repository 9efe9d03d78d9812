import numpy as np

from handjax.mano import model_files
from handjax.types import Batch, HandOutput
from handjax.visualization import render

FILE = model_files.load("open")
FACES = np.asarray(FILE.faces)
# The flat hand turned upright: x right, y down, z forward.
UPRIGHT = np.asarray(FILE.v_template, np.float64) @ np.array(
    [[0, 1.0, 0], [0, 0, -1], [-1, 0, 0]]
)
UPRIGHT -= UPRIGHT.mean(axis=0)
INTRINSICS = np.array([[200.0, 0, 80], [0, 200, 60], [0, 0, 1]])
GRAY = np.full((120, 160, 3), 100, np.uint8)


def changed(image):
    return (image != GRAY).any(axis=-1)


def test_mesh_is_drawn_where_it_projects():
    vertices = UPRIGHT + [0.05, -0.02, 0.5]
    drawn = changed(render.draw_mesh(GRAY, vertices, FACES, INTRINSICS))
    points = vertices @ INTRINSICS.T
    points = points[:, :2] / points[:, 2:]
    y, x = np.nonzero(drawn)
    assert abs(x.min() - points[:, 0].min()) < 1.5
    assert abs(x.max() - points[:, 0].max()) < 1.5
    assert abs(y.min() - points[:, 1].min()) < 1.5
    assert abs(y.max() - points[:, 1].max()) < 1.5
    inside = np.rint(points).astype(int)
    assert drawn[inside[:, 1], inside[:, 0]].mean() > 0.9


def test_nothing_is_drawn_behind_or_beside_the_camera():
    for offset in ([0, 0, -0.5], [9.0, 0, 0.5]):
        image = render.draw_mesh(GRAY, UPRIGHT + offset, FACES, INTRINSICS)
        assert not changed(image).any()
    assert not changed(
        render.draw_mesh(GRAY, UPRIGHT * np.nan, FACES, INTRINSICS)
    ).any()


def test_transparent_mesh_leaves_the_photo():
    vertices = UPRIGHT + [0, 0, 0.5]
    assert not changed(
        render.draw_mesh(GRAY, vertices, FACES, INTRINSICS, alpha=0.0)
    ).any()


def test_half_a_turn_mirrors_the_silhouette():
    pictures = [
        render.turned_view(UPRIGHT, FACES, size=96, yaw_deg=yaw, radius=0.13)
        for yaw in (0.0, 180.0)
    ]
    front, back = ((p != p[0, 0]).any(axis=-1) for p in pictures)
    assert 0.05 < front.mean() < 0.6
    assert (front != back[:, ::-1]).mean() < 0.01


def test_quarter_turn_brings_the_right_side_to_the_front():
    turned = UPRIGHT @ render._turn(90.0, 0.0).T
    np.testing.assert_allclose(turned[:, 2], -UPRIGHT[:, 0], atol=1e-12)
    turned = UPRIGHT @ render._turn(0.0, 90.0).T
    np.testing.assert_allclose(turned[:, 2], UPRIGHT[:, 1], atol=1e-12)


def test_skeleton_skips_joints_it_cannot_place():
    joints2d = np.full((21, 2), np.nan)
    joints2d[0], joints2d[1] = (20, 20), (60, 40)
    joints2d[2] = 1e12
    drawn = changed(render.draw_skeleton(GRAY, joints2d))
    assert drawn[20, 20] and drawn[30, 40] and not drawn[:, 90:].any()


def test_thin_skeletons_are_thinner_and_have_no_dots():
    joints2d = np.full((21, 2), np.nan)
    joints2d[0], joints2d[1] = (100, 100), (300, 300)
    gray = np.full((480, 640, 3), 100, np.uint8)
    thick, thin = (
        (render.draw_skeleton(gray, joints2d, thin=thin) != gray).any(axis=-1).sum()
        for thin in (False, True)
    )
    assert 200 < thin < 0.7 * thick


def test_rings_have_the_radius_and_colour_asked_for():
    joints2d = np.full((21, 2), np.nan)
    joints2d[3], joints2d[5], joints2d[7] = (40, 60), (110, 60), (1e12, 0)
    radius_px = np.full(21, 12.0)
    radius_px[5] = 20
    colors = render.warning_colors(np.arange(21.0) * 4, top=20.0)
    picture = render.draw_rings(GRAY, joints2d, radius_px, colors)
    drawn = changed(picture)
    for (x, y), radius in ((joints2d[3], 12), (joints2d[5], 20)):
        at = np.argwhere(drawn) - [y, x]
        far = np.linalg.norm(at[np.abs(at[:, 1]) < 30], axis=1)
        assert abs(np.median(far) - radius) < 1.5 and far.min() > radius - 3
    red = picture[60, 130].astype(int)  # at 20 mm and more
    assert red[0] > 150 > 80 > red[1]
    np.testing.assert_allclose(
        render.warning_colors(np.array([0.0, 10, 20, 90]), 20.0),
        [[0.2, 0.8, 0.3], [1, 0.85, 0.1], [0.9, 0.1, 0.1], [0.9, 0.1, 0.1]],
    )


def test_text_stands_on_a_strip_along_the_lower_edge():
    picture = render.draw_text(GRAY, ["12.3 mm", "4.5 mm"])
    drawn = changed(picture)
    assert drawn[-10:].all() and not drawn[:80].any()
    assert (picture[80:] > 180).any()


def test_side_by_side_keeps_every_picture():
    pictures = [np.full((10, 10 + i, 3), 40 * i, np.uint8) for i in range(5)]
    sheet = render.side_by_side(pictures, columns=2)
    for i in range(5):
        assert (sheet == 40 * i).all(axis=-1).sum() == 10 * (10 + i)


def test_contact_sheet_shows_each_valid_hand_with_and_without_photo():
    size = 64
    vertices = np.stack([UPRIGHT] * 3).astype(np.float32)
    fields = dict.fromkeys(Batch._fields)
    fields.update(
        image=np.full((3, size, size, 3), 90, np.uint8),
        vertices=vertices,
        root3d=np.tile(np.float32([0, 0, 0.5]), (3, 1)),
        intrinsics=np.tile(
            np.float32([[150, 0, 32], [0, 150, 32], [0, 0, 1]]), (3, 1, 1)
        ),
        example_valid=np.array([True, False, True]),
    )
    batch = Batch(**fields)
    output = HandOutput(vertices * 0.9, vertices[:, :21], vertices[:, :21, :2] + 30)
    with_photo = render.contact_sheet(batch, output, FACES, size=size)
    assert with_photo.shape == (2 * (size + 4) + 4, 5 * (size + 4) + 4, 3)
    # Predicted and annotated hand overlap, the smaller inside the larger.
    cells = [with_photo[4 : 4 + size, 4 + c * (size + 4) :][:, :size] for c in (1, 2)]
    small, large = ((c != 90).any(axis=-1) for c in cells)
    assert small.sum() < large.sum() and (small & ~large).sum() < 0.05 * small.sum()
    without = batch._replace(image=None)
    blank = render.contact_sheet(
        without, output._replace(joints2d=None), FACES, size=size
    )
    assert blank.shape == (2 * (size + 4) + 4, 4 * (size + 4) + 4, 3)


def test_each_vertex_may_have_its_colour():
    color = np.where(UPRIGHT[:, :1] > 0, [[1.0, 0, 0]], [[0, 0, 1.0]])
    picture = render.turned_view(UPRIGHT, FACES, size=64, color=color).astype(int)
    red, blue = (picture[..., k] - picture[..., 2 - k] for k in (0, 2))
    assert (red[:, 40:] > 20).sum() > 50 and (blue[:, 40:] > 20).sum() == 0
    assert (blue[:, :25] > 20).sum() > 50 and (red[:, :25] > 20).sum() == 0
