"""The maps name every file, so that a newcomer finds what they look for."""

import re
from pathlib import Path

import pytest
from places import ROOT


def files_of(package: str) -> list[str]:
    """Python files of a package, as its map writes them; private ones left out."""
    folder = ROOT / package
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*.py")
        if not path.name.startswith("_")
    )


def named_files(page: str) -> set[str]:
    """Every `name.py` between backticks."""
    return set(re.findall(r"`([\w/]+\.py)`", page))


@pytest.mark.parametrize("package", ["handjax", "data_pipelines"])
def test_map_names_every_file(package):
    page = (ROOT / package / "README.md").read_text()
    named, folders = named_files(page), set(re.findall(r"`([\w/]+)/`", page))
    missing = [
        name
        for name in files_of(package)
        if name not in named and str(Path(name).parent) not in folders
    ]
    assert not missing, f"{package}/README.md does not name {missing}"


@pytest.mark.parametrize("package", ["handjax", "data_pipelines"])
def test_map_names_no_file_that_is_gone(package):
    page = (ROOT / package / "README.md").read_text()
    gone = [
        name
        for name in named_files(page)
        if not (ROOT / package / name).exists() and not (ROOT / name).exists()
    ]
    assert not gone, f"{package}/README.md names {gone}"
