import numpy as np
import pytest

from handjax import models
from handjax.analysis import codebook as cb
from handjax.config.schema import base
from handjax.mano import model_files

FACES = np.asarray(model_files.load("open").faces)
TEMPLATE = np.asarray(model_files.load("open").v_template, np.float64)
PART = np.arange(778) * 4 // 778


def toy(num_codes=6):
    """Four tokens; token t lifts quarter t of the mesh by its code's first number."""
    rng = np.random.default_rng(0)
    embedding = rng.normal(0, 0.01, (num_codes, 3)).astype(np.float32)

    def decode(codes):
        lift = codes[:, PART, :1] * np.array([0, 0, 1.0])
        return TEMPLATE[None] + lift

    return cb.Codebook(embedding, lambda v: None, decode, FACES)


INDICES = np.array([[0, 1, 2, 3], [1, 1, 3, 0], [2, 1, 0, 4], [0, 1, 2, 3]])


def test_a_tokenizer_is_given_what_it_reads():
    """Meshes unless it says otherwise; hands of mean shape where it reads poses."""
    hands = cb.TokenizedHands(np.zeros((2, 778, 3)), np.ones((2, 16, 3)))
    for family, field in (("tokenhand", "vertices"), ("mmhmr", "mano_pose")):
        assert models.load(family).Model.tokenizes == field
        assert getattr(hands, field).shape[0] == 2
    config = base()
    spread = {}
    for config.family in ("tokenhand", "mmhmr"):
        made = cb.sample_hands(config, 3)
        file = model_files.load()
        assert made.mano_pose.shape == (3, 16, 3)
        joints = np.einsum(
            "jv,hvx->hjx", model_files.joint_regressor(file), made.vertices
        )
        np.testing.assert_allclose(joints[:, 9], 0, atol=1e-6)
        bone = np.linalg.norm(joints[:, 9] - joints[:, 0], axis=-1)
        spread[config.family] = np.ptp(bone)
    assert spread["mmhmr"] < 0.2 * spread["tokenhand"]


def test_usage_counts_and_perplexity():
    use = cb.usage(INDICES, 6)
    assert use.counts.tolist() == [4, 5, 3, 3, 1, 0]
    assert use.used == pytest.approx(5 / 6)
    assert cb.usage(np.arange(8)[None], 8).perplexity == pytest.approx(8)
    assert cb.usage(np.zeros((3, 4), int), 8).perplexity == pytest.approx(1)


def test_reach_finds_the_part_of_each_token():
    reach = cb.token_reach_mm(toy(), INDICES)
    for token in (0, 2, 3):
        assert reach[token][PART == token].min() > 0
        assert reach[token][PART != token].max() < 1e-9
    assert reach[1].max() < 1e-9  # every hand has the same code there


def test_code_effect_uses_the_commonest_position():
    book = toy()
    effect = cb.code_effect(book, INDICES, 3, hand=2)
    assert effect.token == 3
    expected = 1e3 * abs(book.embedding[3, 0] - book.embedding[4, 0])
    np.testing.assert_allclose(effect.moved_mm[PART == 3], expected, rtol=1e-5)
    assert effect.moved_mm[PART != 3].max() < 1e-9


def test_swap_takes_only_the_named_tokens():
    book = toy()
    mixed = cb.swap(book, INDICES, source=2, target=0, tokens=[0, 2])
    meshes = cb.decode_indices(book, INDICES)
    for part, hand in ((0, 2), (1, 0), (2, 2), (3, 0)):
        np.testing.assert_allclose(mixed[PART == part], meshes[hand][PART == part])


def test_interpolation_starts_and_ends_at_the_hands():
    book = toy()
    path = cb.interpolate_hands(book, INDICES[0], INDICES[1], steps=3)
    meshes = cb.decode_indices(book, INDICES[:2])
    np.testing.assert_allclose(path[[0, 2]], meshes, atol=1e-7)
    np.testing.assert_allclose(path[1], meshes.mean(axis=0), atol=1e-7)


def test_nearest_pairs_finds_near_duplicates():
    embedding = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)
    embedding[17] = embedding[4] + 1e-4
    first = cb.nearest_pairs(embedding, 3)[0]
    assert (first.code, first.other) == (4, 17)
    assert first.distance == pytest.approx(1e-4 * np.sqrt(8), rel=1e-2)


def test_map_keeps_distances_of_codes_in_a_plane():
    rng = np.random.default_rng(1)
    flat = rng.normal(size=(15, 2)) * [3, 1]
    basis = np.linalg.qr(rng.normal(size=(6, 6)))[0][:2]
    found = cb.map_2d(flat @ basis + 5)
    a, b = (np.linalg.norm(x[:, None] - x[None], axis=-1) for x in (flat, found))
    np.testing.assert_allclose(a, b, atol=1e-9)
    assert found[:, 0].std() > found[:, 1].std()


def test_pictures_show_where_the_mesh_moved():
    book = toy()
    effect = cb.code_effect(book, INDICES, 3, hand=2)
    still = np.zeros(778)
    row = cb.mesh_row(
        [effect.before, effect.after],
        FACES,
        heat_mm=[still, effect.moved_mm],
        size=64,
        yaw_deg=0.0,
    )
    assert row.shape[1] == 2 * 64 + 12
    colors = cb.heat_colors(effect.moved_mm)
    assert (colors[PART != 3] > 0.8).all() and (colors[PART == 3, 1] < 0.1).all()


def test_figures_draw():
    book = toy()
    use = cb.usage(INDICES, 6)
    pairs = cb.nearest_pairs(book.embedding, 2)
    for figure in (
        cb.usage_figure(use),
        cb.map_figure(book.embedding, use.counts, pairs),
    ):
        figure.canvas.draw()
        assert figure.axes[0].get_xlabel()


def test_chunks_have_one_shape_and_lose_nothing():
    shapes = []

    def twice(part):
        shapes.append(part.shape)
        return 2 * part

    x = np.arange(14.0).reshape(7, 2)
    np.testing.assert_array_equal(cb._in_chunks(twice, x, size=3), 2 * x)
    assert shapes == [(3, 2)] * 3
