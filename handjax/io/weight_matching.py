"""Compare foreign weights with a network, and report how they do not fit."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from handjax.errors import UserError

Shape = tuple[int, ...]

_SHOWN = 8


class ConversionError(UserError):
    """Weights do not fit; the message and the object have four lists.

    Shapes are those of handjax's layout (kernels end in their outputs).
    """

    def __init__(
        self,
        name: str,
        advice: str,
        *,
        only_in_file: Sequence[str],
        missing: Sequence[str],
        other_shapes: Mapping[str, tuple[Shape, Shape]],
        skipped: Sequence[str] = (),
        given: Any = None,
    ):
        self.name, self.advice, self.given = name, advice, given
        self.only_in_file, self.missing = tuple(only_in_file), tuple(missing)
        self.other_shapes, self.skipped = dict(other_shapes), tuple(skipped)
        shapes = [
            f"{key} ({_times(file)} in the file, {_times(network)} in the network)"
            for key, (file, network) in self.other_shapes.items()
        ]
        super().__init__(
            f"The weights do not fit {name}. "
            f"Only in the file: {_listed(self.only_in_file)}. "
            f"Missing from the file: {_listed(self.missing)}. "
            f"Of another shape: {_listed(shapes)}. "
            f"Skipped by rule: {_listed(self.skipped)}. {advice}"
        )

    @property
    def count(self) -> int:
        """Number of entries that differ."""
        return len(self.only_in_file) + len(self.missing) + len(self.other_shapes)

    def renamed(
        self, called: Callable[[str], str], skipped: Sequence[str]
    ) -> "ConversionError":
        """Return the same with the file's names, and what the file skips."""
        return ConversionError(
            self.name,
            self.advice,
            only_in_file=[called(key) for key in self.only_in_file],
            missing=[called(key) for key in self.missing],
            other_shapes={called(key): v for key, v in self.other_shapes.items()},
            skipped=skipped,
        )


def check(
    given: Mapping[str, Shape],
    expected: Mapping[str, Shape],
    *,
    name: str,
    advice: str,
    skipped: Sequence[str] = (),
    variables: Any = None,
) -> None:
    """Compare names and shapes.

    Args:
        given: Shapes of the weights by path.
        expected: Shapes of the network.
        name: Name of the network in the message.
        advice: Last sentence of the message.
        skipped: Entries of the file that a rule left out.
        variables: Kept as `ConversionError.given`.

    Raises:
        ConversionError: An entry is too many, missing or of another shape.
    """
    shapes = {
        key: (given[key], expected[key])
        for key in sorted(given.keys() & expected.keys())
        if given[key] != expected[key]
    }
    extra = sorted(given.keys() - expected.keys())
    missing = sorted(expected.keys() - given.keys())
    if extra or missing or shapes:
        raise ConversionError(
            name,
            advice,
            only_in_file=extra,
            missing=missing,
            other_shapes=shapes,
            skipped=skipped,
            given=variables,
        )


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if names[_SHOWN:] else ""
    if not names:
        return "0 entries"
    many = "entry" if len(names) == 1 else "entries"
    return f"{len(names)} {many}, {', '.join(names[:_SHOWN])}{more}"


def _times(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "a number"
