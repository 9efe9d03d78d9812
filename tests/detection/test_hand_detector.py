"""Hands of pictures: geometry in closed form, and the built-in hand found and read."""

import io

import numpy as np
import pytest
from PIL import Image

from data_pipelines.synthetic.records import Generator
from handjax.detection import hand_detector
from handjax.detection.hand_detector import (
    DetectedHand,
    HandDetector,
    Palm,
    decode_palms,
    iou,
    merge_palms,
    without_duplicates,
)
from handjax.detection.regions import (
    Region,
    crop_region,
    landmark_region,
    palm_region,
    region_homography,
)
from handjax.geometry import crop
from handjax.geometry.crop import mirror_homography, warp_points
from handjax.nn import palm_detection

RNG = np.random.default_rng(0)


# --- palms --------------------------------------------------------------------------


def test_anchors_lie_in_the_middle_of_the_maps_pixels():
    anchors = palm_detection.anchors()
    assert anchors.shape == (palm_detection.NUM_ANCHORS, 2)
    np.testing.assert_array_equal(anchors[:4], [[4, 4], [4, 4], [12, 4], [12, 4]])
    np.testing.assert_array_equal(anchors[2 * 24], [4, 12])  # the second row
    np.testing.assert_array_equal(anchors[1152:1158], [[8, 8]] * 6)
    np.testing.assert_array_equal(anchors[-1], [184, 184])


def test_decoding_adds_the_anchor_to_places_and_not_to_sizes():
    boxes, logits = np.zeros((2016, 18)), np.full(2016, -9.0)
    at = 2 * (24 * 3 + 5)  # anchor at column 5, row 3 of the finer map
    boxes[at] = [1, 2, 10, 20, *range(14)]
    logits[at] = 2.0
    (palm,) = decode_palms(boxes, logits)
    middle = np.array([5.5 * 8, 3.5 * 8]) - 0.5
    np.testing.assert_allclose(palm.score, 1 / (1 + np.exp(-2)))
    corners = [middle + [1 - 5, 2 - 10], middle + [1 + 5, 2 + 10]]
    np.testing.assert_allclose(palm.box_px, np.ravel(corners))
    points = np.arange(14.0).reshape(7, 2) + middle
    np.testing.assert_allclose(palm.keypoints_px, points)
    assert decode_palms(boxes, np.full(2016, -1e9)) == []


def _slow_merge(palms):
    """The same on sets of indices, pair by pair."""
    left = set(range(len(palms)))
    merged = []
    while left:
        best = max(left, key=lambda i: palms[i].score)
        group = {i for i in left if i == best or _slow_iou(palms[best], palms[i]) > 0.3}
        total = sum(palms[i].score for i in group)
        box = sum(palms[i].score / total * palms[i].box_px for i in group)
        merged.append((palms[best].score, box))
        left -= group
    return merged


def _slow_iou(a, b):
    """Share of a fine grid of points that both boxes hold."""
    grid = np.stack(np.meshgrid(*[np.arange(0.05, 60, 0.1)] * 2), -1)
    x, y = (((grid > p.box_px[:2]) & (grid < p.box_px[2:])).all(-1) for p in (a, b))
    return (x & y).sum() / (x | y).sum()


def test_merging_equals_a_slow_reference():
    corners = RNG.integers(0, 30, (12, 2))
    sides = RNG.integers(10, 30, (12, 2))
    palms = [
        Palm(float(s), np.r_[c, c + d].astype(float), RNG.normal(size=(7, 2)))
        for s, c, d in zip(RNG.uniform(0.5, 1, 12), corners, sides, strict=True)
    ]
    found = merge_palms(palms)
    expected = _slow_merge(palms)
    assert 1 < len(found) == len(expected) < 12
    for palm, (score, box) in zip(found, expected, strict=True):
        assert palm.score == score
        np.testing.assert_allclose(palm.box_px, box)


# --- regions ------------------------------------------------------------------------


@pytest.mark.parametrize("angle", [0.0, 0.4, -2.0, 3.1])
def test_a_region_turns_its_up_to_the_top_of_the_crop(angle):
    region = Region(np.array([40.0, 30.0]), 50.0, angle)
    H = region_homography(region, 100)
    upwards = np.array([np.sin(angle), -np.cos(angle)])
    points = region.centre_px + np.outer([0, 1], 10 * upwards)
    crop = warp_points(H, points)
    np.testing.assert_allclose(crop, [[49.5, 49.5], [49.5, 29.5]])
    np.testing.assert_allclose(warp_points(np.linalg.inv(H), crop), points)


