"""`handjax COMMAND`: what it lists, and what it says about mistakes and bugs."""

import ast
import re
import subprocess
import sys

import pytest
from places import ROOT

from handjax import __main__ as program
from handjax import equations
from handjax.errors import HandjaxError, MissingFileError, UserError
from handjax.io import command_line
from handjax.io.command_line import Parser, at_least, comma_separated

COMMANDS = [*program.commands(), *(f"data {c}" for c in program.commands("data"))]

MISTAKES = {
    "train": ("--config=tokenhnd:smoke --workdir=W", "Did you mean 'tokenhand'"),
    "evaluate": ("--workdir=/nowhere", "is not a workdir"),
    "predict": ("/nowhere.jpg --workdir=W --output=O", "nowhere.jpg"),
    "benchmark": ("--config=tokenhand --what=speed", "speed is not one of compile"),
    "convert": ("/nowhere --from=timm --to=T", "no such file of weights"),
    "models": ("landmarks", "landmarks"),
    "doctor": ("me", "me"),
    "tables": ("/nowhere", "is neither a report nor a workdir"),
    "control": ("--out=O --size=100", "divisible by 8"),
    "fid": ("--real=a.txt --made=b.npy", "allowed are .npy"),
    "text-to-mesh": ("a --workdir=/nowhere --output=O", "is not a workdir"),
    "replay": ("--update=/nowhere", "no update.json"),
    "chaos": ("--workdir=tests --train=x", "is not empty"),
    "equations": ("TokenHnd", "Did you mean"),
    "data prepare": ("freihnd", "freihand"),
    "data check": ("/nowhere", "/nowhere"),
    "data benchmark": ("--data=/nowhere", "/nowhere"),
    "data synthetic": ("--out=O", "give either --num"),
}
"""Command -> arguments that cannot work, and a part of what is said."""


