"""What a model attends to: brought into the crop of the photo, and drawn."""

import json

import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from PIL import Image

from handjax import predict
from handjax.inference import explanations
from handjax.inference.predictor import HandPredictor
from handjax.mano import model_files
from handjax.types import Explanation, HandOutput

FILE = model_files.load("open")
TEMPLATE = np.asarray(FILE.v_template, np.float32)
REGRESSOR = np.asarray(model_files.joint_regressor(FILE), np.float32)
CONFIG = ml_collections.ConfigDict(
    dict(data=dict(crop_size=64, box_scale=1.0, root="wrist"), family="looker")
)
HOT = (1, 0)
"""Row and column of the cell that the second of two clusters looks at."""


class Looker:
    """Sees the flat hand in every crop, and says what it looked at."""

    def __init__(self, clusters=True, joints=True):
        self.parts = clusters, joints

    def explain(self):
        """There is such a method; `apply` calls it."""

    def apply(self, variables, images, *, method="__call__"):
        size = len(images)
        joints3d = REGRESSOR @ TEMPLATE
        # Fingers up, the thumb to the left, most of the crop.
        turn = np.array([[0, 0, -1.0], [1, 0, 0], [0, -1, 0]], np.float32)
        joints, vertices = ((x - joints3d[0]) @ turn.T for x in (joints3d, TEMPLATE))
        if method == "explain":
            weights = np.full((2, 2, 4), 0.05, np.float32)
            weights[1, *HOT] = 0.65
            attention = np.eye(21, dtype=np.float32)[REGRESSOR.argmax(axis=0)]
            one = (weights, attention)
            parts = (x if p else None for x, p in zip(one, self.parts, strict=True))
            return Explanation(*(_batched(x, size) for x in parts))
        joints2d = np.array([32, 60]) + 280 * joints[:, :2]
        return HandOutput(
            _batched(vertices, size), _batched(joints, size), _batched(joints2d, size)
        )


def _batched(x, size):
    return None if x is None else jnp.broadcast_to(jnp.float32(x), (size, *x.shape))


def predictor(model=None, **options):
    faces = {"constants": {"faces": np.asarray(FILE.faces)}}
    return HandPredictor(CONFIG, model or Looker(), faces, **options)


def image():
    """Red grows to the right, green downwards."""
    y, x = 4 * np.mgrid[:64, :64].astype(np.uint8)
    return np.stack([x, y, 0 * x], axis=-1)


BOX = (0.0, 0.0, 64.0, 64.0)
LENS = (400.0, 400.0, 31.5, 31.5)


def explained(is_right=True, model=None):
    """A hand with its explanation, as `handjax.predict` makes it."""
    options = dict(box_px=BOX, is_right=is_right, intrinsics=LENS)
    made = predictor(model)
    hand = made(image(), **options)
    return hand._replace(explanation=made.explain(image(), **options))


def test_the_hand_and_its_explanation_share_the_crop():
    hand = explained()
    found = hand.explanation
    np.testing.assert_allclose(found.clusters[1][HOT], 0.65)
    assert found.attention.shape == (778, 21)
    # The mesh lands where the joints were seen: both are of the same hand.
    again = REGRESSOR @ found.vertices_px
    np.testing.assert_allclose(again, found.joints_px, atol=1.0)


def test_a_left_hand_is_shown_unmirrored():
    left, right = explained(is_right=False).explanation, explained().explanation
    np.testing.assert_array_equal(left.clusters, right.clusters[..., ::-1])
    across = np.array([63, 0]) - right.joints_px * [1, -1]
    np.testing.assert_allclose(left.joints_px, across, atol=1e-3)
    # The same photo; its box is mirrored about 31.5, half a pixel beside its middle.
    assert np.abs(left.crop.astype(int) - right.crop).max() < 10


def test_cells_that_hold_the_mesh():
    """Four columns of 16 pixels, two rows of 32; a pixel is its middle +- 1/2."""
    points = [(-0.5, 0), (15.4, 31.4), (15.6, 31.6), (63.4, 63.4), (63.6, 0), (0, -1)]
    found = explained().explanation._replace(vertices_px=np.array(points))
    cells = explanations.covered_cells(found)
    np.testing.assert_array_equal(cells, [[1, 0, 0, 0], [0, 1, 0, 1]])
    nowhere = found._replace(vertices_px=np.full((3, 2), np.nan))
    assert not explanations.covered_cells(nowhere).any()


def test_a_cluster_is_named_after_the_joint_at_its_hottest_cell():
    found = explained().explanation
    joints = np.full((21, 2), 40.0)
    joints[7] = (8, 48)  # the middle of HOT, but for half a pixel
    joints[8] = np.nan
    found = found._replace(joints_px=joints)
    assert explanations.nearest_joint(found.clusters[1], found) == 7


def test_heat_goes_from_blue_to_red():
    colors = explanations.heat_colors(np.array([[0.0, 0.5, 1.0]]))
    assert colors.shape == (1, 3, 3)
    cold, middle, hot = colors[0]
    assert cold.argmax() == 2 and middle.argmax() == 1 and hot.argmax() == 0


def test_joints_have_colours_of_their_own():
    colors = explanations.joint_colors(explained())
    assert len(np.unique(colors.round(6), axis=0)) == 21
    assert ((colors >= 0) & (colors <= 1)).all()


def test_heat_is_drawn_where_the_cluster_looks():
    hand = explained()
    sheets = explanations.sheets(hand)
    assert set(sheets) == {"clusters", "attention"}
    # The second cluster is the second picture of the second row, eight in a row.
    panel = sheets["clusters"].shape[1] / 8
    x, y = int(1.25 * panel), int(sheets["clusters"].shape[0] / 2)
    hot = sheets["clusters"][y + 84 : y + 168, x - 30 : x + 10].astype(float)
    far = sheets["clusters"][y + 84 : y + 168, x + 80 : x + 110].astype(float)
    redder = (hot[..., 0] - hot[..., 2]).mean() - (far[..., 0] - far[..., 2]).mean()
    assert redder > 30


def test_only_what_there_is_is_drawn():
    assert set(explanations.sheets(explained(model=Looker(clusters=False)))) == {
        "attention"
    }
    assert set(explanations.sheets(explained(model=Looker(joints=False)))) == {
        "clusters"
    }
    plain = HandPredictor(CONFIG, Looker(), {"constants": {"faces": FILE.faces}})
    assert explanations.sheets(plain(image(), box_px=BOX)) == {}


class Silent:
    def apply(self, variables, images):
        """Never called."""


@pytest.mark.parametrize("model", [Silent(), Looker(clusters=False, joints=False)])
def test_models_that_have_nothing_to_explain_are_refused(model):
    with pytest.raises(ValueError, match="explain: this model of 'looker' neither"):
        predictor(model).explain(image(), box_px=BOX)


def test_the_command_writes_the_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(
        predict, "_load", lambda arguments, size: predictor(batch_size=size)
    )
    Image.fromarray(image()).save(tmp_path / "hand.png")
    output = tmp_path / "out"
    code = predict.main(
        [
            *(str(tmp_path / "hand.png"), "--workdir=w", f"--output={output}"),
            *("--explain", "--box=0,0,64,64", "--detector=none"),
        ]
    )
    assert code == 0
    (hand,) = json.loads((output / "hand.json").read_text())["hands"]
    names = ["hand_0_clusters.png", "hand_0_attention.png"]
    assert hand["files"] == ["hand_0.glb", "hand_0.obj", *names]
    for name in names:
        with Image.open(output / name) as picture:
            assert picture.size[0] > 1000