def test_palm_regions_in_closed_form():
    keypoints = np.zeros((7, 2))
    keypoints[0], keypoints[2] = (50, 60), (50, 40)  # fingers upwards
    region = palm_region(np.array([40.0, 40, 60, 70]), keypoints)
    np.testing.assert_allclose(region.centre_px, [50, 55 - 15])
    np.testing.assert_allclose((region.size_px, region.angle), (2.6 * 30, 0))
    keypoints[2] = (70, 60)  # fingers to the right: turned clockwise by 90 degrees
    region = palm_region(np.array([40.0, 40, 60, 70]), keypoints)
    np.testing.assert_allclose(region.centre_px, [50 + 15, 55])
    np.testing.assert_allclose(region.angle, np.pi / 2)


@pytest.mark.parametrize("angle", [0.7, -1.9])
def test_landmark_regions_turn_and_grow_with_the_hand(angle):
    points = RNG.normal(size=(21, 2)) * 20
    points[[0, 5, 9, 13]] = [[0, 40], [-9, -10], [0, -12], [9, -10]]
    first = landmark_region(points)
    assert abs(first.angle) < 0.1
    turn = crop.rotation_z(angle)[:2, :2]
    moved = landmark_region(3 * points @ turn.T + [7, 5])
    np.testing.assert_allclose(moved.angle, first.angle + angle)
    np.testing.assert_allclose(moved.size_px, 3 * first.size_px)
    np.testing.assert_allclose(moved.centre_px, 3 * turn @ first.centre_px + [7, 5])
    # The farthest finger tips do not count.
    points[[4, 8, 12, 16, 20]] *= 9
    assert landmark_region(points)[1:] == first[1:]


def test_margins_put_the_photo_where_the_matrix_says():
    image = np.zeros((60, 90, 3), np.uint8)
    image[20:30, 60:70] = 255
    picture, H = hand_detector._with_margin(image, 0.25)
    assert picture.shape == (192, 192, 3)
    rows, columns = np.nonzero(picture[..., 0] > 127)
    expected = warp_points(H, np.array([[64.5, 24.5]]))[0]
    np.testing.assert_allclose((columns.mean(), rows.mean()), expected, atol=0.3)


@pytest.mark.parametrize("shape", [(700, 1000), (900, 500), (400, 400)])
def test_tiles_cover_the_photo(shape):
    tiles = hand_detector._tiles(*shape, parts=(2,))
    seen = np.zeros(shape, bool)
    for tile in tiles:
        low = np.maximum(np.round(tile.centre_px + 0.5 - tile.size_px / 2), 0)
        high = np.round(tile.centre_px + 0.5 + tile.size_px / 2)
        seen[int(low[1]) : int(high[1]), int(low[0]) : int(high[0])] = True
    assert seen.all() and len(tiles) <= 9


# --- duplicates ---------------------------------------------------------------------


def _hand(points, presence, is_right=1.0):
    box = np.concatenate([points.min(0), points.max(0)])
    region = landmark_region(points)
    zeros = np.zeros((21, 3), np.float32)
    return DetectedHand(
        region, box, points, zeros[:, 0], zeros, presence, is_right, presence >= 0.9
    )


def test_a_part_of_a_hand_is_not_another_hand():
    whole = RNG.uniform(0, 100, (21, 2))
    part = 30 + 0.3 * whole  # inside; its IoU is only 0.09
    assert iou(_hand(whole, 1).box_px, _hand(part, 1).box_px) < 0.1
    best, weak = _hand(whole, 0.99), _hand(part, 0.95)
    assert without_duplicates([weak, best]) == [best]
    # A hand of the other side in front of it is another hand, and so is one beside it.
    other, beside = _hand(part, 0.95, 0.0), _hand(whole + [90, 0], 0.95)
    assert len(without_duplicates([best, other, beside])) == 3
    # What is read in a part of a hand, and is not sure, is not a hand of either side.
    for is_right in (0.0, 1.0):
        assert without_duplicates([_hand(part, 0.85, is_right), best]) == [best]
    # The same points are the same hand, whatever the side.
    assert len(without_duplicates([best, _hand(whole + 3, 0.95, 0.0)])) == 1


def test_the_covered_share_is_of_the_smaller_box():
    outer, inner = np.array([0.0, 0, 10, 10]), np.array([2.0, 2, 6, 12])
    assert hand_detector.covered_share(outer, inner) == 32 / 40
    assert hand_detector.covered_share(inner, outer) == 32 / 40
    assert hand_detector.covered_share(outer, outer + 20) == 0


