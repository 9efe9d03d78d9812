"""`import handjax`: light, ten names, each with an example that is run."""

import doctest
import importlib
import inspect
import json
import subprocess
import sys

import pytest
import tiny

import handjax

NAMES = {
    "load", "families", "load_config", "train", "evaluate",
    "HandModel", "HandPrediction", "HandOutput", "Batch", "UserError",
}  # fmt: skip
IN_ORDER = ("train", "evaluate", "load")
"""Each goes on with what the one before it has made."""


def _in_new_process(code):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_the_public_names_are_these():
    assert set(handjax.__all__) == NAMES and set(handjax._HOMES) < NAMES
    assert set(dir(handjax)) >= NAMES
    with pytest.raises(AttributeError, match="has no attribute 'lod'"):
        handjax.lod  # noqa: B018


def test_importing_it_imports_nothing_else():
    """A count, not a time: machines differ."""
    found = _in_new_process(
        "import sys; before = set(sys.modules); import handjax, json\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    assert [name for name in found if name.startswith("handjax")] == ["handjax"]
    assert not {"jax", "numpy", "flax", "ml_collections"} & set(found)
    assert len(found) < 60, found


@pytest.mark.parametrize(
    "imports",
    [
        "import handjax; f = handjax.train",
        "import handjax.train; f = handjax.train",
        "import handjax; handjax.train; import handjax.train; f = handjax.train",
        "from handjax import train as f",
        "import handjax.train as f",
    ],
)
def test_train_is_an_entry_and_a_function_in_any_order(imports):
    found = _in_new_process(
        f"import inspect, json, sys; {imports}\n"
        "told = list(inspect.signature(f).parameters)\n"
        "print(json.dumps([callable(f), callable(f.main), told, 'jax' in sys.modules]))"
    )
    assert found == [
        *(True, True),
        ["config", "workdir", "force_config", "stop_after", "profile"],
        False,
    ]


def _function(name):
    value = getattr(handjax, name)
    return getattr(value, name) if inspect.ismodule(value) else value


def _run_examples(name, globals):
    value = _function(name)
    module = importlib.import_module(value.__module__)
    found = doctest.DocTestFinder(recurse=False).find(value, name, module, globals)
    tests = [test for test in found if test.examples]
    assert tests, f"{name} has no example"
    for test in tests:
        output = []
        result = doctest.DocTestRunner(verbose=False).run(test, out=output.append)
        assert not result.failed, "".join(output)


@pytest.mark.parametrize("name", sorted(NAMES - set(IN_ORDER)))
def test_an_example_does_what_it_says(name):
    _run_examples(name, {})


def test_the_examples_train_evaluate_and_load_a_model(tmp_path, monkeypatch):
    tiny.patch_backbone(monkeypatch)
    monkeypatch.chdir(tmp_path)
    for name in IN_ORDER:
        _run_examples(name, {})


def test_load_says_what_it_takes(tmp_path):
    with pytest.raises(handjax.UserError, match="no such directory and no model"):
        handjax.load(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        handjax.load(tmp_path)
    (tmp_path / "weights.safetensors").touch()
    with pytest.raises(handjax.UserError, match="part of a model; train one from it"):
        handjax.load(tmp_path)
