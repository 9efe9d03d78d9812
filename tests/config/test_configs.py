"""Every file of configs/ loads in all its variants and names what exists."""

import importlib.util

import pytest
from places import CONFIGS

from handjax import models
from handjax.checkpoints import workdir
from handjax.config import schema as configs

FILES = sorted((CONFIGS).glob("*.py"))


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CASES = [
    (path, variant)
    for path in FILES
    for variant in (*load(path).VARIANTS, *getattr(load(path), "ROWS", ()))
]
"""Variants, and rows of the papers' tables where a file has them by name."""


def named(case):
    return f"{case[0].stem}-{case[1]}"


def test_every_family_has_a_config():
    assert {load(path).get_config().family for path in FILES} == set(models.names())


@pytest.mark.parametrize("case", CASES, ids=named)
def test_config_is_accepted_and_builds_its_model(case):
    path, variant = case
    config = load(path).get_config(variant)
    configs.check(config)
    family = models.load(config.family)
    workdir.build_model(family, config)
    assert {stage.name for stage in family.stages(config)} == set(config.stages)
    for stage in family.stages(config):
        assert stage.needs_image == (config.stages[stage.name].data == "images")


@pytest.mark.parametrize("case", CASES, ids=named)
def test_config_survives_json(case):
    path, variant = case
    config = load(path).get_config(variant)
    again = configs.from_json(configs.to_json(config))
    assert configs.difference(config, again) == []
    assert configs.to_json(again) == configs.to_json(config)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_variants_are_the_shared_ones_and_others_are_refused(path):
    module = load(path)
    assert {"paper", "small", "demo", "smoke"} <= set(module.VARIANTS)
    assert module.get_config("").to_dict() == module.get_config("paper").to_dict()
    with pytest.raises(ValueError, match="no variant 'huge'; it has paper"):
        module.get_config("huge")


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_docstring_says_how_to_run_every_variant(path):
    text = load(path).__doc__
    for variant in load(path).VARIANTS:
        suffix = "" if variant == "paper" else f":{variant}"
        assert f"--config configs/{path.name}{suffix} " in text
    for row in getattr(load(path), "ROWS", ()):
        assert f"| {row} " in text
