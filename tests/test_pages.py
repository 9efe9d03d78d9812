"""Every command of the pages: its flags, values and config keys, and that it runs.

A command of a code block has to be accepted whole: the entry's parser takes it, and the
config that it asks for is loaded, changed and checked as the entry does. Of a command
within a sentence, which may leave out what is required, the flags have to exist.
`RUN_BY` names the test that runs each entry from its command line at smoke size.
"""

import ast
import importlib
import json
import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image
from places import CONFIGS, ROOT

from handjax import __main__ as console
from handjax.config import files, flags, schema
from handjax.errors import UserError
from handjax.io.command_line import Parser

PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / package / "README.md" for package in ("deploy", "handjax")),
        ROOT / "data_pipelines" / "README.md",
        *CONFIGS.glob("*.py"),
        *(ROOT / "notebooks").glob("*.ipynb"),
        *(ROOT / "handjax").glob("[a-z]*.py"),
        *(ROOT / "data_pipelines").glob("[a-z]*.py"),
        *(ROOT / "data_pipelines" / "synthetic").rglob("__main__.py"),
    ]
)
MARKDOWN = [path for path in PAGES if path.suffix == ".md"]
PLACEHOLDERS = {
    "ROW": "table2_r50_gtr",
    "$i/4": "0/4",
    "$p": "0",
    "$NAME": "freihand",
    "CONFIG": "configs/hamba.py:demo,body",
}
"""What stands in commands for something that the reader puts there."""

RUN_BY = {
    "handjax.benchmark": "benchmarking/test_benchmark.py",
    "handjax.chaos": "training/test_chaos.py",
    "handjax.control": "controlnet/test_control.py",
    "handjax.convert": "conversion/test_convert.py",
    "handjax.doctor": "test_doctor.py",
    "handjax.evaluate": "evaluation/test_evaluate.py",
    "handjax.equations": "test_commands.py",
    "handjax.fid": "metrics/test_fid.py",
    "handjax.inference": "inference/test_photo_predictor.py",
    "handjax.predict": "inference/test_predict_cli.py",
    "handjax.replay": "training/test_nonfinite.py",
    "handjax.tables": "evaluation/test_tables.py",
    "handjax.text_to_mesh": "test_text_to_mesh.py",
    "handjax.train": "training/test_train_cli.py",
    "data_pipelines.benchmark": "data_pipelines/test_data_benchmark.py",
    "data_pipelines.check": "data_pipelines/preparation/test_preparation.py",
    "data_pipelines.prepare": "data_pipelines/preparation/test_preparation.py",
    "data_pipelines.synthetic": "data_pipelines/synthetic/test_synthetic_generate.py",
    "data_pipelines.synthetic.body": "models/test_bodies.py",
    "data_pipelines.synthetic.letters": "data_pipelines/synthetic/test_letters.py",
}

_COMMAND = re.compile(
    r"python -m (?P<module>(?:handjax|data_pipelines)\.[\w.]*\w)(?P<rest>[^|]*)"
    r"|^handjax (?P<group>data )?(?P<name>[a-z][a-z_.-]*)(?P<more>[^|]*)"
)


class Command(NamedTuple):
    """One command of a page."""

    page: str
    module: str
    arguments: tuple[str, ...]
    whole: bool
    """From a code block, so nothing is left out."""


def text_of(path: Path) -> str:
    """Return what people read of a file: a page, a docstring, a notebook's text."""
    text = path.read_text()
    if path.suffix == ".py":
        return ast.get_docstring(ast.parse(text)) or ""
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        read = [cell["source"] for cell in cells if cell["cell_type"] == "markdown"]
        return "\n\n".join("".join(lines) for lines in read)
    return text


