"""Mixtures of data sets: whose example comes when, exactly.

The order of a mixture is a function of the position in training alone: nothing has to
be remembered to resume it, and how many examples each data set has given after n is
known without counting them. Every stretch of it has the shares of the whole, as nearly
as whole examples can.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from handjax.errors import UserError


class Order:
    """Which source gives the example at each place of an endless mixture."""

    def __init__(self, weights: Sequence[float]):
        """Take weights by their decimals: three times 0.1 is 0.3 here.

        Raises:
            UserError: Without weights, or with one that is not positive.
        """
        if not weights or not all(0 < weight < math.inf for weight in weights):
            raise UserError(
                f"Weights {list(weights)} of the data mixture must be positive, and "
                "there must be at least one."
            )
        exact = [Fraction(repr(float(weight))) for weight in weights]
        whole = math.lcm(*(weight.denominator for weight in exact))
        self._parts = [int(weight * whole) for weight in exact]

    def drawn(self, count: int) -> list[int]:
        """Return how many of the first `count` examples each source has given.

        One after the other takes its share, rounded up, of what those before it have
        left; so none is ever as many examples away from its share as there are sources.
        """
        found, rest = [], sum(self._parts)
        for part in self._parts:
            left = count * (rest - part) // rest
            found.append(count - left)
            count, rest = left, rest - part
        return found

    def at(self, position: int) -> tuple[int, int]:
        """Return the source of the example at a position, and its number there."""
        before, after = self.drawn(position), self.drawn(position + 1)
        source = next(i for i, n in enumerate(after) if n > before[i])
        return source, before[source]


class Drawn(NamedTuple):
    """Examples that training takes of one data set."""

    name: str
    examples: int
    size: int
    """Examples of one epoch."""

    @property
    def epochs(self) -> float:
        """Number of passes through the data set."""
        return self.examples / self.size


def describe(drawn: Sequence[Drawn]) -> str:
    """Describe the draws: `160 of freihand (1.60 epochs of 100)`, a line each."""
    lines = [
        f"{each.examples:,} of {each.name} ({each.epochs:.2f} epochs of {each.size:,})"
        for each in drawn
    ]
    if len(lines) == 1:
        return lines[0]
    whole = sum(each.examples for each in drawn)
    shares = [f"{100 * each.examples / max(whole, 1):.1f} %" for each in drawn]
    lines = [f"  {x:>6}  {line}" for x, line in zip(shares, lines, strict=True)]
    return "\n".join([f"{whole:,} examples:", *lines])
