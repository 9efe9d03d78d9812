"""Features of a frozen network: made once, resumable, right labels, right batches."""

import itertools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fake_records import joints, mirrored, record

from data_pipelines.loading.examples import ExampleMaker
from data_pipelines.loading.loader import Source
from data_pipelines.storage import schema, shards
from handjax.data import frozen_features
from handjax.detection.hand_detector import HandDetector
from handjax.detection.regions import Region, landmark_region
from handjax.distributed.split_shares import ProcessShare
from handjax.errors import UserError
from handjax.geometry import crop
from handjax.geometry.crop import CropConfig
from handjax.nn import hand_features
from handjax.nn.backbones import hand_landmark
from handjax.types import HandFeatures

LITE = "mediapipe_hand_lite"
VIEWS = frozen_features.Views(LITE, count=2, seed=0, training=True)


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """Two right hands and a left one, as a data set."""
    directory = tmp_path_factory.mktemp("data")
    hands = [record(0), record(1), mirrored(record(2))]
    return write(directory, hands)


def write(directory, hands):
    shards.write_split(
        directory,
        name="synthetic",
        split="train",
        count=len(hands),
        records=lambda first, last: (schema.encode(h) for h in hands[first:last]),
        shards=1,
    )
    shards.write_metadata(
        directory, name="synthetic", splits={"train": len(hands)}, description="fake"
    )
    return shards.open_split(directory, "train")


@pytest.fixture(scope="module")
def reads():
    """How often the network is asked."""
    return []


@pytest.fixture(autouse=True)
def no_networks(monkeypatch, reads):
    """A detector that finds the true box, and features that say what was seen."""

    def find_in_box(self, image, box):
        return Found(Region((box[:2] + box[2:]) / 2, float(2 * np.ptp(box)), 0.3))

    def read(variant, images):
        reads.append(len(images))
        size = len(images)
        mean = images.reshape(size, -1).mean(1).astype(np.float32)
        points = np.tile(mean[:, None, None], (1, 21, 3))
        return HandFeatures(points, points, mean, mean, points[:, 0], points)

    class Found:
        def __init__(self, region):
            self.region = region

    monkeypatch.setattr(HandDetector, "__init__", lambda self, variant: None)
    monkeypatch.setattr(HandDetector, "find_in_box", find_in_box)
    monkeypatch.setattr(frozen_features, "read", read)


def ensure(split, directory, views=VIEWS):
    return frozen_features.ensure(
        Source(split), directory, views, ExampleMaker(CropConfig())
    )


def test_views_of_a_picture_follow_each_other_and_no_picture_is_kept(split, tmp_path):
    batch = ensure(split, tmp_path)

    assert batch.index.tolist() == [0, 0, 1, 1, 2, 2]
    assert batch.image is None and batch.features.world.shape == (6, 21, 3)
    assert not np.allclose(batch.R_crop_camera[0], batch.R_crop_camera[1], atol=1e-3)


def test_labels_are_in_the_axes_of_the_region(split, tmp_path):
    batch = ensure(split, tmp_path)
    points = joints(0)
    turned = crop.rotate(batch.R_crop_camera[0].astype(float), points)

    np.testing.assert_allclose(batch.joints3d[0], turned - turned[9], atol=1e-6)
    np.testing.assert_allclose(
        crop.project(turned, batch.intrinsics[0]), batch.joints2d[0], atol=0.6
    )


def test_a_left_hand_is_read_as_the_right_hand_in_the_mirror(split, tmp_path):
    batch = ensure(split, tmp_path / "left")
    right = write(tmp_path / "data", [record(0), record(1), record(2)])
    expected = ensure(right, tmp_path / "right")

    np.testing.assert_allclose(batch.joints3d[4], expected.joints3d[4], atol=1e-4)
    np.testing.assert_allclose(batch.features.pooled, expected.features.pooled, atol=1)


def test_finished_parts_are_not_made_again(split, tmp_path, reads, monkeypatch):
    monkeypatch.setattr(frozen_features, "PER_PART", 1)
    first = ensure(split, tmp_path)
    (tmp_path / "part-00001-of-00003.safetensors").unlink()
    reads.clear()

    again = ensure(split, tmp_path)

    assert reads == [1, 1]
    jax.tree.map(np.testing.assert_array_equal, first, again)


def test_a_directory_with_other_features_is_refused(split, tmp_path):
    ensure(split, tmp_path)

    with pytest.raises(UserError, match="seed: 0 there, 1 asked for"):
        ensure(split, tmp_path, VIEWS._replace(seed=1))


def test_regions_that_miss_the_hand_are_replaced_for_training_alone(
    split, tmp_path, monkeypatch
):
    def find_in_box(self, image, box):
        far = Region(np.array([900.0, 900.0]), 50.0, 0.0)
        return type("Found", (), {"region": far})

    monkeypatch.setattr(HandDetector, "find_in_box", find_in_box)
    trained = ensure(split, tmp_path / "train")
    tested = ensure(split, tmp_path / "test", VIEWS._replace(training=False, count=1))

    assert trained.joints2d_valid.any() and not tested.joints2d_valid.any()


