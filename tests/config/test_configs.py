"""Every file of configs/ loads in all its variants and names what exists."""

import dataclasses
import importlib.util

import pytest
from places import CONFIGS

from handjax import models
from handjax.checkpoints import workdir
from handjax.config import schema as configs
from handjax.config.files import load_config
from handjax.config.variants import VARIANTS
from handjax.errors import UserError

FILES = sorted((CONFIGS).glob("*.py"))


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CASES = [
    (path, variant)
    for path in FILES
    for module in [load(path)]
    for variant in (*getattr(module, "SIZES", VARIANTS), *getattr(module, "ROWS", ()))
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
        kind = config.stages[stage.name].data
        assert stage.needs_image == (kind in ("images", "features"))


NO_RECIPE = {"dtype", "fused", "remat", "remat_policy", "scan_path", "edges"}
"""Fields that change how a model is computed, or that the data fix: these have
defaults."""


def fields_of(family):
    """Names of the fields of a family's Model -> whether they have a default."""
    fields = dataclasses.fields(models.load(family).Model)
    return {
        field.name: field.default is not dataclasses.MISSING
        for field in fields
        if field.name not in ("parent", "name")
    }


@pytest.mark.parametrize("family", models.names())
def test_no_field_of_a_recipe_has_a_default(family):
    assert {name for name, has in fields_of(family).items() if has} <= NO_RECIPE


@pytest.mark.parametrize("case", CASES, ids=named)
def test_every_field_of_a_recipe_is_in_the_config(case):
    path, variant = case
    config = load(path).get_config(variant)
    assert {n for n, has in fields_of(config.family).items() if not has} <= {
        *config.model
    }


def test_a_missing_or_misspelt_key_of_the_model_is_named():
    family = models.load("tokenhand")
    config = load(CONFIGS / "tokenhand.py").get_config("smoke")
    del config.model.code_dim
    with pytest.raises(
        UserError, match=r"config\.model lacks code_dim, which tokenhand"
    ):
        workdir.build_model(family, config)
    config.model.codedim = 64
    with pytest.raises(UserError, match=r"no key 'codedim'\. Did you mean 'code_dim'"):
        workdir.build_model(family, config)


@pytest.mark.parametrize(
    "change",
    [
        {"eval.num": -5},
        {"seed": -1},
        {"data.seed": -1},
        {"data.num_train": -3},
        {"data.max_turn": -20.0},
        {"data.box_scale": 0.0},
        {"data.max_corrupt": -1},
    ],
)
def test_numbers_that_cannot_be_are_refused(change):
    (key,) = change
    with pytest.raises(UserError, match=rf"config\.{key}=\S+ must be a number"):
        configs.check(load_config("simplehand:smoke", change))


@pytest.mark.parametrize("family", configs.LATER_MODEL_KEYS)
def test_an_old_workdir_builds_its_model_as_before_there_were_more_keys(family):
    later = configs.LATER_MODEL_KEYS[family]
    old = load(CONFIGS / f"{family}.py").get_config("paper")
    for key in later:
        del old.model[key]
    config = configs.from_json(configs.to_json(old))
    assert {key: config.model[key] for key in later} == later
    workdir.build_model(models.load(family), config)


def test_tores_old_name_of_the_output_unit_is_read():
    old = load(CONFIGS / "tore.py").get_config("smoke")
    old.model.outputs = old.model.output_unit
    del old.model.output_unit
    config = configs.from_json(configs.to_json(old))
    assert config.model.output_unit == "hands" and "outputs" not in config.model


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
    assert module.get_config("").to_dict() == module.get_config("paper").to_dict()
    with pytest.raises(ValueError, match="no variant 'huge'; it has paper"):
        module.get_config("huge")


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_docstring_says_how_to_run_every_variant(path):
    text = load(path).__doc__
    for variant in VARIANTS:
        suffix = "" if variant == "paper" else f":{variant}"
        assert f"--config configs/{path.name}{suffix} " in text
    for row in getattr(load(path), "ROWS", ()):
        assert f"| {row} " in text