def test_two_boxes_share_what_they_share():
    a, b = np.array([0.0, 0, 4, 4]), np.array([2.0, 1, 6, 3])
    assert hand_detector.intersection(a, b) == 4
    assert iou(a, b) == 4 / (16 + 8 - 4)
    assert hand_detector.intersection(a, b + 10) == 0


# --- the networks -------------------------------------------------------------------


@pytest.fixture(scope="module")
def finder():
    return HandDetector("mediapipe_hand_lite")


@pytest.fixture(scope="module")
def example():
    """A rendered right hand with its palm towards the camera."""
    record = Generator(seed=77, image_size=224, left_fraction=0.0, max_turn=60)(
        "test", EXAMPLE
    )
    image = np.array(Image.open(io.BytesIO(record["image"])).convert("RGB"))
    return image, record


EXAMPLE = 0


def _true_box(record):
    centre, size = record["bbox_center"], record["bbox_size"]
    return np.concatenate([centre - size / 2, centre + size / 2])


def test_a_rendered_hand_is_found_and_read(finder, example):
    image, record = example
    hand = finder.find(image)[0]
    assert hand.sure and hand.presence > 0.9
    assert iou(hand.box_px, _true_box(record)) > 0.7
    apart = np.linalg.norm(hand.landmarks2d_px - record["joints2d"][:, :2], axis=-1)
    assert apart.mean() < 0.12 * record["bbox_size"].max()
    assert hand.is_right > 0.5
    # The turned-back world points lie over the landmarks, but for a weak perspective.
    xy = hand.landmarks3d[:, :2] - hand.landmarks3d[:, :2].mean(0)
    uv = hand.landmarks2d_px - hand.landmarks2d_px.mean(0)
    assert (xy * uv).sum() > 0.95 * np.linalg.norm(xy) * np.linalg.norm(uv)


def test_its_mirror_image_is_a_left_hand_at_the_mirrored_place(finder, example):
    image, _ = example
    hand = finder.find(image)[0]
    mirrored = finder.find(np.ascontiguousarray(image[:, ::-1]))[0]
    assert hand.is_right > 0.5 > mirrored.is_right
    back = warp_points(mirror_homography(image.shape[1]), mirrored.landmarks2d_px)
    side = (hand.box_px[2:] - hand.box_px[:2]).max()
    assert np.linalg.norm(back - hand.landmarks2d_px, axis=-1).mean() < 0.1 * side


def test_a_box_says_where_and_not_how_the_hand_is_turned(finder, example):
    image, record = example
    hand = finder.find(image)[0]
    turned = np.ascontiguousarray(np.rot90(image, -1))  # clockwise
    last = image.shape[0] - 1
    x0, y0, x1, y1 = _true_box(record)
    found = finder.find_in_box(turned, [last - y1, x0, last - y0, x1])
    assert found.sure
    step = np.angle(np.exp(1j * (found.region.angle - hand.region.angle)))
    assert abs(step - np.pi / 2) < 0.3
    with pytest.raises(ValueError, match="empty; give x0, y0, x1, y1"):
        finder.find_in_box(image, [5, 5, 5, 9])


def test_nothing_is_found_in_noise(finder):
    noise = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)
    assert not [hand for hand in finder.find(noise) if hand.sure]


def test_floats_and_16_bits_are_scaled_or_refused(finder, example):
    image, _ = example
    palms = finder.find_palms(image)
    assert palms
    for same in (image / 255, image.astype(np.int64)):
        np.testing.assert_array_equal(
            finder.find_palms(same)[0].box_px, palms[0].box_px
        )
    region = palm_region(palms[0].box_px, palms[0].keypoints_px)
    for call in (
        finder.find,
        finder.find_palms,
        lambda image: finder.read_regions(image, [region]),
        lambda image: finder.find_in_box(image, (10, 10, 90, 90)),
        lambda image: finder.landmarks(image[None, :224, :224]),
    ):
        with pytest.raises(ValueError, match="uint16 pixels of"):
            call(image.astype(np.uint16) * 257)


def test_batches_change_nothing(finder, example):
    image, _ = example
    region = finder.find(image)[0].region
    crops = np.stack([crop_region(image, region)] * 3)
    found = finder.landmarks(crops)
    assert found.screen_px.shape == (3, 21, 3) and found.presence.shape == (3,)
    np.testing.assert_array_equal(found.world[0], found.world[2])
    empty = finder.landmarks(crops[:0])
    assert empty.screen_px.shape == (0, 21, 3)


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match=r"min_score=1\.5 is not between 0 and 1"):
        HandDetector(min_score=1.5)
    with pytest.raises(ValueError, match="is not one of mediapipe_hand_full"):
        HandDetector("mediapipe")
