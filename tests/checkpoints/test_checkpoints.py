"""Checkpoints survive crashes, full disks and damaged files."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from places import ROOT, SUPPORT, TESTS

from handjax.checkpoints import integrity
from handjax.checkpoints import store as checkpoints
from handjax.checkpoints.store import CheckpointError, Checkpoints
from handjax.checkpoints.workdir import load_for_inference, load_variables


def _state(shift=0.0, width=40):
    rng = np.random.default_rng(0)
    kernel = jnp.asarray(rng.normal(size=(width, 30)) + shift, jnp.float32)
    variables = {
        "params": {"head": {"kernel": kernel}},
        "codebook": {"embedding": jnp.asarray(rng.normal(size=(8, 4)), jnp.bfloat16)},
    }
    moments = (jnp.zeros(()), {"head/kernel": kernel * 2})
    train = {"opt_state": moments, "rng": jnp.arange(2), "step": jnp.int32(3)}
    return variables, train


def _abstract(tree):
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return checkpoints.abstract(tree, jax.tree.map(lambda _: here, tree))


def _saved(workdir, steps, **options):
    store = Checkpoints(workdir, "mesh", **options)
    for step in steps:
        store.save(step, *_state(step), {"metrics": {"count": step}})
        store.wait()
    return store


def _restore(workdir, said=None):
    store = Checkpoints(workdir, "mesh")
    variables, train = _state()
    said = [] if said is None else said
    found = store.restore(_abstract(variables), _abstract(train), said.append)
    store.close()
    return found


def test_everything_comes_back_exactly(tmp_path):
    _saved(tmp_path, [1, 2]).close()
    found = _restore(tmp_path)
    assert found.step == 2 and found.meta["metrics"] == {"count": 2}
    expected = _state(2)
    jax.tree.map(
        np.testing.assert_array_equal, (found.variables, found.train), expected
    )


def test_a_new_workdir_has_nothing_to_restore(tmp_path):
    assert _restore(tmp_path) is None


def test_only_the_newest_are_kept_besides_the_regular_ones(tmp_path):
    store = _saved(tmp_path, [1, 2, 3, 4, 5], keep=2, keep_every=2)
    assert store.steps() == [2, 4, 5]
    store.close()


def test_leftovers_of_a_killed_save_are_cleaned(tmp_path):
    _saved(tmp_path, [1]).close()
    folder = tmp_path / "checkpoints" / "mesh"
    shutil.copytree(folder / "1", folder / "2.orbax-checkpoint-tmp-7")
    assert _restore(tmp_path).step == 1
    assert [p.name for p in folder.iterdir()] == ["1"]


def _largest(folder: Path) -> Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=_size)


def _size(path: Path) -> int:
    return path.stat().st_size


def _truncate(folder):
    path = _largest(folder / "variables")
    path.write_bytes(path.read_bytes()[: _size(path) // 2])


def _flip(folder):
    path = _largest(folder / "train")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))


def _remove_description(folder):
    (folder / "variables" / "_METADATA").unlink()


def _break_json(folder):
    (folder / "meta" / "metadata").write_text('{"metr')


@pytest.mark.parametrize("damage", [_truncate, _flip, _remove_description, _break_json])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(tmp_path, damage):
    _saved(tmp_path, [1, 2]).close()
    damage(tmp_path / "checkpoints" / "mesh" / "2")
    said = []
    found = _restore(tmp_path, said)
    assert found.step == 1
    np.testing.assert_array_equal(
        found.variables["params"]["head"]["kernel"],
        _state(1)[0]["params"]["head"]["kernel"],
    )
    assert len(said) == 1 and "mesh/2 cannot be read" in said[0]
    assert said[0].endswith("going back to step 1")
    assert (tmp_path / "checkpoints" / "unreadable" / "mesh-2").is_dir()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_if_none_can_be_read_the_message_says_what_will_happen(tmp_path):
    _saved(tmp_path, [1]).close()
    _break_json(tmp_path / "checkpoints" / "mesh" / "1")
    with pytest.raises(CheckpointError, match="run the same command to train stage"):
        _restore(tmp_path)


def test_a_checkpoint_of_another_model_is_named_and_left_alone(tmp_path):
    _saved(tmp_path, [1]).close()
    store = Checkpoints(tmp_path, "mesh")
    variables, train = _state(width=41)
    variables["params"]["tail"] = jnp.zeros(3)
    with pytest.raises(
        ValueError, match=r"missing there: params/tail; other shapes"
    ) as e:
        store.restore(_abstract(variables), _abstract(train), print)
    assert "(40, 30) there, (41, 30) here" in str(e.value)
    assert store.steps() == [1]
    store.close()


def test_a_disk_without_room_is_noticed_before_anything_is_written(
    tmp_path, monkeypatch
):
    store = _saved(tmp_path, [1])
    full = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda _: full)
    with pytest.raises(CheckpointError, match=r"MB free.*step 1 is intact; free some"):
        store.save(2, *_state(), {})
    store.close()
    assert [p.name for p in (tmp_path / "checkpoints" / "mesh").iterdir()] == ["1"]


def test_a_folder_that_was_deleted_in_training_is_no_lack_of_space(tmp_path):
    store = _saved(tmp_path, [1])
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(CheckpointError, match="moved or deleted it") as e:
        store.save(2, *_state(), {})
        store.wait()
    assert "space" not in str(e.value)


_FILL = """
import resource, sys
sys.path[:0] = [{tests!r}, {support!r}]
import test_checkpoints as t
store = t._saved({workdir!r}, [1])
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    store.save(2, *t._state(), {{}})
    store.wait()
