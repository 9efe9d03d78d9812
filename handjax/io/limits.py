"""Limits of what a small file may grow to; an environment variable raises each.

A packed file, a picture or a pickle of some kilobytes can ask for more memory than any
machine has. Honest files stay far below these limits; whoever has a larger one sets the
variable that the message names.
"""

import dataclasses
import os

from handjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Limit:
    """A largest number, and the environment variable that changes it."""

    variable: str
    default: int

    @property
    def value(self) -> int:
        """Return the number that holds now.

        Raises:
            UserError: The environment variable is not a whole number above zero.
        """
        text = os.environ.get(self.variable, "")
        if not text:
            return self.default
        if not text.isascii() or not text.isdigit() or len(text) > 18 or not int(text):
            raise UserError(
                f"the environment variable {self.variable}={text[:40]!r} is not a "
                "whole number above zero."
            )
        return int(text)

    def check(self, count: int, what: str) -> None:
        """Refuse a count above the limit; `what` begins the message.

        Raises:
            UserError: Names the count, the limit and the variable.
        """
        if count > (most := self.value):
            raise UserError(
                f"{what}: more than {most:,}. If you trust the file, set "
                f"{self.variable}={count}."
            )


PIXELS = Limit("HANDJAX_MAX_PIXELS", 1 << 26)
"""Pixels of a picture: 67 million. Decoding takes about 12 bytes for each."""

UNPACKED_BYTES = Limit("HANDJAX_MAX_UNPACKED_BYTES", 1 << 29)
"""Bytes that a part of a packed file (zip, npz, pt, gz) may have when unpacked, unless
that is at most `FAIR_RATIO` times what it takes in the file."""

FAIR_RATIO = 4
"""Times its packed size that a part of any size may have; arrays rarely reach 2."""

PICKLE_STEPS = Limit("HANDJAX_MAX_PICKLE_STEPS", 50_000_000)
"""Opcodes of a pickle; a million takes about half a second."""

PICKLE_CONTAINERS = Limit("HANDJAX_MAX_PICKLE_CONTAINERS", 5_000_000)
"""Lists, tuples, dicts and sets of a pickle."""


def check_unpacked(packed: int, unpacked: int, name: str) -> None:
    """Check what a part of a packed file says about its own size, in bytes.

    Raises:
        UserError: It grows too much; the message begins with `name`.
    """
    if unpacked > FAIR_RATIO * packed:
        UNPACKED_BYTES.check(
            unpacked, f"{name}: {packed:,} bytes unpack to {unpacked:,} bytes"
        )
