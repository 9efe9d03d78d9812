import io

import numpy as np
import pytest
from PIL import Image

from data_pipelines.storage import schema
from data_pipelines.synthetic import records
from data_pipelines.synthetic.recipes import RECIPES
from handjax.geometry import skeleton
from handjax.mano import model_files
from handjax.visualization.rasterizer import rasterize

SIZE = 96


@pytest.fixture(scope="module")
def generator():
    return records.Generator(seed=3, image_size=SIZE, left_fraction=0.5)


@pytest.fixture(scope="module")
def examples(generator):
    return [generator("train", index) for index in range(12)]


def slow_model(file, pose, betas, transl):
    """MANO's forward pass, one vertex at a time."""
    turns = [rotation(pose[3 * j : 3 * j + 3]) for j in range(16)]
    shaped = file.v_template + file.shapedirs @ betas
    joints = file.J_regressor @ shaped
    features = np.concatenate([(turn - np.eye(3)).ravel() for turn in turns[1:]])
    world = []
    for j in range(16):
        local = np.eye(4)
        local[:3, :3] = turns[j]
        parent = file.parents[j]
        local[:3, 3] = joints[j] - (joints[parent] if parent >= 0 else 0)
        world.append(local if parent < 0 else world[parent] @ local)
    vertices = np.zeros((778, 3))
    for i in range(778):
        point = shaped[i] + file.posedirs[i] @ features
        for j in range(16):
            moved = world[j][:3, :3] @ (point - joints[j]) + world[j][:3, 3]
            vertices[i] += file.weights[i, j] * moved
    return vertices + transl


def rotation(vector):
    from scipy.linalg import expm

    x, y, z = vector
    return expm(np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]))


@pytest.mark.parametrize("is_right", [True, False])
def test_pose_and_shape_give_the_stored_mesh(examples, is_right):
    file = model_files.load("open", side="right" if is_right else "left")
    chosen = [e for e in examples if e["is_right"] == is_right][:2]
    assert chosen
    for example in chosen:
        vertices = slow_model(
            file, example["mano_pose"], example["mano_betas"], example["mano_transl"]
        )
        np.testing.assert_allclose(vertices, example["vertices"], atol=1e-7)
        joints = model_files.joint_regressor(file) @ vertices
        np.testing.assert_allclose(joints, example["joints3d"][:, :3], atol=1e-7)


def test_both_hands_occur(examples):
    assert 0 < sum(example["is_right"] for example in examples) < len(examples)


def test_joints_project_to_the_picture(examples):
    for example in examples:
        joints3d = example["joints3d"][:, :3]
        assert (joints3d[:, 2] > 0.05).all()
        focal, centre = example["K"][0, 0], (SIZE - 1) / 2
        expected = joints3d[:, :2] / joints3d[:, 2:] * focal + centre
        np.testing.assert_allclose(example["joints2d"][:, :2], expected, atol=1e-9)
        inside = ((expected >= 0) & (expected <= SIZE - 1)).all(1)
        np.testing.assert_array_equal(example["joints2d"][:, 2], inside)
        palm = np.linalg.norm(joints3d[skeleton.MIDDLE_MCP] - joints3d[0])
        assert 0.05 < palm < 0.14  # metres


def test_box_is_the_tight_box_of_the_mesh(examples):
    for example in examples:
        points = records.project(example["vertices"], example["K"])
        low = np.clip(points.min(0), 0, SIZE - 1)
        high = np.clip(points.max(0), 0, SIZE - 1)
        np.testing.assert_allclose(example["bbox_center"], (low + high) / 2)
        np.testing.assert_allclose(example["bbox_size"], high - low)
        assert (example["bbox_size"] > SIZE / 20).all()


def test_hand_is_seen_where_the_labels_say(generator, monkeypatch):
    """The silhouette of the stored mesh covers what the renderer drew of the hand."""
    from data_pipelines.synthetic import render

    pictures = []
    draw = render.render
    monkeypatch.setattr(
        render,
        "render",
        lambda *a, **kw: pictures.append(draw(*a, **kw)) or pictures[-1],
    )
    example = generator("test", 4)
    mask = pictures[-1].mask if example["is_right"] else pictures[-1].mask[:, ::-1]
    vertices, faces = example["vertices"], model_files.load("open").faces
    points = records.project(vertices, example["K"])
    silhouette = rasterize(points, vertices[:, 2], faces, SIZE, SIZE).face_index >= 0
    both, either = (mask & silhouette).sum(), (mask | silhouette).sum()
    assert both / mask.sum() > 0.93  # the outline differs by part of a pixel
    assert both / either > 0.9 * example["visible"]


def test_examples_are_complete_and_encodable(examples):
    for example in examples:
        assert RECIPES["default"].least_visible <= example["visible"] <= 1
        with Image.open(io.BytesIO(example["image"])) as image:
            assert image.size == (SIZE, SIZE)
            pixels = np.asarray(image.convert("RGB"))
        assert pixels.std() > 3  # there is something to see
        decoded = schema.decode(schema.encode(example))
        assert all(decoded[f"has_{k}"] for k in ("joints3d", "vertices", "pose", "K"))
        np.testing.assert_allclose(decoded["vertices"], example["vertices"], atol=1e-6)
        assert set(np.unique(decoded["occluded"])) <= {0, 1}


def test_examples_depend_on_seed_split_and_index_alone(generator, examples):
    again = generator("train", 7)
    assert again["image"] == examples[7]["image"]
    assert generator("test", 7)["image"] != again["image"]
    other = records.Generator(seed=4, image_size=SIZE, left_fraction=0.5)
    assert other("train", 7)["image"] != again["image"]


def test_hands_turn_no_further_than_asked():
    generator = records.Generator(
        seed=3, image_size=SIZE, left_fraction=0.0, max_turn=25
    )
    wrist, index, middle, little = (
        skeleton.JOINTS.index(name)
        for name in ("wrist", "index1", "middle1", "little1")
    )
    for number in range(6):
        example = generator("train", number)
        root = rotation(example["mano_pose"][:3])
        facing = np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]])
        cosine = (np.trace(root @ facing.T) - 1) / 2
        assert np.degrees(np.arccos(cosine)) <= 25
        # Fingers up; a right hand that shows its palm has its thumb on the right.
        x, y = example["joints2d"][:, 0], example["joints2d"][:, 1]
        assert y[middle] < y[wrist] and x[index] > x[little]
