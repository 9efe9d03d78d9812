"""From records to batches: geometry, labels, mirroring, validity."""

import re
from pathlib import Path

import chex
import cv2
import jax
import numpy as np
import pytest
from fake_records import SIZE, decoded, joints, jpeg, mirrored, record
from jaxtyping import jaxtyped
from scipy.spatial.transform import Rotation

import data_pipelines
from data_pipelines.loading import augment, examples
from data_pipelines.loading.annotations import BadRecordError
from data_pipelines.loading.augment import AugmentConfig, HamerConfig
from data_pipelines.loading.examples import ExampleMaker
from handjax.geometry import crop
from handjax.geometry.crop import CropConfig
from handjax.types import Batch

CONFIG = CropConfig(size=64)
AUGMENT = AugmentConfig()
HAMER = HamerConfig(rotation_rate=1.0, scale=0.1)  # every dot stays inside
RECIPES = [None, AUGMENT, AugmentConfig(flip=1.0), HAMER]


def _make(*records, augmentation=None, **changes):
    make = ExampleMaker(CONFIG, augmentation=augmentation, **changes)
    return make(records, augment.draws(0, range(len(records))))


def test_evaluation_is_the_published_crop():
    """Box of the joints times 1.25, no jitter; all labels from the same camera."""
    batch = _make(decoded(record(1)))
    points = joints(1).astype(np.float32).astype(float)
    K = record()["K"]
    pixels = crop.project(points, K)
    low, high = pixels.min(0), pixels.max(0)
    view = crop.view(np.concatenate([low, high]), K, 64, scale=1.25)
    turned = points @ view.R_crop_camera.T
    np.testing.assert_allclose(batch.R_crop_camera[0], view.R_crop_camera, atol=1e-6)
    np.testing.assert_allclose(batch.intrinsics[0], view.intrinsics, rtol=1e-5)
    np.testing.assert_allclose(batch.root3d[0], turned[9], atol=1e-6)
    np.testing.assert_allclose(batch.joints3d[0], turned - turned[9], atol=1e-6)
    picture = examples.decode_image(record(1)["image"])
    expected = crop.warp_image(picture, view.H_crop_image, 64)
    difference = batch.image[0].astype(int) - expected
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("augmentation", RECIPES)
@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("aspect", [1.0, 1.16])
def test_joints_project_to_their_pixels(augmentation, left, aspect):
    K = record()["K"] * np.array([[1.0], [aspect], [1.0]])
    records = [record(i, K=K) for i in range(6)]
    if left:
        records = [mirrored(r) for r in records]
    batch = _make(*map(decoded, records), augmentation=augmentation)
    points = (batch.joints3d + batch.root3d[:, None]).astype(np.float64)
    projected = crop.project(points, batch.intrinsics)
    np.testing.assert_allclose(projected, batch.joints2d, atol=1e-2)


@pytest.mark.parametrize("augmentation", RECIPES)
@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("aspect", [1.0, 1.16])
def test_a_dot_in_the_photo_is_found_at_its_joint(augmentation, left, aspect):
    """Through the JPEG, the mirror, the crop, the rotation and the colours."""
    K = record()["K"] * np.array([[1.0], [aspect], [1.0]])
    points = joints(5)
    pixels = crop.project(points, K)
    y, x = np.mgrid[:SIZE, :SIZE]
    at = pixels[9]
    light = np.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / (2 * 1.5**2))
    picture = np.repeat((230 * light[..., None]).astype(np.uint8), 3, -1)
    quality = [cv2.IMWRITE_JPEG_QUALITY, 100]
    data = cv2.imencode(".jpg", picture, quality)[1].tobytes()
    example = record(5, image=data, K=K)
    if left:
        example = mirrored(example) | {"K": crop.mirror_intrinsics(K, SIZE)}
    if isinstance(augmentation, AugmentConfig):  # darkening would cut the dot's edge
        augmentation = augmentation._replace(brightness=(0, 0), contrast=0.0)
    batch = _make(decoded(example), augmentation=augmentation)
    light = batch.image[0].astype(float)[..., 1]
    light[light < 25] = 0
    y, x = np.mgrid[:64, :64]
    found = np.array([(light * x).sum(), (light * y).sum()]) / light.sum()
    np.testing.assert_allclose(found, batch.joints2d[0, 9], atol=0.1)


