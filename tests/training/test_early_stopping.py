"""When a stage stops early."""

import json
import math

import pytest

from handjax.training.early_stopping import Patience


def _see(patience, *values):
    first = patience.step + patience.since + 1
    return [
        patience.see(step, {"eval_pa_mpjpe_mm": value})
        for step, value in enumerate(values, start=first)
    ]


def test_only_what_is_below_the_best_counts_as_better():
    patience = Patience(3, {})
    assert _see(patience, 5.0, 6.0, 4.0, 4.0, math.nan) == [True, False, True, 0, 0]
    assert (patience.best, patience.step, patience.since) == (4.0, 3, 2)
    assert not patience.exhausted
    _see(patience, 4.5)
    assert patience.exhausted and "4.00 of step 3" in patience.reason


def test_it_goes_on_where_it_was_left():
    patience = Patience(2, {})
    _see(patience, 1 / 3, 0.5)
    again = Patience(2, json.loads(json.dumps(patience.state())))
    assert _see(again, 1 / 3) == [False] and again.exhausted
    longer = Patience(4, again.state())
    assert not longer.exhausted


def test_numbers_that_are_never_finite_stop_it_too():
    patience = Patience(2, {})
    assert _see(patience, math.nan, math.inf) == [False, False]
    assert patience.exhausted and "not finite in 2" in patience.reason


def test_without_patience_nothing_is_counted():
    patience = Patience(0, {})
    assert _see(patience, 1.0, 2.0) == [False, False]
    assert not patience.exhausted and not patience.see(9, {})


def test_an_evaluation_without_the_number_says_what_to_do():
    with pytest.raises(ValueError, match=r"needs pa_mpjpe_mm.*Set patience=0"):
        Patience(1, {}).see(3, {"eval_mpjpe_mm": 1.0})
