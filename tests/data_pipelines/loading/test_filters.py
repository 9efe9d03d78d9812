"""HaMeR's filters, rule by rule, and the records that they leave."""

import numpy as np
import pytest
from fake_records import decoded, record, write

from data_pipelines.loading import filters, selections
from data_pipelines.loading.filters import counted, judge
from data_pipelines.loading.recipes import HAMER, Filters
from data_pipelines.storage import shards

FLAT = dict(joints3d=None, K=None, mano_pose=None, mano_betas=None)
"""Changes that leave 2-D joints alone."""


def points(*confidence):
    """2-D joints with these confidences, and the others unknown."""
    joints2d = np.full((21, 3), 40.0)
    joints2d[:, 2] = 0
    joints2d[: len(confidence), 2] = confidence
    return joints2d


def reason(example, chosen=HAMER.filters):
    found = judge([decoded(example)], chosen).left_out
    assert sum(which[0] for which in found.values()) <= 1
    return next((why for why, which in found.items() if which[0]), "")


def test_without_filters_everything_counts():
    given = decoded(record(1, joints2d=points(0.1, 0.2)))
    assert counted(given, Filters())["joints2d"] is given["joints2d"]
    assert reason(record(fit_loss=1e9, **FLAT), Filters()) == ""
    assert Filters().describe() == "no pose 20 mm off its joints"
    assert Filters(max_repose_mm=0).describe() == "none"


@pytest.mark.parametrize(
    ("apart_mm", "limit_mm", "stays"),
    [(19.9, 20, True), (20.1, 20, False), (49, 0, True), (-1, 20, True)],
)
def test_a_pose_that_contradicts_its_joints_is_not_used(apart_mm, limit_mm, stays):
    given = decoded(record(repose_mm=apart_mm))
    chosen = Filters(max_repose_mm=limit_mm)
    found = counted(given, chosen)
    for flag in ("has_pose", "has_betas", "has_vertices"):
        assert bool(found[flag]) == stays
    assert found["has_joints3d"]
    changed = judge([given], chosen).changed
    assert changed[f"a pose {limit_mm} mm or more off its joints"][0] != stays
    assert not changed["a beta beyond 0"][0]


def test_joints_under_the_confidence_are_unknown():
    given = decoded(record(joints2d=points(0.29, 0.3, 1.0, 0.0), **FLAT))
    found = counted(given, HAMER.filters)["joints2d"]
    np.testing.assert_array_equal(found[:4, 2], np.float32([0, 0.3, 1, 0]))
    np.testing.assert_array_equal(found[:, :2], given["joints2d"][:, :2])
    assert given["joints2d"][0, 2] == np.float32(0.29), "the record stays as it is"


@pytest.mark.parametrize("beta, stays", [(3.0, True), (-3.0, True), (-3.1, False)])
def test_a_beta_that_no_hand_has_takes_the_pose_with_it(beta, stays):
    betas = np.zeros(10)
    betas[7] = beta
    found = counted(decoded(record(mano_betas=betas)), HAMER.filters)
    assert found["has_pose"] == found["has_betas"] == stays


@pytest.mark.parametrize("alone", ["mano_pose", "mano_betas"])
def test_pose_and_betas_come_both_or_neither(alone):
    other = {"mano_pose": "mano_betas", "mano_betas": "mano_pose"}[alone]
    given = decoded(record(**{other: None}))
    assert given["has_pose"] != given["has_betas"]
    found = counted(given, Filters())
    assert not found["has_pose"] and not found["has_betas"]


def test_more_than_four_known_joints_are_needed():
    """Trap: joints that are too unsure do not count, whatever there was before."""
    few = "fewer than 5 known joints"
    assert reason(record(joints2d=points(*[0.9] * 4), **FLAT)) == few
    assert reason(record(joints2d=points(*[0.9] * 5), **FLAT)) == ""
    assert reason(record(joints2d=points(0.2, *[0.9] * 4), **FLAT)) == few


def test_projected_joints_are_known_whatever_is_stored():
    assert reason(record(joints2d=points())) == ""
    behind = record()["joints3d"] * (1, 1, -1, 1)
    assert reason(record(joints2d=points(), joints3d=behind)) != ""


@pytest.mark.parametrize("loss, stays", [(0, 1), (30_999, 1), (31_000, 0), (40_000, 0)])
def test_bad_fits_are_left_out(loss, stays):
    """No loss noted is none: 0 stays."""
    why = reason(record(fit_loss=loss))
    assert why == ("" if stays else "fit loss of 31,000 or more")