def test_left_hands_give_the_batch_of_their_mirror_image():
    right = [record(i) for i in range(4)]
    a = _make(*map(decoded, right), augmentation=AUGMENT)
    b = _make(*[decoded(mirrored(r)) for r in right], augmentation=AUGMENT)
    assert a.is_right.all() and not b.is_right.any()
    for name in ("vertices", "joints3d", "joints2d", "root3d", "mano_pose", "betas"):
        np.testing.assert_allclose(
            getattr(a, name), getattr(b, name), atol=1e-4, err_msg=name
        )
    assert np.abs(a.image.astype(float) - b.image).mean() < 6  # JPEG, twice


def test_left_hands_are_mirrored_in_one_place():
    """`examples.py` flips crops of either hand, too: that is augmentation."""
    folder = Path(data_pipelines.__file__).parent
    found = {
        path.name
        for path in folder.rglob("*.py")
        if re.search(r"crop\.(mirror|MIRROR)", path.read_text())
    }
    assert found == {"annotations.py", "examples.py"}
    text = (folder / "loading" / "examples.py").read_text()
    mirroring = [line for line in text.splitlines() if "crop.m" in line.lower()]
    assert all("[flip]" in line for line in mirroring if "mirror" in line.lower())


@pytest.mark.parametrize("augmentation", [AUGMENT, HAMER])
def test_the_pose_turns_with_the_crop(augmentation):
    example = record(2)
    batch = _make(decoded(example), augmentation=augmentation)
    assert abs(np.arctan2(*batch.R_crop_camera[0, 1::-1, 0])) > 0.05  # in the plane
    orient = Rotation.from_rotvec(example["mano_pose"][:3])
    turned = Rotation.from_matrix(batch.R_crop_camera[0]) * orient
    got = Rotation.from_rotvec(batch.mano_pose[0, 0])
    assert (turned * got.inv()).magnitude() < 1e-5
    np.testing.assert_allclose(
        batch.mano_pose[0, 1:].ravel(), example["mano_pose"][3:], atol=1e-6
    )


def test_a_batch_is_its_examples():
    records = [decoded(record(i)) for i in range(3)]
    records[1] = decoded(mirrored(record(1)))
    whole = _make(*records, augmentation=AUGMENT)
    drawn = augment.draws(0, range(3))
    for i in range(3):
        one = ExampleMaker(CONFIG, augmentation=AUGMENT)([records[i]], drawn[i : i + 1])
        of_whole = jax.tree.map(lambda x, i=i: x[i : i + 1], whole)
        for name, got, expected in zip(Batch._fields, one, of_whole, strict=True):
            if got is not None:
                np.testing.assert_allclose(got, expected, atol=1e-5, err_msg=name)


def test_without_pictures_the_geometry_is_the_same():
    a = _make(decoded(record(1)), augmentation=AUGMENT)
    b = _make(decoded(record(1)), augmentation=AUGMENT, load_image=False)
    assert b.image is None
    for name in set(Batch._fields) - {"image"}:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_every_field_is_what_the_record_says():
    batch = _make(decoded(record(1)), decoded(mirrored(record(2))))
    with jaxtyped("context"):
        for name, kind in Batch.__annotations__.items():
            assert any(isinstance(getattr(batch, name), k) for k in kind.__args__), name


