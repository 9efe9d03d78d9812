from pathlib import Path

import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from handjax.detection.hand_detector import DetectedHand, HandDetector
from handjax.detection.regions import Region
from handjax.geometry import crop
from handjax.inference import photos, predictor
from handjax.inference.photos import HandBox, Photo
from handjax.mano import model_files
from handjax.types import HandOutput

FACES = np.asarray(model_files.load("open").faces)
SIZE, ROOT = 64, 9
CONFIG = ml_collections.ConfigDict(
    dict(data=dict(crop_size=SIZE, box_scale=1.25, root="middle_mcp"))
)
VARIABLES = {"constants": {"faces": FACES}}
INTRINSICS = np.array([[300.0, 0, 101], [0, 310, 77], [0, 0, 1]])
GRAY = np.full((150, 200, 3), 80, np.uint8)


class Says:
    """A "model" that gives one answer whatever it sees, and counts its calls."""

    def __init__(self, output):
        self.output, self.seen = output, []

    def apply(self, variables, images):
        self.seen.append(images.shape)
        size = len(images)
        return HandOutput(
            *(
                None if x is None else jnp.broadcast_to(x, (size, *x.shape))
                for x in map(
                    lambda x: None if x is None else jnp.asarray(x), self.output
                )
            )
        )


def hand_in_camera(seed=0):
    """A hand somewhere in front of the camera, off its axis."""
    rng = np.random.default_rng(seed)
    vertices = np.asarray(model_files.load("open").v_template, np.float64)
    vertices = Rotation.random(random_state=seed).apply(vertices)
    vertices = vertices - vertices[100] + [0.08, -0.03, 0.55]
    joints3d = vertices[rng.integers(0, 778, 21)]
    joints2d = joints3d @ INTRINSICS.T
    return vertices, joints3d, joints2d[:, :2] / joints2d[:, 2:]


def exact_answer(vertices, joints3d, joints2d, is_right, box_px):
    """What a perfect network says about the crop, by the definition of the data."""
    width = GRAY.shape[1]
    K, box = INTRINSICS.copy(), np.reshape(box_px, (2, 2)).copy()
    if not is_right:  # everything happens in the mirrored world
        vertices, joints3d = vertices * [-1, 1, 1], joints3d * [-1, 1, 1]
        joints2d = np.array([width - 1, 0]) + joints2d * [-1, 1]
        K[0, 2] = width - 1 - K[0, 2]
        box[:, 0] = width - 1 - box[:, 0]
    box = np.sort(box, axis=0).ravel()
    view = crop.view(box, K, SIZE, scale=1.25)
    vertices, joints3d = (
        vertices @ view.R_crop_camera.T,
        joints3d @ view.R_crop_camera.T,
    )
    root = joints3d[ROOT]
    return HandOutput(
        np.float32(vertices - root),
        np.float32(joints3d - root),
        np.float32(crop.warp_points(view.H_crop_image, joints2d)),
    )


@pytest.mark.parametrize("is_right", [True, False])
def test_perfect_answer_comes_back_in_the_photos_camera(is_right):
    vertices, joints3d, joints2d = hand_in_camera()
    box_px = (*joints2d.min(0), *joints2d.max(0))
    answer = exact_answer(vertices, joints3d, joints2d, is_right, box_px)
    predict = predictor.HandPredictor(CONFIG, Says(answer), VARIABLES)
    found = predict(
        GRAY,
        box_px=box_px,
        is_right=is_right,
        intrinsics=(300, 310, 101, 77),
    )
    np.testing.assert_allclose(found.joints2d, joints2d, atol=1e-3)
    np.testing.assert_allclose(found.joints3d, joints3d - joints3d[ROOT], atol=1e-6)
    np.testing.assert_allclose(found.translation, joints3d[ROOT], atol=1e-3)
    np.testing.assert_allclose(found.vertices + found.translation, vertices, atol=1e-3)
    assert found.translation_source == "joints2d" and found.confidence is None
    assert (found.faces == (FACES if is_right else FACES[:, ::-1])).all()


def _upright_hand(is_right, image):
    """A hand, the region that a detector would find, and its crop as a camera."""
    vertices, joints3d, joints2d = hand_in_camera()
    region = Region(joints2d.mean(0), float(2 * np.ptp(joints2d)), 0.7)
    K, side = INTRINSICS.copy(), region.square_px.reshape(2, 2)
    seen, sign, last = (vertices, joints3d, joints2d), 1, image.shape[1] - 1
    if not is_right:
        seen = vertices * [-1, 1, 1], joints3d * [-1, 1, 1]
        seen = (*seen, np.array([last, 0]) + joints2d * [-1, 1])
        K[0, 2], sign = last - K[0, 2], -1
        side = np.sort(np.array([last, 0]) + side * [-1, 1], axis=0)
    view = crop.view(side.ravel(), K, SIZE, angle=-sign * region.angle)
    turned = seen[1] @ view.R_crop_camera.T
    answer = HandOutput(
        np.float32(seen[0] @ view.R_crop_camera.T - turned[ROOT]),
        np.float32(turned - turned[ROOT]),
        np.float32(crop.warp_points(view.H_crop_image, seen[2])),
    )
    return (vertices, joints3d, joints2d), region, answer


