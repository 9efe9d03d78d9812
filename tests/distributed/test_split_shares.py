"""Parts of several processes: complete, once, about the same thing."""

import threading

import jax
import numpy as np
import pytest

from handjax.distributed import split_shares
from handjax.distributed.split_shares import ProcessShare


@pytest.mark.parametrize("text", ["1", "2/2", "-1/2", "a/b", "1/", "/2", "0/0"])
def test_other_shares_are_refused(text):
    with pytest.raises(ValueError, match="give the process and how many"):
        split_shares.parse(text)


def test_shares_are_parsed_or_those_of_the_processes(monkeypatch):
    assert split_shares.parse("3/4") == (3, 4) and split_shares.parse(None) == (0, 1)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    assert split_shares.parse(None) == ProcessShare(1, 3)


def leave(folder, index, count=3, about="this", name="test"):
    arrays = {"index": np.arange(index, 10, count), "keys": np.array([f"{index}"])}
    return split_shares.gather_parts(
        folder, name, ProcessShare(index, count), arrays, {"run": about}
    )


def test_the_last_one_puts_the_parts_together(tmp_path):
    assert leave(tmp_path, 2) is None and leave(tmp_path, 0) is None
    parts = leave(tmp_path, 1)
    assert [part["keys"].tolist() for part in parts] == [["0"], ["1"], ["2"]]
    assert sorted(np.concatenate([p["index"] for p in parts])) == list(range(10))
    assert not list(tmp_path.iterdir())


def test_parts_about_something_else_do_not_count(tmp_path):
    leave(tmp_path, 0, about="another checkpoint")
    leave(tmp_path, 1)
    assert leave(tmp_path, 2) is None  # 0 is of the other one
    assert leave(tmp_path, 0, count=2) is None  # of two, not of three
    assert leave(tmp_path, 1, name="other") is None
    assert len(leave(tmp_path, 0)) == 3


def test_one_process_leaves_nothing(tmp_path):
    (part,) = leave(tmp_path, 0, count=1)
    assert part["index"].tolist() == list(range(10))
    assert not list(tmp_path.iterdir())


def test_processes_at_once_never_lose_a_part(tmp_path):
    """Whoever comes last has all; those who come with it may have them, too."""
    for attempt in range(5):
        folder, found = tmp_path / str(attempt), {}
        start = threading.Barrier(4)

        def work(index, folder=folder, found=found, start=start):
            start.wait()
            found[index] = leave(folder, index, count=4)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        whole = [parts for parts in found.values() if parts is not None]
        assert whole
        for parts in whole:
            index = np.concatenate([part["index"] for part in parts])
            split_shares.check_whole(index, 10)
        assert not list(folder.iterdir())


@pytest.mark.parametrize(
    ("indices", "match"),
    [
        ([[0, 2], [1]], "1 of 4 examples were not evaluated, first 3"),
        ([[0, 1, 2], [3, 1]], "1 of 4 examples were evaluated more than once, first 1"),
        ([[0, 1, 2, 3, 5]], "1 of 4 examples do not exist, first 5"),
        ([], "4 of 4 examples were not evaluated, first 0"),
    ],
)
def test_examples_lost_or_counted_twice_are_refused(indices, match):
    with pytest.raises(ValueError, match=match):
        split_shares.check_whole([np.array(part) for part in indices], 4)


def test_every_example_once_is_fine():
    split_shares.check_whole([np.array([0, 2]), np.array([3, 1]), np.zeros(0, int)], 4)


def test_things_are_packed_apart():
    parts = {"model": {"sums": np.ones(2)}, "floor a": {"sums": np.zeros(2)}}
    packed = split_shares.packed(parts)
    assert sorted(packed) == ["floor a/sums", "model/sums"]
    assert split_shares.unpacked(packed, "model")["sums"].tolist() == [1, 1]
