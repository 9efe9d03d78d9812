"""Every dependency and extra that pyproject.toml declares is used by some file."""

import ast
import re
import tomllib

import pytest
from places import ROOT

ROOMS = ("handjax", "data_pipelines", "configs", "scripts", "tests")
MODULES = {
    "ai-edge-litert": "ai_edge_litert",
    "apache-beam": "apache_beam",
    "opencv-python-headless": "cv2",
    "orbax-checkpoint": "orbax",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "tensorboardx": "tensorboardX",
}
"""Distributions whose module has another name than theirs with underscores."""

TOOLS = {
    "beartype": ("pyproject.toml", "beartype.beartype"),
    "import-linter": ("Makefile", "lint-imports"),
    "ipykernel": ("notebooks/explore_codebook.ipynb", '"kernelspec"'),
    "pre-commit": ("CONTRIBUTING.md", "pre-commit install"),
    "pyright": ("Makefile", "pyright"),
    "pytest-timeout": ("pyproject.toml", "timeout = "),
    "pytest-xdist": ("Makefile", "--dist"),
    "ruff": ("Makefile", "ruff check"),
}
"""What is run rather than imported: the file that runs it, and with which words."""


def declared():
    """Names of all requirements, lower case."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    names = {re.match(r"[\w.-]+", text)[0].lower() for part in lists for text in part}
    return sorted(names - {"handjax"})


def modules_named(tree):
    """Top-level modules that a file imports, also by name and in tests that may skip.

    Modules of `importlib.import_module` and `pytest.importorskip` are strings.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module
        elif isinstance(node, ast.Call) and node.args:
            called = ast.unparse(node.func).rpartition(".")[2]
            first = node.args[0]
            if called in ("import_module", "importorskip", "find_spec"):
                yield str(getattr(first, "value", ""))


@pytest.fixture(scope="module")
def imported():
    files = (path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
    return {
        module.partition(".")[0]
        for path in files
        for module in modules_named(ast.parse(path.read_text(encoding="utf-8")))
    }


@pytest.mark.parametrize("name", declared())
def test_a_declared_dependency_is_used(name, imported):
    if name in TOOLS:
        file, words = TOOLS[name]
        assert words in (ROOT / file).read_text(encoding="utf-8")
    else:
        module = MODULES.get(name, name.replace("-", "_"))
        assert module in imported, f"no file imports {module}; drop {name} or use it"


def test_the_table_of_tools_names_what_is_declared():
    assert {*TOOLS, *MODULES} <= {*declared()}
