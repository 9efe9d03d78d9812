"""A hand that is cropped as the data are, and placed back, is where it was."""

import numpy as np
import pytest

from handjax.geometry import camera, crop
from handjax.inference import placement
from handjax.inference.placement import BoxGuard
from handjax.types import HandOutput

SIZE, WIDTH, ROOT, BATCH = 96, 640, 9, 12
RIGHT = np.arange(BATCH) % 2 == 0


def scene(seed, aspect=1.0):
    """Hands of a size of 15 cm in front of cameras, right and left ones."""
    rng = np.random.default_rng(seed)
    vertices = rng.uniform(-0.075, 0.075, (BATCH, 40, 3))
    place = rng.uniform([-0.3, -0.2, 0.5], [0.3, 0.2, 1.2], (BATCH, 3))
    vertices = vertices + place[:, None]
    focal = rng.uniform(500, 700, BATCH)
    K = np.zeros((BATCH, 3, 3))
    K[:, 0, 0], K[:, 1, 1], K[:, 2, 2] = focal * aspect, focal, 1
    K[:, :2, 2] = rng.uniform([290, 210], [340, 260], (BATCH, 2))
    joints3d = vertices[:, :21]
    joints2d = crop.project(joints3d, K)
    box_px = np.concatenate([joints2d.min(1), joints2d.max(1)], axis=-1)
    return vertices, joints3d, joints2d, K, box_px


def perfect(view, vertices, joints3d, joints2d):
    """What a network that knows the hands says of their crops."""
    vertices, joints3d = view.to_crop(vertices), view.to_crop(joints3d)
    root = joints3d[:, ROOT : ROOT + 1]
    return HandOutput(
        np.float32(vertices - root),
        np.float32(joints3d - root),
        np.float32(view.to_crop_px(joints2d)),
    )


@pytest.mark.parametrize("aspect", [1.0, 1.15])
@pytest.mark.parametrize("angle", [0.0, 0.6, "of each"])
@pytest.mark.parametrize("guarded", [True, False])
def test_crop_then_to_photo_is_the_identity(angle, aspect, guarded):
    vertices, joints3d, joints2d, K, box_px = scene(0, aspect)
    if angle == "of each":
        angle = np.linspace(-3, 3, BATCH)
    view = placement.view(
        box_px, K, WIDTH, SIZE, is_right=RIGHT, scale=1.25, angle=angle
    )
    guard = BoxGuard(box_px, extent_m=0.18) if guarded else None
    placed = placement.to_photo(
        perfect(view, vertices, joints3d, joints2d), view, K, root=ROOT, guard=guard
    )
    assert set(placed.translation_source) == {"joints2d"}
    root = joints3d[:, ROOT]
    np.testing.assert_allclose(placed.joints2d, joints2d, atol=1e-3)
    np.testing.assert_allclose(placed.joints3d, joints3d - root[:, None], atol=1e-7)
    np.testing.assert_allclose(placed.vertices, vertices - root[:, None], atol=1e-7)
    np.testing.assert_allclose(placed.translation, root, atol=3e-4)


@pytest.mark.parametrize("angle", [0.0, 0.8])
def test_the_crop_shows_a_right_hand_where_its_camera_projects_it(angle):
    """Equal focal lengths: picture and camera agree, turned and mirrored ones too."""
    _, joints3d, joints2d, K, box_px = scene(1)
    view = placement.view(box_px, K, WIDTH, SIZE, is_right=RIGHT, angle=angle)
    seen = crop.project(view.to_crop(joints3d), view.intrinsics)
    np.testing.assert_allclose(seen, view.to_crop_px(joints2d), atol=1e-9)
    np.testing.assert_allclose(np.linalg.det(view.R_crop_camera), 1, atol=1e-12)
    # Orientation of three pixels: reversed where the photo was mirrored.
    turn = [np.linalg.det(x[1:3] - x[0]) for x in joints2d]
    turned = [np.linalg.det(x[1:3] - x[0]) for x in seen]
    assert (np.sign(turn) == np.sign(turned)).tolist() == RIGHT.tolist()


@pytest.mark.parametrize("angle", [0.0, 1.1])
def test_a_predicted_depth_places_the_root_whatever_the_size_seems(angle):
    vertices, joints3d, joints2d, K, box_px = scene(2, aspect=1.1)
    view = placement.view(box_px, K, WIDTH, SIZE, is_right=RIGHT, angle=angle)
    output = perfect(view, vertices, joints3d, joints2d)
    depth = view.to_crop(joints3d)[:, ROOT, 2]
    gamma = np.asarray(camera.gamma_from_root_depth(depth, view.intrinsics)).copy()
    # Half as large hands would be put at half the distance by their 2-D joints.
    output = output._replace(joints3d=output.joints3d / 2, root_gamma=gamma)
    placed = placement.to_photo(output, view, K, root=ROOT)
    assert set(placed.translation_source) == {"root_depth"}
    np.testing.assert_allclose(placed.translation, joints3d[:, ROOT], atol=1e-5)
    gamma[3] = -1.0
    placed = placement.to_photo(output, view, K, root=ROOT)
    assert placed.translation_source[3] == "joints2d"
    half = joints3d[3, ROOT] / 2
    np.testing.assert_allclose(placed.translation[3], half, rtol=0.2)