@pytest.mark.parametrize("is_right", [True, False])
def test_upright_regions_are_turned_back_into_the_photo(is_right, monkeypatch):
    hand, region, answer = _upright_hand(is_right, GRAY)
    box_px = (*hand[2].min(0), *hand[2].max(0))
    found = DetectedHand(
        region,
        np.array(box_px),
        hand[2],
        np.zeros(21),
        np.zeros((21, 3)),
        presence=0.6,
        is_right=0.95 if is_right else 0.05,
        sure=False,
    )
    monkeypatch.setattr(HandDetector, "__init__", lambda self, **options: None)
    monkeypatch.setattr(HandDetector, "find", lambda self, image: [found])
    monkeypatch.setattr(HandDetector, "find_in_box", lambda self, image, box: found)
    config = ml_collections.ConfigDict(
        {**CONFIG.to_dict(), "model": dict(features="frozen")}
    )
    predict = predictor.HandPredictor(config, Says(answer), VARIABLES)
    lens = (300, 310, 101, 77)

    for options in ({}, {"box_px": box_px}, {"box_px": box_px, "is_right": is_right}):
        made = predict(GRAY, intrinsics=lens, **options)
        np.testing.assert_allclose(made.joints2d, hand[2], atol=1e-3)
        np.testing.assert_allclose(made.vertices + made.translation, hand[0], atol=1e-3)
        assert made.box.is_right == is_right
        assert made.presence == 0.6 and made.not_sure


class FindsRed:
    """A "model" whose joints are the centre of what is red in the crop."""

    def apply(self, variables, images):
        images = jnp.asarray(images, jnp.float32)
        red = jnp.clip(images[..., 0] - images[..., 1] - 30, 0, None)
        total = jnp.sum(red, axis=(1, 2)) + 1e-6
        at = jnp.arange(SIZE, dtype=jnp.float32)
        x = jnp.sum(red * at[None, None, :], axis=(1, 2)) / total
        y = jnp.sum(red * at[None, :, None], axis=(1, 2)) / total
        joints2d = jnp.repeat(jnp.stack([x, y], axis=-1)[:, None], 21, axis=1)
        joints2d = joints2d + jnp.linspace(0, 1, 21)[None, :, None]
        size = len(images)
        flat = jnp.zeros((size, 778, 3)), jnp.zeros((size, 21, 3))
        return HandOutput(*flat, joints2d)


@pytest.mark.parametrize("is_right", [True, False])
@pytest.mark.parametrize("scale", [1, 8])
def test_network_sees_the_right_part_of_the_photo(is_right, scale):
    image = np.kron(GRAY, np.ones((scale, scale, 1), np.uint8))
    x, y = 132 * scale, 48 * scale
    image[y : y + 7 * scale, x : x + 7 * scale] = (255, 0, 0)
    centre = np.array([x, y]) + (7 * scale - 1) / 2
    predict = predictor.HandPredictor(CONFIG, FindsRed(), VARIABLES)
    box_px = np.array([110.0, 20, 160, 90]) * scale
    found = predict(image, box_px=tuple(box_px), is_right=is_right)
    np.testing.assert_allclose(found.joints2d[0], centre, atol=0.5 * scale)


class PointsAtRed(FindsRed):
    """A "model" of which one joint and half of the vertices lean towards the red."""

    def apply(self, variables, images):
        output = super().apply(variables, images)
        lean = output.joints2d[:, :1] - SIZE / 2
        lean = jnp.pad(lean / 1000, ((0, 0), (0, 0), (0, 1)))
        vertices = output.vertices.at[:, ::2].add(lean)
        return output._replace(vertices=vertices, joints3d=vertices[:, 4:25])


