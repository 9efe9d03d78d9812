"""The grain graph: order, resuming, processes, mixtures, damaged records."""

import copy
import itertools
import logging

import numpy as np
import pytest
from fake_records import record, write

from data_pipelines.loading import loader
from data_pipelines.loading.augment import AugmentConfig
from data_pipelines.loading.examples import ExampleMaker
from data_pipelines.storage import schema, shards
from handjax.distributed.split_shares import ProcessShare
from handjax.geometry.crop import CropConfig

COUNT = 20


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    directory = write(tmp_path_factory.mktemp("data"), count=COUNT)
    return shards.open_split(directory, "train")


MAKE = ExampleMaker(CropConfig(size=32), augmentation=AugmentConfig())


def _train(*sources, num, load_image=True, **changes):
    options = dict(batch_size=4, seed=5)
    made = loader.train_batches(
        [loader.Source(s) if isinstance(s, shards.Split) else s for s in sources],
        MAKE._replace(load_image=load_image),
        **(options | changes),
    )
    return list(itertools.islice(made, num))


def _eval(split, **changes):
    return list(loader.eval_batches(split, MAKE, **(dict(batch_size=8) | changes)))


def _assert_same(a, b):
    for name, x, y in zip(a._fields, a, b, strict=True):
        np.testing.assert_array_equal(x, y, err_msg=name)


def test_an_epoch_has_every_example_once(split):
    batches = _train(split, num=15)
    order = np.concatenate([batch.index for batch in batches]).reshape(3, COUNT)
    for epoch in order:
        assert sorted(epoch) == list(range(COUNT))
    assert len({tuple(epoch) for epoch in order}) == 3


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_batches_do_not_depend_on_threads(split, threads):
    expected = _train(split, num=7, threads=2)
    got = _train(split, num=7, threads=threads)
    for a, b in zip(expected, got, strict=True):
        _assert_same(a, b)


@pytest.mark.parametrize("step", [1, 4, 11])
@pytest.mark.parametrize("threads", [0, 2])
def test_resuming_gives_exactly_the_batches_that_follow(split, step, threads):
    whole = _train(split, num=step + 2)
    late = _train(split, num=2, start_step=step, threads=threads)
    for a, b in zip(whole[step:], late, strict=True):
        _assert_same(a, b)


def test_another_seed_gives_another_order_and_other_crops(split):
    a, b = _train(split, num=5)[:5], _train(split, num=5, seed=6)
    assert np.any([x.index != y.index for x, y in zip(a, b, strict=True)])
    again = _train(split, num=10)[5:]
    first = {int(i): R for x in a for i, R in zip(x.index, x.R_crop_camera)}  # noqa: B905
    later = {int(i): R for x in again for i, R in zip(x.index, x.R_crop_camera)}  # noqa: B905
    assert all(np.abs(first[i] - later[i]).max() > 1e-3 for i in range(COUNT))


@pytest.mark.parametrize("count", [2, 5])
def test_processes_share_every_epoch_without_overlap(split, count):
    """One after the other they hold the very batch that one process makes."""
    alone = _train(split, num=6, batch_size=10)
    parts = [
        _train(
            split,
            num=6,
            batch_size=10 // count,
            process=ProcessShare(index, count),
        )
        for index in range(count)
    ]
    for step, batch in enumerate(alone):
        together = [part[step] for part in parts]
        index = np.concatenate([b.index for b in together])
        np.testing.assert_array_equal(index, batch.index)
        images = np.concatenate([b.image for b in together])
        np.testing.assert_array_equal(images, batch.image)


def test_weights_are_kept(split, tmp_path):
    left = write(tmp_path, count=8, records=lambda i: record(i, is_right=False))
    sources = (
        loader.Source(split, 3.0),
        loader.Source(shards.open_split(left, "train"), 1.0),
    )
    batches = _train(*sources, num=50, load_image=False)
    share = np.concatenate([batch.is_right for batch in batches]).mean()
    assert share == pytest.approx(0.75, abs=0.01)
    late = _train(*sources, num=1, start_step=49, load_image=False)
    _assert_same(late[0]._replace(image=0), batches[49]._replace(image=0))