def pieces(text: str) -> list[tuple[str, bool]]:
    """Return lines of code blocks (True) and spans of code in sentences (False)."""
    text = re.sub(r"\\\n\s*", " ", text)
    blocks = re.findall(r"```\w*\n(.*?)```", text, flags=re.DOTALL)
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    blocks += re.findall(r"^    \S.*$", text, flags=re.MULTILINE)
    text = re.sub(r"^    \S.*$", "", text, flags=re.MULTILINE)
    lines = [(line, True) for block in blocks for line in block.splitlines()]
    return lines + [
        (" ".join(span.split()), False) for span in re.findall(r"`([^`]+)`", text)
    ]


def module_of(match: re.Match) -> str:
    if match["module"]:
        return match["module"]
    known = console.commands("data" if match["group"] else "")
    assert match["name"] in known, f"{match[0]!r} is not a command of handjax"
    return known[match["name"]].module.removesuffix(".__main__")


def commands_of(path: Path) -> list[Command]:
    found = []
    for line, whole in pieces(text_of(path)):
        match = _COMMAND.search(re.split(r"\s{2,}|\s#", line.strip())[0])
        if whole:  # aligned commands have runs of spaces before a comment or an option
            match = _COMMAND.search(line.strip().split(" #")[0])
        if match is None or "..." in line or " COMMAND" in line:
            continue
        rest = (match["rest"] if match["module"] else match["more"]).split(" & done")[0]
        if path.parent.name == "data_pipelines" or match["module"]:
            rest = re.split(r"\s{3,}(?=[a-z])", rest)[0]  # a remark beside the command
        for placeholder, value in PLACEHOLDERS.items():
            rest = re.sub(rf"{re.escape(placeholder)}(?!\w)", value, rest)
        arguments = tuple(word for word in shlex.split(rest) if word not in ("&", ";"))
        name = str(path.relative_to(ROOT))
        found.append(Command(name, module_of(match), arguments, whole))
    return found


COMMANDS = [command for path in PAGES for command in commands_of(path)]


def parser_of(module: str):
    if module == "data_pipelines.synthetic.letters":  # takes a file and nothing else
        parser = Parser("data synthetic.letters", None)
        parser.add_argument("file")
        return parser
    for name in (module, f"{module}.__main__"):
        loaded = importlib.import_module(name)
        make = getattr(loaded, "parser", None) or getattr(loaded, "_parser", None)
        if make is not None:
            return make()
    raise AssertionError(f"{module} has no parser")


def configs_for(page: str):
    """Return the configs of a page about one family, else those of all."""
    if page.startswith("configs/"):
        return [page, f"{page}:smoke,text"]
    return [f"configs/{path.name}:smoke" for path in sorted(CONFIGS.glob("*.py"))]


def changed(specs, overrides) -> None:
    """Change and check the first config that has these keys.

    Raises:
        UserError: None takes them.
    """
    errors = []
    for spec in specs:
        try:
            schema.check(files.override(files.load_config(spec), overrides))
        except UserError as error:
            errors.append(error)
        else:
            return
    raise errors[-1]


def accept(command: Command) -> None:
    """Raise UserError unless the entry would begin to work with these arguments."""
    values = flags.parse(parser_of(command.module), command.arguments)
    if getattr(values, "config", None):
        flags.read(values)
    elif values.overrides:
        changed(configs_for(command.page), values.overrides)


def named(commands):
    return [
        pytest.param(command, id=f"{command.page}-{number}")
        for number, command in enumerate(commands)
    ]


@pytest.mark.parametrize("page", ["README.md", "docs/training.md", "deploy/README.md"])
def test_pages_with_commands_are_read(page):
    """The test below would pass if no command were found."""
    assert [command for command in COMMANDS if command.page == page and command.whole]