def test_what_is_changed_is_told_of_records_that_stay():
    big = np.full(10, 4.0)
    records = [
        record(mano_betas=big),
        record(mano_betas=big, fit_loss=1e6),
        record(mano_pose=None),
        record(joints2d=points(0.1, *[1] * 9)),
    ]
    found = judge([decoded(r) for r in records], HAMER.filters)
    assert {what: which.tolist() for what, which in found.changed.items()} == {
        "joints under confidence 0.3": [False, False, False, True],
        "a pose or betas alone": [False, False, True, False],
        "a pose 20 mm or more off its joints": [False] * 4,
        "a beta beyond 3": [True, False, False, False],
    }


@pytest.mark.parametrize("value", [-1, float("inf"), float("nan")])
def test_values_that_make_no_sense_are_refused(value):
    with pytest.raises(ValueError, match=r"config\.data\.filters\.max_beta="):
        filters.from_config(Filters()._asdict() | {"max_beta": value})
    assert filters.from_config(HAMER.filters._asdict()) == HAMER.filters


# --- which records of a split -------------------------------------------------------


def example(index):
    """Of twenty: 3 has two joints, 8 and 11 bad fits, 9 a strange shape."""
    if index == 3:
        return record(index, joints2d=points(1, 1), **FLAT)
    changes = {8: dict(fit_loss=31_000), 11: dict(fit_loss=1e6)}
    changes[9] = dict(mano_betas=np.full(10, 5.0))
    return record(index, **changes.get(index, {}))


@pytest.fixture
def split(tmp_path):
    return shards.open_split(write(tmp_path / "data", records=example), "train")


def test_a_selection_is_counted_and_said(split, tmp_path):
    found = selections.select(split, HAMER.filters, tmp_path)
    assert found.rows.tolist() == [i for i in range(20) if i not in (3, 8, 11)]
    assert found.describe() == (
        "17 of 20 records; left out: 1 fewer than 5 known joints, 2 fit loss of 31,000 "
        "or more; kept with: 1 a beta beyond 3"
    )
    everything = selections.select(split, Filters(), tmp_path)
    assert everything.describe() == "20 of 20 records"


def test_a_selection_is_found_once(split, tmp_path, monkeypatch):
    first = selections.select(split, HAMER.filters, tmp_path)
    monkeypatch.setattr(selections, "judge", None)  # would fail if it were called
    again = selections.select(split, HAMER.filters, tmp_path)
    np.testing.assert_array_equal(again.rows, first.rows)
    assert again[1:] == first[1:]
    with pytest.raises(TypeError):  # other filters, another selection
        selections.select(split, HAMER.filters._replace(min_joints=4), tmp_path)


def test_a_data_set_that_was_made_again_is_looked_at_again(tmp_path):
    for count in (20, 21):
        data = write(tmp_path / "data", count=count, records=example)
        selections.select(shards.open_split(data, "train"), HAMER.filters, tmp_path)
        for path in data.iterdir():
            path.unlink()
    assert len(list(tmp_path.glob("*.npz"))) == 2


def test_a_damaged_note_is_made_anew_and_none_is_kept_unless_asked(split, tmp_path):
    found = selections.select(split, HAMER.filters, tmp_path, keep=False)
    assert not list(tmp_path.glob("*.npz"))
    selections.select(split, HAMER.filters, tmp_path)
    (note,) = tmp_path.glob("*.npz")
    note.write_bytes(note.read_bytes()[:100])
    again = selections.select(split, HAMER.filters, tmp_path)
    np.testing.assert_array_equal(again.rows, found.rows)


def test_filters_that_leave_nothing_are_an_error(split, tmp_path):
    with pytest.raises(ValueError, match=r"leave nothing of split .* 20 few"):
        selections.select(split, Filters(min_joints=22), tmp_path)


def test_unreadable_records_stay_for_the_reader_to_report(tmp_path, monkeypatch):
    split = shards.open_split(write(tmp_path / "data", records=example), "train")
    read = split.read

    def broken(index, fields=None):
        if index == 8:
            raise ValueError("broken")
        return read(index, fields)

    monkeypatch.setattr(split, "read", broken)
    found = selections.select(split, HAMER.filters, tmp_path)
    assert 8 in found.rows and 11 not in found.rows