@pytest.mark.parametrize("weights", [(), (1.0, 0.0), (-1.0,)])
def test_weights_have_to_be_positive(split, weights):
    with pytest.raises(ValueError, match="must be positive"):
        _train(*[loader.Source(split, w) for w in weights], num=1)


def test_without_pictures_the_geometry_is_the_same(split):
    a, b = _train(split, num=2)[1], _train(split, num=2, load_image=False)[1]
    assert b.image is None
    _assert_same(a._replace(image=0), b._replace(image=0))


# --- evaluation ---------------------------------------------------------------------


def test_evaluation_is_in_order_and_padded(split):
    batches = _eval(split)
    assert [len(batch.index) for batch in batches] == [8, 8, 8]
    valid = np.concatenate([batch.example_valid for batch in batches])
    index = np.concatenate([batch.index for batch in batches])
    assert valid.sum() == COUNT and index[valid].tolist() == list(range(COUNT))
    _assert_same(batches[2], _eval(split, threads=0)[2])


def test_evaluation_of_the_first_examples(split):
    (batch,) = _eval(split, num=5)
    assert batch.index[batch.example_valid].tolist() == [0, 1, 2, 3, 4]


def test_processes_evaluate_every_example_once(split):
    parts = [_eval(split, process=ProcessShare(i, 3)) for i in range(3)]
    assert len({len(part) for part in parts}) == 1
    seen = [b.index[b.example_valid] for part in parts for b in part]
    assert sorted(np.concatenate(seen)) == list(range(COUNT))


# --- damaged records ----------------------------------------------------------------


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """Records 5 and 9 of twenty hold half a picture; 13 another picture's size."""

    def records(index):
        example = record(index)
        if index in (5, 9):
            example["image"] = example["image"][:200]
        if index == 13:
            example["image_size"] = [50, 50]
        return example

    directory = write(tmp_path_factory.mktemp("bad"), count=COUNT, records=records)
    return shards.open_split(directory, "train")


def test_unreadable_records_are_reported_once_and_replaced(damaged, caplog):
    with caplog.at_level(logging.WARNING, "handjax.data"):
        batches = _train(damaged, num=15, max_corrupt=3)
    index = np.concatenate([batch.index for batch in batches])
    assert set(index) == set(range(COUNT)) - {5, 9, 13}
    assert (index == 6).sum() == 6, "record 6 stands in for record 5"
    assert len(caplog.messages) == 3
    text = "\n".join(caplog.messages)
    # 20 records in 3 shards: 6, 7, 7.
    assert "00000-of-00003 record 5: truncated JPEG" in text
    assert "00001-of-00003 record 3: truncated JPEG" in text
    assert "00002-of-00003 record 0: the picture is 96 x 96 pixels" in text
    for a, b in zip(batches, _train(damaged, num=15, max_corrupt=3), strict=True):
        _assert_same(a, b)


def test_one_too_many_stops_with_one_message(damaged):
    with pytest.raises(loader.CorruptDataError, match="max_corrupt=2 allows no more"):
        _train(damaged, num=15, max_corrupt=2)


def test_damaged_pictures_do_not_matter_where_none_are_read(damaged):
    batches = _train(damaged, num=5, max_corrupt=0, load_image=False)
    assert sorted(np.concatenate([b.index for b in batches])) == list(range(COUNT))


def test_evaluation_refuses_damaged_records_unless_told(damaged):
    with pytest.raises(loader.CorruptDataError, match="truncated JPEG"):
        _eval(damaged)
    batches = _eval(damaged, max_corrupt=3)
    index = [b.index[b.example_valid] for b in batches]
    expected = [i for i in range(COUNT) if i not in (5, 9, 13)]
    assert np.concatenate(index).tolist() == expected


def test_a_dataset_of_damaged_records_ends(tmp_path):
    bad = write(tmp_path, records=lambda i: record(i, image=b"\xff\xd8\xff\xd9"))
    split = shards.open_split(bad, "test")
    with pytest.raises(loader.CorruptDataError, match=r"No record of split 'test'"):
        _train(split, num=1, max_corrupt=100)


def test_hands_and_bodies_do_not_mix(split):
    bodies = copy.copy(split)
    bodies.counts = schema.Counts(vertices=624, joints=29, bones=24)
    with pytest.raises(ValueError, match="Train hands and bodies in separate runs"):
        _train(split, bodies, num=1)