def test_true_regions_are_half_as_far_off_as_the_jitter(split, tmp_path):
    views = VIEWS._replace(training=False, count=1, regions="true")
    batch = ensure(split, tmp_path, views)
    pixels = split[0]["joints2d"][:, :2].astype(np.float64)
    region = frozen_features.jittered(
        landmark_region(pixels), np.random.default_rng([0, 0]), 0.5
    )

    upwards = batch.R_crop_camera[0] @ [np.sin(region.angle), -np.cos(region.angle), 0]
    np.testing.assert_allclose(upwards[0], 0, atol=0.05)
    assert upwards[1] < -0.95


def test_batches_are_the_same_after_resuming(split, tmp_path):
    cached = ensure(split, tmp_path)

    def batches(start_step, count):
        made = frozen_features.train_batches(
            cached, batch_size=2, seed=3, start_step=start_step
        )
        return list(itertools.islice(made, count))

    straight, resumed = batches(0, 7), batches(4, 3)

    jax.tree.map(np.testing.assert_array_equal, straight[4:], resumed)
    assert straight[0].vertices.dtype == np.float32
    assert {i for batch in straight[:3] for i in batch.index.tolist()} == {0, 1, 2}


def test_two_processes_share_a_batch(split, tmp_path):
    cached = ensure(split, tmp_path)

    def first(**options):
        return next(frozen_features.train_batches(cached, seed=3, **options))

    parts = [first(batch_size=1, process=ProcessShare(i, 2)) for i in range(2)]
    whole = first(batch_size=2)

    np.testing.assert_array_equal(
        np.concatenate([part.joints3d for part in parts]), whole.joints3d
    )


def test_evaluation_reads_every_example_once_and_pads(split, tmp_path):
    cached = ensure(split, tmp_path)

    batches = list(frozen_features.in_order(cached, batch_size=4))

    assert [len(b.index) for b in batches] == [4, 4]
    valid = np.concatenate([b.index[b.example_valid] for b in batches])
    assert valid.tolist() == [0, 0, 1, 1, 2, 2]


def test_jitter_has_the_spread_it_says():
    region, rng = Region(np.array([50.0, 60.0]), 100.0, 0.5), np.random.default_rng(0)
    drawn = [frozen_features.jittered(region, rng) for _ in range(4_000)]

    angle = np.std([r.angle for r in drawn])
    size = np.std(np.log([r.size_px for r in drawn]))
    shift = np.std([r.centre_px for r in drawn], axis=0)

    np.testing.assert_allclose([angle, size], [0.2, 0.1], rtol=0.05)
    np.testing.assert_allclose(shift, 4.0, rtol=0.05)


def test_recoloured_crops_keep_their_size_and_differ():
    rng = np.random.default_rng(0)
    crop_px = cv2.resize(rng.integers(0, 255, (9, 9, 3), dtype=np.uint8), (64, 64))

    drawn = [frozen_features.recoloured(crop_px, rng) for _ in range(20)]

    assert {d.shape for d in drawn} == {(64, 64, 3)}
    assert all(np.abs(d.astype(int) - crop_px).mean() > 1 for d in drawn)
    assert np.corrcoef([d.ravel() for d in drawn]).min() > 0.5


@pytest.mark.parametrize("variant", hand_landmark.VARIANTS)
def test_empty_features_have_the_shapes_of_those_that_are_read(variant):
    images = np.zeros((2, 224, 224, 3), np.uint8)
    variables = hand_landmark.pretrained(variant)
    read = jax.eval_shape(
        lambda v, x: hand_features.of_crops(variant, v, x), variables, images
    )
    shapes = jax.tree.map(lambda x: x.shape, read)

    assert jax.tree.map(lambda x: x.shape, hand_features.empty(variant, 2)) == shapes


def test_samples_are_those_of_the_maps_at_the_points():
    """Against the map itself, interpolated by hand."""
    image = np.random.default_rng(0).integers(0, 255, (1, 224, 224, 3), np.uint8)
    variables = jax.device_put(hand_landmark.pretrained(LITE))
    features = jax.device_get(hand_features.of_crops(LITE, variables, image))
    maps = hand_landmark.build(LITE).apply(variables, jnp.asarray(image) / 255.0)
    coarse = np.asarray(maps["stride16"][0])
    x, y = np.clip((features.screen_px[0, :, :2] - 15) / 16, 0, 13).T
    slow = [slow_bilinear(coarse, px, py) for px, py in zip(x, y, strict=True)]

    start = 16 + 24
    np.testing.assert_allclose(
        features.sampled[0, :, start : start + 64], slow, atol=1e-4
    )


def slow_bilinear(values, x, y):
    x0, y0 = min(int(x), 12), min(int(y), 12)
    u, v = x - x0, y - y0
    top = (1 - u) * values[y0, x0] + u * values[y0, x0 + 1]
    bottom = (1 - u) * values[y0 + 1, x0] + u * values[y0 + 1, x0 + 1]
    return (1 - v) * top + v * bottom


def test_regions_of_landmarks_are_what_training_compares_with():
    points = np.random.default_rng(0).normal(100, 20, (21, 2))
    region = landmark_region(points)
    near = region._replace(centre_px=region.centre_px + 0.3 * region.size_px)

    assert frozen_features.is_near(region, region)
    assert not frozen_features.is_near(near, region)
    assert not frozen_features.is_near(
        region._replace(size_px=3 * region.size_px), region
    )
