"""Families keep the contract of `handjax.family`: protocols, signatures, stages."""

import ast
import importlib.util
import inspect

import pytest
from places import CONFIGS, ROOT

from handjax import models
from handjax.data.run_data import OpenData
from handjax.family import capabilities
from handjax.training.run import RunData

# A further family need not stand here: the protocols find what it offers.
OFFERS = {
    "hamba": {"CountsParts", "HasMeasures", "HasParts"},
    "hamer": {"CountsParts"},
    "mmhmr": {"CountsParts", "Samples", "SamplesInSteps", "Tokenizes"},
    "simplehand": {"CountsParts", "Folds"},
    "tokenhand": {"CountsParts", "Folds", "Tokenizes"},
    "tore": {"CountsParts", "Explains", "Folds", "HasMeasures", "HasParts"},
}
OF_MODELS = ("Explains", "Folds", "Samples", "SamplesInSteps", "Tokenizes")


def subjects(family):
    """Protocol, and what of a family may have it."""
    module = models.load(family)
    model = module.Model(**smoke_fields(family))
    for name, protocol in vars(capabilities).items():
        if getattr(protocol, "_is_runtime_protocol", False) and name != "Family":
            yield name, protocol, model if name in OF_MODELS else module


def smoke_fields(family):
    spec = importlib.util.spec_from_file_location(family, CONFIGS / f"{family}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config("smoke").model.to_dict()


@pytest.mark.parametrize("family", OFFERS)
def test_a_family_offers_what_it_says(family):
    assert isinstance(models.load(family), capabilities.Family)
    found = {name for name, protocol, x in subjects(family) if isinstance(x, protocol)}
    assert found == OFFERS[family]


def methods(protocol):
    """The methods that a protocol declares, those of its bases included."""
    for base in protocol.__mro__:
        if getattr(base, "_is_protocol", False):
            for name, found in vars(base).items():
                if inspect.isfunction(found) and not name.startswith("_"):
                    yield name, found


def assert_same_call(declared, found):
    """What is given by the protocol's names can be given to what was found."""
    names = [n for n in inspect.signature(declared).parameters if n != "self"]
    positional = [None] * len(names)
    inspect.signature(found).bind(*positional)


@pytest.mark.parametrize("family", models.names())
def test_methods_take_what_their_protocols_say(family):
    checked = 0
    for _, protocol, subject in subjects(family):
        if not isinstance(subject, protocol):
            continue
        for name, declared in methods(protocol):
            assert_same_call(declared, getattr(subject, name))
            checked += 1
    assert_same_call(capabilities.Family.stages, models.load(family).stages)
    assert checked


def test_data_of_a_run_have_every_method():
    for name, declared in methods(RunData):
        names = list(inspect.signature(declared).parameters)
        found = list(inspect.signature(getattr(OpenData, name)).parameters)
        assert found[: len(names)] == names


def test_stages_are_made_with_keywords():
    for folder in ("handjax", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and path.parent.name != "backbones":
                    called = getattr(node.func, "id", getattr(node.func, "attr", ""))
                    assert called != "Stage" or not node.args, path


def test_a_table_that_a_family_has_not_is_refused_with_those_that_have_it():
    assert models.measures("hamba", "tokens") is models.load("hamba").MEASURES["tokens"]
    with pytest.raises(ValueError, match="--what=cost is a table of tore, but"):
        models.measures("hamba", "cost")
