"""Every equation of a family's paper has exactly one home, and no tag is made up."""

import ast
import re
from pathlib import Path

import pytest

import handjax
from handjax import models

TAG = re.compile(r"\((\w+) Eq\. ([^)]+?)\)")


def tags():
    """(paper, key, where) of each tag in a docstring of the package."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    for path in sorted(Path(handjax.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, kinds):
                text = " ".join((ast.get_docstring(node) or "").split())
                for paper, key in TAG.findall(text):
                    name = getattr(node, "name", "module")
                    yield paper, key, f"{path.name}:{name}"


@pytest.mark.parametrize("family", models.names())
def test_every_equation_has_one_home(family):
    paper = models.load(family).PAPER
    homes = {str(key): [] for key in paper.equations}
    for name, key, where in tags():
        if name == paper.name:
            assert key in homes, f"{where} cites an equation that PAPER does not list"
            homes[key].append(where)
    assert all(len(where) == 1 for where in homes.values()), homes


def test_grep_finds_every_tag_on_one_line():
    found = [
        (paper, key)
        for path in sorted(Path(handjax.__file__).parent.rglob("*.py"))
        for line in path.read_text(encoding="utf-8").splitlines()
        for paper, key in TAG.findall(line)
    ]
    assert sorted(found) == sorted((paper, key) for paper, key, _ in tags())


def test_every_tag_belongs_to_a_family():
    papers = {models.load(family).PAPER.name for family in models.names()}
    assert {name for name, _, _ in tags()} <= papers