@pytest.mark.parametrize("angle", [0.0, -2.0])
@pytest.mark.parametrize("aspect", [1.0, 1.15])
def test_a_view_is_known_by_its_camera_alone(angle, aspect):
    *_, K, box_px = scene(3, aspect)
    width = np.linspace(500, 700, BATCH).round()
    view = placement.view(box_px, K, width, SIZE, is_right=RIGHT, angle=angle)
    found = placement.view_of_camera(
        view.R_crop_camera, view.intrinsics, K, width, is_right=RIGHT
    )
    for a, b in zip(found, view, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-9)


def test_the_unmirrored_view_is_the_crop_with_its_columns_reversed():
    vertices, _, joints2d, K, box_px = scene(4)
    view = placement.view(box_px, K, WIDTH, SIZE, is_right=RIGHT, angle=0.4)
    shown = placement.unmirrored(view, SIZE)
    points = view.to_crop_px(joints2d)
    points[~RIGHT, :, 0] = SIZE - 1 - points[~RIGHT, :, 0]
    np.testing.assert_allclose(shown.to_crop_px(joints2d), points, atol=1e-9)
    # Left hands were turned as the photo shows them, by the angle that was asked for.
    same = crop.view(box_px, K, SIZE, angle=0.4)
    np.testing.assert_allclose(shown.R_crop_camera, same.R_crop_camera, atol=1e-12)
    seen = crop.project(shown.to_crop(vertices), shown.intrinsics)
    in_photo = crop.project(vertices, K)
    np.testing.assert_allclose(seen, shown.to_crop_px(in_photo), atol=1e-9)
    np.testing.assert_allclose(
        shown.to_camera(shown.to_crop(vertices)), vertices, atol=1e-12
    )


def test_the_guard_refuses_a_distance_at_which_the_hand_does_not_fit_its_box():
    vertices, joints3d, joints2d, K, box_px = scene(5)
    view = placement.view(box_px, K, WIDTH, SIZE, is_right=RIGHT)
    output = perfect(view, vertices, joints3d, joints2d)
    # 3-D joints that bunch together are put near, and are as large as their box there;
    # 2-D joints that bunch together put the hand far away.
    middle = output.joints2d.mean(axis=1, keepdims=True)
    output = output._replace(joints2d=middle + (output.joints2d - middle) / 10)
    believed = placement.to_photo(output, view, K, root=ROOT)
    assert set(believed.translation_source) == {"joints2d"}
    assert (believed.translation[:, 2] > 4 * joints3d[:, ROOT, 2]).all()
    guard = BoxGuard(box_px, extent_m=0.18)
    placed = placement.to_photo(output, view, K, root=ROOT, guard=guard)
    assert set(placed.translation_source) == {"box"}
    np.testing.assert_allclose(placed.translation[:, 2], joints3d[:, ROOT, 2], rtol=0.6)
    # In a large photo, a hand may be small in its box.
    guard = guard._replace(smallest=1 / 16)
    placed = placement.to_photo(output, view, K, root=ROOT, guard=guard)
    assert set(placed.translation_source) == {"joints2d"}


def test_without_2d_joints_only_the_box_tells():
    vertices, joints3d, joints2d, K, box_px = scene(6)
    view = placement.view(box_px, K, WIDTH, SIZE, is_right=RIGHT)
    output = perfect(view, vertices, joints3d, joints2d)._replace(joints2d=None)
    blind = placement.to_photo(output, view, K, root=ROOT)
    assert blind.joints2d is None and not blind.translation.any()
    assert set(blind.translation_source) == {"unknown"}
    guard = BoxGuard(box_px, extent_m=0.18)
    placed = placement.to_photo(output, view, K, root=ROOT, guard=guard)
    assert set(placed.translation_source) == {"box"}
    where = crop.project(placed.joints3d + placed.translation[:, None], K)
    np.testing.assert_allclose(placed.joints2d, where, atol=1e-9)
    middle = (box_px[:, :2] + box_px[:, 2:]) / 2
    side = (box_px[:, 2:] - box_px[:, :2]).max(axis=-1, keepdims=True)
    assert (np.abs(placed.joints2d.mean(axis=1) - middle) < side / 2).all()


def test_hypotheses_have_an_axis_of_their_own():
    vertices, joints3d, joints2d, K, box_px = scene(7)
    view = placement.view(box_px, K, WIDTH, SIZE, is_right=RIGHT)
    output = perfect(view, vertices, joints3d, joints2d)
    guard = BoxGuard(box_px, extent_m=0.18)
    once = placement.to_photo(output, view, K, root=ROOT, guard=guard)
    several = HandOutput(*(None if x is None else x[:, None] for x in output))
    again = placement.to_photo(
        several,
        placement.CropView(*(x[:, None] for x in view)),
        K[:, None],
        root=ROOT,
        guard=guard._replace(box_px=box_px[:, None]),
    )
    for a, b in zip(again, once, strict=True):
        assert a.shape == (BATCH, 1, *b.shape[1:])
    np.testing.assert_allclose(again.translation[:, 0], once.translation, atol=1e-5)