def test_a_flip_mirrors_the_crop_and_gives_up_the_pose():
    a = _make(decoded(record(1)), augmentation=AUGMENT)
    b = _make(decoded(record(1)), augmentation=AUGMENT._replace(flip=1.0))
    np.testing.assert_allclose(b.joints2d[..., 0], 63 - a.joints2d[..., 0], atol=1e-4)
    np.testing.assert_allclose(b.vertices, a.vertices * (-1, 1, 1), atol=1e-6)
    difference = b.image.astype(int) - a.image[:, :, ::-1]
    assert np.abs(difference).max() <= 6  # interpolation of OpenCV has 1/32 pixels
    assert a.mano_valid.all() and not b.mano_valid.any()


# --- what is valid ------------------------------------------------------------------


def test_joints_outside_the_photo_are_not_valid():
    example = record(1)
    moved = example["joints3d"].copy()
    moved[4, :2] = (3.0, 0)
    batch = _make(decoded(record(1, joints3d=moved)))
    assert batch.joints2d_valid[0].tolist() == [i != 4 for i in range(21)]
    assert batch.joints3d_valid[0]


def test_3d_counts_unless_wrist_and_middle_knuckle_are_unseen():
    moved = record(1)["joints3d"].copy()
    moved[9, :2] = (3.0, 0)
    assert _make(decoded(record(1, joints3d=moved)), root=0).joints3d_valid[0]
    moved[0, :2] = (3.0, 0)
    batch = _make(decoded(record(1, joints3d=moved)), root=0)
    assert not (batch.joints3d_valid | batch.vertices_valid | batch.mano_valid)[0]


def test_missing_annotations_are_not_valid_and_still_finite():
    example = record(
        1, joints3d=None, vertices=None, mano_pose=None, mano_betas=None, K=None
    )
    batch = _make(decoded(example), decoded(record(2)), augmentation=AUGMENT)
    for name in ("joints3d_valid", "vertices_valid", "mano_valid"):
        assert getattr(batch, name).tolist() == [False, True], name
    assert batch.joints2d_valid[0].sum() > 10
    chex.assert_tree_all_finite(batch)


@pytest.mark.parametrize(
    ("left_model", "valid"), [(0, True), (1, False), (2, True), (3, False)]
)
def test_betas_of_unmirrorable_left_models_are_not_valid(left_model, valid):
    left = mirrored(record(1)) | {"left_model": left_model}
    assert _make(decoded(left)).mano_valid[0] == valid


@pytest.mark.parametrize("size", [(40.0, 20.0), (0.0, 0.0)])
def test_without_joints_the_stored_box_or_the_photo_is_used(size):
    unseen = np.zeros((21, 3))
    example = record(
        1, joints2d=unseen, joints3d=None, bbox_center=(30, 50), bbox_size=size
    )
    batch = _make(decoded(example))
    width = 95 if size[0] == 0 else 40
    focal = batch.intrinsics[0, 0, 0]
    assert focal == pytest.approx(150 * 64 / (width * 1.25), rel=0.1)
    assert not batch.joints2d_valid.any()


def test_one_joint_is_no_box():
    seen = np.zeros((21, 3))
    seen[3] = (40, 50, 1)
    batch = _make(decoded(record(1, joints2d=seen, joints3d=None)))
    chex.assert_tree_all_finite(batch)
    assert batch.joints2d_valid[0, 3]


# --- records that are refused -------------------------------------------------------


