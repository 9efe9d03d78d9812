"""The shape of every entry: a parser, one line for expected errors, an exit code.

Only the standard library is imported here, so that `--help` is instant.
"""

import argparse
import inspect
import math
import os
import re
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

from handjax.errors import HandjaxError, UserError, suggest

DONE, FAILED, MISUSED, INTERRUPTED = 0, 1, 2, 130
"""Exit codes: 1 for what went wrong on the way, 2 for what the user can mend."""

_WRONG_PATHS = (
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)
"""What the system says of a path that was mistyped."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are `UserError`s of one line."""

    def __init__(self, command: str, doc: str | None, **options: Any):
        """Describe a command.

        Args:
            command: What is typed after `handjax`, such as "data prepare".
            doc: Docstring of the entry; its text is what `--help` says first.
            **options: Of `argparse.ArgumentParser`.
        """
        super().__init__(
            prog=f"handjax {command}",
            description=doc,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **options,
        )

    def parse_args(self, args=None, namespace=None):  # type: ignore[override]
        """Parse all arguments.

        Raises:
            UserError: An argument is unknown or missing, or its value is not allowed.
        """
        args = self._joined(sys.argv[1:] if args is None else args)
        # Intermixed, so that photos may stand before and after the options.
        values, rest = self.parse_known_intermixed_args(args, namespace)
        if rest:
            flag = rest[0].partition("=")[0]
            near = suggest(flag, self._option_string_actions)
            near = near if "Did you mean" in near else "."
            raise UserError(f"{rest[0]!r} is not an argument{near} See --help.")
        return values

    def _joined(self, args: Sequence[str]) -> list[str]:
        """Write `--box -5,1,20,30` as `--box=-5,1,20,30`.

        argparse takes a value that begins with a minus for an option, unless it is one
        plain number.
        """
        joined: list[str] = []
        for arg in args:
            action = self._option_string_actions.get(joined[-1]) if joined else None
            if action and action.nargs is None and re.match(r"-\.?\d", arg):
                joined[-1] += f"={arg}"
            else:
                joined.append(arg)
        return joined

    def error(self, message: str):
        """Raise what argparse would print with the usage before it."""
        raise UserError(f"{message.rstrip('.')}. See --help.")


class CallableEntry(types.ModuleType):
    """An entry's module that can also be called, as the function of its own name.

    `handjax.train` is a module for `python -m handjax.train` and a function of the
    Python interface, whichever of the two is imported first.
    """

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._function())

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Call the function."""
        return self._function()(*arguments, **options)

    def _function(self) -> Callable[..., Any]:
        return getattr(self, self.__name__.rpartition(".")[2])


def at_least(
    least: int | float, kind: type = int, *, most: int | float = math.inf
) -> Callable[[str], Any]:
    """Return an argparse type: finite numbers of `kind` from `least` on, to `most`."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not (least <= value <= most and abs(value) < math.inf):
            what = "a whole number" if kind is int else "a number"
            end = "" if most == math.inf else f" and <= {most}"
            raise argparse.ArgumentTypeError(f"{text!r} is not {what} >= {least}{end}")
        return value

    return parse


def comma_separated(text: str) -> list[str]:
    """Split `a,b` into its parts; an argparse type."""
    return [part.strip() for part in text.split(",") if part.strip()]


def run(command: Callable[[], int | None], *, goes_on: bool = False) -> int:
    """Run an entry; turn expected errors into one line and an exit code.

    A bug is not expected: it keeps its traceback.

    Args:
        command: Parses the command line and does the work; None means exit code 0.
        goes_on: Whether the same command continues an interrupted one.

    Returns:
        0, 1 for a failure on the way, 2 for what the user can mend, 130 after Ctrl-C.
    """
    try:
        return command() or DONE
    except UserError as error:
        say_error(error)
        return MISUSED
    except HandjaxError as error:
        say_error(error)
        return FAILED
    except BrokenPipeError:
        # The reader, such as `head`, has gone; Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        # The system refuses: a full disk, no permission. Others are raised by a bug.
        if error.errno is None:
            raise
        where = f"{error.filename}: " if error.filename else ""
        say_error(f"{where}{error.strerror}")
        return MISUSED if isinstance(error, _WRONG_PATHS) else FAILED
    except KeyboardInterrupt:
        rest = "; the same command goes on from here." if goes_on else "."
        print(f"\nStopped{rest}", file=sys.stderr)
        return INTERRUPTED


def say_error(error: object) -> None:
    """Print `error: ...` on standard error, as one line."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