def _heavy_after(code):
    """Run code in a new process; returns (its output, heavy modules it imported)."""
    heavy = "{'jax', 'flax', 'orbax', 'grain', 'ml_collections', 'numpy', 'cv2'}"
    done = subprocess.run(
        [
            *(sys.executable, "-c"),
            f"import atexit, sys\natexit.register(lambda: print(sorted({heavy} & "
            f"set(sys.modules)), file=sys.stderr))\n{code}",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout, ast.literal_eval(done.stderr.splitlines()[-1])


def test_help_lists_every_command_without_importing_one():
    code = "from handjax.__main__ import main; main(['--help'])"
    out, heavy = _heavy_after(code)
    assert heavy == []
    for name in COMMANDS:
        (line,) = (x for x in out.splitlines() if x.strip().startswith(f"{name} "))
        assert line.strip().endswith("."), line
        assert len(line) <= 88, line


def test_the_commands_are_these():
    assert set(COMMANDS) == set(MISTAKES)


def test_help_of_a_command_needs_no_jax():
    code = "from handjax.__main__ import main\n"
    for command in COMMANDS:
        code += f"try: main({[*command.split(), '--help']})\nexcept SystemExit: pass\n"
    out, heavy = _heavy_after(code)
    for command in COMMANDS:
        assert f"usage: handjax {command} " in out
    assert "jax" not in heavy and "ml_collections" not in heavy


@pytest.mark.parametrize("command", COMMANDS)
def test_a_mistake_is_one_line(command, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    arguments, words = MISTAKES[command]
    assert program.main([*command.split(), *arguments.split()]) == 2
    found = capsys.readouterr()
    assert found.err.startswith("error: ") and words in found.err
    assert len(found.err.splitlines()) == 1 and not found.out


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_flag_is_one_line(command, capsys):
    assert program.main([*command.split(), "--hlep"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "'trian' is not a command. Did you mean 'train'? See"),
        (["data", "prepar"], "'data prepar' is not a command. Did you mean 'prepare'?"),
    ],
)
def test_an_unknown_command_is_compared_with_the_known(arguments, words, capsys):
    assert program.main(arguments) == 2
    assert words in capsys.readouterr().err


def test_a_bug_of_ours_keeps_its_traceback(monkeypatch):
    """Even one of the types that users' errors have."""
    from handjax.conversion import timm
    from handjax.io import torch_files

    def broken(path):
        first, second = (1, 2, 3)  # a ValueError inside our folders
        return first, second

    monkeypatch.setattr(torch_files, "read", broken)
    with pytest.raises(ValueError, match="too many values to unpack"):
        program.main(["convert", timm.__file__, "--from=timm", "--to=T"])


def test_exit_codes_have_one_place(capsys):
    def raising(error):
        def command():
            raise error

        return command

    for error, code in [
        (UserError("mend it"), 2),
        (MissingFileError("find it"), 2),
        (HandjaxError("it failed"), 1),
        (OSError(28, "No space left on device", "/full"), 1),
        (FileNotFoundError(2, "No such file or directory", "/typo"), 2),
        (KeyboardInterrupt(), 130),
    ]:
        assert command_line.run(raising(error)) == code
    said = capsys.readouterr().err.splitlines()
    assert said[:2] == ["error: mend it", "error: find it"]
    assert said[3] == "error: /full: No space left on device"
    for bug in (ValueError("x"), KeyError("x"), OSError("without a file")):
        with pytest.raises(type(bug)):
            command_line.run(raising(bug))
    assert command_line.run(lambda: None) == 0 and command_line.run(lambda: 1) == 1


def test_values_of_arguments():
    parser = Parser("x", "Do x.")
    parser.add_argument("--n", type=at_least(2))
    parser.add_argument("--s", type=at_least(0, float))
    parser.add_argument("--names", type=comma_separated)
    parser.add_argument("--share", type=at_least(0, float, most=1))
    found = parser.parse_args(["--n=2", "--s", "0.5", "--names=a, b,"])
    assert (found.n, found.s, found.names) == (2, 0.5, ["a", "b"])
    for wrong, words in [
        ("--n=1", "argument --n: '1' is not a whole number >= 2. See --help."),
        ("--s=nan", "'nan' is not a number >= 0"),
        ("--s=inf", "'inf' is not a number >= 0"),
        ("--share=1.5", "'1.5' is not a number >= 0 and <= 1"),
        ("--nams=a", "'--nams=a' is not an argument. Did you mean '--names'?"),
        ("--na=a", "is not an argument"),
    ]:
        with pytest.raises(UserError, match=re.escape(words)):
            parser.parse_args([wrong])


def test_values_may_begin_with_a_minus():
    parser = Parser("x", "Do x.")
    parser.add_argument("--box")
    parser.add_argument("--flag", action="store_true")
    for arguments in (["--box", "-5,1,2,3"], ["--flag", "--box", "-.5,1,2,3"]):
        assert parser.parse_args(arguments).box == arguments[-1]
    for arguments in (["--flag", "-5,1"], ["--box", "--flag"]):
        with pytest.raises(UserError):
            parser.parse_args(arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        "evaluate --workdir=W --step=-1",
        "text-to-mesh a --workdir=W --output=O --seed=-1",
        "fid --real=a.npy --made=b.npy --kid_size=1",
        "chaos --workdir=W --train=x --seed=-1",
        "train --num_processes=0",
        "data check D --num=-5",
        "data benchmark --data=D --batch_size=0",
        "data synthetic --out=O --num=5 --left_fraction=2",
        "data synthetic --out=O --num=5 --max_turn=-20",
    ],
)
def test_numbers_out_of_range_are_named(arguments, capsys):
    assert program.main(arguments.split()) == 2
    flag, _, value = arguments.split()[-1].partition("=")
    said = capsys.readouterr().err
    assert f"argument {flag}: {value!r} is not a" in said and said.count("\n") == 1


def test_equations_are_found_where_they_are(capsys):
    assert program.main(["equations"]) == 0
    papers = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert papers == list(equations.papers())
    for paper in papers:
        assert program.main(["equations", paper.lower()]) == 0
        for line in capsys.readouterr().out.splitlines():
            assert "has no tag" not in line
            place = re.search(r"(\S+\.py):(\d+)", line)
            if place:
                text = (ROOT / place[1]).read_text().splitlines()[int(place[2]) - 1]
                assert f"({paper} Eq. {line.split('  ')[0]})" in text