def test_a_truncated_picture_is_noticed():
    data = record()["image"]
    with pytest.raises(ValueError, match="truncated JPEG"):
        examples.decode_image(data[: len(data) // 2])
    with pytest.raises(ValueError, match="not a readable JPEG"):
        examples.decode_image(b"\xff\xd8 nothing \xff\xd9")


def test_colours_are_red_green_blue():
    picture = np.zeros((16, 16, 3), np.uint8)
    picture[..., 2] = 200  # OpenCV writes blue, green, red
    assert examples.decode_image(jpeg(picture))[8, 8].argmax() == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"joints3d": np.full((21, 4), np.nan)}, "joints3d holds values that are not"),
        ({"vertices": np.zeros((700, 3))}, "700 vertices, not 778"),
        ({"K": np.zeros((3, 3))}, "focal lengths"),
        ({"K": np.diag([500.0, 500, 0])}, "K has no inverse"),
        ({"K": np.diag([1e30, 500, 1])}, r"K holds values beyond 1e\+06"),
        ({"joints3d": np.full((21, 4), 1e30)}, "joints3d holds values beyond 100"),
        ({"vertices": np.full((778, 3), -1e30)}, "vertices holds values beyond 100"),
        ({"mano_betas": np.full(10, 1e9)}, "mano_betas holds values beyond 1000"),
        ({"bbox_size": np.array([-5.0, 20])}, "bbox_size is negative"),
        ({"bbox_size": np.array([np.nan, 20])}, "bbox_size is negative or not"),
        ({"image_size": np.array([0, 64])}, "image_size is not above zero"),
    ],
)
def test_records_without_sense_are_refused(changes, message):
    good = decoded(record(2))
    with pytest.raises(BadRecordError, match=message) as caught:
        _make(good, decoded(record(1, **changes)), good)
    assert caught.value.row == 1


# --- what is annotated --------------------------------------------------------------


def test_some_joints_of_a_hand_may_be_known():
    """InterHand2.6M's joints are triangulated one by one."""
    example = record(3)
    example["joints3d"][[4, 12], 3] = 0
    batch = _make(decoded(example))
    missing = np.isin(np.arange(21), (4, 12))
    np.testing.assert_array_equal(batch.joints3d_known[0], ~missing)
    assert not batch.joints3d_valid[0] and batch.vertices_valid[0]
    whole = _make(decoded(record(3)))
    # The box is around other joints, so the crop's camera looks elsewhere.
    found, expected = (b.joints3d[0] @ b.R_crop_camera[0] for b in (batch, whole))
    np.testing.assert_allclose(found[~missing], expected[~missing], atol=1e-6)
    assert whole.joints3d_known.all() and whole.joints3d_valid.all()
    example["joints3d"][9, 3] = 0  # the root, which the others are relative to
    assert not _make(decoded(example)).joints3d_known.any()


def test_confidence_is_that_of_the_annotators_or_of_a_projection():
    example = record(3)
    example["joints2d"][:, 2] = np.linspace(0, 1, 21)
    seen = _make(decoded(example))
    assert (seen.joints2d_confidence == 1).all() and seen.joints2d_valid.all()
    del example["K"]  # nothing can be projected
    seen = _make(decoded(example))
    np.testing.assert_allclose(seen.joints2d_confidence[0], np.linspace(0, 1, 21))
    assert seen.joints2d_valid[0].tolist() == [False, *[True] * 20]
    np.testing.assert_array_equal(
        seen.joints2d_weights, seen.joints2d_valid * seen.joints2d_confidence
    )


def test_an_assumed_camera_puts_a_hand_nowhere():
    assert (_make(decoded(record(3))).root3d[:, 2] > 0).all()
    assert not _make(decoded(record(3, K=None))).root3d.any()


@pytest.mark.parametrize("known", [True, False])
def test_betas_that_are_not_known_may_count_as_zero(known):
    """But not where they are known and the hand is out of sight, or flipped."""
    changes = {} if known else dict(mano_pose=None, mano_betas=None)
    plain = _make(decoded(record(3, **changes)))
    assert plain.betas_valid[0] == plain.mano_valid[0] == known
    batch = _make(decoded(record(3, **changes)), neutral_betas=True)
    assert batch.betas_valid[0] and batch.betas.any() == known
    flip = AugmentConfig(flip=1.0)
    batch = _make(decoded(record(3, **changes)), neutral_betas=True, augmentation=flip)
    assert batch.betas_valid[0] == (not known)
    # Those of a left model that cannot be mirrored are not known.
    record_of_left = decoded(record(3, is_right=False, left_model=1))
    assert not _make(record_of_left).betas_valid[0]
    batch = _make(record_of_left, neutral_betas=True)
    assert batch.betas_valid[0] and not batch.betas.any() and not batch.mano_valid[0]
