"""Errors that a user can mend, apart from those that are bugs of handjax.

Entries print a `HandjaxError` as one line (`handjax.io.command_line.run`); any other
exception is a bug and keeps its traceback.
"""

import difflib
from collections.abc import Iterable

LONGEST_MESSAGE = 1500
"""Characters of a message that a user reads; the middle of a longer one is left out."""


class HandjaxError(Exception):
    """Base of the errors whose message is meant for the user.

    Raised as itself or as a subclass that is not a `UserError`, it reports a failure
    that the command line did not cause, such as a damaged checkpoint.
    """

    def __str__(self):
        # Messages quote files and libraries that quote files: a name of a megabyte.
        text = super().__str__()
        if len(text) <= LONGEST_MESSAGE:
            return text
        half = LONGEST_MESSAGE // 2 - 3
        return f"{text[:half]} ... {text[-half:]}"


class UserError(HandjaxError, ValueError):
    """The user gave something that cannot work; the message says what to do.

    It is a `ValueError`, so that code which uses handjax as a library may catch either:

    >>> import handjax
    >>> try:
    ...     handjax.load_config("tokenhand:smoke", {"train.log_evry": 5})
    ... except handjax.UserError as error:
    ...     print(error)
    config has no key 'train.log_evry'. Did you mean 'train.log_every'?
    """


class MissingFileError(UserError, FileNotFoundError):
    """A file or directory that the user named is missing, or something inside it is."""


def shown(value: object) -> str:
    """Return a short text for a value from a file: `repr` of some values never ends."""
    if isinstance(value, (str, bytes)):
        return repr(value[:60]) + ("..." if len(value) > 60 else "")
    if isinstance(value, int) and value.bit_length() > 200:
        return f"a whole number of {value.bit_length()} bits"
    if value is None or isinstance(value, (bool, int, float)):
        return repr(value)
    kind = type(value).__name__
    if isinstance(value, (list, tuple)) and len(value) <= 4:
        if all(type(part) is int and part.bit_length() < 64 for part in value):
            return repr(value)
    if isinstance(value, (list, tuple, dict, set, frozenset, bytearray)):
        return f"a {kind} of {len(value)}"
    shape = getattr(value, "shape", None)
    return f"a value of type {kind}" + (f", shape {shape}" if shape else "")


def suggest(word: str, known: Iterable[object]) -> str:
    """Return the end of a sentence about an unknown `word`: a near one, or the list."""
    names = sorted(str(name) for name in known)
    near = difflib.get_close_matches(word, names, n=1)
    if near:
        return f". Did you mean {near[0]!r}?"
    return f"; allowed: {', '.join(names)}." if names else "."
