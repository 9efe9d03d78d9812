"""The rooms of both packages: a contract holds each, and the map shows them."""

import ast
import re
import tomllib

import grimp
import numpy as np
import pytest
from places import ROOT
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
PACKAGES = ("handjax", "data_pipelines")
FULLEST_FOLDER = 20
FULLEST_ROOT = 16


def layers_of(name: str) -> list[list[str]]:
    """Return the modules of a contract's layers, highest first."""
    (contract,) = [row for row in CONTRACTS["contracts"] if row["name"] == name]
    return [re.findall(r"[\w.]+", layer) for layer in contract["layers"]]


FLOORS = [
    [module.removeprefix("handjax.") for module in layer]
    for layer in layers_of("the floors of handjax")
]
MAP = (ROOT / "handjax" / "README.md").read_text().split("\n## ")[0]


def python_folders(package: str):
    return sorted({path.parent for path in (ROOT / package).rglob("*.py")})


def modules_of(package: str) -> set[str]:
    """Return the files and rooms at the root of a package."""
    here = ROOT / package
    files = {path.stem for path in here.glob("*.py")} - {"__init__", "__main__"}
    return files | {path.parent.name for path in here.glob("*/__init__.py")}


@pytest.mark.parametrize(
    ("package", "contract"),
    [
        ("handjax", "the floors of handjax"),
        ("data_pipelines", "from a download to a batch"),
    ],
)
def test_every_room_and_root_file_stands_in_a_contract(package, contract):
    layers = [
        module.split(".")[-1] for layer in layers_of(contract) for module in layer
    ]
    assert len(layers) == len(set(layers))
    assert set(layers) - set(PACKAGES) - {"__main__"} == modules_of(package)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_folder_is_crowded(package):
    for folder in python_folders(package):
        count = len(list(folder.glob("*.py")))
        assert count <= FULLEST_FOLDER, f"{folder} has {count} Python files"
    root = len(list((ROOT / package).glob("*.py")))
    assert root <= FULLEST_ROOT, f"{package} has {root} Python files at its root"


def test_no_file_imports_itself_by_a_detour():
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    modules = sorted(graph.modules)
    number = {module: index for index, module in enumerate(modules)}
    arrows = np.array(
        [
            (number[module], number[target])
            for module in modules
            for target in graph.find_modules_directly_imported_by(module)
        ]
    )
    assert len(arrows) > 1000
    matrix = csr_array(
        (np.ones(len(arrows)), (arrows[:, 0], arrows[:, 1])),
        shape=(len(modules), len(modules)),
    )
    _, group = connected_components(matrix, connection="strong")
    sizes = np.bincount(group)
    circles = [
        [module for module in modules if group[number[module]] == circle]
        for circle in np.flatnonzero(sizes > 1)
    ]
    assert not circles


def test_contracts_have_no_exceptions():
    for contract in CONTRACTS["contracts"]:
        assert "ignore_imports" not in contract, contract["name"]


def test_the_drawing_of_the_map_is_the_contract():
    (drawing,) = re.findall(r"```\n(.*?)```", MAP, flags=re.DOTALL)
    floors = [line[16:] for line in drawing.splitlines()]
    assert len(floors) == 6
    layers = [re.findall(r"\w+", layer) for line in floors for layer in line.split("→")]
    expected = [sorted(set(layer) - {"__main__"}) for layer in FLOORS]
    assert [sorted(layer) for layer in layers] == expected


def test_the_map_has_one_row_a_room_in_the_order_of_the_contract():
    rows = re.findall(r"^\|.*\| `(\w+)` \|", MAP, flags=re.MULTILINE)
    floor_of = {room: number for number, layer in enumerate(FLOORS) for room in layer}
    assert sorted(rows) == sorted(set(floor_of) - {"__main__"})
    assert [floor_of[room] for room in rows] == sorted(floor_of[room] for room in rows)


def test_the_map_says_of_a_room_what_the_room_says():
    rows = re.findall(r"^\|.*\| `(\w+)` \| (.*) \|$", MAP, flags=re.MULTILINE)
    for room, line in rows:
        path = ROOT / "handjax" / room / "__init__.py"
        if path.exists():
            docstring = ast.get_docstring(ast.parse(path.read_text()))
            assert docstring.splitlines()[0].rstrip(".") == line, room


@pytest.mark.parametrize(
    "page", ["handjax/README.md", "data_pipelines/README.md", "CONTRIBUTING.md"]
)
def test_a_page_names_no_file_that_is_gone(page):
    named = re.findall(r"`([a-z_][\w/]*/\w+\.\w+)`", (ROOT / page).read_text())
    assert named
    for name in named:
        places = (ROOT / name, ROOT / "handjax" / name, ROOT / "data_pipelines" / name)
        assert any(place.exists() for place in places), f"{page} names {name}"
