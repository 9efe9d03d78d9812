"""Decide exactly which data set of a mixture gives each training example.

The order of a mixture depends only on the position in training: resuming needs no
state, and the number of examples that each data set has given after n is computed, not
counted. Every stretch has the shares of the whole, as nearly as whole examples can.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from handjax.errors import UserError


class Order:
    """Order of the sources in an endless mixture."""

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

        Each source in turn takes its share, rounded up, of what the sources before it
        have left; so a count differs from its share by fewer examples than there are
        sources.
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