@pytest.mark.parametrize("command", named(c for c in COMMANDS if c.whole))
def test_a_command_is_accepted(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    accept(command)


@pytest.mark.parametrize("command", named(c for c in COMMANDS if not c.whole))
def test_the_flags_in_a_sentence_exist(command):
    options = parser_of(command.module)._option_string_actions
    used = {word.split("=")[0] for word in command.arguments if word.startswith("--")}
    assert {flag for flag in used if not flag.startswith("--config.")} <= set(options)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_config_keys_exist(path, monkeypatch):
    """Keys with values, wherever a page names them."""
    monkeypatch.chdir(ROOT)
    page = str(path.relative_to(ROOT))
    for piece, _ in pieces(text_of(path)):
        if _COMMAND.search(piece) or not piece.strip().startswith("--config."):
            continue
        words = shlex.split(piece.split(" #")[0])
        pairs = [word.removeprefix("--config.").partition("=") for word in words]
        pairs = [(key, value) for key, equals, value in pairs if equals]
        placeholder = [key for key, value in pairs if "..." in value]
        if pairs and not placeholder:
            changed(configs_for(page), pairs)


def test_every_entry_is_run_by_a_test():
    for module in {command.module for command in COMMANDS}:
        text = (ROOT / "tests" / RUN_BY[module]).read_text()
        last = module.split(".")[-1]
        assert module in text or re.search(rf"import .*\b{last}\b", text), module


def test_a_wrong_command_is_refused():
    """So the tests above can fail."""
    wrong = Command("README.md", "handjax.train", ("--config", "tokenhand:smal"), True)
    with pytest.raises(UserError):
        accept(wrong)
    key = ("--config", "tokenhand:smoke", "--config.stages.mesh.step=3")
    with pytest.raises(UserError):
        accept(wrong._replace(arguments=key))
    with pytest.raises(UserError):
        accept(wrong._replace(arguments=("--workdirs", "x")))


@pytest.mark.parametrize(
    "line",
    [
        "handjax train --config simplehand:smoke --dry_run --num_processes 2",
        "handjax data prepare --list",
        "handjax data prepare freihand",
        "handjax fid --real real.npy --made made.npy",
    ],
)
def test_short_commands_run(line, tmp_path, monkeypatch, capsys):
    """What deploy/README.md begins with, in small, and what needs no run or data."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name in ("real", "made"):
        np.save(f"{name}.npy", rng.normal(size=(40, 8)))
    assert console.main(shlex.split(line)[1:]) == 0
    assert capsys.readouterr().out.strip()


def test_the_example_photo_is_what_its_script_renders(tmp_path, monkeypatch):
    output = tmp_path / "example.jpg"
    monkeypatch.setattr(sys, "argv", ["example_picture.py", "--output", str(output)])
    script = ROOT / "scripts" / "example_picture.py"
    runpy.run_path(str(script), run_name="__main__")
    ours, again = (
        np.asarray(Image.open(path), np.int16)
        for path in (ROOT / "handjax" / "assets" / "example.jpg", output)
    )
    # Not to the bit: other versions of the JPEG library round otherwise.
    assert np.abs(ours - again).mean() < 1


def test_the_page_of_the_interface_is_of_these_docstrings():
    """`python scripts/api_page.py --output docs/api.md` renews it."""
    page = runpy.run_path(str(ROOT / "scripts" / "api_page.py"))["page"]
    assert (ROOT / "docs" / "api.md").read_text() == page()


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda path: path.stem)
def test_links_lead_somewhere(path):
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda path: path.stem)
def test_python_of_a_page_imports_what_there_is(path):
    text = path.read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    lines = re.findall(r"^    ((?:from|import) .*)$", text, flags=re.MULTILINE)
    for block in [*blocks, *lines]:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    importlib.import_module(alias.name)
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    if not hasattr(module, alias.name):
                        importlib.import_module(f"{node.module}.{alias.name}")


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", named(c for c in COMMANDS if c.whole and c.module == "handjax.train")
)
def test_a_training_command_can_be_planned(command, tmp_path, monkeypatch):
    """At full size: the model is built, nothing is trained."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HANDJAX_DATA", str(tmp_path))
    kept = [
        word
        for word in command.arguments
        if not word.startswith(("--coordinator", "--num_processes", "--process_id"))
    ]
    assert console.main(["train", *kept, "--dry_run"]) == 0
