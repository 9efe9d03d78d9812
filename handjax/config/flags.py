"""Flags of the entries, and errors that fit on one line.

Only absl and ml_collections are imported here, so that `--help` and a misspelt key are
answered at once.
"""

import logging
import sys
from collections.abc import Callable, Iterator, Sequence

from absl import flags

from handjax.config.files import load_config, override
from handjax.errors import UserError


def run(
    main: Callable[[flags.FlagValues], int | None],
    values: flags.FlagValues,
    doc: str,
    argv: Sequence[str] | None = None,
) -> int:
    """Parse the command line, call `main`, and turn expected errors into one line.

    Args:
        main: gets the parsed flags, with `config` where there is one.
        values: the flags that are defined.
        doc: what `--help` says first.
        argv: as `sys.argv`, which is the default.

    Returns:
        Exit code: 0, 1 for what went wrong on the way, 2 for what was typed.
    """
    # Orbax tells absl's log about every default it takes.
    logging.getLogger("absl").setLevel(logging.ERROR)
    argv = list(sys.argv if argv is None else argv)
    if any(arg in ("--help", "-h", "-help", "--helpshort") for arg in argv[1:]):
        print(f"{doc.strip()}\n\nFlags:\n{_flag_help(values)}")
        return 0
    try:
        parse(argv, values)
        return main(values) or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _flag_help(values: flags.FlagValues) -> str:
    lines = [
        f"  --{name}: {values[name].help} (default: {values[name].default!r})"
        for name in sorted(values)
    ]
    return "\n".join(lines)


def parse(argv: Sequence[str], values: flags.FlagValues) -> None:
    """Parse flags; `--config FILE[:variant]` becomes the ConfigDict `values.config`.

    Raises:
        UserError: for an unknown flag or key, or a value of another type.
    """
    rest, spec, overrides = [argv[0]], "", []
    for arg, value in _paired(argv[1:]):
        name = arg.lstrip("-")
        if arg.startswith("-") and name == "config":
            spec = value or ""
        elif arg.startswith("-") and name.startswith("config."):
            # As with any absl flag, a bare boolean is set.
            key = name.removeprefix("config.")
            overrides.append((key, "true" if value is None else value))
        else:
            rest += [arg] if value is None else [f"{arg}={value}"]
    try:
        extra = values(rest)[1:]
    except flags.Error as error:
        raise UserError(f"{error}. See --help.") from error
    if extra:
        raise UserError(f"{extra[0]!r} belongs to no flag. See --help.")
    if "config" in values:
        values["config"].value = override(load_config(spec), overrides)


def _paired(arguments: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Flags with their values, whether written `--a=1` or `--a 1`."""
    position = 0
    while position < len(arguments):
        name, equals, value = arguments[position].partition("=")
        after = arguments[position + 1 : position + 2]
        if equals:
            yield name, value
        elif name.lstrip("-").startswith("config") and after and after[0][:2] != "--":
            yield name, after[0]
            position += 1
        else:
            yield name, None
        position += 1