except t.CheckpointError as error:
    print("told:", error)
"""


def test_a_write_that_fails_half_way_leaves_the_last_good_one(tmp_path):
    code = _FILL.format(
        tests=str(TESTS / "checkpoints"), support=str(SUPPORT), workdir=str(tmp_path)
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        check=False,
    )
    told = [x for x in result.stdout.splitlines() if x.startswith("told:")]
    assert len(told) == 1, result.stderr
    assert "Could not save" in told[0] and "step 1 is intact" in told[0]
    assert [p.name for p in (tmp_path / "checkpoints" / "mesh").iterdir()] == ["1"]
    assert _restore(tmp_path).step == 1


def test_hash_depends_on_names_shapes_and_bits_only():
    a = {"x": np.arange(6.0), "y": np.zeros(2)}
    assert integrity.sha256(a) == integrity.sha256(dict(reversed(a.items())))
    assert integrity.sha256(a) == integrity.sha256(jax.tree.map(np.array, a))
    assert integrity.sha256(a) != integrity.sha256({**a, "x": a["x"].reshape(2, 3)})
    assert integrity.sha256({}) == ""


def test_variables_can_be_read_without_a_model(tmp_path):
    _saved(tmp_path, [4]).close()
    variables, meta = load_variables(tmp_path, "mesh", 4)
    chex.assert_trees_all_equal(variables, _state(4)[0])
    assert meta["metrics"] == {"count": 4}


def test_a_directory_that_is_no_workdir_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        load_for_inference(tmp_path)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.EMFILE])
@pytest.mark.parametrize("as_text", [False, True])
def test_what_the_system_withholds_is_not_set_aside(
    tmp_path, monkeypatch, number, as_text
):
    _saved(tmp_path, [1, 2]).close()

    def refuse(*_):
        if as_text:  # TensorStore's way
            raise ValueError(f"UNKNOWN: Error opening file: {os.strerror(number)}")
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "_restore", refuse)
        with pytest.raises(CheckpointError, match=os.strerror(number)):
            _restore(tmp_path)
    assert not (tmp_path / "checkpoints" / "unreadable").exists()
    assert _restore(tmp_path).step == 2


def test_a_failed_write_names_the_last_step_that_is_on_disk(tmp_path):
    store = _saved(tmp_path, [1, 2])
    shutil.rmtree(tmp_path / "checkpoints" / "mesh" / "2")  # counted, never finished
    assert "step 1 is intact" in str(store._failed(OSError("no space")))
    store.close()
