"""Letters: labelled, varied, free of collisions, the same whenever they are read."""

import pickle

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from data_pipelines.synthetic import hand as hands
from data_pipelines.synthetic import letters, pose_blocks
from data_pipelines.synthetic.letters import LetterSource
from data_pipelines.synthetic.poses import BLOCK, FACING
from data_pipelines.synthetic.prior import PosePrior


@pytest.fixture(scope="module")
def prior():
    return PosePrior(hands.load())


@pytest.fixture(scope="module")
def items():
    source = LetterSource(0, max_turn=20.0)
    rows = [source[i] for i in range(2 * BLOCK)]
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


def test_all_letters_come_and_their_names_are_letters(items):
    assert len(letters.names()) == 15 and set("abcdefhikl") < set(letters.names())
    assert set(items["label"]) == set(range(15))


def test_items_depend_on_seed_stream_and_index_alone():
    source = LetterSource(3)
    again = pickle.loads(pickle.dumps(source))
    for i in (BLOCK + 3, 0):
        for key, value in source[i].items():
            np.testing.assert_array_equal(value, again[i][key])
    for other in (LetterSource(4), LetterSource(3, stream=letters.TEST)):
        assert np.abs(other[0]["betas"] - source[0]["betas"]).max() > 0
    with pytest.raises(IndexError, match="LetterSource has items 0 to 9; asked for 10"):
        LetterSource(0, 10)[10]


def test_variations_are_free_within_limits_and_of_their_letter(prior):
    label = np.arange(600) % 15
    angles = letters.varied(prior, np.random.default_rng(0), label)
    assert not pose_blocks.collides(prior, angles).any()
    limits = prior.hand.limits
    assert (angles >= limits[..., 0]).all() and (angles <= limits[..., 1]).all()
    named = letters.named(prior)
    assert np.abs(angles - named[label]).max(axis=(1, 2)).min() > 0
    distance = np.abs(angles[:, None] - named[None]).mean(axis=(2, 3))
    assert (distance.argmin(axis=1) == label).mean() > 0.97


def test_the_palm_turns_away_no_further_than_asked(items):
    turn = Rotation.from_rotvec(items["mano_pose"][:, 0]).as_matrix() @ FACING.T
    degrees = np.degrees(Rotation.from_matrix(turn).magnitude())
    assert 19 < degrees.max() <= 20.01 and degrees.min() < 5


def test_turns_are_uniform_among_rotations():
    """The share of rotations by less than t is (t - sin t) / pi."""
    drawn = letters.turns(np.random.default_rng(0), 4000, 180.0)
    assert np.abs(drawn.as_matrix().mean(0)).max() < 0.05
    for degrees in (60.0, 120.0):
        angle = np.radians(degrees)
        share = np.mean(drawn.magnitude() < angle)
        assert abs(share - (angle - np.sin(angle)) / np.pi) < 0.03


def test_the_sheet_shows_every_letter(tmp_path):
    letters.sheet(tmp_path / "letters.png", each=1, tile=20)
    assert cv2.imread(str(tmp_path / "letters.png")).shape == (
        5 * 24 + 4,
        6 * 24 + 4,
        3,
    )
    with pytest.raises(OSError, match="cannot be written"):
        letters.sheet(tmp_path / "none" / "letters.png", each=1, tile=20)