def test_augmentation_fuses_3d_and_leaves_2d_alone():
    image = GRAY.copy()
    image[60:66, 110:116] = (255, 0, 0)
    plain = predictor.HandPredictor(CONFIG, PointsAtRed(), VARIABLES)(image)
    looks = predictor.HandPredictor(CONFIG, PointsAtRed(), VARIABLES, tta="mean")
    found = looks(image)
    np.testing.assert_array_equal(found.joints2d, plain.joints2d)
    lean, once = found.vertices[0, :2], plain.vertices[0, :2]
    # Averaged over zooms the red is farther out, in the same direction.
    zoom = np.mean([1 / scale for scale in (0.7, 0.8, 0.9, 1.0, 1.1)])
    np.testing.assert_allclose(lean, zoom * once, atol=3e-4)
    assert np.linalg.norm(once) > 4e-3
    assert looks.name.endswith("test-time augmentation 'mean'")
    with pytest.raises(ValueError, match="'paper' averages errors, which takes the tr"):
        predictor.HandPredictor(CONFIG, PointsAtRed(), VARIABLES, tta="paper")


def test_middle_square_is_seen_whole():
    image = GRAY.copy()
    image[:6, 25:31] = (255, 0, 0)  # the corner of the middle square
    predict = predictor.HandPredictor(CONFIG, FindsRed(), VARIABLES)
    found = predict(image)
    np.testing.assert_allclose(found.joints2d[0], (27.5, 2.5), atol=1.5)
    assert found.box.source == "whole_image"


def test_hands_of_many_photos_share_batches_of_one_shape():
    vertices, joints3d, joints2d = hand_in_camera()
    says = Says(
        HandOutput(np.float32(vertices), np.float32(joints3d), joints2d * 0 + 9)
    )
    predict = predictor.HandPredictor(CONFIG, says, VARIABLES, batch_size=2)
    opened = Photo(Path("x.jpg"), GRAY, None)
    boxes = [HandBox((i, i, 60.0 + i, 70.0), i != 1, "given") for i in (0.0, 1.0, 2.0)]
    found = predict.run(predictor.requests(opened, boxes))
    assert [hand.box for hand in found] == boxes
    assert says.seen == [(2, SIZE, SIZE, 3)]  # compiled once
    # All joints at one pixel say nothing about the distance: the box has to.
    assert {hand.translation_source for hand in found} == {"box"}
    assert all(0.1 < hand.translation[2] < 2 for hand in found)


def test_without_2d_joints_the_box_places_the_hand():
    vertices, joints3d, _ = hand_in_camera()
    root = joints3d[ROOT]
    answer = HandOutput(np.float32(vertices - root), np.float32(joints3d - root))
    predict = predictor.HandPredictor(CONFIG, Says(answer), VARIABLES)
    box_px = (80, 40, 160, 120)
    found = predict(GRAY, box_px=box_px)
    assert found.translation_source == "box"
    low, high = found.joints2d.min(0), found.joints2d.max(0)
    assert (low > [40, 0]).all() and (high < [200, 160]).all()


def test_token_confidence_is_the_probability_of_the_chosen_code():
    vertices, joints3d, joints2d = hand_in_camera()
    logits = np.log(np.float32([[0.7, 0.2, 0.1], [0.25, 0.25, 0.5]]))
    answer = HandOutput(
        np.float32(vertices),
        np.float32(joints3d),
        np.float32(joints2d),
        logits,
        np.int32([0, 2]),
    )
    predict = predictor.HandPredictor(CONFIG, Says(answer), VARIABLES)
    found = predict(GRAY, box_px=(80, 40, 160, 120))
    np.testing.assert_allclose(found.token_confidence, [0.7, 0.5], rtol=1e-5)
    assert found.indices.tolist() == [0, 2]
    assert found.confidence == pytest.approx(0.6)


def test_boxes_that_no_camera_sees_are_refused():
    opened = Photo(Path("x.jpg"), GRAY, None)
    with pytest.raises(photos.PhotoError, match=r"x\.jpg.*outside"):
        predictor.requests(opened, [HandBox((300, 0, 400, 90), True, "given")])


def test_pixels_of_every_form_give_the_same_hand_or_one_sentence():
    image = GRAY.copy()
    image[:6, 25:31] = (255, 0, 0)
    predict = predictor.HandPredictor(CONFIG, FindsRed(), VARIABLES)
    expected = predict(image).joints2d
    alpha = np.concatenate([image, image[..., :1]], -1)
    for same in (image / 255, jnp.asarray(image), image.astype(np.int64), alpha):
        np.testing.assert_array_equal(predict(same).joints2d, expected)
    deep = Photo(Path("x.png"), image.astype(np.uint16) * 257, None)
    box = HandBox((0, 0, 60, 70), True, "given")
    for call in (lambda: predict(deep), lambda: predictor.requests(deep, [box])):
        with pytest.raises(photos.PhotoError, match=r"x\.png: uint16 pixels of 0"):
            call()
    with pytest.raises(photos.PhotoError, match=r"box_px=\(1, 2, 3\) is not a list"):
        predict(image, box_px=(1, 2, 3))
