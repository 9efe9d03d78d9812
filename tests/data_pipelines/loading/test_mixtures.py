"""Whose example comes when: shares, exact counts, and HaMeR's recipe."""

from fractions import Fraction

import numpy as np
import pytest
from fake_records import record, write

from data_pipelines import datasets
from data_pipelines.loading import loader, mixtures
from data_pipelines.loading.augment import AugmentConfig
from data_pipelines.loading.examples import ExampleMaker
from data_pipelines.loading.mixtures import Drawn, Order
from data_pipelines.loading.recipes import HAMER, Filters
from data_pipelines.sources import hamer_tars
from data_pipelines.storage import dataset_names, shards
from handjax.distributed.split_shares import ProcessShare
from handjax.geometry.crop import CropConfig

WEIGHTS = [
    (1.0,),
    (3.0, 1.0),
    (0.1, 0.2, 0.7),
    (1 / 3, 0.5),
    tuple(HAMER.shares.values()),
]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_every_place_is_counted_once(weights):
    """`at` and `drawn` tell the same story, example by example."""
    order, given = Order(weights), [0] * len(weights)
    for position in range(100):
        assert order.drawn(position) == given
        source, before = order.at(position)
        assert before == given[source]
        given[source] += 1


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("count", [1, 7, 64, 10**6 + 1, 64 * 10**12 + 3])
def test_shares_are_kept_to_less_than_an_example_a_source(weights, count):
    exact = [Fraction(repr(weight)) for weight in weights]
    found = Order(weights).drawn(count)
    assert sum(found) == count
    for share, n in zip(exact, found, strict=True):
        assert abs(n - count * share / sum(exact)) < len(weights)


def test_weights_are_taken_by_their_decimals():
    """0.1 is no binary number; 10 rounds of 0.1, 0.2, 0.7 are 10 examples."""
    assert Order([0.1, 0.2, 0.7]).drawn(10**9) == [10**8, 2 * 10**8, 7 * 10**8]
    assert Order([0.1, 0.3]).drawn(4 * 10**9) == Order([1.0, 3.0]).drawn(4 * 10**9)


def test_shares_of_what_comes_are_hamers():
    """HaMeR calls 100,000 examples an epoch; these are 2,000 from within one."""
    order = Order(list(HAMER.shares.values()))
    sources = [order.at(position)[0] for position in range(10_000, 12_000)]
    found = np.bincount(sources, minlength=10) / 2_000
    np.testing.assert_array_equal(found, list(HAMER.shares.values()))


def test_recipes_name_what_can_be_prepared():
    assert set(dataset_names.PREPARED) == set(datasets.names()) >= set(HAMER.shares)


def test_hamers_recipe_is_ten_data_sets_that_come_as_tars():
    assert set(HAMER.shares) == set(hamer_tars.OF) <= set(dataset_names.DATASETS)
    assert sum(Fraction(repr(x)) for x in HAMER.shares.values()) == 1
    whole = Order(list(HAMER.shares.values())).drawn(20)
    assert whole == [5, 5, 2, 2, 1, 1, 1, 1, 1, 1]
    assert Filters(0.3, 3.0, 5, 31_000.0, True) == HAMER.filters


def test_epochs_are_told_in_examples():
    drawn = [Drawn("a", 150, 100), Drawn("b", 50, 400)]
    assert [each.epochs for each in drawn] == [1.5, 0.125]
    assert mixtures.describe(drawn).splitlines() == [
        "200 examples:",
        "  75.0 %  150 of a (1.50 epochs of 100)",
        "  25.0 %  50 of b (0.12 epochs of 400)",
    ]
    assert mixtures.describe(drawn[:1]) == "150 of a (1.50 epochs of 100)"


# --- in the loader ------------------------------------------------------------------


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    """Three data sets of 7, 5 and 3 records, told apart by betas."""
    made = []
    for number, count in enumerate((7, 5, 3)):
        betas = np.full(10, float(number))
        write(
            folder := tmp_path_factory.mktemp("set"),
            count=count,
            records=lambda i, betas=betas: record(i, mano_betas=betas),
        )
        made.append(shards.open_split(folder, "train"))
    return made


def batches(sources, num, start_step=0, **changes):
    make = ExampleMaker(
        CropConfig(size=32), augmentation=AugmentConfig(), load_image=False
    )
    options = dict(batch_size=4, seed=3, start_step=start_step)
    made = loader.train_batches(sources, make, **(options | changes))
    return [next(made) for _ in range(num)]


def test_a_mixture_gives_what_was_counted_and_whole_epochs(splits):
    weights = 0.5, 0.3, 0.2
    sources = [loader.Source(s, w) for s, w in zip(splits, weights, strict=True)]
    made = batches(sources, 25)
    of = np.concatenate([b.betas[:, 0] for b in made]).astype(int)
    index = np.concatenate([b.index for b in made])
    assert np.bincount(of).tolist() == Order(weights).drawn(100) == [50, 30, 20]
    for number, source in enumerate(sources):
        seen = index[of == number]
        whole = len(seen) // source.size
        for epoch in seen[: whole * source.size].reshape(whole, -1):
            assert sorted(epoch) == list(range(source.size))


def test_a_mixture_resumes_at_the_batch_that_follows(splits):
    sources = [
        loader.Source(s, w) for s, w in zip(splits, (1.0, 2.0, 4.0), strict=True)
    ]
    whole, late = batches(sources, 9), batches(sources, 2, start_step=7)
    for a, b in zip(whole[7:], late, strict=True):
        for name, x, y in zip(a._fields, a, b, strict=True):
            np.testing.assert_array_equal(x, y, err_msg=name)
    assert not np.array_equal(whole[0].index, batches(sources, 1, seed=4)[0].index)


def test_processes_make_the_mixture_of_one(splits):
    """Resumed in the middle, too."""
    sources = [
        loader.Source(s, w) for s, w in zip(splits, (0.5, 0.3, 0.2), strict=True)
    ]
    whole = batches(sources, 6)
    parts = [
        batches(sources, 3, 3, batch_size=2, process=ProcessShare(index, 2))
        for index in range(2)
    ]
    for step in range(3):
        for name, expected in whole[3 + step]._asdict().items():
            if expected is not None:
                found = [getattr(part[step], name) for part in parts]
                np.testing.assert_array_equal(np.concatenate(found), expected)


def test_an_epoch_is_the_records_that_are_left(splits):
    rows = np.array([1, 4, 6])
    made = batches([loader.Source(splits[0], rows=rows)], 6)
    order = np.concatenate([batch.index for batch in made]).reshape(-1, 3)
    assert all(sorted(epoch) == rows.tolist() for epoch in order)
